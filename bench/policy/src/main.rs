//! Loads policy into the kernel of the network namespace where it is started, and prints what that took (JSON).
//!
//! ```text
//! bench-policy endpoints COUNT   COUNT pods of this node, a policy of 11 rules for each ten of them
//! bench-policy addresses COUNT   one pod, one policy, one set of COUNT addresses
//! bench-policy changes COUNT     the pods of `endpoints`, then one change after the other
//! ```
//!
//! The ruleset stays: `bench/policy.py` sends packets through it.

#![expect(clippy::print_stdout, reason = "the figures are the product")]

mod change;
mod crowd;

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::{Context, bail, ensure};
use dataplane::{ChainRow, NftKey, NftRow, NftTarget, Ownership, Target};
use model::{Change, Resource};
use policy::{Compiler, compile::Ruleset};
use serde_json::json;

use crate::change::Node;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (what, count) = match words[..] {
        [what, count] => (what, count.parse::<u32>().context("COUNT is a number")?),
        _ => bail!("bench-policy endpoints | addresses | changes COUNT"),
    };
    let resources = match what {
        "endpoints" | "changes" => crowd::endpoints(count)?,
        "addresses" => crowd::addresses(count)?,
        _ => bail!("bench-policy endpoints | addresses | changes COUNT"),
    };
    let idle = resident()?;

    let start = Instant::now();
    let compiler = compile(&resources)?;
    let rows = compiler.ruleset();
    let compiled = start.elapsed();
    let changes = keyed(&rows);
    let mut target = NftTarget::open(Ownership::Shared).context("nftables")?;
    target.set_in_sync(true);
    let refused = target.apply(&changes).context("the kernel's transaction")?;
    let live = start.elapsed();
    ensure!(refused.is_empty(), "not taken: {refused:?}");

    if what == "changes" {
        println!("{}", Node::new(compiler, target).change_all(count)?);
        return Ok(());
    }
    let rules: usize = rows.chains.values().map(|chain| chain.rules.len()).sum();
    let figures = json!({
        "chains": rows.chains.len(),
        "rules": rules,
        "elements": rows.elements.len(),
        "compile_ms": compiled.as_secs_f64() * 1e3,
        "live_ms": live.as_secs_f64() * 1e3,
        "rss_mib": resident()? - idle,
    });
    println!("{figures}");

    Ok(())
}

/// Compiles as the agent does at its start: everything that is known, then one plan.
fn compile(resources: &[Resource]) -> anyhow::Result<Compiler> {
    let mut compiler = Compiler::new(crowd::NODE.parse()?);
    for resource in resources {
        compiler.insert(resource);
    }
    compiler.update();
    ensure!(
        compiler.refused().is_empty(),
        "{:?} cannot be compiled",
        compiler.refused()
    );

    Ok(compiler)
}

fn keyed(rows: &Ruleset) -> Vec<Change<NftKey, NftRow>> {
    let sets = rows.sets.iter();
    let sets = sets.map(|(key, kind)| (NftKey::Set(key.clone()), NftRow::Set(*kind)));
    let elements = rows.elements.iter();
    let elements = elements.map(|(set, element)| {
        (
            NftKey::Element(set.clone(), element.clone()),
            NftRow::Element,
        )
    });
    let chains = rows.chains.iter().map(|(key, chain)| {
        let row = ChainRow::new(key.table, chain.clone());
        (NftKey::Chain(key.clone()), NftRow::Chain(Box::new(row)))
    });

    let rows: BTreeMap<NftKey, NftRow> = sets.chain(elements).chain(chains).collect();
    rows.into_iter()
        .map(|(key, row)| Change::Set(key, row))
        .collect()
}

/// Returns the memory that is this process's, in MiB.
fn resident() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));

    Ok(kib.context("no VmRSS")?.parse::<f64>()? / 1024.0)
}
