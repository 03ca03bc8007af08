//! The four messages on the wire (§5.4 of the paper).
use thiserror::Error;

/// Bytes that a data message adds to the padded packet: 16 of header, 16 of tag.
pub const DATA_OVERHEAD: usize = 32;

/// What a datagram claims to be; nothing in it is authenticated yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// First message of a handshake, 148 bytes.
    Initiation,
    /// Second message of a handshake, 92 bytes.
    Response,
    /// Answer of a loaded responder, 64 bytes.
    CookieReply,
    /// A sealed packet, at least 32 bytes.
    Data {
        /// Our session index.
        receiver: u32,
        /// The nonce counter.
        counter: u64,
    },
}

/// Why a datagram is no WireGuard message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The type word is none of 1 to 4.
    #[error("unknown message type")]
    UnknownType,
    /// The length does not fit the type.
    #[error("length {length} does not fit the message type")]
    WrongLength {
        /// Length of the datagram in bytes.
        length: usize,
    },
}

impl Message {
    /// Tells what a datagram claims to be.
    pub fn classify(datagram: &[u8]) -> Result<Self, Malformed> {
        let length = datagram.len();
        let wrong = Err(Malformed::WrongLength { length });
        match datagram {
            [1, 0, 0, 0, ..] => if length == 148 { Ok(Self::Initiation) } else { wrong },
            [2, 0, 0, 0, ..] => if length == 92 { Ok(Self::Response) } else { wrong },
            [3, 0, 0, 0, ..] => if length == 64 { Ok(Self::CookieReply) } else { wrong },
            [4, 0, 0, 0, r0, r1, r2, r3, c0, c1, c2, c3, c4, c5, c6, c7, ..]
                if length >= DATA_OVERHEAD =>
            {
                Ok(Self::Data {
                    receiver: u32::from_le_bytes([*r0, *r1, *r2, *r3]),
                    counter: u64::from_le_bytes([*c0, *c1, *c2, *c3, *c4, *c5, *c6, *c7]),
                })
            }
            [4, 0, 0, 0, ..] => wrong,
            _ => Err(Malformed::UnknownType),
        }
    }
}

/// Length of a packet after padding: the next multiple of 16, but never beyond `mtu` (§5.4.6).
/// A packet longer than `mtu` is padded as its last MTU-sized part would be.
#[must_use]
pub const fn padded_length(length: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return length.next_multiple_of(16);
    }
    let last = if length > mtu { length % mtu } else { length };
    let padded = last.next_multiple_of(16);
    length - last + if padded < mtu { padded } else { mtu }
}
