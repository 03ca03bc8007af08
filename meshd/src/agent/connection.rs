//! Established connections follow policy: after each change of it, or of what somebody else made of it, every
//! connection is judged anew, beside the loop.
//!
//! ```text
//! plan ──changes──▶ Connections ──once they are in the kernel──▶ thread: Recheck ──marks──▶ kernel
//! drift ─────────────────────────────────────────────────────────────┘ └──▶ counters, log
//! ```
//!
//! One recheck runs at a time; what changes meanwhile is judged by the next, which begins at once where nothing has
//! been judged for a while. A change that only allows more ([`Effect`]) has nobody looked at but those that were cut.

mod recheck;

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use dataplane::{Among, Component, Report};
use model::{
    Plan, PodName, Table,
    nft::{Chain, ChainKey, Element, SetKey},
    plan::PodInterface,
    resource::mesh_configuration::EstablishedConnections,
};
use policy::Effect;

use self::recheck::Recheck;
use super::metrics::ConnectionCounters;

/// How many times as long as it ran a recheck rests, where that is between these two: few connections are judged at
/// most twenty times a second, and many are cut within a second, though policy changes all the time.
const REST: u32 = 2;
const SHORTEST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_millis(250);

/// How many changes may wait one by one; what is more is put together, and its effect is not asked for.
const STEPS: usize = 64;

/// How long after a failure it is tried again; each further failure doubles that, up to the second figure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// The loop's end: notes changes and hands them over.
#[derive(Debug)]
pub(crate) struct Connections {
    shared: Arc<Shared>,
    /// Rows of the plan that are not in the kernel yet.
    pending: Delta,
    /// Somebody else changed our tables.
    is_damaged: bool,
    setting: EstablishedConnections,
}

/// What both ends see.
#[derive(Debug, Default)]
struct Shared {
    todo: Mutex<Todo>,
    wake: Condvar,
}

/// What the thread is to do.
#[derive(Debug, Default)]
struct Todo {
    /// Changes in their order.
    steps: Vec<Delta>,
    /// Connections are to be judged, because of this.
    due: Option<Cause>,
    setting: EstablishedConnections,
    /// The agent ends.
    is_over: bool,
}

/// Why connections are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Policy changed.
    Policy,
    /// Somebody else changed our tables: what passed meanwhile was asked nothing.
    Repair,
}

/// Rows that changed: `None` and `false` are gone.
#[derive(Clone, Debug, Default, PartialEq)]
struct Delta {
    chains: BTreeMap<ChainKey, Option<Chain>>,
    elements: BTreeMap<(SetKey, Element), bool>,
    pods: BTreeMap<PodName, Option<PodInterface>>,
    /// It came into the kernel in several steps: what was there between them is not known.
    is_piecemeal: bool,
}

/// What is to be done.
#[derive(Debug)]
struct Task {
    steps: Vec<Delta>,
    cause: Cause,
    setting: EstablishedConnections,
}

