//! Joins packets of one flow into super-frames, the opposite of [`super::segment`].
//!
//! Only neighbours are joined, in the order in which they arrived, so that nothing is ever reordered. A packet joins
//! only if cutting the super-frame again gives back every packet byte for byte (the property test below): same
//! addresses, ports and header bytes, next sequence number, full-sized predecessor, no fragment, no IP option. Its
//! checksums are verified first, because the kernel takes a super-frame's checksum as still to be made and would
//! thus repair a packet that arrived broken.

use std::io::IoSlice;
use std::ops::Range;

use super::segment::{pseudo_sum, write_ip_checksum};
use super::virtio::{Checksum, Header, Kind};
use super::{checksum, ip};

/// Most packets that one super-frame takes; the kernel's own limit for UDP.
const LIMIT: usize = 64;
/// Longest super-frame in bytes; IPv4's length field ends at 65,535.
const LONGEST: usize = 65_535;

const UDP_HEADER: usize = 8;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Where finished frames go.
pub(crate) trait Sink {
    /// Takes one frame: its virtio header and IP packet, scattered over `parts`.
    fn write(&mut self, parts: &[IoSlice<'_>]);
}

/// Whether neighbours may be joined; follows what the TUN device accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joins {
    pub(crate) tcp: bool,
    pub(crate) udp: bool,
}

/// The super-frame that is being put together, as ranges into the receive buffer.
pub(crate) struct Merger {
    joins: Joins,
    flow: Option<Flow>,
    /// The first packet whole, then the payload of each that joined.
    parts: [Range<usize>; LIMIT],
    count: usize,
}

/// The first packet of a super-frame, and what the next one must look like.
#[derive(Clone, Copy, Debug)]
struct Flow {
    protocol: u8,
    /// Where the transport header begins, from the packet's start.
    transport: usize,
    header_length: usize,
    /// Payload of every packet but the last.
    size: usize,
    /// Bytes of all packets' payloads so far.
    total: usize,
    next_sequence: u32,
    identification: u16,
    /// Nothing may follow: the last packet was short, or pushed.
    closed: bool,
}

impl Merger {
    pub(crate) fn new(joins: Joins) -> Self {
        Self {
            joins,
            flow: None,
            parts: [const { 0..0 }; LIMIT],
            count: 0,
        }
    }

    /// Takes the packet at `range` of `buffer`. What cannot grow any more goes to `sink`.
    pub(crate) fn push(&mut self, buffer: &mut [u8], range: Range<usize>, sink: &mut impl Sink) {
        let candidate = Flow::parse(&buffer[range.clone()], self.joins);
        if let (Some(flow), Some(next)) = (&mut self.flow, &candidate)
            && self.count < LIMIT
            && flow.joins(next, &buffer[self.parts[0].clone()], &buffer[range.clone()])
        {
            flow.total += next.total;
            flow.next_sequence = next.next_sequence;
            flow.closed = next.closed || next.total < flow.size;
            self.parts[self.count] = range.start + next.header_length..range.end;
            self.count += 1;
            if next.closed {
                let flags = self.parts[0].start + flow.transport + 13;
                buffer[flags] |= PSH;
            }
            return;
        }
        self.flush(buffer, sink);
        self.parts[0] = range;
        self.count = 1;
        self.flow = candidate;
        if self.flow.is_none() {
            self.flush(buffer, sink);
        }
    }

    /// Sends off what was put together.
    pub(crate) fn flush(&mut self, buffer: &mut [u8], sink: &mut impl Sink) {
        let parts = &self.parts[..std::mem::take(&mut self.count)];
        let Some(first) = parts.first() else {
            return;
        };
        let header = match self.flow.take() {
            Some(flow) if parts.len() > 1 => flow.finish(&mut buffer[first.clone()]),
            Some(_) | None => Header::SINGLE,
        }
        .encode();
        let mut slices = [IoSlice::new(&[]); LIMIT + 1];
        slices[0] = IoSlice::new(&header);
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(&buffer[part.clone()]);
        }
        sink.write(&slices[..=parts.len()]);
    }
}

impl Flow {
    /// What `packet` would be as the only one of a super-frame; `None`: it must travel alone.
    fn parse(packet: &[u8], joins: Joins) -> Option<Self> {
        let (transport, protocol) = match packet.first()? {
            0x45 if is_plain_v4(packet) => (20, packet[9]),
            first if first >> 4 == 6 && packet.len() >= 40 => (40, packet[6]),
            _ => return None,
        };
        let header_length = match protocol {
            ip::TCP if joins.tcp => mergeable_tcp(packet, transport)?,
            ip::UDP if joins.udp => mergeable_udp(packet, transport)?,
            _ => return None,
        };
        let payload = packet.len().checked_sub(header_length)?;
        if payload == 0 || !has_valid_checksum(packet, transport, protocol) {
            return None;
        }
        let sequence = packet.get(transport + 4..transport + 8)?;
        let sequence = u32::from_be_bytes(sequence.try_into().ok()?);
        Some(Self {
            protocol,
            transport,
            header_length,
            size: payload,
            total: payload,
            next_sequence: sequence.wrapping_add(u32::try_from(payload).ok()?),
            identification: u16::from_be_bytes([packet[4], packet[5]]),
            closed: protocol == ip::TCP && packet[transport + 13] & PSH != 0,
        })
    }

