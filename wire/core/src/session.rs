//! Sessions: the keys of one handshake, split by direction so that packets are sealed and opened
//! without the tunnel.
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

use crate::aead::{Aead, TAG};
use crate::limit::REJECT_AFTER_MESSAGES;
use crate::message::{DATA_HEADER, DATA_OVERHEAD, data_header, write_data_header};
use crate::packet::{Payload, parse};
use crate::{Endpoint, PeerId};

/// The sending half of a session.
pub(crate) struct SendSession {
    aead: Box<dyn Aead>,
    /// The peer's index of the session.
    receiver: u32,
}

impl SendSession {
    pub(crate) fn new(aead: Box<dyn Aead>, receiver: u32) -> Self {
        Self { aead, receiver }
    }
}

/// The right to seal a fixed number of packets to one peer. Each nonce leaves it once, so none can
/// be used twice. Hold it no longer than it takes to seal: the session's keys are erased when the
/// last holder drops them.
pub struct SealBatch {
    session: Arc<SendSession>,
    counters: Range<u64>,
    endpoint: Endpoint,
}

/// Why a packet could not be sealed; the datagram must not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// The buffer has no room for header and tag.
    #[error("buffer of {length} bytes is too short")]
    Buffer {
        /// Length of the buffer in bytes.
        length: usize,
    },
    /// All packets of the batch are sealed.
    #[error("the batch is used up")]
    Exhausted,
    /// The packet is longer than the cipher allows.
    #[error("packet of {length} bytes is too long")]
    Packet {
        /// Length of the packet in bytes.
        length: usize,
    },
}

impl SealBatch {
    pub(crate) fn new(session: Arc<SendSession>, counters: Range<u64>, endpoint: Endpoint) -> Self {
        Self {
            session,
            counters,
            endpoint,
        }
    }

    /// Where to send the sealed datagrams.
    #[must_use]
    pub const fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// How many packets may still be sealed.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.counters.end - self.counters.start
    }

    /// Takes the first `packets` off, for another worker; all there are if there are fewer.
    #[must_use]
    pub fn split(&mut self, packets: u64) -> Self {
        let start = self.counters.start;
        let middle = start + packets.min(self.remaining());
        self.counters.start = middle;
        Self {
            session: Arc::clone(&self.session),
            counters: start..middle,
            ..*self
        }
    }

    /// Seals `datagram` in place. Shape: 16 bytes of header (written here), the packet with its
    /// zero padding to [`crate::padded_length`], 16 bytes of tag (written here).
    pub fn seal(&mut self, datagram: &mut [u8]) -> Result<(), SealError> {
        let length = datagram.len();
        if length < DATA_OVERHEAD {
            return Err(SealError::Buffer { length });
        }
        let counter = self.counters.next().ok_or(SealError::Exhausted)?;
        let (header, rest) = datagram.split_at_mut(DATA_HEADER);
        let (packet, tag) = rest.split_at_mut(length - DATA_OVERHEAD);
        write_data_header(header, self.session.receiver, counter);
        let sealed = self.session.aead.seal(counter, &[], packet);
        let written = sealed.map_err(|_too_long| SealError::Packet {
            length: packet.len(),
        })?;
        tag.copy_from_slice(&written);
        Ok(())
    }
}

/// The receiving half of a session. Callers that cache it keep a [`std::sync::Weak`], so that keys
/// die on time.
pub struct ReceiveSession {
    aead: Box<dyn Aead>,
    index: u32,
    peer: PeerId,
}

/// A data message that was authentic; whether it is fresh and from an allowed source is for
/// [`crate::Tunnel::received`] to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its nonce counter.
    pub counter: u64,
    /// Length of the datagram in bytes.
    pub length: usize,
    /// What was inside.
    pub payload: Payload,
}

/// Why a data message could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// No data message of this session.
    #[error("not a data message of this session")]
    NotOurs,
    /// The counter is beyond `REJECT_AFTER_MESSAGES`.
    #[error("counter is beyond the limit")]
    Exhausted,
    /// The tag is wrong.
    #[error("authentication failed")]
    Forged,
}

