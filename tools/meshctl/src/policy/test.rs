//! `meshctl policy test FILE…`: are the packets that should pass those that do?

use std::{
    fs,
    io::{IsTerminal, Write, stderr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use policy::scenario::{DecisionEntry, Difference, Entry, Report};
use serde_json::{Value, json};

use super::{
    file::{self, Case},
    junit, live,
};
use crate::{say, status::Output};

/// From this many files on a terminal is shown how far the work is.
const MANY_FILES: usize = 10;

/// Checks policy tests: a topology, resources, and which packets are to pass.
///
/// Nothing is sent and no cluster is asked: an evaluator of its own decides, which follows the documentation of Calico
/// and Kubernetes step by step. With --live each test is built as a lab on this machine (as root), and its packets are
/// sent. docs/policy-test.md describes the format.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl policy test shop.yaml\n  meshctl policy test policies/*.yaml --junit report.xml\n  meshctl policy test shop.yaml --live\n  meshctl policy test shop.yaml -o json | jq '.tests[].failures'\n\nExit status: 0 as expected, 1 a file or a resource cannot be used, 2 usage, 3 a verdict differs."
)]
pub(crate) struct Args {
    /// Files with policy tests; - is the standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Build each test in a lab, and send real packets.
    #[arg(long)]
    live: bool,

    /// How to print what was found.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,

    /// Write the results here too, in JUnit's XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// What became of one policy test.
pub(super) struct Result {
    /// Where it stands, and its name.
    pub(super) name: String,
    /// Why it could not be used.
    pub(super) unusable: Option<String>,
    pub(super) findings: Vec<Finding>,
    /// What could not be sent, and why.
    unsent: Vec<String>,
    report: Report,
}

/// One verdict or one refused object.
pub(super) struct Finding {
    /// What was asked.
    pub(super) name: String,
    /// What is not as expected.
    pub(super) wrong: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut results = Vec::new();
    for (index, path) in args.files.iter().enumerate() {
        progress(index, args.files.len());
        match file::read(path) {
            Ok(cases) => {
                for case in &cases {
                    results.push(check(case, args.live.then_some(results.len())));
                }
            }
            Err(error) => results.push(unusable(path.display().to_string(), &error)),
        }
    }
    progress(args.files.len(), args.files.len());
    if let Some(path) = &args.junit {
        fs::write(path, junit::render(&results))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match args.output {
        Output::Json => say(&serde_json::to_string_pretty(&as_json(&results))?),
        Output::Table => print(&results),
    }

    Ok(code(&results))
}

/// Checks a case: by the evaluator, or, under a number of its own, in a lab.
fn check(case: &Case, live: Option<usize>) -> Result {
    let name = match case.test.metadata.name.as_str() {
        "" => case.place.clone(),
        name => format!("{} ({name})", case.place),
    };
    let (report, unsent) = match verdicts(case, live) {
        Ok(found) => found,
        Err(error) => return unusable(name, &error),
    };
    let verdicts = report.verdicts.iter().map(|entry| Finding {
        name: question(entry),
        wrong: entry
            .difference
            .as_ref()
            .map(|difference| wrong(entry, difference)),
    });
    let refused = report.errors.iter().map(|error| Finding {
        name: error.resource.clone(),
        wrong: Some(format!("refused: {}: {}", error.field, error.message)),
    });

    Result {
        name,
        unusable: None,
        findings: verdicts.chain(refused).collect(),
        unsent,
        report,
    }
}

fn verdicts(case: &Case, live: Option<usize>) -> anyhow::Result<(Report, Vec<String>)> {
    case.test.check()?;
    let Some(number) = live else {
        return Ok((case.test.run(&case.sources)?, Vec::new()));
    };
    let found = live::run(case, number)?;

    Ok((found.report, found.unsent))
}

fn unusable(name: String, error: &anyhow::Error) -> Result {
    Result {
        name,
        unusable: Some(format!("{error:#}")),
        findings: Vec::new(),
        unsent: Vec::new(),
        report: Report::default(),
    }
}

pub(super) fn question(entry: &Entry) -> String {
    let mut name = format!(
        "step {} probe {}: {} -> {} {} IPv{}",
        entry.step,
        entry.probe,
        entry.from,
        entry.to,
        target(entry),
        entry.family
    );
    if entry.step == 0 {
        name.drain(.."step 0 ".len());
    }

    name
}

fn target(entry: &Entry) -> String {
    let protocol = entry
        .protocol
        .as_str()
        .map_or_else(|| format!("protocol {}", entry.protocol), str::to_owned);
    match entry.port {
        Some(port) => format!("{protocol}/{port}"),
        None => protocol,
    }
}

fn wrong(entry: &Entry, difference: &Difference) -> String {
    let found = entry.verdict.as_str();
    let decided = entry
        .decisions
        .last()
        .map_or_else(|| "nobody was asked".to_owned(), decision);
    match difference {
        Difference::Verdict(wanted) => format!("expected {wanted}, found {found}: {decided}"),
        Difference::By(wanted) => format!("expected {found} by {wanted}, found: {decided}"),
    }
}

fn decision(decision: &DecisionEntry) -> String {
    let tier = match (&decision.tier, decision.tier_default) {
        (Some(tier), false) => format!(" (tier {tier})"),
        (Some(_) | None, _) => String::new(),
    };

    format!(
        "{}{tier} at {} of {}",
        decision.by(),
        decision.point,
        decision.endpoint
    )
}

fn print(results: &[Result]) {
    for result in results.iter().filter(|result| result.unusable.is_some()) {
        let why = result.unusable.as_deref().unwrap_or_default();
        say(&format!("{}: cannot be used: {why}", result.name));
    }
    let failed: Vec<&Result> = results
        .iter()
        .filter(|result| result.findings.iter().any(|one| one.wrong.is_some()))
        .collect();
    for result in failed {
        say(&format!("{}\n{}", result.name, table(&result.report)));
        for error in &result.report.errors {
            let path = match error.field.as_str() {
                "" => String::new(),
                field => format!("{field}: "),
            };
            say(&format!(
                "  refused: {}: {path}{}",
                error.resource, error.message
            ));
        }
        say("");
    }
    for result in results {
        for unsent in &result.unsent {
            say(&format!("{}: not sent: {unsent}", result.name));
        }
    }
    say(&summary(results));
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "PROBE",
            "FROM",
            "TO",
            "PACKET",
            "EXPECTED",
            "FOUND",
            "POINT",
            "ENDPOINT",
            "TIER",
            "DECIDED BY",
        ]);
    let differing = report.verdicts.iter().filter_map(|entry| {
        entry
            .difference
            .as_ref()
            .map(|difference| (entry, difference))
    });
    let mut rows = 0;
    for (entry, difference) in differing {
        rows += 1;
        let wanted = match difference {
            Difference::Verdict(wanted) => (*wanted).to_owned(),
            Difference::By(wanted) => format!("{} by {wanted}", entry.verdict.as_str()),
        };
        let last = entry.decisions.last();
        let text =
            |field: &dyn Fn(&DecisionEntry) -> String| last.map_or_else(|| "-".into(), field);
        table.add_row([
            place(entry),
            entry.from.clone(),
            entry.to.clone(),
            format!("{} IPv{}", target(entry), entry.family),
            wanted,
            entry.verdict.as_str().to_owned(),
            text(&|decision| decision.point.to_owned()),
            text(&|decision| decision.endpoint.clone()),
            text(&|decision| decision.tier.clone().unwrap_or_else(|| "-".into())),
            text(&DecisionEntry::by),
        ]);
    }
    if rows == 0 {
        return String::new();
    }

