//! The only retry loop: diff, adopt, apply, back off.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    time::Duration,
};

use model::{Change, Moment};

use crate::{Absent, Desired, Target, fight::Fights};

/// How long after a failure we first try again.
const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// How long we wait at most. Short enough that a fixed machine heals while someone is still looking.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// How many missing things a reason names.
const REASONS_SHOWN: usize = 3;

/// Why a row is missing that is restored less often than somebody else takes it away.
const CONTESTED: &str = "somebody else keeps changing it; it is restored in a while";

/// Keeps a [`Target`] equal to its part of the plan, in two halves: first what must be there, later
/// what must not.
///
/// **Invariant:** nothing is removed before the plan is in sync; until then what exists is adopted.
#[derive(Debug)]
pub struct Reconciler<T: Target> {
    target: T,
    name: &'static str,
    /// What is still to be done: a row to set, or `None` to unset.
    pending: BTreeMap<T::Key, Option<T::Row>>,
    /// Whether the target holds what we believe it to hold.
    trusted: bool,
    /// Whether everything that nobody wants has been looked for since the plan came in sync.
    pruned: bool,
    absent: BTreeMap<T::Key, String>,
    failure: Option<String>,
    backoff: Option<Backoff>,
    /// Whether there was a look before: what differs then was changed by somebody else.
    looked: bool,
    fights: Fights<T::Key>,
    now: Moment,
}

/// When to try again.
#[derive(Clone, Copy, Debug)]
struct Backoff {
    until: Moment,
    delay: Duration,
}

/// What a half of a pass achieved for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target matches this half of the plan.
    Converged,
    /// Rows whose surroundings are missing were left out: what, and why. The pass goes on.
    Incomplete(String),
    /// The target refused: nothing that comes later may be applied.
    Failed(String),
}

impl<T: Target> Reconciler<T> {
    /// Creates a reconciler that starts with a look at what is there.
    pub fn new(name: &'static str, target: T) -> Self {
        Self {
            target,
            name,
            pending: BTreeMap::new(),
            trusted: false,
            pruned: false,
            absent: BTreeMap::new(),
            failure: None,
            backoff: None,
            looked: false,
            fights: Fights::default(),
            now: Moment::START,
        }
    }

    /// Returns the target's name in reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the target.
    pub fn target_mut(&mut self) -> &mut T {
        &mut self.target
    }

    /// Returns the rows that wait for what they stand on, and what that is.
    pub fn absent(&self) -> &BTreeMap<T::Key, String> {
        &self.absent
    }

    /// Returns the rows that somebody else changes again and again.
    pub fn contested(&self) -> impl Iterator<Item = &T::Key> {
        self.fights.contested()
    }

    /// Distrusts everything we believe about the target, so that the next pass looks.
    ///
    /// Call this when the kernel reports a change that we did not make.
    pub fn distrust(&mut self) {
        self.trusted = false;
        self.backoff = None;
    }

    /// Returns when to come back although nothing changes.
    pub fn retry_at(&self) -> Option<Moment> {
        let backoff = self.backoff.map(|backoff| backoff.until);

        backoff.into_iter().chain(self.fights.next(self.now)).min()
    }

    /// The first half: brings in every row that should be there.
    pub fn set(
        &mut self,
        desired: &mut impl Desired<Key = T::Key, Row = T::Row>,
        in_sync: bool,
        now: Moment,
    ) -> Outcome {
        let has_changes = desired.has_changes();
        self.now = now;
        self.fights.forget(now);
        if !has_changes && self.waits(now) {
            return self.outcome();
        }
        if self.looked {
            for change in desired.drain_changes() {
                self.enqueue(change, in_sync);
            }
        } else {
            // The first look takes every row anew; nobody else changed anything yet.
            desired.forget_changes();
        }
        if (!self.trusted || in_sync && !self.pruned)
            && let Err(error) = self.diff(desired, in_sync)
        {
            return self.fail(&error, now);
        }

        self.apply(Half::Sets, now)
    }

    /// The second half: removes every object that should not be there.
    pub fn unset(&mut self, now: Moment) -> Outcome {
        if self.failure.is_some() {
            return self.outcome();
        }

        self.apply(Half::Unsets, now)
    }

    /// Notes a change; a removal before the plan is in sync is left to the first look afterwards.
    fn enqueue(&mut self, change: Change<T::Key, T::Row>, in_sync: bool) {
        match change {
            Change::Set(key, row) => {
                self.pending.insert(key, Some(row));
            }
            Change::Unset(key) if in_sync => {
                self.absent.remove(&key);
                self.pending.insert(key, None);
            }
            Change::Unset(key) => {
                self.absent.remove(&key);
                self.pending.remove(&key);
                self.pruned = false;
            }
        }
    }

    /// Looks at the target and finds what is still to be done.
    fn diff(
        &mut self,
        desired: &impl Desired<Key = T::Key, Row = T::Row>,
        in_sync: bool,
    ) -> Result<(), T::Error> {
        let mut observed = self.target.observe()?.into_iter().peekable();
        let before = std::mem::take(&mut self.pending);
        let mut pending = Vec::new();
        for (key, row) in desired.rows() {
            // What is there and not wanted lies between the rows that are.
            while let Some((other, _)) = observed.next_if(|(other, _)| *other < key) {
                pending.extend(in_sync.then_some((other, None)));
            }
            let held = observed.next_if(|(other, _)| *other == key);
            if held.is_none_or(|(_, held)| held != row) {
                pending.push((key, Some(row)));
            }
        }
        let rest = observed.filter(|_| in_sync);
        pending.extend(rest.map(|(other, _)| (other, None)));
        self.pending = pending.into_iter().collect();
        self.note_fights(&before);
        self.trusted = true;
        self.pruned = in_sync;
        self.looked = true;

        Ok(())
    }

