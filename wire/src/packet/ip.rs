//! The few fields of an inner IP header that the tunnel needs: addresses, length, traffic class.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol number of TCP (RFC 9293).
pub(crate) const TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub(crate) const UDP: u8 = 17;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

/// The parsed header of one inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The packet's own idea of its length in bytes, header included; never more than what was given.
    pub(crate) length: usize,
    /// Two ECN bits of the traffic class.
    pub(crate) ecn: Ecn,
}

/// Explicit congestion notification (RFC 3168 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ecn(u8);

impl Ecn {
    const CONGESTED: u8 = 3;
    const CAPABLE_0: u8 = 2;

    /// The ECN bits of a whole traffic class byte.
    pub(crate) const fn of(traffic_class: u8) -> Self {
        Self(traffic_class & 3)
    }

    /// A router on the way met congestion.
    pub(crate) const fn is_congested(self) -> bool {
        self.0 == Self::CONGESTED
    }

    /// The outer traffic class for an inner packet with these bits (RFC 3168 §9.1.1, full functionality): the same
    /// bits, except that congestion already noted inside starts afresh outside.
    pub(crate) const fn outer(self) -> u8 {
        if self.is_congested() {
            Self::CAPABLE_0
        } else {
            self.0
        }
    }
}

impl Header {
    /// Parses the header of `packet`; `None`: not a whole IPv4 or IPv6 packet.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<V4_HEADER>()?;
        let header_length = usize::from(header[0] & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < V4_HEADER || length < header_length || length > packet.len() {
            return None;
        }
        Some(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            length,
            ecn: Ecn::of(header[1]),
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<V6_HEADER>()?;
        let length = V6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > packet.len() {
            return None;
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::from(Ipv6Addr::from(octets))
        };
        Some(Self {
            source: address(8),
            destination: address(24),
            length,
            ecn: Ecn::of(header[1] >> 4),
        })
    }
}

/// Carries congestion noted outside into an ECN-capable inner packet (RFC 3168 §9.1.1). A packet that is not
/// ECN-capable is left alone, as the kernel's tunnel does.
pub(crate) fn mark_congested(packet: &mut [u8]) {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= V4_HEADER => mark_congested_v4(packet),
        Some(6) if packet.len() >= V6_HEADER && packet[1] & 0x30 != 0 => packet[1] |= 0x30,
        _ => (),
    }
}

/// The header checksum follows by RFC 1624 eqn. 3: HC' = ~(~HC + ~m + m').
fn mark_congested_v4(packet: &mut [u8]) {
    let old = packet[1];
    if old & 3 == 0 || old & 3 == Ecn::CONGESTED {
        return;
    }
    packet[1] = old | Ecn::CONGESTED;
    let sum = u32::from(!u16::from_be_bytes([packet[10], packet[11]]))
        + u32::from(!u16::from_be_bytes([packet[0], old]))
        + u32::from(u16::from_be_bytes([packet[0], packet[1]]));
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let [_, _, high, low] = (!folded).to_be_bytes();
    packet[10..12].copy_from_slice(&[high, low]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum;

    fn v4(traffic_class: u8) -> [u8; 20] {
        let mut packet = [
            0x45,
            traffic_class,
            0,
            20,
            1,
            2,
            0x40,
            0,
            64,
            TCP,
            0,
            0,
            192,
            0,
            2,
            1,
            192,
            0,
            2,
            2,
        ];
        let sum = checksum::complement(checksum::sum(0, &packet));
        packet[10..12].copy_from_slice(&sum);
        packet
    }

    #[test]
    fn a_packet_longer_than_its_buffer_is_refused() {
        let mut packet = v4(0);
        packet[3] = 21;
        assert_eq!(Header::parse(&packet), None);
        assert_eq!(Header::parse(&[0x60; 40][..39]), None);
        assert_eq!(Header::parse(&[]), None);
        assert_eq!(Header::parse(&[0x50; 64]), None);
    }

    #[test]
    fn padding_after_the_packet_is_not_part_of_it() {
        let mut padded = v4(0).to_vec();
        padded.extend([0; 12]);
        let header = Header::parse(&padded).unwrap();
        assert_eq!(
            (header.length, header.source),
            (20, "192.0.2.1".parse().unwrap())
        );
    }

    #[test]
    fn congestion_outside_marks_only_capable_packets_and_keeps_the_checksum_right() {
        for (before, after) in [(0b00, 0b00), (0b01, 0b11), (0b10, 0b11), (0b11, 0b11)] {
            let mut packet = v4(0xa0 | before);
            mark_congested(&mut packet);
            assert_eq!(packet[1], 0xa0 | after);
            assert_eq!(checksum::fold(checksum::sum(0, &packet)), 0xffff);
        }
    }

    #[test]
    fn congestion_inside_is_not_shown_outside() {
        assert_eq!([0, 1, 2, 3].map(|bits| Ecn::of(bits).outer()), [0, 1, 2, 2]);
    }
}
