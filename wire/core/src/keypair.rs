//! The few sessions of a peer and how they follow each other (§6.3 of the paper).
//!
//! ```text
//! initiator: response read ───────────────▶ current ──▶ former
//! responder: response written ──▶ next ──▶ current ──▶ former
//!                                      first data packet
//! ```
//!
//! A responder sends with a session only after its first authentic packet: until then it cannot
//! know that the initiator has it.
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::Role;
use crate::limit::{
    REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_ON_RECEIVE,
};
use crate::replay::ReplayWindow;
use crate::session::{ReceiveSession, SendSession};

/// One session with what only the tunnel needs to know of it.
pub(crate) struct Keypair {
    pub(crate) send: Arc<SendSession>,
    pub(crate) receive: Arc<ReceiveSession>,
    pub(crate) window: ReplayWindow,
    pub(crate) role: Role,
    pub(crate) born: Instant,
    /// Age at which we, as initiator, ask for the next one.
    pub(crate) rekey_after: Duration,
    /// The next counter to send with.
    pub(crate) counter: u64,
    /// Whether it may still be sent with.
    pub(crate) sends: bool,
}

impl Keypair {
    /// Our index of it.
    pub(crate) fn index(&self) -> u32 {
        self.receive.index()
    }

    /// Whether it is too old to be used.
    pub(crate) fn expired(&self, now: Instant) -> bool {
        now >= self.born + REJECT_AFTER_TIME
    }

    /// Takes counters for so many packets, unless the session must no longer be sent with.
    pub(crate) fn take_counters(
        &mut self,
        packets: u64,
        now: Instant,
    ) -> Option<std::ops::Range<u64>> {
        let end = self.counter.saturating_add(packets);
        if self.expired(now) || end > REJECT_AFTER_MESSAGES {
            self.sends = false;
        }
        if !self.sends {
            return None;
        }
        let counters = self.counter..end;
        self.counter = end;
        Some(counters)
    }

    /// Whether a new one is due after sending.
    pub(crate) fn requires_rekey_after_sending(&self, now: Instant) -> bool {
        let old = self.role == Role::Initiator && now >= self.born + self.rekey_after;
        self.sends && (self.counter > REKEY_AFTER_MESSAGES || old)
    }

    /// Whether a new one is due after receiving, lest this one be rejected before an answer.
    pub(crate) fn requires_rekey_after_receiving(&self, now: Instant) -> bool {
        self.sends && self.role == Role::Initiator && now >= self.born + REKEY_ON_RECEIVE
    }
}

/// Which of the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// One of those that were current.
    Former,
    Current,
    Next,
}

/// The sessions of a peer.
#[derive(Default)]
pub(crate) struct Keypairs {
    /// The last that were current, newest first. The paper has one. When both sides initiate at
    /// once, and again while messages are lost, the peer may still send with one before it.
    former: [Option<Box<Keypair>>; 3],
    current: Option<Box<Keypair>>,
    next: Option<Box<Keypair>>,
}

/// Indices of sessions that have ended.
pub(crate) type Ended = Vec<u32>;

impl Keypairs {
    pub(crate) fn current(&mut self) -> Option<&mut Keypair> {
        self.current.as_deref_mut()
    }

    /// Whether we have answered an initiation and not yet heard back.
    pub(crate) const fn awaits_confirmation(&self) -> bool {
        self.next.is_some()
    }

    pub(crate) fn find(&self, index: u32) -> Option<&Keypair> {
        [&self.current, &self.next]
            .into_iter()
            .chain(&self.former)
            .filter_map(|slot| slot.as_deref())
            .find(|keypair| keypair.index() == index)
    }

    pub(crate) fn find_mut(&mut self, index: u32) -> Option<(Place, &mut Keypair)> {
        let former = self.former.iter_mut().map(|slot| (Place::Former, slot));
        [
            (Place::Current, &mut self.current),
            (Place::Next, &mut self.next),
        ]
        .into_iter()
        .chain(former)
        .filter_map(|(place, slot)| slot.as_deref_mut().map(|keypair| (place, keypair)))
        .find(|(_, keypair)| keypair.index() == index)
    }

    /// Puts a new session in its place. Unlike the kernel, a responder lets no other session go for
    /// it before it is confirmed.
    pub(crate) fn install(&mut self, keypair: Keypair) -> Ended {
        let role = keypair.role;
        let new = Some(Box::new(keypair));
        match role {
            Role::Initiator => {
                let current = std::mem::replace(&mut self.current, new);
                let next = self.next.take();
                let mut ended = self.retire(current);
                ended.extend(self.retire(next));
                ended
            }
            Role::Responder => indices([std::mem::replace(&mut self.next, new)]),
        }
    }

    /// The first packet of the next session has come: it becomes the current one.
    pub(crate) fn confirm(&mut self) -> Ended {
        let Some(next) = self.next.take() else {
            return Ended::new();
        };
        let current = self.current.replace(next);
        self.retire(current)
    }

    /// Forbids to send with any of them; what is under way may still arrive.
    pub(crate) fn stop_sending(&mut self) {
        for keypair in [&mut self.current, &mut self.next].into_iter().flatten() {
            keypair.sends = false;
        }
    }

    /// Ends all of them.
    pub(crate) fn clear(&mut self) -> Ended {
        let Self {
            former,
            current,
            next,
        } = std::mem::take(self);
        let mut ended = indices(former);
        ended.extend(indices([current, next]));
        ended
    }