    /// What differs, and was not to be done anyway, was changed by somebody else.
    fn note_fights(&mut self, before: &BTreeMap<T::Key, Option<T::Row>>) {
        if !self.looked || !self.pruned {
            return;
        }
        for key in self.pending.keys().filter(|key| !before.contains_key(key)) {
            self.fights.note(key.clone(), self.now);
        }
    }

    fn apply(&mut self, half: Half, now: Moment) -> Outcome {
        let changes = self.take_changes(half, now);
        if !changes.is_empty() {
            match self.target.apply(&changes) {
                Ok(absent) => self.settle(changes, absent),
                Err(error) => {
                    self.put_back(changes);
                    return self.fail(&error, now);
                }
            }
        }
        self.failure = None;
        self.absent.retain(|key, _| self.pending.contains_key(key));
        self.note_waiting(half, now);
        if self.absent.keys().all(|key| self.fights.waits(key, now)) {
            self.backoff = None;
        } else if half == Half::Sets {
            self.back_off(now);
        }

        self.outcome()
    }

    /// Says of contested rows that they are missing meanwhile.
    fn note_waiting(&mut self, half: Half, now: Moment) {
        if half == Half::Unsets {
            return;
        }
        let waiting = self.pending.iter();
        let waiting = waiting.filter(|(key, row)| row.is_some() && self.is_held(key, row, now));
        let waiting = waiting.map(|(key, _)| (key.clone(), CONTESTED.to_owned()));
        let waiting: Vec<_> = waiting.collect();
        self.absent.extend(waiting);
    }

    /// Returns whether a row waits because it is contested. What keeps plaintext in never waits.
    fn is_held(&self, key: &T::Key, row: &Option<T::Row>, now: Moment) -> bool {
        self.fights.waits(key, now) && !self.target.must_hold(key, row.as_ref())
    }

    /// Takes what is to be done in this half, in key order.
    fn take_changes(&mut self, half: Half, now: Moment) -> Vec<Change<T::Key, T::Row>> {
        let (mut changes, mut left) = (Vec::new(), Vec::new());
        for (key, row) in std::mem::take(&mut self.pending) {
            let is_due = match (half, &row) {
                (Half::Sets, Some(_)) | (Half::Unsets, None) => true,
                (Half::Sets, None) => self.target.goes_at_once(&key),
                (Half::Unsets, Some(_)) => false,
            };
            match row {
                row if !is_due || self.is_held(&key, &row, now) => left.push((key, row)),
                Some(row) => changes.push(Change::Set(key, row)),
                None => changes.push(Change::Unset(key)),
            }
        }
        self.pending = left.into_iter().collect();

        changes
    }

    /// Notes again what was to be done.
    fn put_back(&mut self, changes: impl IntoIterator<Item = Change<T::Key, T::Row>>) {
        self.pending
            .extend(changes.into_iter().map(|change| match change {
                Change::Set(key, row) => (key, Some(row)),
                Change::Unset(key) => (key, None),
            }));
    }

    /// What is absent stays to be done.
    fn settle(&mut self, changes: Vec<Change<T::Key, T::Row>>, absent: Vec<Absent<T::Key>>) {
        if !absent.is_empty() {
            let left: BTreeSet<T::Key> = absent.iter().map(|each| each.key.clone()).collect();
            self.put_back(changes.into_iter().filter(|change| {
                let (Change::Set(key, _) | Change::Unset(key)) = change;
                left.contains(key)
            }));
        }
        self.absent
            .extend(absent.into_iter().map(|each| (each.key, each.reason)));
    }

    fn fail(&mut self, error: &T::Error, now: Moment) -> Outcome {
        let reason = chain(error);
        self.back_off(now);
        tracing::warn!(target = self.name, reason, "Could not apply the plan");
        self.failure = Some(reason);
        self.trusted = false;

        self.outcome()
    }

    fn back_off(&mut self, now: Moment) {
        let delay = self
            .backoff
            .map_or(MIN_BACKOFF, |last| MAX_BACKOFF.min(last.delay * 2));
        self.backoff = Some(Backoff {
            until: now + delay,
            delay,
        });
    }

    fn waits(&self, now: Moment) -> bool {
        self.backoff.is_some_and(|backoff| backoff.until > now)
    }

    fn outcome(&self) -> Outcome {
        if let Some(reason) = &self.failure {
            return Outcome::Failed(reason.clone());
        }
        if self.absent.is_empty() {
            return Outcome::Converged;
        }
        let shown: Vec<_> = self
            .absent
            .values()
            .take(REASONS_SHOWN)
            .map(String::as_str)
            .collect();
        let more = self.absent.len().saturating_sub(REASONS_SHOWN);
        let suffix = if more > 0 {
            format!("; and {more} more")
        } else {
            String::new()
        };

        Outcome::Incomplete(shown.join("; ") + &suffix)
    }
}

/// Which half of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Sets,
    Unsets,
}

/// Writes an error with all its sources.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }

    text
}
