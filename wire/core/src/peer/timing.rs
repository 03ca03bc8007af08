//! The timers of a peer: verbs for what has happened, and what is done when one is due.
//!
//! *Retransmit*: an initiation without response is repeated after 5 s and up to 333 ms more, for
//! 90 s since somebody last wanted a session. *Keepalive*: data received and nothing sent for 10 s
//! sends an empty packet. *New handshake*: data sent and nothing received for 15 s starts a
//! handshake. *Erase keys*: 540 s after the last session began, no key is left. *Persistent
//! keepalive*: an empty packet where nothing went either way for the configured time.
use std::time::Duration;

use crate::device::Device;
use crate::event::Role;
use crate::limit::{ERASE_AFTER_TIME, KEEPALIVE_TIMEOUT, NEW_HANDSHAKE_TIMEOUT, REKEY_TIMEOUT};
use crate::peer::Peer;
use crate::peer::handshake::Demand;
use crate::timer::Timer;
use crate::{Event, Now};

impl Peer {
    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, device: &mut Device, now: Now) {
        for timer in Timer::ALL {
            if self.timers.take_due(timer, now.instant) {
                self.fire(timer, device, now);
            }
        }
    }

    fn fire(&mut self, timer: Timer, device: &mut Device, now: Now) {
        match timer {
            Timer::Greeting => self.greet(device, now),
            Timer::Retransmit => self.retry(device, now),
            Timer::Keepalive => self.answer_data(device, now),
            Timer::NewHandshake => {
                self.forget_local();
                self.request_handshake(Demand::New, device, now);
            }
            Timer::PersistentKeepalive => {
                self.traversed(now);
                self.send_keepalive(device, now);
            }
            Timer::EraseKeys => self.erase_keys(device),
        }
    }

    fn greet(&mut self, device: &mut Device, now: Now) {
        let prompted = std::mem::take(&mut self.prompted);
        let current = self.keypairs.current();
        let usable = current
            .as_ref()
            .is_some_and(|k| k.sends && !k.expired(now.instant));
        let ages = current.is_some_and(|k| k.requires_rekey_after_sending(now.instant));
        if !usable || prompted && ages {
            self.request_handshake(Demand::New, device, now);
        }
    }

    fn retry(&mut self, device: &mut Device, now: Now) {
        if self.attempts_until.is_some_and(|until| now.instant < until) {
            self.forget_local();
            self.request_handshake(Demand::Retry, device, now);
            return;
        }
        self.attempts_until = None;
        self.timers.clear(Timer::Keepalive);
        self.discard_queue(device);
        if !self.timers.is_set(Timer::EraseKeys) {
            self.session_derived(now);
        }
        device.tell(Event::HandshakeAbandoned {
            peer: self.id,
            public_key: self.public_key,
        });
    }

    fn answer_data(&mut self, device: &mut Device, now: Now) {
        let another = std::mem::take(&mut self.another_keepalive);
        self.send_keepalive(device, now);
        if another {
            self.timers
                .set(Timer::Keepalive, now.instant + KEEPALIVE_TIMEOUT);
        }
    }

    fn erase_keys(&mut self, device: &mut Device) {
        self.abort_initiation(device);
        let ended = self.keypairs.clear();
        if !ended.is_empty() {
            device.tell(Event::SessionExpired {
                peer: self.id,
                public_key: self.public_key,
            });
        }
        device.release_indices(ended);
    }

    /// An authenticated packet went out.
    pub(super) fn sent_any(&mut self) {
        self.timers.clear(Timer::Keepalive);
        self.another_keepalive = false;
    }

    /// A packet that was no keepalive went out.
    pub(super) fn sent_data(&mut self, device: &mut Device, now: Now) {
        if !self.timers.is_set(Timer::NewHandshake) {
            let patience = NEW_HANDSHAKE_TIMEOUT + device.jitter();
            self.timers.set(Timer::NewHandshake, now.instant + patience);
        }
    }

    /// An authenticated packet came in.
    pub(super) fn received_any(&mut self) {
        self.timers.clear(Timer::NewHandshake);
    }

    /// A packet that was no keepalive came in.
    pub(super) fn received_data(&mut self, now: Now) {
        if self.timers.is_set(Timer::Keepalive) {
            self.another_keepalive = true;
        } else {
            self.timers
                .set(Timer::Keepalive, now.instant + KEEPALIVE_TIMEOUT);
        }
    }

    /// An authenticated packet went either way.
    pub(crate) fn traversed(&mut self, now: Now) {
        if self.persistent_keepalive > 0 {
            let interval = Duration::from_secs(u64::from(self.persistent_keepalive));
            self.timers
                .set(Timer::PersistentKeepalive, now.instant + interval);
        }
    }

    /// An initiation went out, or is held back until the last one is 5 s old.
    pub(super) fn await_response(&mut self, device: &mut Device, now: Now) {
        let sent = self.handshake_sent.unwrap_or(now.instant);
        self.timers
            .set(Timer::Retransmit, sent + REKEY_TIMEOUT + device.jitter());
    }

    /// A session exists.
    pub(super) fn session_derived(&mut self, now: Now) {
        self.timers
            .set(Timer::EraseKeys, now.instant + ERASE_AFTER_TIME);
    }

    /// A session can be used.
    pub(super) fn handshake_completed(&mut self, role: Role, device: &mut Device, now: Now) {
        self.timers.clear(Timer::Retransmit);
        self.attempts_until = None;
        self.asked_in_last_minute = false;
        self.last_handshake = Some(now.unix);
        device.tell(Event::HandshakeCompleted {
            peer: self.id,
            public_key: self.public_key,
            role,
        });
    }
}
