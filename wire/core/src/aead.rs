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
        Self { key: ring_key(key) }
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
    /// ring does not erase its keys: another one is written over this one, and `black_box` keeps
    /// the compiler from leaving the write out.
    fn drop(&mut self) {
        self.key = ring_key(&[0; 32]);
        black_box(&self.key);
    }
}

fn ring_key(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key)
        .expect("the only error is a key whose length is not 32 bytes");
    LessSafeKey::new(key)
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// §2.8.2 of RFC 8439, whose nonce has other leading bytes than WireGuard's.
    #[test]
    fn the_primitive_agrees_with_rfc_8439() {
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
        let mut text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one \
            tip for the future, sunscreen would be it."
            .to_vec();
        let associated = hex::decode("50515253c0c1c2c3c4c5c6c7").unwrap();
        let nonce = hex::decode("070000004041424344454647").unwrap();
        let tag = ring_key(&key)
            .seal_in_place_separate_tag(
                Nonce::try_assume_unique_for_key(&nonce).unwrap(),
                Aad::from(&associated),
                &mut text,
            )
            .unwrap();
        assert_eq!(hex::encode(&text[..16]), "d31a8d34648e60db7b86afbc53ef7ec2");
        assert_eq!(
            hex::encode(tag.as_ref()),
            "1ae10b594f09e26a7e902ecbd0600691"
        );
    }

    /// The independent implementation of the cookie's crate, with the nonce of §5.4.6 of the paper.
    #[test]
    fn counters_become_nonces_as_another_implementation_sees_them() {
        use chacha20poly1305::aead::{Aead as _, KeyInit, Payload};
        let other = chacha20poly1305::ChaCha20Poly1305::new(&[7; 32].into());
        for counter in [0, 1, 0x0102_0304_0506_0708, u64::MAX] {
            let mut sealed = b"some text".to_vec();
            let tag = Ring::new(&[7; 32])
                .seal(counter, b"data", &mut sealed)
                .unwrap();
            sealed.extend_from_slice(&tag);
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&counter.to_le_bytes());
            let payload = Payload {
                msg: b"some text",
                aad: b"data",
            };
            assert_eq!(sealed, other.encrypt(&nonce.into(), payload).unwrap());
        }
    }

    #[test]
    fn a_changed_bit_anywhere_is_refused() {
        let aead = Ring::new(&[7; 32]);
        let mut sealed = b"some text".to_vec();
        let tag = aead.seal(9, b"data", &mut sealed).unwrap();
        sealed.extend_from_slice(&tag);
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(aead.open(9, b"data", &mut forged), Err(Forged));
        }
        assert_eq!(aead.open(8, b"data", &mut sealed.clone()), Err(Forged));
        assert_eq!(aead.open(9, b"date", &mut sealed.clone()), Err(Forged));
        assert_eq!(aead.open(9, b"data", &mut sealed), Ok(()));
        assert_eq!(&sealed[..9], b"some text");
    }
}
