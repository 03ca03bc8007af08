//! `meshctl policy test --live`: the topology of a policy test, built in a lab, and its packets, sent.
//!
//! ```text
//! PolicyTest ──stages──▶ lab file ─▶ Site ─┬─ objects, pods ─▶ agents have applied them ─▶ packets ─▶ verdicts
//!                                          └─ … the same for every step
//! ```

mod send;
mod stage;
mod topology;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use lab::{Hands, Owner, Site};
use policy::scenario::{Entry, Report, Stage};

use self::{send::Post, topology::Plan};
use super::file::Case;

/// How long agents may take to apply what a step changes, where nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was found by sending.
pub(super) struct Found {
    pub(super) report: Report,
    /// What could not be sent, and why; the evaluator's verdict stands for it.
    pub(super) unsent: Vec<String>,
}

/// A lab that goes when it is dropped.
struct Standing(Site);

impl Drop for Standing {
    fn drop(&mut self) {
        if let Err(error) = lab::remove(self.0.name()) {
            let error = anyhow::Error::new(error);
            crate::warn(&format!("lab {} is left behind: {error:#}", self.0.name()));
        }
    }
}

/// Builds the case, sends its packets and takes it down again.
pub(super) fn run(case: &Case, number: usize) -> anyhow::Result<Found> {
    let stages = case.test.stages(&case.sources)?;
    let name = format!("pt{}-{number}", std::process::id());
    let plan = Plan::of(&name, &stages).context("it cannot be built in a lab")?;
    let site = Site::up(
        plan.document.clone(),
        Owner::Process,
        Hands::Threads,
        &mut |_| {},
    );
    let mut standing = Standing(site.context("the lab cannot be built")?);
    let mut found = Found {
        report: Report::default(),
        unsent: Vec::new(),
    };
    let mut former: Option<&Stage> = None;
    let mut holders = BTreeMap::new();
    for stage in &stages {
        for (cidr, node) in topology::holders(stage)? {
            holders.entry(cidr).or_insert(node);
        }
    }
    for (index, now) in stages.iter().enumerate() {
        stage::reach(&mut standing.0, former, now, &mut holders)
            .with_context(|| format!("step {index} cannot be built"))?;
        let post = Post::of(&mut standing.0, &plan, now, index)?;
        let verdicts = verdicts(&post, now, &mut found.unsent);
        found.report.verdicts.extend(verdicts);
        found.report.errors.extend(now.errors.clone());
        former = Some(now);
    }

    Ok(found)
}

fn verdicts(post: &Post, stage: &Stage, unsent: &mut Vec<String>) -> Vec<Entry> {
    let trials = stage.trials.iter().zip(post.send());

    trials
        .map(|(trial, found)| match found {
            Ok(verdict) => trial.found(verdict),
            Err(why) => {
                unsent.push(format!("{}: {why}", super::test::question(&trial.entry)));
                trial.entry.clone()
            }
        })
        .collect()
}
