//! Timers: six per peer, and one schedule over all peers that knows the next deadline.
use std::collections::BTreeSet;
use std::time::Instant;

use crate::PeerId;

/// What a peer may wait for (§6 of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The turn to greet a new peer with a first initiation.
    Greeting,
    /// The response to our initiation.
    Retransmit,
    /// Something to send, else received data is answered with a keepalive.
    Keepalive,
    /// Something to receive, else sent data asks for a new session.
    NewHandshake,
    /// The next persistent keepalive.
    PersistentKeepalive,
    /// A new session, else all keys are erased.
    EraseKeys,
}

impl Timer {
    /// All of them, in the order in which they are served when several are due.
    pub(crate) const ALL: [Self; 6] = [
        Self::Greeting,
        Self::Retransmit,
        Self::Keepalive,
        Self::NewHandshake,
        Self::PersistentKeepalive,
        Self::EraseKeys,
    ];
}

/// The timers of one peer.
#[derive(Default)]
pub(crate) struct Timers {
    deadlines: [Option<Instant>; Timer::ALL.len()],
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, deadline: Instant) {
        self.deadlines[timer as usize] = Some(deadline);
    }

    /// Sets the timer, or sets it forward.
    pub(crate) fn hasten(&mut self, timer: Timer, deadline: Instant) {
        let set = self.deadlines[timer as usize];
        self.set(timer, set.map_or(deadline, |set| set.min(deadline)));
    }

    pub(crate) fn clear(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = None;
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.deadlines[timer as usize].is_some()
    }

    /// Clears the timer if it is due, and says whether it was.
    pub(crate) fn take_due(&mut self, timer: Timer, now: Instant) -> bool {
        let due = self.deadlines[timer as usize].is_some_and(|deadline| deadline <= now);
        if due {
            self.clear(timer);
        }
        due
    }

    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.deadlines.iter().flatten().min().copied()
    }
}

/// The earliest deadline of every peer, in order.
#[derive(Default)]
pub(crate) struct Schedule {
    due: BTreeSet<(Instant, PeerId)>,
}

impl Schedule {
    /// Moves a peer from one deadline to another.
    pub(crate) fn reschedule(&mut self, peer: PeerId, from: Option<Instant>, to: Option<Instant>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.due.remove(&(from, peer));
        }
        if let Some(to) = to {
            self.due.insert((to, peer));
        }
    }

    /// The next deadline of all.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// A peer with a deadline at or before `now`; it stays scheduled.
    pub(crate) fn due(&self, now: Instant) -> Option<PeerId> {
        self.due
            .first()
            .filter(|(deadline, _)| *deadline <= now)
            .map(|(_, peer)| *peer)
    }
}
