//! WireGuard public keys. Private ones live in `keyring` and never travel.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A Curve25519 public key that is not zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

/// Why a text or a byte string is not a usable public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not the base64 form (RFC 4648 §4, padded) of 32 bytes.
    #[error("expected 32 bytes in base64")]
    Malformed,
    /// All bytes are zero, which every implementation reads as "no key".
    #[error("the all-zero key stands for no key")]
    Zero,
}

impl PublicKey {
    /// Checks 32 bytes.
    pub fn new(bytes: [u8; 32]) -> Result<Self, KeyError> {
        if bytes == [0; 32] {
            return Err(KeyError::Zero);
        }

        Ok(Self(bytes))
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the name of the `KeyClaim` for this key: the SHA-256 of its bytes, in lower-case hex.
    pub fn claim_name(&self) -> String {
        hex::encode(Sha256::digest(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() != 44 {
            return Err(KeyError::Malformed);
        }
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::Malformed)?;

        Self::new(bytes.try_into().map_err(|_| KeyError::Malformed)?)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_form() {
        let key = PublicKey::new([7; 32]).unwrap();

        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn zero_short_and_long_keys_are_refused() {
        assert_eq!(PublicKey::new([0; 32]), Err(KeyError::Zero));
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Malformed));
        assert_eq!(
            STANDARD.encode([1; 33]).parse::<PublicKey>(),
            Err(KeyError::Malformed)
        );
    }
}
