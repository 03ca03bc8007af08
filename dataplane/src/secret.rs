//! Private keys on their way from the keyring to a device.

use model::PublicKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A WireGuard private key. Neither printable nor comparable; wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// Takes 32 bytes.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(*bytes)
    }

    /// Returns the key as devices take it.
    pub(crate) fn to_wire(&self) -> wire_core::PrivateKey {
        wire_core::PrivateKey::new(self.0)
    }
}

/// Whoever keeps the private halves of the plan's keys.
pub trait KeySource: Send {
    /// Returns the private half of this key; `None` where it is not ours.
    fn private_key(&self, public: &PublicKey) -> Option<PrivateKey>;
}

impl<F: Fn(&PublicKey) -> Option<PrivateKey> + Send> KeySource for F {
    fn private_key(&self, public: &PublicKey) -> Option<PrivateKey> {
        self(public)
    }
}
