//! `meshctl replay FILE`: rebuilds an agent's brain from a recording, and compares what it decides.

use std::{
    fs::File,
    io::{BufRead, BufReader, Split},
    iter::Enumerate,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use meshd_core::{Config, WATCHED, World};
use model::{
    Action, Event, Kind, Moment,
    recording::{OLDEST_RECORDING_VERSION, PlanDigest, RECORDING_VERSION, Recorded},
};
use serde::Deserialize;

use crate::status::Output;

/// The first version of recordings that speaks of policy.
const WITH_POLICY: u32 = 3;

/// The kinds that earlier brains listened to.
const WITHOUT_POLICY: [Kind; 7] = [
    Kind::Node,
    Kind::IPPool,
    Kind::IPAMBlock,
    Kind::FelixConfiguration,
    Kind::MeshConfiguration,
    Kind::KeyClaim,
    Kind::AddressClaim,
];

/// Feeds a recording of `meshd agent --record FILE` to a fresh brain and shows what it made of it.
///
/// The brain must ask for the same actions and make the same plans as the one that was recorded.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl replay agent.jsonl\n  meshctl replay agent.jsonl --until 12.5 -o json\n  meshctl replay agent.jsonl --show actions\n\nExit status: 0 as recorded, 1 not readable, 3 the brain decides otherwise."
)]
pub(crate) struct Args {
    /// The recording.
    file: PathBuf,

    /// Stop each run after this many seconds.
    #[arg(long)]
    until: Option<f64>,

    /// What to show.
    #[arg(long, value_enum, default_value_t)]
    show: Show,

    /// How to print the status.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What a replay shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Show {
    /// The status at the end of the last run.
    #[default]
    Status,
    /// The plan at the end of the last run.
    Plan,
    /// Every action, with its moment.
    Actions,
}

#[derive(Deserialize)]
struct Header {
    recording: String,
    version: u32,
    config: Config,
}

/// A line as it was read.
enum Line {
    Header(Header),
    Recorded(Box<Recorded>),
    /// It is no JSON of ours, for this reason.
    Unreadable(serde_json::Error),
}

/// The lines of a file, read one by one.
struct Lines<R: BufRead> {
    lines: Enumerate<Split<R>>,
    /// One that was read ahead.
    next: Option<(usize, Line)>,
}

/// A run of an agent, done again.
struct Run {
    world: World,
    now: Moment,
    /// The recording says what a brain like ours decided.
    has_decisions: bool,
}

/// What was replayed so far.
#[derive(Default)]
struct Tally {
    runs: usize,
    events: usize,
    actions: usize,
    plans: usize,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (run, tally, difference) = play(&args.file, args.until, args.show)?;
    run.show(args)?;

    Ok(tally.close(difference.as_deref(), run.has_decisions))
}

/// Returns the brain as it was so many seconds after the last start that a recording holds, or at its end; a brain that
/// decides otherwise than the recorded one is reported, and is what it was then.
pub(crate) fn world(file: &Path, until: Option<f64>) -> anyhow::Result<(World, Moment)> {
    let (run, _, difference) = play(file, until, Show::Status)?;
    if let Some(difference) = difference {
        crate::warn(&format!(
            "this meshctl decides otherwise than the agent did: {difference}"
        ));
    }

    Ok((run.world, run.now))
}

/// Feeds a recording to a fresh brain, up to where it decides otherwise than it says.
fn play(
    file: &Path,
    until: Option<f64>,
    show: Show,
) -> anyhow::Result<(Run, Tally, Option<String>)> {
    let opened = File::open(file)
        .with_context(|| format!("could not read the recording {}", file.display()))?;
    let mut lines = Lines::new(BufReader::new(opened));
    let mut tally = Tally::default();
    let mut run: Option<Run> = None;
    let mut difference = None;
    while let Some((number, line)) = lines.next_whole()? {
        let recorded = match line {
            Line::Header(header) => {
                tally.runs += 1;
                run = Some(Run::begin(header)?);
                continue;
            }
            Line::Recorded(recorded) => recorded,
            Line::Unreadable(error) => {
                return Err(error).context(format!("line {number} cannot be read"));
            }
        };
        let run = run.as_mut().context("line 1 is not a recording's header")?;
        let second = recorded.at.since_start().as_secs_f64();
        if until.is_some_and(|until| second > until) {
            continue;
        }
        if let Some(what) = run.follow(*recorded, show, &mut tally)? {
            difference = Some(format!("line {number} ({second:.3} s): {what}"));
            break;
        }
    }
    let run = run.context("the recording is empty")?;

    Ok((run, tally, difference))
}

impl<R: BufRead> Lines<R> {
    fn new(file: R) -> Self {
        Self {
            lines: file.split(b'\n').enumerate(),
            next: None,
        }
    }

    /// Returns the next line and its number; one that a killed agent left torn is passed over.
    fn next_whole(&mut self) -> anyhow::Result<Option<(usize, Line)>> {
        let line = match self.next.take() {
            Some(line) => Some(line),
            None => self.read()?,
        };
        let Some((number, Line::Unreadable(error))) = line else {
            return Ok(line);
        };
        self.next = self.read()?;
        let is_last = matches!(self.next, None | Some((_, Line::Header(_))));
        if is_last && number > 1 {
            return Ok(self.next.take());
        }

        Ok(Some((number, Line::Unreadable(error))))
    }

