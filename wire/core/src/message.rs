//! The four messages on the wire (§5.4 of the paper). All integers are little endian.
//!
//! ```text
//! initiation   1 0 0 0 │ sender 4 │ Noise 108 │ mac1 16 │ mac2 16
//! response     2 0 0 0 │ sender 4 │ receiver 4 │ Noise 48 │ mac1 16 │ mac2 16
//! cookie reply 3 0 0 0 │ receiver 4 │ nonce 24 │ sealed cookie 32
//! data         4 0 0 0 │ receiver 4 │ counter 8 │ sealed packet 16…
//! ```
use thiserror::Error;

/// Bytes that a data message adds to the padded packet: 16 of header, 16 of tag.
pub const DATA_OVERHEAD: usize = DATA_HEADER + 16;

/// Length of a data message's header in bytes.
pub(crate) const DATA_HEADER: usize = 16;

const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE_REPLY: usize = 64;
const MACS: usize = 32;

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
        let (message, fits) = match datagram {
            [1, 0, 0, 0, ..] => (Self::Initiation, length == INITIATION),
            [2, 0, 0, 0, ..] => (Self::Response, length == RESPONSE),
            [3, 0, 0, 0, ..] => (Self::CookieReply, length == COOKIE_REPLY),
            [4, 0, 0, 0, ..] => match data_header(datagram) {
                Some((receiver, counter)) => (Self::Data { receiver, counter }, true),
                None => return Err(Malformed::WrongLength { length }),
            },
            _ => return Err(Malformed::UnknownType),
        };
        if fits {
            Ok(message)
        } else {
            Err(Malformed::WrongLength { length })
        }
    }
}

/// Length of a packet after padding: the next multiple of 16, but never beyond `mtu` (§5.4.6 of
/// the paper). A packet longer than `mtu` is padded as its last MTU-sized part would be.
#[must_use]
pub const fn padded_length(length: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return length.next_multiple_of(16);
    }
    let last = if length > mtu { length % mtu } else { length };
    let padded = last.next_multiple_of(16);
    length - last + if padded < mtu { padded } else { mtu }
}

/// Receiver and counter of a data message; `None` if it is none.
pub(crate) fn data_header(datagram: &[u8]) -> Option<(u32, u64)> {
    let [
        4,
        0,
        0,
        0,
        r0,
        r1,
        r2,
        r3,
        c0,
        c1,
        c2,
        c3,
        c4,
        c5,
        c6,
        c7,
        rest @ ..,
    ] = datagram
    else {
        return None;
    };
    if rest.len() < DATA_OVERHEAD - DATA_HEADER {
        return None;
    }
    let counter = u64::from_le_bytes([*c0, *c1, *c2, *c3, *c4, *c5, *c6, *c7]);
    Some((u32::from_le_bytes([*r0, *r1, *r2, *r3]), counter))
}

/// Writes the header of a data message into the first 16 bytes.
pub(crate) fn write_data_header(header: &mut [u8], receiver: u32, counter: u64) {
    header[..4].copy_from_slice(&[4, 0, 0, 0]);
    header[4..8].copy_from_slice(&receiver.to_le_bytes());
    header[8..DATA_HEADER].copy_from_slice(&counter.to_le_bytes());
}

/// First message of a handshake.
pub(crate) struct Initiation<'a> {
    pub(crate) sender: u32,
    /// 108 bytes.
    pub(crate) noise: &'a [u8],
}

impl<'a> Initiation<'a> {
    pub(crate) fn decode(datagram: &'a [u8]) -> Option<Self> {
        let body = body(datagram, 1, INITIATION)?;
        let (sender, noise) = body.split_first_chunk::<4>()?;
        let noise = noise.get(..noise.len() - MACS)?;
        Some(Self {
            sender: u32::from_le_bytes(*sender),
            noise,
        })
    }

    /// The message with room for the macs, which are zero.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let sender = self.sender.to_le_bytes();
        [&[1, 0, 0, 0], sender.as_slice(), self.noise, &[0; MACS]].concat()
    }
}

/// Second message of a handshake.
pub(crate) struct Response<'a> {
    pub(crate) sender: u32,
    pub(crate) receiver: u32,
    /// 48 bytes.
    pub(crate) noise: &'a [u8],
}

impl<'a> Response<'a> {
    pub(crate) fn decode(datagram: &'a [u8]) -> Option<Self> {
        let body = body(datagram, 2, RESPONSE)?;
        let (sender, body) = body.split_first_chunk::<4>()?;
        let (receiver, noise) = body.split_first_chunk::<4>()?;
        Some(Self {
            sender: u32::from_le_bytes(*sender),
            receiver: u32::from_le_bytes(*receiver),
            noise: noise.get(..noise.len() - MACS)?,
        })
    }

