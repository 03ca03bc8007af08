//! Packets to one peer that leave in one call.
//!
//! Packets are laid out as they will be sent, 16 bytes of header, the padded packet, 16 bytes of tag, one after the
//! other in one buffer: all of the same length, only the last may be shorter. They are sealed together when the batch
//! is complete, so that the lock on the tunnel is taken once.

use wire_core::{DATA_OVERHEAD, PeerId, padded_length};

use crate::packet::ip::Ecn;
use crate::socket::{LARGEST_BATCH, LONGEST_BATCH};

/// Bytes before the packet in a data message.
const HEADER: usize = DATA_OVERHEAD / 2;
/// Room for one message of any size beyond a full batch.
const CAPACITY: usize = 2 * 65_536;

/// Where a batch goes and how it is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) peer: PeerId,
    pub(super) ecn: Ecn,
}

/// A batch in the making.
pub(super) struct Batch {
    buffer: Box<[u8]>,
    length: usize,
    /// Length of each message but the last.
    message: usize,
    count: u32,
    address: Option<Address>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; CAPACITY].into_boxed_slice(),
            length: 0,
            message: 0,
            count: 0,
            address: None,
        }
    }

    /// Where it goes; `None` while it is empty.
    pub(super) const fn address(&self) -> Option<Address> {
        self.address
    }

    /// How many messages it holds.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// Length of each message but the last.
    pub(super) const fn message(&self) -> usize {
        self.message
    }

    /// Whether a packet of `length` bytes to `address` can join.
    pub(super) fn takes(&self, address: Address, length: usize, mtu: usize) -> bool {
        let message = padded_length(length, mtu) + DATA_OVERHEAD;
        match self.address {
            None => true,
            Some(own) => {
                own == address
                    && message <= self.message
                    && self.length.is_multiple_of(self.message)
                    && self.count < LARGEST_BATCH as u32
                    && self.length + message <= LONGEST_BATCH
            }
        }
    }

    /// Adds a packet of `length` bytes, which [`Self::takes`]; the caller writes it into what is returned.
    pub(super) fn push(&mut self, address: Address, length: usize, mtu: usize) -> &mut [u8] {
        let padded = padded_length(length, mtu);
        let message = padded + DATA_OVERHEAD;
        if self.address.is_none() {
            self.address = Some(address);
            self.message = message;
        }
        let start = self.length + HEADER;
        self.length += message;
        self.count += 1;
        self.buffer[start + length..start + padded].fill(0);
        &mut self.buffer[start..start + length]
    }

    /// All messages in one piece.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Each message, to be sealed.
    pub(super) fn messages_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.buffer[..self.length].chunks_mut(self.message.max(1))
    }

    /// Each packet, with its padding.
    pub(super) fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes()
            .chunks(self.message.max(1))
            .map(|message| &message[HEADER..message.len() - HEADER])
    }

    /// Begins anew.
    pub(super) const fn clear(&mut self) {
        self.length = 0;
        self.count = 0;
        self.address = None;
    }
}
