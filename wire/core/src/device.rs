//! What all peers of a tunnel share: our identity, randomness, session indices, and the queues of
//! what goes out.
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::aead::{Aead, AeadFactory};
use crate::index::LiveIndices;
use crate::limit::{EVENTS, GREETING_INTERVAL, JITTER, PROMPT_BURST, PROMPT_INTERVAL};
use crate::{Endpoint, Event, Now, PeerId, PrivateKey, PublicKey, Transmit};

/// Who we are.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) secret: StaticSecret,
    pub(crate) public: PublicKey,
}

impl Identity {
    pub(crate) fn new(private: PrivateKey) -> Self {
        let secret = StaticSecret::from(*private.expose());
        Self {
            public: private.public_key(),
            private,
            secret,
        }
    }
}

pub(crate) struct Device {
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) mtu: usize,
    /// Bytes that wait for a session, over all peers.
    pub(crate) queued_bytes: usize,
    pub(crate) rng: ChaCha20Rng,
    indices: BTreeMap<u32, PeerId>,
    /// The same, for those who do not hold the tunnel.
    pub(crate) live: Arc<LiveIndices>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    aead: AeadFactory,
    next_greeting: Option<Instant>,
    /// When as many initiations as at first may be made for packets at once again.
    prompts_full_at: Option<Instant>,
}

impl Device {
    pub(crate) fn new(seed: [u8; 32], aead: AeadFactory) -> Self {
        Self {
            identity: None,
            mtu: 1420,
            queued_bytes: 0,
            rng: ChaCha20Rng::from_seed(*Zeroizing::new(seed)),
            indices: BTreeMap::new(),
            live: Arc::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            aead,
            next_greeting: None,
            prompts_full_at: None,
        }
    }

    pub(crate) fn set_identity(&mut self, private: Option<PrivateKey>) {
        self.identity = private.map(Identity::new).map(Arc::new);
    }

    pub(crate) fn aead(&self, key: &[u8; 32]) -> Box<dyn Aead> {
        (self.aead)(key)
    }

    /// Reserves an index that no session and no handshake of ours has.
    pub(crate) fn reserve_index(&mut self, peer: PeerId) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if let std::collections::btree_map::Entry::Vacant(entry) = self.indices.entry(index) {
                entry.insert(peer);
                self.live.add(index);
                return index;
            }
        }
    }

    pub(crate) fn release_index(&mut self, index: u32) {
        if self.indices.remove(&index).is_some() {
            self.live.remove(index);
        }
    }

    pub(crate) fn release_indices(&mut self, ended: Vec<u32>) {
        for index in ended {
            self.release_index(index);
        }
    }

    /// Whose index it is.
    pub(crate) fn holder(&self, index: u32) -> Option<PeerId> {
        self.indices.get(&index).copied()
    }

    #[cfg(test)]
    pub(crate) const fn reserved_indices(&self) -> &BTreeMap<u32, PeerId> {
        &self.indices
    }

    /// A fresh private key. The generator is seeded anew from its own output each time, so that who
    /// reads our memory later cannot compute the keys of past handshakes
    /// (<https://blog.cr.yp.to/20170723-random.html>).
    pub(crate) fn ephemeral(&mut self) -> StaticSecret {
        let mut seed = Zeroizing::new([0; 32]);
        let mut key = Zeroizing::new([0; 32]);
        self.rng.fill_bytes(seed.as_mut_slice());
        self.rng.fill_bytes(key.as_mut_slice());
        self.rng = ChaCha20Rng::from_seed(*seed);
        StaticSecret::from(*key)
    }

    /// A random time from 0 to 333 ms (§6.1 of the paper).
    pub(crate) fn jitter(&mut self) -> Duration {
        Duration::from_micros(u64::from(self.rng.next_u32()) % (JITTER.as_micros() as u64 + 1))
    }

    /// The next free turn to greet a peer.
    pub(crate) fn next_greeting(&mut self, now: Now) -> Instant {
        let turn = self
            .next_greeting
            .map_or(now.instant, |next| next.max(now.instant));
        self.next_greeting = Some(turn + GREETING_INTERVAL);
        turn
    }

    /// Takes a turn for an initiation that a packet asks for: now, or the moment of it.
    pub(crate) fn take_prompt(&mut self, now: Now) -> Result<(), Instant> {
        let full_at = self
            .prompts_full_at
            .map_or(now.instant, |at| at.max(now.instant));
        let next = full_at + PROMPT_INTERVAL;
        self.prompts_full_at = Some(next);
        let at_once = PROMPT_INTERVAL * PROMPT_BURST;
        if next <= now.instant + at_once {
            return Ok(());
        }

        Err(next - at_once)
    }

    pub(crate) fn transmit(&mut self, peer: Option<PeerId>, to: Endpoint, datagram: Vec<u8>) {
        self.transmits.push_back(Transmit {
            peer,
            destination: to,
            datagram,
        });
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub(crate) fn discard_transmits(&mut self) {
        self.transmits.clear();
    }

    /// Queues an event; where nobody polls, the oldest gives way.
    pub(crate) fn tell(&mut self, event: Event) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::ring;

    #[test]
    fn the_generator_forgets_the_keys_it_made() {
        let mut device = Device::new([5; 32], ring);
        let key = device.ephemeral().to_bytes();
        let mut later = device.rng.clone();
        later.set_word_pos(0);
        let mut past = [0; 1024];
        later.fill_bytes(&mut past);
        assert!(!past.windows(32).any(|window| window == key));
        assert_ne!(device.ephemeral().to_bytes(), key);
    }

    #[test]
    fn an_index_is_never_reserved_twice() {
        let mut device = Device::new([5; 32], ring);
        let peer = PeerId {
            slot: 0,
            generation: 0,
        };
        let index = device.reserve_index(peer);
        device.rng = ChaCha20Rng::from_seed([5; 32]);
        let other = device.reserve_index(peer);
        assert_ne!(index, other);
        device.release_index(index);
        assert_eq!(
            (device.holder(index), device.holder(other)),
            (None, Some(peer))
        );
    }
}