    /// The message with room for the macs, which are zero.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (sender, receiver) = (self.sender.to_le_bytes(), self.receiver.to_le_bytes());
        [
            &[2, 0, 0, 0],
            sender.as_slice(),
            &receiver,
            self.noise,
            &[0; MACS],
        ]
        .concat()
    }
}

/// A loaded responder's answer.
pub(crate) struct CookieReply<'a> {
    pub(crate) receiver: u32,
    pub(crate) nonce: &'a [u8; 24],
    /// 32 bytes.
    pub(crate) sealed: &'a [u8],
}

impl<'a> CookieReply<'a> {
    pub(crate) fn decode(datagram: &'a [u8]) -> Option<Self> {
        let body = body(datagram, 3, COOKIE_REPLY)?;
        let (receiver, body) = body.split_first_chunk::<4>()?;
        let (nonce, sealed) = body.split_first_chunk::<24>()?;
        Some(Self {
            receiver: u32::from_le_bytes(*receiver),
            nonce,
            sealed,
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let receiver = self.receiver.to_le_bytes();
        [&[3, 0, 0, 0], receiver.as_slice(), self.nonce, self.sealed].concat()
    }
}

/// The sender index that an initiation or response claims.
pub(crate) fn claimed_sender(datagram: &[u8]) -> Option<u32> {
    datagram
        .get(4..8)?
        .first_chunk()
        .map(|sender| u32::from_le_bytes(*sender))
}

fn body(datagram: &[u8], kind: u8, length: usize) -> Option<&[u8]> {
    if datagram.len() != length {
        return None;
    }
    datagram.strip_prefix(&[kind, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_type_has_its_length() {
        let sized = |kind, length| {
            let mut datagram = vec![0; length];
            datagram[0] = kind;
            Message::classify(&datagram)
        };
        let data = Message::Data {
            receiver: 0,
            counter: 0,
        };
        assert_eq!(sized(1, 148), Ok(Message::Initiation));
        assert_eq!(sized(2, 92), Ok(Message::Response));
        assert_eq!(sized(3, 64), Ok(Message::CookieReply));
        assert_eq!(sized(4, 32), Ok(data));
        assert_eq!(sized(4, 31), Err(Malformed::WrongLength { length: 31 }));
        assert_eq!(sized(1, 149), Err(Malformed::WrongLength { length: 149 }));
        assert_eq!(sized(2, 91), Err(Malformed::WrongLength { length: 91 }));
        assert_eq!(sized(5, 148), Err(Malformed::UnknownType));
        assert_eq!(Message::classify(&[]), Err(Malformed::UnknownType));
        assert_eq!(
            Message::classify(&[1, 0, 0, 1]),
            Err(Malformed::UnknownType)
        );
    }

    #[test]
    fn padding_reaches_the_next_16_but_never_passes_the_mtu() {
        let cases = [
            (0, 0),
            (1, 16),
            (16, 16),
            (17, 32),
            (1408, 1408),
            (1409, 1420),
            (1420, 1420),
        ];
        for (length, padded) in cases {
            assert_eq!(padded_length(length, 1420), padded, "{length}");
        }
        assert_eq!(padded_length(1421, 1420), 1420 + 16);
        assert_eq!(padded_length(2840, 1420), 2840);
        assert_eq!(padded_length(21, 0), 32);
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(sender: u32, receiver: u32, bytes: [u8; 32]) {
            let noise: Vec<u8> = bytes.iter().copied().cycle().take(108).collect();
            let wire = Initiation { sender, noise: &noise }.encode();
            let back = Initiation::decode(&wire).unwrap();
            prop_assert_eq!((back.sender, back.noise), (sender, noise.as_slice()));
            let wire = Response { sender, receiver, noise: &noise[..48] }.encode();
            let back = Response::decode(&wire).unwrap();
            prop_assert_eq!((back.sender, back.receiver, back.noise), (sender, receiver, &noise[..48]));
        }

        #[test]
        fn no_datagram_makes_a_parser_panic(bytes in proptest::collection::vec(0_u8..6, 0..200)) {
            let _ = Message::classify(&bytes);
            let _ = (Initiation::decode(&bytes).is_some(), Response::decode(&bytes).is_some());
            let _ = (CookieReply::decode(&bytes).is_some(), claimed_sender(&bytes));
        }
    }
}
