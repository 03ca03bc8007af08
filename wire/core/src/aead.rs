//! ChaCha20-Poly1305 (RFC 8439) behind two functions, so that another implementation can take the
//! place of the default one.
use std::hint::black_box;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;

/// Length of the authentication tag in bytes.
pub(crate) const TAG: usize = 16;

/// Authenticated encryption under one key with counter nonces: 32 zero bits, then the counter in
/// little endian (§5.4.6 of the paper).
///
/// *Guarantees:* `open` undoes `seal` with the same counter and associated data and refuses
/// everything else; the key is erased when the implementation is dropped.
/// *Assumptions:* no counter is given to `seal` twice.
/// *Errors:* only those below; after an error of `open` the bytes of `sealed` mean nothing.
pub trait Aead: Send + Sync {
    /// Encrypts `text` in place and returns the tag.
    fn seal(&self, counter: u64, associated: &[u8], text: &mut [u8]) -> Result<[u8; 16], TooLong>;

    /// Decrypts `sealed` in place: ciphertext, then 16 bytes of tag, which stay.
    fn open(&self, counter: u64, associated: &[u8], sealed: &mut [u8]) -> Result<(), Forged>;
}

/// Makes an [`Aead`] from a key.
pub type AeadFactory = fn(&[u8; 32]) -> Box<dyn Aead>;

/// A text beyond the 256 GiB that one nonce can encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("text is too long for one nonce")]
pub struct TooLong;

/// The tag does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("authentication failed")]
pub struct Forged;

/// The default implementation.
pub(crate) fn ring(key: &[u8; 32]) -> Box<dyn Aead> {
    Box::new(Ring::new(key))
}

pub(crate) struct Ring {
    key: LessSafeKey,
}

impl Ring {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key)
            .expect("the only error is a key whose length is not 32 bytes");
        Self { key: LessSafeKey::new(key) }
    }
}

impl Aead for Ring {
    fn seal(&self, counter: u64, associated: &[u8], text: &mut [u8]) -> Result<[u8; 16], TooLong> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(counter), Aad::from(associated), text)
            .map_err(|_unspecified| TooLong)?;
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    fn open(&self, counter: u64, associated: &[u8], sealed: &mut [u8]) -> Result<(), Forged> {
        self.key
            .open_in_place(nonce(counter), Aad::from(associated), sealed)
            .map(|_plaintext| ())
            .map_err(|_unspecified| Forged)
    }
}

impl Drop for Ring {
    /// ring does not erase its keys: another key is written over this one, and `black_box` keeps
    /// the compiler from leaving the write out.
    fn drop(&mut self) {
        *self = black_box(std::mem::ManuallyDrop::into_inner(std::mem::ManuallyDrop::new(
            Self::new(&[0; 32]),
        )));
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
