//! What is to happen once: asked for by facts, handed out as actions, tried again with back-off.
//!
//! Whoever wants something to happen says so again and again (`ensure`), and says when it is no
//! longer wanted (`forget`). At most one action per task is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use model::{Action, ActionId, ActionKind, ActionResult, Family, Moment, PodName, PublicKey};

/// First wait after a failure; doubles with each.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Wait after a refusal: only somebody else's change can help.
const REFUSED: Duration = Duration::from_secs(60);

/// How long the effect of a finished action may take to be seen in the store.
const ECHO: Duration = Duration::from_secs(10);

/// What a task is about: there is one at most for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TaskKey {
    ClaimKey(PublicKey),
    ClaimAddress(IpAddr),
    Publish,
    ClaimBlock(IpNet),
    TunnelAddress(Family),
    Pod(PodName, PodTask),
}

/// What is to happen for a pod, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PodTask {
    Assign,
    Publish,
    Answer,
    Release,
    Remove,
}

/// A task that came to an end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) key: TaskKey,
    /// The action, as it was handed out.
    pub(crate) kind: Box<ActionKind>,
    pub(crate) result: ActionResult,
}

/// Every task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tasks: BTreeMap<TaskKey, Task>,
    due: BTreeSet<(Moment, TaskKey)>,
    under_way: BTreeMap<ActionId, TaskKey>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Task {
    kind: ActionKind,
    state: State,
    failures: u32,
    refusal: Option<String>,
    is_wanted: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Due(Moment),
    /// Handed out, as this.
    UnderWay(Box<ActionKind>),
}

impl Tasks {
    /// Wants the action to happen, at once if it is new or changed; `at` may lie in the future.
    pub(crate) fn ensure(&mut self, key: TaskKey, kind: ActionKind, at: Moment) {
        let Some(task) = self.tasks.get_mut(&key) else {
            self.due.insert((at, key.clone()));
            let state = State::Due(at);
            let task = Task {
                kind,
                state,
                failures: 0,
                refusal: None,
                is_wanted: true,
            };
            self.tasks.insert(key, task);
            return;
        };
        task.is_wanted = true;
        if task.kind == kind {
            return;
        }
        task.kind = kind;
        task.refusal = None;
        if let State::Due(former) = task.state {
            // A changed wish does not wait for the old one's back-off, unless the store is away.
            let at = if task.failures == 0 {
                former.min(at)
            } else {
                former
            };
            self.schedule(&key, at);
        }
    }

    /// Wants the action to happen no more. One that is under way still ends.
    pub(crate) fn forget(&mut self, key: &TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        match task.state {
            State::UnderWay(_) => task.is_wanted = false,
            State::Due(at) => {
                self.due.remove(&(at, key.clone()));
                self.tasks.remove(key);
            }
        }
    }

    /// Wants no more of what these keys are about.
    pub(crate) fn forget_all(&mut self, is: impl Fn(&TaskKey) -> bool) {
        let keys = self
            .tasks
            .keys()
            .filter(|key| is(key))
            .cloned()
            .collect::<Vec<_>>();
        for key in keys {
            self.forget(&key);
        }
    }

    /// Returns whether an action for this is under way.
    pub(crate) fn is_under_way(&self, key: &TaskKey) -> bool {
        self.tasks
            .get(key)
            .is_some_and(|task| matches!(task.state, State::UnderWay(_)))
    }

    /// Returns why this was refused, if it was.
    pub(crate) fn refusal(&self, key: &TaskKey) -> Option<&str> {
        self.tasks.get(key)?.refusal.as_deref()
    }

