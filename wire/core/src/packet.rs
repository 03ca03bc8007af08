//! The packet inside: as much of its IP header as the source check needs.
use std::net::IpAddr;
use std::ops::Range;

use thiserror::Error;

/// What a data message carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: the peer says that it is there.
    Keepalive,
    /// An IP packet.
    Packet {
        /// Where in the datagram the packet lies, padding removed.
        range: Range<usize>,
        /// Its source address, not yet checked.
        source: IpAddr,
    },
    /// Authentic, but no IP packet.
    Bad(BadPacket),
}

/// Why authentic plaintext is no IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadPacket {
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0}")]
    Version(u8),
    /// Shorter than its header, or than the header says.
    #[error("truncated packet")]
    Truncated,
}