    table.to_string()
}

fn place(entry: &Entry) -> String {
    match entry.step {
        0 => entry.probe.to_string(),
        step => format!("step {step}: {}", entry.probe),
    }
}

fn summary(results: &[Result]) -> String {
    let verdicts: usize = results
        .iter()
        .map(|result| result.report.verdicts.len())
        .sum();
    let (differ, refused, unusable) = counts(results);
    let mut text = format!(
        "{}, {}: ",
        counted(results.len(), "test"),
        counted(verdicts, "verdict")
    );
    let wrong: Vec<String> = [
        (differ, format!("{differ} not as expected")),
        (refused, format!("{} refused", counted(refused, "resource"))),
        (unusable, format!("{} unusable", counted(unusable, "test"))),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(_, text)| text)
    .collect();
    let unsent: usize = results.iter().map(|result| result.unsent.len()).sum();
    if unsent > 0 {
        text.push_str(&format!("{unsent} not sent, "));
    }
    text.push_str(&if wrong.is_empty() {
        "all as expected".to_owned()
    } else {
        wrong.join(", ")
    });

    text
}

fn counted(count: usize, what: &str) -> String {
    let end = if count == 1 { "" } else { "s" };

    format!("{count} {what}{end}")
}

fn counts(results: &[Result]) -> (usize, usize, usize) {
    let differ = results
        .iter()
        .flat_map(|result| &result.report.verdicts)
        .filter(|entry| entry.difference.is_some());
    let refused = results.iter().map(|result| result.report.errors.len());
    let unusable = results.iter().filter(|result| result.unusable.is_some());

    (differ.count(), refused.sum(), unusable.count())
}

fn code(results: &[Result]) -> ExitCode {
    match counts(results) {
        (0, 0, 0) => ExitCode::SUCCESS,
        (_, 0, 0) => ExitCode::from(3),
        (..) => ExitCode::FAILURE,
    }
}

fn as_json(results: &[Result]) -> Value {
    let tests: Vec<Value> = results
        .iter()
        .map(|result| {
            let failures = result.findings.iter().filter_map(|finding| {
                let wrong = finding.wrong.as_ref()?;
                Some(json!({"name": finding.name, "message": wrong}))
            });
            json!({
                "name": result.name,
                "unusable": result.unusable,
                "verdicts": result.report.verdicts,
                "errors": result.report.errors,
                "unsent": result.unsent,
                "failures": failures.collect::<Vec<_>>(),
            })
        })
        .collect();

    json!({"tests": tests})
}

/// Tells a person how far the work is. A terminal that cannot be written to is no reason to stop.
fn progress(done: usize, all: usize) {
    if all < MANY_FILES || !stderr().is_terminal() {
        return;
    }
    let end = if done == all { "\r\u{1b}[K" } else { "" };
    let _ = write!(stderr().lock(), "\r{done}/{all} files{end}");
}