impl ReceiveSession {
    pub(crate) fn new(aead: Box<dyn Aead>, index: u32, peer: PeerId) -> Self {
        Self { aead, index, peer }
    }

    /// Our index of this session, as it stands in data messages.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Whose session it is.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Opens a data message in place; on success the packet lies at the payload's range of
    /// `datagram`. After an error the bytes mean nothing.
    pub fn open(&self, datagram: &mut [u8]) -> Result<Opened, OpenError> {
        let (receiver, counter) = data_header(datagram).ok_or(OpenError::NotOurs)?;
        if receiver != self.index {
            return Err(OpenError::NotOurs);
        }
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(OpenError::Exhausted);
        }
        let length = datagram.len();
        let sealed = &mut datagram[DATA_HEADER..];
        self.aead
            .open(counter, &[], sealed)
            .map_err(|_forged| OpenError::Forged)?;
        let payload = parse(&sealed[..sealed.len() - TAG], DATA_HEADER);
        Ok(Opened {
            counter,
            length,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::ring;

    fn pair(counters: Range<u64>) -> (SealBatch, ReceiveSession) {
        let send = Arc::new(SendSession::new(ring(&[3; 32]), 77));
        let endpoint = Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 1)));
        let peer = PeerId {
            slot: 0,
            generation: 0,
        };
        let receive = ReceiveSession::new(ring(&[3; 32]), 77, peer);
        (SealBatch::new(send, counters, endpoint), receive)
    }

    #[test]
    fn what_is_sealed_opens_once_under_its_counter() {
        let (mut batch, session) = pair(5..6);
        let mut datagram = [0; DATA_OVERHEAD];
        assert_eq!(batch.seal(&mut datagram), Ok(()));
        let opened = Opened {
            counter: 5,
            length: DATA_OVERHEAD,
            payload: Payload::Keepalive,
        };
        assert_eq!(session.open(&mut datagram.clone()), Ok(opened));
        assert_eq!(batch.seal(&mut datagram), Err(SealError::Exhausted));
    }

    #[test]
    fn a_split_batch_shares_no_counter() {
        let (mut rest, session) = pair(0..10);
        let first = rest.split(4);
        let mut counters = Vec::new();
        for mut batch in [first, rest] {
            while batch.remaining() > 0 {
                let mut datagram = [0; DATA_OVERHEAD];
                batch.seal(&mut datagram).unwrap();
                counters.push(session.open(&mut datagram).unwrap().counter);
            }
        }
        assert_eq!(counters, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_counter_beyond_the_limit_is_refused_before_it_is_opened() {
        let (mut batch, session) = pair(REJECT_AFTER_MESSAGES - 1..REJECT_AFTER_MESSAGES + 1);
        let mut datagram = [0; DATA_OVERHEAD];
        batch.seal(&mut datagram).unwrap();
        assert!(session.open(&mut datagram).is_ok());
        batch.seal(&mut datagram).unwrap();
        assert_eq!(session.open(&mut datagram), Err(OpenError::Exhausted));
    }

    #[test]
    fn foreign_and_short_buffers_are_refused() {
        let (mut batch, session) = pair(0..9);
        assert_eq!(
            batch.seal(&mut [0; 31]),
            Err(SealError::Buffer { length: 31 })
        );
        assert_eq!(batch.remaining(), 9);
        let mut datagram = [0; DATA_OVERHEAD];
        batch.seal(&mut datagram).unwrap();
        datagram[4] ^= 1;
        assert_eq!(session.open(&mut datagram), Err(OpenError::NotOurs));
        datagram[4] ^= 1;
        datagram[31] ^= 1;
        assert_eq!(session.open(&mut datagram), Err(OpenError::Forged));
        assert_eq!(session.open(&mut []), Err(OpenError::NotOurs));
    }
}