    /// Returns every refusal.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&TaskKey, &str)> {
        self.tasks
            .iter()
            .filter_map(|(key, task)| Some((key, task.refusal.as_deref()?)))
    }

    /// Hands out an action that is due.
    pub(crate) fn poll(&mut self, now: Moment) -> Option<Action> {
        let (at, key) = self.due.first().filter(|(at, _)| *at <= now)?.clone();
        self.due.remove(&(at, key.clone()));
        let task = self.tasks.get_mut(&key)?;
        task.state = State::UnderWay(Box::new(task.kind.clone()));
        self.next += 1;
        let id = ActionId(self.next);
        self.under_way.insert(id, key);

        Some(Action {
            id,
            kind: task.kind.clone(),
        })
    }

    /// Returns when the next action is due.
    pub(crate) fn poll_timeout(&self) -> Option<Moment> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes in how an action ended; `None` for one that was never handed out.
    pub(crate) fn end(&mut self, id: ActionId, result: ActionResult, now: Moment) -> Option<Ended> {
        let key = self.under_way.remove(&id)?;
        let task = self.tasks.get_mut(&key)?;
        let former = std::mem::replace(&mut task.state, State::Due(now));
        let State::UnderWay(handed_out) = former else {
            return None;
        };
        let wait = match &result {
            ActionResult::Done | ActionResult::Addresses(_) => {
                task.failures = 0;
                task.refusal = None;
                ECHO
            }
            ActionResult::Retry(_) => {
                task.failures = task.failures.saturating_add(1);
                back_off(task.failures)
            }
            ActionResult::Refused(why) => {
                task.refusal = Some(why.clone());
                REFUSED
            }
        };
        let is_changed = *handed_out != task.kind && task.failures == 0;
        let is_wanted = task.is_wanted;
        let ended = Ended {
            key: key.clone(),
            kind: handed_out,
            result,
        };
        if is_wanted {
            self.schedule(&key, if is_changed { now } else { now + wait });
        } else {
            self.tasks.remove(&key);
        }

        Some(ended)
    }

    /// Makes everything due that failed and waits: the store, which was away, is back.
    pub(crate) fn hurry(&mut self, now: Moment) {
        let mut waiting = Vec::new();
        for (key, task) in &mut self.tasks {
            if task.failures > 0 && matches!(task.state, State::Due(at) if at > now) {
                task.failures = 0;
                waiting.push(key.clone());
            }
        }
        for key in waiting {
            self.schedule(&key, now);
        }
    }

    fn schedule(&mut self, key: &TaskKey, at: Moment) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if let State::Due(former) = task.state {
            self.due.remove(&(former, key.clone()));
        }
        task.state = State::Due(at);
        self.due.insert((at, key.clone()));
    }
}

fn back_off(failures: u32) -> Duration {
    RETRY_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(6))
        .min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: TaskKey = TaskKey::Publish;

    #[test]
    fn one_action_at_a_time_and_failures_wait_longer_and_longer() {
        let mut tasks = Tasks::default();
        let mut now = Moment::START;
        tasks.ensure(KEY, kind(1), now);
        for wait in [500, 1000, 2000] {
            let action = tasks.poll(now).unwrap();
            assert_eq!(tasks.poll(now), None);
            tasks
                .end(action.id, ActionResult::Retry("away".into()), now)
                .unwrap();

            let next = tasks.poll_timeout().unwrap();
            assert_eq!(next - now, Duration::from_millis(wait));
            now = next;
        }
    }

    #[test]
    fn what_failed_while_the_store_was_away_is_due_as_soon_as_it_is_back() {
        let mut tasks = Tasks::default();
        let mut now = Moment::START;
        tasks.ensure(KEY, kind(1), now);
        for _ in 0..7 {
            let action = tasks.poll(now).unwrap();
            tasks
                .end(action.id, ActionResult::Retry("away".into()), now)
                .unwrap();
            now = tasks.poll_timeout().unwrap();
        }
        let action = tasks.poll(now).unwrap();
        tasks
            .end(action.id, ActionResult::Retry("away".into()), now)
            .unwrap();
        assert!(tasks.poll_timeout().unwrap() - now > Duration::from_secs(10));

        tasks.hurry(now);

        assert_eq!(tasks.poll_timeout(), Some(now));
    }

    #[test]
    fn a_wish_that_changes_under_way_follows_at_once() {
        let mut tasks = Tasks::default();
        let now = Moment::START;
        tasks.ensure(KEY, kind(1), now);
        let first = tasks.poll(now).unwrap();

        tasks.ensure(KEY, kind(2), now);
        assert_eq!(tasks.poll(now), None);
        tasks.end(first.id, ActionResult::Done, now).unwrap();

        assert_eq!(tasks.poll(now).unwrap().kind, kind(2));
    }

    #[test]
    fn what_is_forgotten_under_way_ends_and_is_not_tried_again() {
        let mut tasks = Tasks::default();
        let now = Moment::START;
        tasks.ensure(KEY, kind(1), now);
        let action = tasks.poll(now).unwrap();

        tasks.forget(&KEY);

        assert!(
            tasks
                .end(action.id, ActionResult::Retry("away".into()), now)
                .is_some()
        );
        assert_eq!(tasks.poll_timeout(), None);
        assert_eq!(tasks.end(action.id, ActionResult::Done, now), None);
    }

    fn kind(last: u8) -> ActionKind {
        ActionKind::ClaimAddress(IpAddr::from([192, 0, 2, last]))
    }
}