    /// The indices of all of them.
    #[cfg(test)]
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        let slots = self.former.iter().chain([&self.current, &self.next]);
        slots.filter_map(|slot| slot.as_deref().map(Keypair::index))
    }

    fn retire(&mut self, keypair: Option<Box<Keypair>>) -> Ended {
        if keypair.is_none() {
            return Ended::new();
        }
        self.former.rotate_right(1);
        indices([std::mem::replace(&mut self.former[0], keypair)])
    }
}

fn indices<const N: usize>(ended: [Option<Box<Keypair>>; N]) -> Ended {
    ended
        .into_iter()
        .flatten()
        .map(|keypair| keypair.index())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PeerId;
    use crate::aead::ring;
    use crate::limit::REKEY_AFTER_TIME;
    use crate::test_clock::at;

    fn keypair(role: Role, index: u32) -> Keypair {
        let peer = PeerId {
            slot: 0,
            generation: 0,
        };
        Keypair {
            send: Arc::new(SendSession::new(ring(&[1; 32]), index)),
            receive: Arc::new(ReceiveSession::new(ring(&[1; 32]), index, peer)),
            window: ReplayWindow::new(),
            role,
            born: at(0).instant,
            rekey_after: REKEY_AFTER_TIME,
            counter: 0,
            sends: true,
        }
    }

    /// Indices: former sessions, newest first; current; next.
    fn places(keypairs: &Keypairs) -> (Vec<u32>, Option<u32>, Option<u32>) {
        let index = |slot: &Option<Box<Keypair>>| slot.as_deref().map(Keypair::index);
        let former = keypairs.former.iter().filter_map(index).collect();
        (former, index(&keypairs.current), index(&keypairs.next))
    }

    #[test]
    fn an_initiators_session_is_current_at_once() {
        let mut keypairs = Keypairs::default();
        for index in 1..=4 {
            assert_eq!(keypairs.install(keypair(Role::Initiator, index)), []);
        }
        assert_eq!(places(&keypairs), (vec![3, 2, 1], Some(4), None));
        assert_eq!(keypairs.install(keypair(Role::Initiator, 5)), [1]);
        assert_eq!(places(&keypairs), (vec![4, 3, 2], Some(5), None));
    }

    #[test]
    fn a_responders_session_waits_for_its_first_packet() {
        let mut keypairs = Keypairs::default();
        keypairs.install(keypair(Role::Initiator, 1));
        assert_eq!(keypairs.install(keypair(Role::Responder, 2)), []);
        assert_eq!(places(&keypairs), (vec![], Some(1), Some(2)));
        assert_eq!(keypairs.confirm(), []);
        assert_eq!(places(&keypairs), (vec![1], Some(2), None));
        assert_eq!(keypairs.confirm(), []);
        assert_eq!(places(&keypairs), (vec![1], Some(2), None));
    }

    #[test]
    fn a_repeated_initiation_replaces_only_the_waiting_session() {
        let mut keypairs = Keypairs::default();
        keypairs.install(keypair(Role::Initiator, 1));
        keypairs.install(keypair(Role::Initiator, 2));
        assert_eq!(keypairs.install(keypair(Role::Responder, 3)), []);
        assert_eq!(keypairs.install(keypair(Role::Responder, 4)), [3]);
        assert_eq!(places(&keypairs), (vec![1], Some(2), Some(4)));
    }

    #[test]
    fn when_both_initiate_whatever_the_peer_may_send_with_stays() {
        let mut keypairs = Keypairs::default();
        keypairs.install(keypair(Role::Initiator, 1));
        keypairs.install(keypair(Role::Responder, 2));
        assert_eq!(keypairs.install(keypair(Role::Initiator, 3)), []);
        assert_eq!(places(&keypairs), (vec![2, 1], Some(3), None));
    }

    #[test]
    fn counters_end_before_the_limit_and_time_at_180_seconds() {
        let mut full = keypair(Role::Initiator, 1);
        full.counter = REJECT_AFTER_MESSAGES - 3;
        assert_eq!(
            full.take_counters(2, at(1).instant),
            Some(REJECT_AFTER_MESSAGES - 3..REJECT_AFTER_MESSAGES - 1)
        );
        assert_eq!(full.take_counters(2, at(1).instant), None);
        assert_eq!(full.take_counters(1, at(1).instant), None);
        let mut old = keypair(Role::Responder, 1);
        assert_eq!(old.take_counters(1, at(179).instant), Some(0..1));
        assert_eq!(old.take_counters(1, at(180).instant), None);
    }

    #[test]
    fn only_the_initiator_rekeys_by_age_but_both_by_count() {
        let (initiator, mut responder) = (keypair(Role::Initiator, 1), keypair(Role::Responder, 1));
        assert!(!initiator.requires_rekey_after_sending(at(119).instant));
        assert!(initiator.requires_rekey_after_sending(at(120).instant));
        assert!(!initiator.requires_rekey_after_receiving(at(164).instant));
        assert!(initiator.requires_rekey_after_receiving(at(165).instant));
        assert!(!responder.requires_rekey_after_sending(at(179).instant));
        assert!(!responder.requires_rekey_after_receiving(at(179).instant));
        responder.counter = REKEY_AFTER_MESSAGES;
        assert!(!responder.requires_rekey_after_sending(at(1).instant));
        responder.counter += 1;
        assert!(responder.requires_rekey_after_sending(at(1).instant));
    }
}