    /// Whether `next` with the bytes of `packet` continues this flow, which began with `first`.
    fn joins(&self, next: &Self, first: &[u8], packet: &[u8]) -> bool {
        !self.closed
            && next.protocol == self.protocol
            && next.transport == self.transport
            && next.header_length == self.header_length
            && next.total <= self.size
            && self.header_length + self.total + next.total <= LONGEST
            && self.continues_ip(next, first, packet)
            && self.continues_transport(next, first, packet)
    }

    fn continues_ip(&self, next: &Self, first: &[u8], packet: &[u8]) -> bool {
        if self.transport == 40 {
            return first[..4] == packet[..4] && first[6..40] == packet[6..40];
        }
        let steps = u16::try_from(self.total / self.size).unwrap_or(u16::MAX);
        next.identification == self.identification.wrapping_add(steps)
            && first[1] == packet[1]
            && first[6..10] == packet[6..10]
            && first[12..20] == packet[12..20]
    }

    fn continues_transport(&self, next: &Self, first: &[u8], packet: &[u8]) -> bool {
        let (a, b) = (
            &first[self.transport..self.header_length],
            &packet[self.transport..self.header_length],
        );
        if a[..4] != b[..4] {
            return false;
        }
        if self.protocol == ip::UDP {
            return true;
        }
        let begins = next
            .next_sequence
            .wrapping_sub(u32::try_from(next.total).unwrap_or(u32::MAX));
        // Of the flags only PSH can differ: others keep a packet from being a candidate at all.
        begins == self.next_sequence
            && a[8..13] == b[8..13]
            && a[14..16] == b[14..16]
            && a[18..] == b[18..]
    }

    /// Turns the `first` packet's header into the super-frame's and says how to cut it again.
    fn finish(&self, first: &mut [u8]) -> Header {
        let length = self.header_length + self.total;
        let transport_length = u16::try_from(length - self.transport).unwrap_or(u16::MAX);
        if self.transport == 40 {
            first[4..6].copy_from_slice(&transport_length.to_be_bytes());
        } else {
            let length = u16::try_from(length).unwrap_or(u16::MAX);
            first[2..4].copy_from_slice(&length.to_be_bytes());
            write_ip_checksum(first, self.transport);
        }
        let (kind, offset) = match (self.protocol, self.transport) {
            (ip::UDP, _) => (Kind::Udp, 6),
            (_, 40) => (Kind::TcpV6, 16),
            (_, _) => (Kind::TcpV4, 16),
        };
        if self.protocol == ip::UDP {
            let at = self.transport + 4;
            first[at..at + 2].copy_from_slice(&transport_length.to_be_bytes());
        }
        let pseudo = pseudo_sum(first, self.protocol, transport_length);
        let at = self.transport + offset;
        first[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_le_bytes());
        let narrow = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        Header {
            kind,
            checksum: Some(Checksum {
                start: narrow(self.transport),
                offset: narrow(offset),
            }),
            header_length: narrow(self.header_length),
            segment_size: narrow(self.size),
        }
    }
}

/// An IPv4 header without options, not a fragment, with a correct checksum.
fn is_plain_v4(packet: &[u8]) -> bool {
    packet.len() >= 20
        && packet[6] & 0x3f == 0
        && packet[7] == 0
        && checksum::fold(checksum::sum(0, &packet[..20])) == 0xffff
}

/// Header length up to the payload, if nothing but ACK (and PSH) is set.
fn mergeable_tcp(packet: &[u8], transport: usize) -> Option<usize> {
    let header = packet.get(transport..transport + 20)?;
    let length = usize::from(header[12] >> 4) * 4;
    (length >= 20 && header[13] & !PSH == ACK).then_some(transport + length)
}

/// Header length up to the payload, if the datagram has a checksum and fills its packet.
fn mergeable_udp(packet: &[u8], transport: usize) -> Option<usize> {
    let header = packet.get(transport..transport + UDP_HEADER)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    (header[6..8] != [0, 0] && length == packet.len() - transport).then_some(transport + UDP_HEADER)
}

fn has_valid_checksum(packet: &[u8], transport: usize, protocol: u8) -> bool {
    let Ok(length) = u16::try_from(packet.len() - transport) else {
        return false;
    };
    let pseudo = pseudo_sum(packet, protocol, length);
    checksum::fold(checksum::sum(pseudo, &packet[transport..])) == 0xffff
}

#[cfg(test)]
mod tests;
