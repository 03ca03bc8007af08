//! The packet inside: as much of its IP header as the source check needs.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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

/// Parses the plaintext that begins at `offset` of its datagram.
pub(crate) fn parse(plaintext: &[u8], offset: usize) -> Payload {
    let Some(first) = plaintext.first() else {
        return Payload::Keepalive;
    };
    let parsed = match first >> 4 {
        4 => ipv4(plaintext),
        6 => ipv6(plaintext),
        version => return Payload::Bad(BadPacket::Version(version)),
    };
    match parsed {
        Some((source, length)) if length <= plaintext.len() => Payload::Packet {
            range: offset..offset + length,
            source,
        },
        Some(_) | None => Payload::Bad(BadPacket::Truncated),
    }
}

/// Source and total length of an IPv4 packet (§3.1 of RFC 791).
fn ipv4(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let header = packet.first_chunk::<20>()?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_length < header.len() || length < header_length {
        return None;
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    Some((source.into(), length))
}

/// Source and total length of an IPv6 packet (§3 of RFC 8200).
fn ipv6(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let header = packet.first_chunk::<40>()?;
    let length = header.len() + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let source: [u8; 16] = header[8..24].try_into().ok()?;
    Some((Ipv6Addr::from(source).into(), length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(total: u16) -> Vec<u8> {
        let mut packet = vec![0; usize::from(total.max(20))];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet
    }

    #[test]
    fn padding_is_cut_off() {
        let mut packet = v4(28);
        packet.resize(32, 0);
        let source = "192.0.2.1".parse().unwrap();
        assert_eq!(
            parse(&packet, 16),
            Payload::Packet {
                range: 16..44,
                source
            }
        );
    }

    #[test]
    fn ipv6_packets_are_understood() {
        let mut packet = vec![0; 48];
        packet[0] = 0x60;
        packet[5] = 8;
        packet[8..10].copy_from_slice(&[0x20, 0x01]);
        let source = "2001::".parse().unwrap();
        assert_eq!(
            parse(&packet, 0),
            Payload::Packet {
                range: 0..48,
                source
            }
        );
        packet[5] = 9;
        assert_eq!(parse(&packet, 0), Payload::Bad(BadPacket::Truncated));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let truncated = Payload::Bad(BadPacket::Truncated);
        assert_eq!(parse(&v4(19), 0), truncated);
        assert_eq!(parse(&v4(40)[..39], 0), truncated);
        assert_eq!(parse(&v4(20)[..19], 0), truncated);
        let mut long_header = v4(20);
        long_header[0] = 0x46;
        assert_eq!(parse(&long_header, 0), truncated);
        assert_eq!(parse(&[0x10], 0), Payload::Bad(BadPacket::Version(1)));
        assert_eq!(parse(&[], 0), Payload::Keepalive);
    }

    proptest! {
        #[test]
        fn a_range_never_leaves_the_plaintext(bytes: Vec<u8>, first in 0x40_u8..0x70) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() { *byte = first }
            if let Payload::Packet { range, .. } = parse(&bytes, 16) {
                prop_assert!(range.start == 16 && range.end <= 16 + bytes.len());
            }
        }
    }
}
