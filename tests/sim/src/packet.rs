//! Packets, and what may become of them.

use std::net::IpAddr;

use model::{Family, NodeName};

/// A packet between two addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// Sent by the node itself, not by one of its pods.
    pub is_local: bool,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrived in plaintext.
    Plain,
    /// It arrived through a tunnel.
    Encrypted,
    /// It did not leave.
    Dropped(String),
    /// It left in plaintext and was refused: a leak.
    PlainRefused(String),
    /// It left encrypted and was not taken.
    EncryptedRefused(String),
    /// It left in plaintext towards nobody who would take it.
    Strayed(NodeName),
}

impl Packet {
    /// Returns the family.
    pub fn family(&self) -> Family {
        Family::of(self.destination)
    }
}

impl Fate {
    /// Returns whether the packet arrived.
    pub fn arrived(&self) -> bool {
        matches!(self, Self::Plain | Self::Encrypted)
    }

    /// Returns whether its content was on the wire in plaintext.
    pub fn was_plain(&self) -> bool {
        matches!(self, Self::Plain | Self::PlainRefused(_) | Self::Strayed(_))
    }
}
