//! `meshctl replay FILE`: rebuilds an agent's brain from a recording.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use meshd_core::{Config, World};
use model::{
    Moment,
    event::{EVENT_VERSION, Recorded},
};
use serde::Deserialize;

use crate::status::Output;

/// Feeds a recording of `meshd agent --record FILE` to a fresh brain and shows what it made of it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl replay agent.jsonl\n  meshctl replay agent.jsonl --until 12.5 -o json\n  meshctl replay agent.jsonl --show actions"
)]
pub(crate) struct Args {
    /// The recording.
    file: PathBuf,

    /// Stop after this many seconds of the recording.
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
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Show {
    /// The status at the end.
    #[default]
    Status,
    /// The plan at the end.
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

/// Runs the command.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = File::open(&args.file)
        .with_context(|| format!("could not read the recording {}", args.file.display()))?;
    let mut lines = BufReader::new(file).lines();
    let first = lines.next().context("the recording is empty")??;
    let header: Header =
        serde_json::from_str(&first).context("line 1 is not a recording's header")?;
    if header.recording != "meshd" || header.version != EVENT_VERSION {
        bail!(
            "the recording has version {}, this meshctl reads {EVENT_VERSION}",
            header.version
        );
    }

    let mut world = World::new(header.config);
    let mut now = Moment::START;
    for (number, line) in lines.enumerate() {
        let recorded: Recorded = serde_json::from_str(&line?)
            .with_context(|| format!("line {} is not an event", number + 2))?;
        if args
            .until
            .is_some_and(|until| recorded.at.since_start().as_secs_f64() > until)
        {
            break;
        }
        now = recorded.at;
        world.apply(recorded.event, now);
        while let Some(action) = world.poll_action() {
            if matches!(args.show, Show::Actions) {
                println!(
                    "{:10.3} {}",
                    now.since_start().as_secs_f64(),
                    serde_json::to_string(&action)?
                );
            }
        }
    }

    match (args.show, args.output) {
        (Show::Actions, _) => {}
        (Show::Plan, _) => println!("{:#?}", world.plan()),
        (Show::Status, Output::Json) => {
            println!("{}", serde_json::to_string_pretty(&world.status(now))?)
        }
        (Show::Status, Output::Table) => print!("{}", crate::status::render(&world.status(now))?),
    }

    Ok(ExitCode::SUCCESS)
}