    fn read(&mut self) -> anyhow::Result<Option<(usize, Line)>> {
        let Some((index, text)) = self.lines.next() else {
            return Ok(None);
        };
        let text = text.context("the recording cannot be read to its end")?;

        Ok(Some((index + 1, parse(&text))))
    }
}

fn parse(text: &[u8]) -> Line {
    if let Ok(header) = serde_json::from_slice(text) {
        return Line::Header(header);
    }

    match serde_json::from_slice(text) {
        Ok(recorded) => Line::Recorded(Box::new(recorded)),
        Err(error) => Line::Unreadable(error),
    }
}

impl Run {
    fn begin(header: Header) -> anyhow::Result<Self> {
        let versions = OLDEST_RECORDING_VERSION..=RECORDING_VERSION;
        if header.recording != "meshd" || !versions.contains(&header.version) {
            bail!(
                "the recording has version {}, this meshctl reads {OLDEST_RECORDING_VERSION} to {RECORDING_VERSION}",
                header.version
            );
        }

        let mut world = World::new(header.config);
        let knows_policy = header.version >= WITH_POLICY;
        if !knows_policy {
            for kind in WATCHED.iter().filter(|kind| !WITHOUT_POLICY.contains(kind)) {
                world.apply(Event::InSync(*kind), Moment::START);
            }
        }

        Ok(Self {
            world,
            now: Moment::START,
            has_decisions: knows_policy,
        })
    }

    /// Does what the line says was done; returns how the brain decides otherwise, if it does.
    fn follow(
        &mut self,
        recorded: Recorded,
        show: Show,
        tally: &mut Tally,
    ) -> anyhow::Result<Option<String>> {
        self.now = self.now.max(recorded.at);
        if let Some(event) = recorded.event {
            tally.events += 1;
            self.world.apply(event, recorded.at);
            if !self.has_decisions {
                while let Some(action) = self.world.poll_action() {
                    self.print(&action, show, tally)?;
                }
            }
        }
        if let Some(expected) = recorded.action {
            let decided = self.world.poll_action();
            if decided.as_ref() != Some(&expected) {
                return Ok(Some(differs("action", &Some(expected), &decided)?));
            }
            self.print(&expected, show, tally)?;
        }
        let Some(expected) = recorded.plan else {
            return Ok(None);
        };
        tally.plans += 1;
        if let Some(more) = self.world.poll_action() {
            return Ok(Some(differs("action", &None::<Action>, &Some(more))?));
        }
        let planned = PlanDigest::of(self.world.plan());

        (planned != expected)
            .then(|| differs("plan", &expected, &planned))
            .transpose()
    }

    #[expect(clippy::print_stdout, reason = "this is what the command is for")]
    fn print(&self, action: &Action, show: Show, tally: &mut Tally) -> anyhow::Result<()> {
        tally.actions += 1;
        if show == Show::Actions {
            let second = self.now.since_start().as_secs_f64();
            println!("{second:10.3} {}", serde_json::to_string(action)?);
        }

        Ok(())
    }

    #[expect(clippy::print_stdout, reason = "this is what the command is for")]
    fn show(&self, args: &Args) -> anyhow::Result<()> {
        let mut world = self.world.clone();
        match (args.show, args.output) {
            (Show::Actions, _) => {}
            (Show::Plan, _) => println!("{:#?}", world.plan()),
            (Show::Status, Output::Json) => {
                println!("{}", serde_json::to_string_pretty(&world.status(self.now))?);
            }
            (Show::Status, Output::Table) => {
                print!("{}", crate::status::render(&world.status(self.now))?);
            }
        }

        Ok(())
    }
}

impl Tally {
    /// Says on standard error, beside what was asked for, whether all was decided as recorded.
    #[expect(
        clippy::print_stderr,
        reason = "standard output holds the status alone"
    )]
    fn close(&self, difference: Option<&str>, has_decisions: bool) -> ExitCode {
        let Self {
            runs,
            events,
            actions,
            plans,
        } = self;
        let what = format!("{runs} runs, {events} events, {actions} actions, {plans} plans");
        match difference {
            Some(difference) => {
                eprintln!("Replayed {what}; then it differs: {difference}");
                ExitCode::from(3)
            }
            None if has_decisions => {
                eprintln!("Replayed {what}: as recorded");
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("Replayed {what}; the recording does not say what was decided");
                ExitCode::SUCCESS
            }
        }
    }
}

fn differs(
    what: &str,
    recorded: &impl serde::Serialize,
    replayed: &impl serde::Serialize,
) -> anyhow::Result<String> {
    let (recorded, replayed) = (
        serde_json::to_string(recorded)?,
        serde_json::to_string(replayed)?,
    );

    Ok(format!(
        "another {what}: recorded {recorded}, replayed {replayed}"
    ))
}
