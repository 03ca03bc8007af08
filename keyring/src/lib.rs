//! Keys of a node, and the files that hold them.
//!
//! [`PrivateKey`] computes; [`Vault`] is the only part that touches the disk.
//!
//! **Invariants:** a private key has no `Debug`, no `Display`, never leaves by an error message, and
//! is wiped from memory when dropped; its file has mode 0600 and appears by rename, whole or not at all.

mod secret;
mod vault;

pub use secret::PrivateKey;
pub use vault::{Slot, Vault, VaultError};
