//! WireGuard private keys.

use base64::{Engine, engine::general_purpose::STANDARD};
use model::PublicKey;
use rand_core::{OsRng, TryRngCore};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A Curve25519 private key, clamped (RFC 7748 §5).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// Makes a key from the operating system's randomness.
    ///
    /// # Errors
    ///
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, rand_core::OsError> {
        let mut bytes = Zeroizing::new([0; 32]);
        OsRng.try_fill_bytes(bytes.as_mut())?;

        Ok(Self::from_bytes(*bytes))
    }

    /// Takes 32 bytes as a key, and clamps them.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;

        Self(bytes)
    }

    /// Returns the public half.
    ///
    /// The point at which a clamped key gives the zero point does not exist on the base point's
    /// subgroup, so this cannot fail; the check stays because the type demands it.
    pub fn public(&self) -> PublicKey {
        let secret = StaticSecret::from(self.0);
        let public = x25519_dalek::PublicKey::from(&secret);

        PublicKey::new(public.to_bytes())
            .expect("a clamped scalar times the base point is not zero")
    }

    /// Shows the 32 bytes, for the one place that hands them to a WireGuard implementation.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the base64 form of `wg genkey`.
    pub(crate) fn from_base64(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim_end()).ok()?);

        Some(Self::from_bytes(bytes.as_slice().try_into().ok()?))
    }

    /// Returns the base64 form of `wg genkey`.
    pub(crate) fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_half_is_that_of_rfc_7748() {
        // RFC 7748 §6.1, Bob's key pair.
        let private = hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let public = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");

        assert_eq!(PrivateKey::from_bytes(private).public().as_bytes(), &public);
    }

    #[test]
    fn two_generated_keys_differ() {
        let [a, b] = [
            PrivateKey::generate().unwrap(),
            PrivateKey::generate().unwrap(),
        ];

        assert_ne!(a.public(), b.public());
    }

    fn hex(text: &str) -> [u8; 32] {
        let bytes = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect::<Vec<_>>();

        bytes.try_into().unwrap()
    }
}
