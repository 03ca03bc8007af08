//! Sessions: the keys of one handshake, split by direction so that packets are sealed and opened
//! without the tunnel.
use thiserror::Error;

use crate::{Endpoint, Payload};

/// The right to seal a fixed number of packets to one peer. Each nonce leaves it once, so none can
/// be used twice. Hold it no longer than it takes to seal: its keys are erased when the last
/// holder drops them.
pub struct SealBatch {
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
}

impl SealBatch {
    /// Where to send the sealed datagrams.
    #[must_use]
    pub const fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// How many packets may still be sealed.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        todo!()
    }

    /// Takes the first `packets` off, for another worker.
    #[must_use]
    pub fn split(&mut self, packets: u64) -> Self {
        let _ = packets;
        todo!()
    }

    /// Seals `datagram` in place. Shape: 16 bytes of header (written here), the packet with its
    /// zero padding to [`crate::padded_length`], 16 bytes of tag (written here).
    pub fn seal(&mut self, datagram: &mut [u8]) -> Result<(), SealError> {
        let _ = datagram;
        todo!()
    }
}

/// The receiving half of a session. Callers that cache it keep a `Weak`, so that keys die on time.
pub struct ReceiveSession {
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
    /// Our index of this session, as it stands in data messages.
    #[must_use]
    pub fn index(&self) -> u32 {
        todo!()
    }

    /// Opens a data message in place; on success the packet lies at the payload's range of
    /// `datagram`. After an error the bytes are spoiled.
    pub fn open(&self, datagram: &mut [u8]) -> Result<Opened, OpenError> {
        let _ = datagram;
        todo!()
    }
}
