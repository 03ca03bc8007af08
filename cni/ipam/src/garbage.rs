//! What to collect now: what was seen long enough, a bounded piece at a time.
//!
//! A finding that may only show somebody at work is collected when it was seen
//! twice, at least a grace period apart, and unchanged: the sequence number or
//! the revision that it names is part of what is compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    audit::{Finding, Repair},
    step::LIFETIME,
};

/// Watches findings and says what is to be put right.
#[derive(Clone, Debug)]
pub struct Collector {
    grace: SignedDuration,
    limit: usize,
    seen: BTreeMap<Finding, Timestamp>,
}

impl Collector {
    /// Returns a collector that waits so long, and puts right so much at a time.
    ///
    /// It waits at least as long as an operation may [take](LIFETIME), so that nobody at work loses anything.
    pub fn new(grace: Duration, limit: usize) -> Self {
        let grace = grace.max(LIFETIME);

        Self {
            grace: SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX),
            limit,
            seen: BTreeMap::new(),
        }
    }

    /// Takes in what an audit found, and returns what is to be put right now: the longest seen first.
    ///
    /// Whoever only wants to know prints it and repairs nothing: the next call returns the same again.
    pub fn collect(&mut self, findings: &[Finding], now: Timestamp) -> Vec<(Finding, Repair)> {
        let current: BTreeSet<&Finding> = findings.iter().collect();
        self.seen.retain(|finding, _| current.contains(finding));
        for finding in findings.iter().filter(|it| it.repair.is_some()) {
            self.seen.entry(finding.clone()).or_insert(now);
        }
        let is_due = |finding: &Finding, since: &Timestamp| {
            let waited = now.duration_since(*since);
            finding.fault.is_certain() || (waited > self.grace)
        };
        let mut due: Vec<(&Timestamp, &Finding)> = self
            .seen
            .iter()
            .filter(|(finding, since)| is_due(finding, since))
            .map(|(finding, since)| (since, finding))
            .collect();
        due.sort();

        due.into_iter()
            .filter_map(|(_, finding)| Some((finding.clone(), finding.repair.clone()?)))
            .take(self.limit)
            .collect()
    }

    /// Returns how many findings wait for their time.
    pub fn waiting(&self) -> usize {
        self.seen.len()
    }
}
