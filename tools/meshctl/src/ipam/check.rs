//! `meshctl ipam check`: the records beside each other, and beside pods and nodes.

use std::{process::ExitCode, time::Duration};

use cni_ipam::{Collector, Finding, Repaired, audit, repair, step::LIFETIME};
use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde_json::json;
use store::{Store, drive};

use super::records::{self, Steps};
use crate::status::Output;

/// Most that one run puts right.
const REPAIRS_MAX: usize = 10_000;

/// How much longer than any operation may take the second look waits.
const MARGIN: Duration = Duration::from_secs(1);

/// Finds what is wrong with the records of blocks, affinities, handles and addresses.
///
/// One look may see somebody at work. With --fix, what is certain is put right at once; the rest is looked at again
/// after a minute and a half, and put right if it has not changed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Put right what can be.
    #[arg(long)]
    fix: bool,

    /// With --fix: only what one look is enough for.
    #[arg(long, requires = "fix")]
    no_wait: bool,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
pub(super) async fn run(store: &dyn Store, args: Args) -> anyhow::Result<ExitCode> {
    let mut findings = look(store).await?;
    let mut fixed = Vec::new();
    if args.fix {
        let mut collector = Collector::new(Duration::ZERO, REPAIRS_MAX);
        fixed.extend(put_right(store, &mut collector, &findings).await?);
        let waits = |it: &Finding| it.repair.is_some() && !it.fault.is_certain();
        if findings.iter().any(waits) && !args.no_wait {
            tokio::time::sleep(LIFETIME + MARGIN).await;
            let again = look(store).await?;
            fixed.extend(put_right(store, &mut collector, &again).await?);
        }
        findings = look(store).await?;
    }
    print(&findings, &fixed, args.output)?;

    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

async fn look(store: &dyn Store) -> anyhow::Result<Vec<Finding>> {
    let (snapshot, facts) = records::read(store).await?;

    Ok(audit(&snapshot, &facts, Timestamp::now()))
}

async fn put_right(
    store: &dyn Store,
    collector: &mut Collector,
    findings: &[Finding],
) -> anyhow::Result<Vec<Finding>> {
    let now = Timestamp::now();
    let rules = records::rules(store).await?;
    let mut fixed = Vec::new();
    for (finding, what) in collector.collect(findings, now) {
        let operation = repair(what, rules.clone(), now);
        if drive(&Steps(store), operation).await?? == Repaired::Done {
            fixed.push(finding);
        }
    }

    Ok(fixed)
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn print(findings: &[Finding], fixed: &[Finding], output: Output) -> anyhow::Result<()> {
    let entry = |it: &Finding| {
        json!({
            "fault": format!("{:?}", it.fault),
            "what": it.fault.as_str(),
            "subject": it.subject,
            "repairable": it.repair.is_some(),
            "certain": it.fault.is_certain(),
        })
    };
    match output {
        Output::Json => {
            let findings: Vec<_> = findings.iter().map(entry).collect();
            let fixed: Vec<_> = fixed.iter().map(entry).collect();
            let report = json!({"findings": findings, "fixed": fixed});
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Output::Table => {
            for it in fixed {
                println!("put right: {it}");
            }
            if findings.is_empty() {
                println!("nothing is wrong");
            } else {
                println!("{}", table(findings));
            }
        }
    }

    Ok(())
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["FAULT", "SUBJECT", "REPAIR"]);
    for it in findings {
        let repair = match (&it.repair, it.fault.is_certain()) {
            (None, _) => "by hand",
            (Some(_), true) => "--fix",
            (Some(_), false) => "--fix, if it is still so after 90 s",
        };
        table.add_row([it.fault.as_str(), &it.subject, repair]);
    }

    table
}
