//! `meshctl why FROM TO`: why a packet passes or not, and which way it goes.

mod packet;
mod show;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use meshd_core::why::{Probe, Why};
use policy::{Verdict, explain};
use serde_json::Value;

use crate::{agent, policy::file, replay, say, wait_for};

/// Says why a packet passes or not: who decides at each end and why, which way it goes, and what would turn that round.
///
/// FROM and TO are NAMESPACE/POD, node/NAME or an address, TO also service/NAMESPACE/NAME; behind TO stands the port
/// and the protocol (`:8080/tcp`), TCP if not said, or `/icmp`. Arrows between them are passed over.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl why shop/web shop/api:8080/tcp\n  meshctl why 203.0.113.9 '->' node/n1:22\n  meshctl why shop/web service/shop/db:5432 -o yaml | meshctl apply -f -    make the smallest change\n  meshctl why shop/web shop/api:8080 --replay agent.jsonl --until 12.5\n  meshctl why shop/web shop/api:8080 --in shop.yaml                         of a policy test\n\nExit status: 0 answered, whatever the verdict; 1 failed, 2 usage, 3 the verdict is not what --expect says."
)]
pub(crate) struct Args {
    /// FROM, TO.
    #[arg(required = true, num_args = 2..=3, value_names = ["FROM", "TO"])]
    packet: Vec<String>,

    /// The port that it comes from.
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,

    /// ICMP's type and code; an echo request if not said.
    #[arg(long, value_name = "TYPE/CODE")]
    icmp: Option<String>,

    /// The agent's socket.
    #[arg(long, env = "MESHD_SOCKET", default_value = "/run/meshd/meshd.sock")]
    socket: PathBuf,

    /// Ask what an agent knew that was recorded (`meshd agent --record FILE`), at the end of its last run.
    #[arg(long, value_name = "FILE", conflicts_with = "test")]
    replay: Option<PathBuf>,

    /// Or so many seconds after its start.
    #[arg(long, value_name = "SECONDS", requires = "replay")]
    until: Option<f64>,

    /// Ask about the cluster of a policy test, before its steps.
    #[arg(long = "in", value_name = "FILE")]
    test: Option<PathBuf>,

    /// What the verdict should be.
    #[arg(long, value_name = "VERDICT", value_enum)]
    expect: Option<Expected>,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What a verdict should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Expected {
    Allow,
    Deny,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// The objects of the smallest change that turns the verdict round, as `meshctl apply` takes them.
    Yaml,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let asked = packet::read(&args.packet, args.source_port, args.icmp.as_deref())?;
    let answers = ask(&args, &asked)?;
    match args.output {
        Output::Json => say(&serde_json::to_string_pretty(&answers)?),
        Output::Table => answers.iter().for_each(|answer| say(&show::render(answer))),
        Output::Yaml => say(&objects(&answers)?),
    }
    let wrong = args.expect.is_some_and(|expected| {
        let wanted = match expected {
            Expected::Allow => Verdict::Allow,
            Expected::Deny => Verdict::Deny,
        };
        answers
            .iter()
            .any(|answer| answer.explanation.verdict != wanted)
    });

    Ok(ExitCode::from(if wrong { 3 } else { 0 }))
}

/// An answer, with the way where somebody knows it.
struct Answer {
    explanation: explain::Explanation,
    why: Option<Why>,
}

impl serde::Serialize for Answer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.why {
            Some(why) => why.serialize(serializer),
            None => self.explanation.serialize(serializer),
        }
    }
}

impl From<Why> for Answer {
    fn from(why: Why) -> Self {
        Self {
            explanation: why.explanation.clone(),
            why: Some(why),
        }
    }
}

fn ask(args: &Args, asked: &Value) -> anyhow::Result<Vec<Answer>> {
    if let Some(path) = &args.test {
        let cases = file::read(path)?;
        let [case] = &cases[..] else {
            bail!(
                "{}: one policy test is expected, there are {}",
                path.display(),
                cases.len()
            );
        };
        let found = case.test.why(&case.sources, &Probe::parse(asked)?)?;

        return Ok(found
            .into_iter()
            .map(|explanation| Answer {
                explanation,
                why: None,
            })
            .collect());
    }
    let answers: Vec<Why> = match &args.replay {
        Some(file) => {
            let (world, now) = replay::world(file, args.until)?;
            world.inquire(world.peers(now)).why(&Probe::parse(asked)?)?
        }
        None => wait_for(agent::post(&args.socket, "/v1/why", asked))?,
    };

    Ok(answers.into_iter().map(Answer::from).collect())
}

/// Returns the objects of the smallest change that objects alone can make.
fn objects(answers: &[Answer]) -> anyhow::Result<String> {
    let mut documents = Vec::new();
    for answer in answers {
        let flips = answer.explanation.flips.iter();
        let whole = { flips }.find(|flip| flip.changes.len() == flip.manifests.len());
        for manifest in whole.iter().flat_map(|flip| &flip.manifests) {
            if !documents.contains(manifest) {
                documents.push(manifest.clone());
            }
        }
    }
    if documents.is_empty() {
        bail!("no object alone turns the verdict round; without -o yaml all ways are told");
    }
    let texts: Result<Vec<String>, _> = documents.iter().map(serde_yaml_ng::to_string).collect();

    Ok(texts
        .context("the change cannot be written as YAML")?
        .join("---\n"))
}
