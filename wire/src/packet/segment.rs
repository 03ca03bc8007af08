//! Cuts a super-frame of the kernel's segmentation offload into packets that fit the MTU.
//!
//! What must change from segment to segment is what the kernel's own software segmentation changes: IP length and
//! identification, TCP sequence number and flags (FIN and PSH belong to the last, CWR to the first), UDP length, both
//! checksums. Each segment is written straight into the caller's send buffer, which is the one copy of the way out.

use super::checksum;
use super::ip;
use super::virtio::{Checksum, Header, Kind};

const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const UDP_HEADER: usize = 8;
const TCP_FLAGS: usize = 13;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// A frame whose header does not fit its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A super-frame, parsed once, to be written segment by segment.
pub(crate) struct SuperFrame<'a> {
    header: &'a [u8],
    payload: &'a [u8],
    size: usize,
    /// Where the transport header begins.
    transport: usize,
    protocol: u8,
}

impl<'a> SuperFrame<'a> {
    /// Takes a `packet` apart as its virtio `header` says.
    pub(crate) fn parse(header: &Header, packet: &'a [u8]) -> Result<Self, Malformed> {
        let transport = usize::from(header.checksum.ok_or(Malformed)?.start);
        let (protocol, length) = match header.kind {
            Kind::Single => return Err(Malformed),
            Kind::Udp => (ip::UDP, UDP_HEADER),
            Kind::TcpV4 | Kind::TcpV6 => (ip::TCP, tcp_header_length(packet, transport)?),
        };
        let version = packet.first().ok_or(Malformed)? >> 4;
        let smallest = match (version, header.kind) {
            (4, Kind::TcpV4 | Kind::Udp) => 20,
            (6, Kind::TcpV6 | Kind::Udp) => 40,
            _ => return Err(Malformed),
        };
        let size = usize::from(header.segment_size);
        let end = transport + length;
        if transport < smallest || size == 0 || end >= packet.len() || end + size > 0xffff {
            return Err(Malformed);
        }
        let (header, payload) = packet.split_at(end);
        Ok(Self {
            header,
            payload,
            size,
            transport,
            protocol,
        })
    }

    /// How many packets it becomes; at least one.
    pub(crate) fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// Length in bytes of packet `index`.
    pub(crate) fn length(&self, index: usize) -> usize {
        self.header.len() + self.part(index).len()
    }

    fn part(&self, index: usize) -> &'a [u8] {
        let start = (index * self.size).min(self.payload.len());
        let end = (start + self.size).min(self.payload.len());
        &self.payload[start..end]
    }

    /// Writes packet `index` into `out`, which is exactly [`Self::length`] long.
    pub(crate) fn write(&self, index: usize, out: &mut [u8]) {
        let (header, payload) = out.split_at_mut(self.header.len());
        header.copy_from_slice(self.header);
        payload.copy_from_slice(self.part(index));
        self.write_ip(index, out);
        self.write_transport(index, out);
    }

    fn write_ip(&self, index: usize, out: &mut [u8]) {
        if out[0] >> 4 == 6 {
            let length = length_of(out.len() - 40);
            out[4..6].copy_from_slice(&length);
            return;
        }
        let length = length_of(out.len());
        out[2..4].copy_from_slice(&length);
        let identification = u16::from_be_bytes([out[4], out[5]]);
        let step = u16::try_from(index & 0xffff).unwrap_or(u16::MAX);
        out[4..6].copy_from_slice(&identification.wrapping_add(step).to_be_bytes());
        write_ip_checksum(out, self.transport);
    }

    fn write_transport(&self, index: usize, out: &mut [u8]) {
        let length = length_of(out.len() - self.transport);
        let transport = &mut out[self.transport..];
        let checksum = if self.protocol == ip::UDP {
            transport[4..6].copy_from_slice(&length);
            UDP_CHECKSUM
        } else {
            let sequence =
                u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let step = u32::try_from(index * self.size).unwrap_or(u32::MAX);
            transport[4..8].copy_from_slice(&sequence.wrapping_add(step).to_be_bytes());
            if index + 1 < self.count() {
                transport[TCP_FLAGS] &= !FIN_PSH;
            }
            if index > 0 {
                transport[TCP_FLAGS] &= !CWR;
            }
            TCP_CHECKSUM
        };
        let pseudo = pseudo_sum(out, self.protocol, u16::from_be_bytes(length));
        write_checksum(out, self.transport, checksum, pseudo);
    }
}

/// Finishes the checksum of a single packet. Its pseudo header sum already stands in the checksum field.
pub(crate) fn complete(packet: &mut [u8], checksum: Checksum) -> Result<(), Malformed> {
    let (start, offset) = (usize::from(checksum.start), usize::from(checksum.offset));
    if start + offset + 2 > packet.len() {
        return Err(Malformed);
    }
    let sum = checksum::sum(0, &packet[start..]);
    store(packet, start + offset, sum);
    Ok(())
}

