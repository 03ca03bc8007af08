//! Handshake messages, apart from the packets.
//!
//! ```text
//!  inbound thread ──▶ Letterbox (bounded, never waits) ──▶ handshake thread: Doorkeeper ─▶ Tunnel
//! ```
//!
//! What strangers send may cost this thread its time, and nobody else's: the packet threads only classify, copy and go
//! on; a full box loses the letter. The lock on the tunnel is taken for what a doorkeeper has let in, after the one key
//! agreement that anybody can demand. The thread has the priority of the others: what strangers can make it do is
//! bounded by the doorkeeper, and a session that cannot be renewed on a busy machine ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use wire_core::{Admission, Doorkeeper, Endpoint, HandshakeOutcome, Refusal, Transmit};

use super::shared::now;
use super::{Shared, counter};

/// Letters that wait. A burst of a thousand peers fits; a flood at 100,000 a second fills it in 10 ms.
const LETTERS: usize = 1024;
/// Longest handshake message: an initiation (§5.4.2 of the WireGuard paper).
const LONGEST: usize = 148;

/// One handshake message as it came.
struct Letter {
    from: Endpoint,
    length: usize,
    bytes: [u8; LONGEST],
}

/// Where the inbound thread leaves handshake messages.
pub(super) struct Letterbox(SyncSender<Letter>);

/// The thread's state.
pub(super) struct Handshakes {
    shared: Arc<Shared>,
    letters: Receiver<Letter>,
    doorkeeper: Doorkeeper,
    /// The configuration whose key the doorkeeper has.
    generation: Option<u64>,
    outbox: Vec<Transmit>,
}

impl Letterbox {
    fn new() -> (Self, Receiver<Letter>) {
        let (sender, letters) = sync_channel(LETTERS);
        (Self(sender), letters)
    }

    /// Leaves a message; `false`: the box is full, or the device ends.
    pub(super) fn leave(&self, from: Endpoint, message: &[u8]) -> bool {
        let mut letter = Letter {
            from,
            length: message.len(),
            bytes: [0; LONGEST],
        };
        let Some(place) = letter.bytes.get_mut(..message.len()) else {
            return false;
        };
        place.copy_from_slice(message);
        match self.0.try_send(letter) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Handshakes {
    /// The thread, and the box that it empties. It ends when the box is dropped.
    pub(super) fn new(shared: Arc<Shared>, seed: [u8; 32]) -> (Self, Letterbox) {
        let (letterbox, letters) = Letterbox::new();
        let handshakes = Self {
            shared,
            letters,
            doorkeeper: Doorkeeper::new(seed),
            generation: None,
            outbox: Vec::new(),
        };
        (handshakes, letterbox)
    }

    /// Takes letters until nobody can leave any more.
    pub(super) fn run(mut self) {
        while let Ok(letter) = self.letters.recv() {
            self.follow();
            match self.take(&letter) {
                Ok(outcome) if outcome.is_authentic() => {
                    self.doorkeeper.remember(letter.from.remote.ip());
                }
                Ok(_) => (),
                Err(refusal) => {
                    counter::add(&self.shared.counters.in_handshake_refused, 1);
                    tracing::debug!(%refusal, remote = %letter.from.remote, "handshake message refused");
                }
            }
        }
    }

    /// Gives the doorkeeper the present key.
    fn follow(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if self.generation != Some(generation) {
            self.doorkeeper.follow(&self.shared.tunnel());
            self.generation = Some(generation);
        }
    }

    fn take(&mut self, letter: &Letter) -> Result<HandshakeOutcome, Refusal> {
        let message = &letter.bytes[..letter.length];
        match self.doorkeeper.admit(letter.from, message, now())? {
            Admission::Granted(entrant) => {
                self.shared.with_tunnel(&mut self.outbox, |tunnel, now| {
                    tunnel.handle_entrant(entrant, now)
                })
            }
            Admission::Cookie(datagram) => {
                counter::add(&self.shared.counters.in_handshake_cookie, 1);
                self.shared.transmit(&Transmit {
                    peer: None,
                    destination: letter.from,
                    datagram,
                });
                Ok(HandshakeOutcome::CookieSent)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_box_loses_letters_and_nobody_waits() {
        let (letterbox, letters) = Letterbox::new();
        let from = Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 1)));
        let left = (0..2 * LETTERS).filter(|_| letterbox.leave(from, &[1; 148]));
        assert_eq!(left.count(), 1024);
        assert_eq!(letters.try_iter().count(), 1024);
        assert!(letterbox.leave(from, &[2; 92]));
        let letter = letters.try_recv().unwrap();
        assert_eq!(letter.bytes[..letter.length], [2; 92]);
    }

    #[test]
    fn what_is_longer_than_any_handshake_message_is_not_taken() {
        let (letterbox, letters) = Letterbox::new();
        let from = Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 1)));
        assert!(!letterbox.leave(from, &[1; LONGEST + 1]));
        assert_eq!(letters.try_iter().count(), 0);
    }
}