impl Connections {
    /// Starts the thread, which sees the calling thread's network namespace.
    pub(crate) fn start(counters: ConnectionCounters) -> anyhow::Result<Self> {
        let recheck = Recheck::open().context("could not open the table of connections")?;
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            shared: Arc::clone(&shared),
            recheck,
            counters,
            setting: EstablishedConnections::Recheck,
            debt: Debt::default(),
            retry: FIRST_RETRY,
        };
        thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || worker.run())
            .context("could not start the thread that judges connections")?;

        Ok(Self {
            shared,
            pending: Delta::default(),
            is_damaged: false,
            setting: EstablishedConnections::Recheck,
        })
    }

    /// Takes in the setting.
    pub(crate) fn set(&mut self, setting: EstablishedConnections) {
        if mem::replace(&mut self.setting, setting) == setting {
            return;
        }
        let mut todo = self.shared.todo();
        todo.setting = setting;
        todo.due = todo.due.or(Some(Cause::Policy));
        self.shared.wake.notify_one();
    }

    /// Notes what the next pass over the plan is to bring into the kernel; call before it.
    pub(crate) fn note(&mut self, plan: &Plan) {
        self.pending.take_in(plan);
    }

    /// Notes that somebody else changed our tables, and maybe nobody asked policy for a while.
    pub(crate) fn note_damage(&mut self) {
        self.is_damaged = true;
    }

    /// Has connections judged, where a pass has brought policy up to date.
    pub(crate) fn applied(&mut self, report: &Report) {
        if self.pending.is_empty() && !self.is_damaged {
            return;
        }
        if report.failures.contains_key(Component::Nft.name()) {
            self.pending.is_piecemeal = true;
            return;
        }
        let pending = mem::take(&mut self.pending);
        let cause = match (mem::take(&mut self.is_damaged), pending.is_of_policy()) {
            (true, _) => Some(Cause::Repair),
            (false, true) => Some(Cause::Policy),
            (false, false) => None,
        };
        let mut todo = self.shared.todo();
        todo.add(pending);
        todo.due = match (todo.due, cause) {
            (Some(Cause::Repair), _) => Some(Cause::Repair),
            (due, cause) => cause.or(due),
        };
        self.shared.wake.notify_one();
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.shared.todo().is_over = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// A thread that panicked left nothing half done in it.
    fn todo(&self) -> MutexGuard<'_, Todo> {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until connections are to be judged; `None` when the agent ends.
    fn next(&self) -> Option<Task> {
        let mut todo = self.todo();
        loop {
            if todo.is_over {
                return None;
            }
            if let Some(cause) = todo.due.take() {
                return Some(Task {
                    steps: mem::take(&mut todo.steps),
                    cause,
                    setting: todo.setting,
                });
            }
            todo = self.wake.wait(todo).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Rests, or ends with the agent.
    fn rest(&self, time: Duration) {
        let todo = self.todo();
        let rested = self
            .wake
            .wait_timeout_while(todo, time, |todo| !todo.is_over);
        drop(rested);
    }
}

impl Todo {
    /// Adds what one pass brought into the kernel.
    fn add(&mut self, delta: Delta) {
        let is_full = self.steps.len() >= STEPS;
        match self.steps.last_mut().filter(|_| is_full) {
            Some(last) => last.merge(delta),
            None => self.steps.push(delta),
        }
    }
}

impl Delta {
    fn take_in(&mut self, plan: &Plan) {
        let chains = plan.nft_chains.changes();
        self.chains.extend(
            chains
                .filter(|(key, _)| !key.is_guards())
                .map(|(key, chain)| (key.clone(), chain.cloned())),
        );
        let elements = plan.nft_elements.changes();
        self.elements.extend(
            elements
                .filter(|((set, _), _)| !set.is_guards())
                .map(|(key, row)| (key.clone(), row.is_some())),
        );
        self.pods.extend(changed(&plan.pods));
    }

    fn merge(&mut self, later: Self) {
        self.chains.extend(later.chains);
        self.elements.extend(later.elements);
        self.pods.extend(later.pods);
        self.is_piecemeal = true;
    }

    fn is_empty(&self) -> bool {
        !self.is_of_policy() && self.pods.is_empty()
    }

    fn is_of_policy(&self) -> bool {
        !self.chains.is_empty() || !self.elements.is_empty()
    }
}

fn changed<K: Ord + Clone, V: Clone + PartialEq>(
    table: &Table<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> + '_ {
    table
        .changes()
        .map(|(key, row)| (key.clone(), row.cloned()))
}

/// The thread.
struct Worker {
    shared: Arc<Shared>,
    recheck: Recheck,
    counters: ConnectionCounters,
    /// What was done last.
    setting: EstablishedConnections,
    debt: Debt,
    retry: Duration,
}

/// Who has to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Debt {
    /// What the changes that nobody was judged by can do.
    effect: Effect,
    /// How many connections are cut, as far as is known: they may be allowed again.
    cut: Option<u64>,
}

impl Worker {
    fn run(mut self) {
        while let Some(task) = self.shared.next() {
            let Task {
                steps,
                cause,
                setting,
            } = task;
            for step in steps {
                self.debt.add(self.recheck.take_in(step));
            }
            let started = Instant::now();
            let rest = match self.judge(cause, setting, started) {
                Ok(()) => {
                    self.retry = FIRST_RETRY;
                    (started.elapsed() * REST).clamp(SHORTEST_REST, LONGEST_REST)
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    tracing::warn!(reason, "Connections could not be judged");
                    self.counters.failures.inc();
                    let mut todo = self.shared.todo();
                    todo.due = todo.due.or(Some(cause));
                    let next = LAST_RETRY.min(self.retry * 2);
                    mem::replace(&mut self.retry, next)
                }
            };
            self.shared.rest(rest);
        }
    }

    fn judge(
        &mut self,
        cause: Cause,
        setting: EstablishedConnections,
        started: Instant,
    ) -> anyhow::Result<()> {
        let is_new = mem::replace(&mut self.setting, setting) != setting;
        if is_new || cause == Cause::Repair {
            self.debt = Debt::default();
        }
        let tally = match (setting, self.debt.among()) {
            (EstablishedConnections::Keep, None) => return Ok(()),
            (EstablishedConnections::Recheck, None) => {
                tracing::debug!("Policy allows no less: no connection is looked at");
                return Ok(());
            }
            (EstablishedConnections::Recheck, Some(among)) => self.recheck.run(among)?,
            (EstablishedConnections::Keep, Some(_)) => self.recheck.forget()?,
        };
        self.debt = Debt {
            effect: Effect::Widens,
            cut: Some(tally.marked),
        };
        let taken = started.elapsed();
        self.counters.note(&tally, taken);
        let milliseconds = taken.as_millis();
        let (checked, revoked, restored) = (tally.seen, tally.set, tally.cleared);
        match cause {
            Cause::Repair if revoked > 0 => tracing::warn!(
                checked,
                revoked,
                restored,
                milliseconds,
                "Connections that passed while our tables were damaged were cut"
            ),
            Cause::Policy | Cause::Repair if revoked + restored > 0 => tracing::info!(
                checked,
                revoked,
                restored,
                milliseconds,
                "Connections follow policy"
            ),
            Cause::Policy | Cause::Repair => {
                tracing::debug!(
                    checked,
                    milliseconds,
                    "Every connection is still as policy has it"
                );
            }
        }

        Ok(())
    }
}

impl Default for Debt {
    /// Anything may have been.
    fn default() -> Self {
        Self {
            effect: Effect::MayCut,
            cut: None,
        }
    }
}

impl Debt {
    fn add(&mut self, effect: Effect) {
        self.effect = self.effect.max(effect);
    }

    /// Returns which connections have to be looked at.
    const fn among(self) -> Option<Among> {
        match (self.effect, self.cut) {
            (Effect::MayCut, _) => Some(Among::All),
            (Effect::Widens, Some(0)) => None,
            (Effect::Widens, Some(_) | None) => Some(Among::Marked),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::nft::{NftFamily, SetKind};

    use super::*;

    #[test]
    fn the_guards_rows_are_no_change_of_policy() {
        let mut plan = Plan::default();
        let guard = SetKey {
            table: NftFamily::Inet,
            name: "member4".into(),
        };
        let address = Element::Address([192, 0, 2, 1].into());
        plan.nft_elements.set((guard, address.clone()), ());
        let mut delta = Delta::default();
        delta.take_in(&plan);
        assert!(delta.is_empty());

        let set = SetKey {
            table: NftFamily::Inet,
            name: "selected4_0".into(),
        };
        plan.nft_sets
            .set(set.clone(), SetKind::Addresses(model::Family::V4));
        plan.nft_elements.set((set.clone(), address.clone()), ());
        delta.take_in(&plan);
        assert!(delta.is_of_policy());
        assert_eq!(delta.elements, [((set, address), true)].into());
    }

    #[test]
    fn what_the_kernel_refused_waits_for_the_pass_that_brings_it_in() {
        let shared = Arc::new(Shared::default());
        let mut connections = Connections {
            shared: Arc::clone(&shared),
            pending: Delta::default(),
            is_damaged: false,
            setting: EstablishedConnections::Recheck,
        };
        let mut plan = Plan::default();
        let chain = ChainKey {
            table: NftFamily::Inet,
            name: "from_pod".into(),
        };
        plan.nft_chains.set(
            chain.clone(),
            Chain {
                hook: None,
                rules: Vec::new().into(),
            },
        );
        let mut failed = Report::default();
        failed
            .failures
            .insert(Component::Nft.name().to_owned(), "busy".to_owned());

        connections.note(&plan);
        plan.nft_chains.drain_changes();
        connections.applied(&failed);
        assert_eq!(shared.todo().due, None);

        connections.note(&plan);
        connections.applied(&Report::default());
        assert_eq!(shared.todo().due, Some(Cause::Policy));
        let steps = &shared.todo().steps;
        assert!(steps[0].chains.contains_key(&chain));
        assert!(steps[0].is_piecemeal);
    }

    #[test]
    fn a_pass_that_changes_nothing_of_policy_judges_nobody_but_a_repair_does() {
        let shared = Arc::new(Shared::default());
        let mut connections = Connections {
            shared: Arc::clone(&shared),
            pending: Delta::default(),
            is_damaged: false,
            setting: EstablishedConnections::Recheck,
        };

        connections.note(&Plan::default());
        connections.applied(&Report::default());
        assert_eq!(shared.todo().due, None);

        connections.note_damage();
        connections.applied(&Report::default());
        assert_eq!(shared.todo().due, Some(Cause::Repair));
    }

    #[test]
    fn who_was_cut_is_looked_at_until_nobody_is() {
        let mut debt = Debt::default();
        assert_eq!(debt.among(), Some(Among::All));

        debt = Debt {
            effect: Effect::Widens,
            cut: Some(3),
        };
        assert_eq!(debt.among(), Some(Among::Marked));

        debt.cut = Some(0);
        debt.add(Effect::Widens);
        assert_eq!(debt.among(), None);
        debt.add(Effect::MayCut);
        debt.add(Effect::Widens);
        assert_eq!(debt.among(), Some(Among::All));
    }

    /// What was allowed for a moment opened connections that only the steps tell of.
    #[test]
    fn changes_wait_one_by_one_and_are_not_weighed_together() {
        let mut todo = Todo::default();
        for _ in 0..STEPS + 2 {
            todo.add(Delta::default());
        }

        assert_eq!(todo.steps.len(), STEPS);
        assert!(todo.steps[STEPS - 1].is_piecemeal);
        assert!(!todo.steps[STEPS - 2].is_piecemeal);
    }
}
