//! Keys of a node, and the files that hold them.
//!
//! [`PrivateKey`] computes; [`Vault`] and [`write_private`], the way in which every state file of
//! meshd is written, are the only parts that touch the disk.
//!
//! **Invariants:** a private key has no `Debug`, no `Display`, never leaves by an error message, and
//! is wiped from memory when dropped; its file has mode 0600 and appears by rename, whole or not at all.

mod file;
mod secret;
mod vault;

pub use file::{create_private_folder, remove_private, write_private};
pub use secret::PrivateKey;
pub use vault::{Slot, Vault, VaultError};