/// The sum of the pseudo header of `packet`, whose transport part is `length` bytes.
pub(crate) fn pseudo_sum(packet: &[u8], protocol: u8, length: u16) -> u64 {
    let addresses = if packet[0] >> 4 == 6 {
        &packet[8..40]
    } else {
        &packet[12..20]
    };
    checksum::pseudo(addresses, protocol, length)
}

/// Computes the IPv4 header checksum over `header_length` bytes.
pub(crate) fn write_ip_checksum(packet: &mut [u8], header_length: usize) {
    packet[10..12].fill(0);
    let sum = checksum::complement(checksum::sum(0, &packet[..header_length]));
    packet[10..12].copy_from_slice(&sum);
}

fn write_checksum(packet: &mut [u8], transport: usize, offset: usize, pseudo: u64) {
    packet[transport + offset..transport + offset + 2].fill(0);
    let sum = checksum::sum(pseudo, &packet[transport..]);
    store(packet, transport + offset, sum);
}

/// A checksum of zero means "none" in UDP, its twin 0xffff is always right (RFC 768).
fn store(packet: &mut [u8], at: usize, sum: u64) {
    let bytes = match checksum::complement(sum) {
        [0, 0] => [0xff, 0xff],
        other => other,
    };
    packet[at..at + 2].copy_from_slice(&bytes);
}

fn tcp_header_length(packet: &[u8], transport: usize) -> Result<usize, Malformed> {
    let offset = packet.get(transport + 12).ok_or(Malformed)? >> 4;
    let length = usize::from(offset) * 4;
    if length < 20 {
        Err(Malformed)
    } else {
        Ok(length)
    }
}

/// A length field; callers stay below 64 KiB by construction of the super-frame.
fn length_of(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind, start: u16, segment_size: u16) -> Header {
        Header {
            kind,
            checksum: Some(Checksum { start, offset: 16 }),
            header_length: 0,
            segment_size,
        }
    }

    /// An IPv4 TCP super-frame with `payload` bytes, flags CWR ACK PSH FIN, sequence number just below the wrap.
    fn tcp_v4(payload: usize) -> Vec<u8> {
        let mut packet = vec![
            0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        packet.extend([
            0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x50, 0x99, 1, 0, 0, 0, 0, 0,
        ]);
        packet.extend((0..payload).map(|i| u8::try_from(i % 251).unwrap()));
        packet
    }

    fn segments(frame: &SuperFrame<'_>) -> Vec<Vec<u8>> {
        (0..frame.count())
            .map(|index| {
                let mut out = vec![0; frame.length(index)];
                frame.write(index, &mut out);
                out
            })
            .collect()
    }

    #[test]
    fn flags_sequence_and_identification_follow_the_segments() {
        let packet = tcp_v4(250);
        let frame = SuperFrame::parse(&header(Kind::TcpV4, 20, 100), &packet).unwrap();
        let cut = segments(&frame);

        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [140, 140, 90]);
        assert_eq!(
            cut.iter().map(|s| s[33]).collect::<Vec<_>>(),
            [0x90, 0x10, 0x19]
        );
        assert_eq!(cut[1][24..28], 0x54u32.to_be_bytes());
        assert_eq!(cut[1][4..6], [0, 0]);
        for segment in &cut {
            assert_eq!(checksum::fold(checksum::sum(0, &segment[..20])), 0xffff);
            let length = u16::try_from(segment.len() - 20).unwrap();
            let pseudo = pseudo_sum(segment, ip::TCP, length);
            assert_eq!(
                checksum::fold(checksum::sum(pseudo, &segment[20..])),
                0xffff
            );
        }
    }

    #[test]
    fn a_super_frame_that_contradicts_its_header_is_refused() {
        let packet = tcp_v4(250);
        for bad in [
            header(Kind::TcpV4, 20, 0),
            header(Kind::TcpV6, 20, 100),
            header(Kind::TcpV4, 19, 100),
            header(Kind::TcpV4, 280, 100),
            header(Kind::TcpV4, u16::MAX, 100),
            header(Kind::TcpV4, 20, u16::MAX),
            header(Kind::Single, 20, 100),
        ] {
            assert!(SuperFrame::parse(&bad, &packet).is_err(), "{bad:?}");
        }
        assert!(SuperFrame::parse(&header(Kind::TcpV4, 20, 100), &packet[..40]).is_err());
    }

    #[test]
    fn a_checksum_that_comes_out_as_zero_is_sent_as_its_twin() {
        let mut packet = [0xff, 0xff, 0, 0];
        complete(
            &mut packet,
            Checksum {
                start: 0,
                offset: 2,
            },
        )
        .unwrap();
        assert_eq!(packet, [0xff; 4]);
        assert_eq!(
            complete(
                &mut packet,
                Checksum {
                    start: 0,
                    offset: 3
                }
            ),
            Err(Malformed)
        );
    }
}
