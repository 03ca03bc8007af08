//! Datagrams that look like WireGuard's from outside.

use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use clap::ValueEnum;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// Lengths of the messages (§5.4 of the WireGuard paper).
const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE_REPLY: usize = 64;
/// `mac1` and `mac2`, at the end of the first two.
const MACS: usize = 32;
/// The longest UDP payload over IPv4.
const LONGEST: usize = 65_507;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Handshake initiations with a right `mac1` and a random rest: whoever knows the public key can make them.
    Initiations,
    /// Handshake responses, likewise, to random indexes.
    Responses,
    /// Cookie replies to random indexes.
    Cookies,
    /// Data messages of a full packet's length for random indexes.
    Data,
    /// Random bytes of random lengths.
    Garbage,
    /// Datagrams of 1,500 to 65,507 bytes that begin like messages.
    Oversize,
    /// Messages of every type that end too early.
    Truncated,
}

/// Makes datagrams against the owner of one public key.
pub struct Forger {
    mac1_key: [u8; 32],
    rng: ChaCha20Rng,
}

impl Forger {
    /// Against the owner of `key`; the same `seed` makes the same datagrams.
    #[must_use]
    pub fn new(key: &[u8; 32], seed: u64) -> Self {
        let mut state = Blake2s256::new();
        Digest::update(&mut state, b"mac1----");
        Digest::update(&mut state, key);
        Self {
            mac1_key: state.finalize().into(),
            rng: ChaCha20Rng::seed_from_u64(seed),
        }
    }

    /// One datagram.
    pub fn forge(&mut self, kind: Kind) -> Vec<u8> {
        match kind {
            Kind::Initiations => self.signed(1, INITIATION),
            Kind::Responses => self.signed(2, RESPONSE),
            Kind::Cookies => self.message(3, COOKIE_REPLY),
            Kind::Data => self.message(4, 1452),
            Kind::Garbage => {
                let length = self.below(1472);
                self.random(length)
            }
            Kind::Oversize => {
                let (kind, length) = (self.kind(), 1500 + self.below(LONGEST - 1500 + 1));
                self.message(kind, length)
            }
            Kind::Truncated => {
                let kind = self.kind();
                let whole = match kind {
                    1 => INITIATION,
                    2 => RESPONSE,
                    3 => COOKIE_REPLY,
                    _ => 32,
                };
                let length = self.below(whole);
                let mut message = self.message(kind, whole);
                message.truncate(length);
                message
            }
        }
    }

    /// Gives a handshake message the `mac1` that it needs; the message is at least 32 bytes long.
    pub fn sign(&self, message: &mut [u8]) {
        let (body, macs) = message.split_at_mut(message.len() - MACS);
        let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&self.mac1_key)
            .expect("a key of 32 bytes");
        Mac::update(&mut mac, body);
        macs[..16].copy_from_slice(&mac.finalize().into_bytes());
        macs[16..].fill(0);
    }

    fn signed(&mut self, kind: u8, length: usize) -> Vec<u8> {
        let mut message = self.message(kind, length);
        self.sign(&mut message);
        message
    }

    fn message(&mut self, kind: u8, length: usize) -> Vec<u8> {
        let mut message = self.random(length);
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        message
    }

    fn kind(&mut self) -> u8 {
        self.below(4) as u8 + 1
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.next_u32() as usize % bound
    }

    fn random(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_what_it_says() {
        let mut forger = Forger::new(&[7; 32], 1);
        for _ in 0..1000 {
            assert_eq!(forger.forge(Kind::Initiations).len(), 148);
            assert_eq!(forger.forge(Kind::Responses).len(), 92);
            assert!((1500..=65_507).contains(&forger.forge(Kind::Oversize).len()));
            assert!(forger.forge(Kind::Truncated).len() < 148);
        }
    }
}
