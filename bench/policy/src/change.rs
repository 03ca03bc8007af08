//! One change after the other, each timed from the changed object to the kernel's answer to the transaction.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use dataplane::{ChainRow, NftKey, NftRow, NftTarget, Target};
use model::Resource;
use policy::{
    Compiler,
    compiler::{Change, Row, RowKey},
};
use serde_json::{Value, json};

use crate::crowd;

/// How often each change is made; what undoes it is not timed.
const ROUNDS: u32 = 100;

/// What one change took.
struct Sample {
    time: Duration,
    bytes: u64,
}

/// A node's policy, compiled and in the kernel.
pub(crate) struct Node {
    compiler: Compiler,
    target: NftTarget,
}

impl Node {
    /// Takes over a compiler whose rows the kernel has.
    pub(crate) const fn new(compiler: Compiler, target: NftTarget) -> Self {
        Self { compiler, target }
    }

    /// Makes every kind of change on a node with so many pods, and returns what they took.
    pub(crate) fn change_all(&mut self, count: u32) -> anyhow::Result<Value> {
        let step = (count / ROUNDS).max(1);
        let pod = |round: u32| (2 + round * step) % count;
        let next = |round: u32| (pod(round) + crowd::ALIKE) % count;
        self.make(&crowd::special()?)?;
        self.make(&crowd::wide(0)?)?;

        Ok(json!({
            "a label, into a chain that is there":
                self.change(|round| crowd::moved(pod(round), next(round)), |round| crowd::pod(pod(round)))?,
            "a label, into a chain of its own":
                self.change(|round| crowd::marked(pod(round)), |round| crowd::pod(pod(round)))?,
            "a rule of a policy of 1,000 pods":
                self.change(|round| crowd::wide(2 * round + 1), |round| crowd::wide(2 * round + 2))?,
            "a policy of 1,000 pods, created or deleted":
                self.change(|_| crowd::narrow(), |_| crowd::wide(0))?,
        }))
    }

    /// Makes a change and undoes it, again and again.
    fn change(
        &mut self,
        there: impl Fn(u32) -> anyhow::Result<Resource>,
        back: impl Fn(u32) -> anyhow::Result<Resource>,
    ) -> anyhow::Result<Value> {
        let mut samples = Vec::new();
        for round in 0..ROUNDS {
            samples.push(self.make(&there(round)?)?);
            self.make(&back(round)?)?;
        }
        ensure!(
            samples.iter().all(|sample| sample.bytes > 0),
            "nothing changed"
        );
        let mut times: Vec<f64> = samples
            .iter()
            .map(|sample| sample.time.as_secs_f64() * 1e3)
            .collect();
        let mut bytes: Vec<u64> = samples.iter().map(|sample| sample.bytes).collect();
        times.sort_by(f64::total_cmp);
        bytes.sort_unstable();
        let last = times.len() - 1;

        Ok(json!({
            "p50_ms": times[last / 2], "p99_ms": times[last * 99 / 100], "bytes": bytes[last / 2],
        }))
    }

    /// Brings a changed object into the kernel.
    fn make(&mut self, resource: &Resource) -> anyhow::Result<Sample> {
        let before = self.target.sent();
        let start = Instant::now();
        self.compiler.insert(resource);
        let changes = keyed(self.compiler.update());
        let refused = self
            .target
            .apply(&changes)
            .context("the kernel's transaction")?;
        let time = start.elapsed();
        ensure!(refused.is_empty(), "not taken: {refused:?}");

        Ok(Sample {
            time,
            bytes: self.target.sent() - before,
        })
    }
}

/// Turns the compiler's changes into the target's, in the order in which they must be made.
fn keyed(changes: Vec<Change>) -> Vec<model::Change<NftKey, NftRow>> {
    let rows: BTreeMap<NftKey, Option<NftRow>> = changes.into_iter().map(row).collect();

    rows.into_iter()
        .map(|(key, row)| match row {
            Some(row) => model::Change::Set(key, row),
            None => model::Change::Unset(key),
        })
        .collect()
}

fn row(change: Change) -> (NftKey, Option<NftRow>) {
    match change {
        Change::Set(Row::Set(key, kind)) => (NftKey::Set(key), Some(NftRow::Set(kind))),
        Change::Set(Row::Element(key, element)) => {
            (NftKey::Element(key, element), Some(NftRow::Element))
        }
        Change::Set(Row::Chain(key, chain)) => {
            let row = ChainRow::new(key.table, chain);
            (NftKey::Chain(key), Some(NftRow::Chain(Box::new(row))))
        }
        Change::Unset(RowKey::Set(key)) => (NftKey::Set(key), None),
        Change::Unset(RowKey::Element(key, element)) => (NftKey::Element(key, element), None),
        Change::Unset(RowKey::Chain(key)) => (NftKey::Chain(key), None),
    }
}
