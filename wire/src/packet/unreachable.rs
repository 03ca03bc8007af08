//! What the sender is told of a packet that no peer takes: "host unreachable" over IPv4 (RFC 792), "address
//! unreachable" over IPv6 (RFC 4443 §3.1), as the kernel's WireGuard tells it.
//!
//! The message comes from the address that could not be reached: that one lies behind the device it is written to,
//! so that no reverse path filter takes offence, and it is nobody's on this machine.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum;

const ICMP: u8 = 1;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_HOST: u8 = 1;
const ICMP_V6: u8 = 58;
const ICMP_V6_UNREACHABLE: u8 = 1;
const ICMP_V6_ADDRESS: u8 = 3;
/// Messages from here on are no errors (RFC 4443 §2.1); redirects are none either, but get no answer.
const ICMP_V6_INFORMATIONAL: u8 = 128;
const ICMP_V6_REDIRECT: u8 = 137;
const FRAGMENT: u8 = 44;
/// DSCP CS6 (internetwork control), as the kernel marks its own errors.
const TRAFFIC_CLASS: u8 = 0xc0;
const HOPS: u8 = 64;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
/// An error is at most so long: what every IPv4 host takes (RFC 1812 §4.3.2.3), and IPv6's least MTU.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

/// An empty [`Room`].
pub(crate) const ROOM: Room = [0; LONGEST_V6];

/// Room for one message.
pub(crate) type Room = [u8; LONGEST_V6];

/// Writes the answer to `packet` into `room` and returns its length; `None`: it must not be answered (RFC 1122 §3.2.2,
/// RFC 4443 §2.4 (e)), or is no IP packet.
pub(crate) fn answer(packet: &[u8], room: &mut Room) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => answer_v4(packet, room),
        6 => answer_v6(packet, room),
        _ => None,
    }
}

fn answer_v4(packet: &[u8], room: &mut Room) -> Option<usize> {
    let header = packet.first_chunk::<V4_HEADER>()?;
    let address =
        |at: usize| Ipv4Addr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (source, destination) = (address(12), address(16));
    let nobody = source.is_unspecified()
        || source.is_loopback()
        || source.is_multicast()
        || source.is_broadcast();
    let many = destination.is_multicast() || destination.is_broadcast();
    let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    let payload = packet.get(usize::from(header[0] & 0xf) * 4..)?;
    if nobody || many || later_fragment || (header[9] == ICMP && is_v4_error(payload)) {
        return None;
    }
    let quoted = &packet[..packet.len().min(LONGEST_V4 - V4_HEADER - ICMP_HEADER)];
    let length = V4_HEADER + ICMP_HEADER + quoted.len();
    let answer = &mut room[..length];
    answer.fill(0);
    answer[..2].copy_from_slice(&[0x45, TRAFFIC_CLASS]);
    answer[2..4].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    answer[8..10].copy_from_slice(&[HOPS, ICMP]);
    answer[12..16].copy_from_slice(&destination.octets());
    answer[16..20].copy_from_slice(&source.octets());
    let sum = checksum::complement(checksum::sum(0, &answer[..V4_HEADER]));
    answer[10..12].copy_from_slice(&sum);
    answer[20..22].copy_from_slice(&[ICMP_UNREACHABLE, ICMP_HOST]);
    answer[28..].copy_from_slice(quoted);
    let sum = checksum::complement(checksum::sum(0, &answer[V4_HEADER..]));
    answer[22..24].copy_from_slice(&sum);
    Some(length)
}

/// Echo and the like may be answered; errors, and what is too short to tell, may not.
fn is_v4_error(payload: &[u8]) -> bool {
    payload
        .first()
        .is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12))
}

fn answer_v6(packet: &[u8], room: &mut Room) -> Option<usize> {
    let (header, payload) = packet.split_first_chunk::<V6_HEADER>()?;
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let (source, destination) = (address(8), address(24));
    let nobody = source.is_unspecified() || source.is_loopback() || source.is_multicast();
    let ineligible = match header[6] {
        ICMP_V6 => is_v6_error(payload),
        FRAGMENT => is_later_fragment(payload),
        _ => false,
    };
    if nobody || destination.is_multicast() || ineligible {
        return None;
    }
    let quoted = &packet[..packet.len().min(LONGEST_V6 - V6_HEADER - ICMP_HEADER)];
    let message = u16::try_from(ICMP_HEADER + quoted.len()).ok()?;
    let length = V6_HEADER + usize::from(message);
    let answer = &mut room[..length];
    answer.fill(0);
    answer[..2].copy_from_slice(&[0x60 | TRAFFIC_CLASS >> 4, TRAFFIC_CLASS << 4]);
    answer[4..6].copy_from_slice(&message.to_be_bytes());
    answer[6..8].copy_from_slice(&[ICMP_V6, HOPS]);
    answer[8..24].copy_from_slice(&destination.octets());
    answer[24..40].copy_from_slice(&source.octets());
    answer[40..42].copy_from_slice(&[ICMP_V6_UNREACHABLE, ICMP_V6_ADDRESS]);
    answer[48..].copy_from_slice(quoted);
    let pseudo = checksum::pseudo(&answer[8..40], ICMP_V6, message);
    let sum = checksum::complement(checksum::sum(pseudo, &answer[V6_HEADER..]));
    answer[42..44].copy_from_slice(&sum);
    Some(length)
}

fn is_v6_error(payload: &[u8]) -> bool {
    payload
        .first()
        .is_none_or(|kind| *kind < ICMP_V6_INFORMATIONAL || *kind == ICMP_V6_REDIRECT)
}

fn is_later_fragment(payload: &[u8]) -> bool {
    let Some([_, _, high, low]) = payload.first_chunk() else {
        return true;
    };
    u16::from_be_bytes([*high, *low]) & 0xfff8 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::ip;
    use proptest::prelude::*;

    /// An IPv4 packet from 192.0.2.1 to 198.51.100.2.
    fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; V4_HEADER];
        packet[0] = 0x45;
        packet[3] = u8::try_from(V4_HEADER + payload.len()).unwrap();
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 198, 51, 100, 2]);
        packet.extend(payload);
        packet
    }

    /// An IPv6 packet from 2001:db8::1 to 2001:db8::2.
    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; V6_HEADER];
        packet[0] = 0x60;
        packet[5] = u8::try_from(payload.len()).unwrap();
        packet[6] = next;
        for (at, last) in [(8, 1), (24, 2)] {
            packet[at..at + 4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            packet[at + 15] = last;
        }
        packet.extend(payload);
        packet
    }

    fn answered(packet: &[u8]) -> Option<Vec<u8>> {
        let mut room = [0xff; LONGEST_V6];
        answer(packet, &mut room).map(|length| room[..length].to_vec())
    }

    #[test]
    fn over_ipv4_the_host_is_unreachable() {
        let packet = v4(ip::UDP, b"datagram");
        let told = answered(&packet).unwrap();
        let header = ip::Header::parse(&told).unwrap();
        assert_eq!(
            (
                header.source.to_string(),
                header.destination.to_string(),
                header.length
            ),
            ("198.51.100.2".into(), "192.0.2.1".into(), told.len())
        );
        assert_eq!(told[20..22], [3, 1]);
        assert_eq!(told[28..], packet);
        assert_eq!(checksum::fold(checksum::sum(0, &told[..20])), 0xffff);
        assert_eq!(checksum::fold(checksum::sum(0, &told[20..])), 0xffff);
    }

    #[test]
    fn over_ipv6_the_address_is_unreachable() {
        let packet = v6(ip::UDP, b"datagram");
        let told = answered(&packet).unwrap();
        let header = ip::Header::parse(&told).unwrap();
        assert_eq!(
            (
                header.source.to_string(),
                header.destination.to_string(),
                header.length
            ),
            ("2001:db8::2".into(), "2001:db8::1".into(), told.len())
        );
        assert_eq!(told[40..42], [1, 3]);
        assert_eq!(told[48..], packet);
        let pseudo = checksum::pseudo(
            &told[8..40],
            ICMP_V6,
            u16::try_from(told.len() - 40).unwrap(),
        );
        assert_eq!(checksum::fold(checksum::sum(pseudo, &told[40..])), 0xffff);
    }

    #[test]
    fn an_error_is_never_answered_with_an_error() {
        for kind in [3, 4, 5, 11, 12] {
            assert_eq!(answered(&v4(ICMP, &[kind; 8])), None, "{kind}");
        }
        for kind in [1, 2, 3, 4, 100, 137] {
            assert_eq!(answered(&v6(ICMP_V6, &[kind; 8])), None, "{kind}");
        }
        assert!(answered(&v4(ICMP, &[8; 8])).is_some(), "an echo request");
        assert!(
            answered(&v6(ICMP_V6, &[128; 8])).is_some(),
            "an echo request"
        );
        assert_eq!(answered(&v4(ICMP, &[])), None);
        assert_eq!(answered(&v6(ICMP_V6, &[])), None);
    }

    #[test]
    fn what_went_to_many_or_came_from_nobody_is_not_answered() {
        for (at, address) in [
            (16, [224, 0, 0, 1]),
            (16, [255; 4]),
            (12, [0; 4]),
            (12, [239, 1, 1, 1]),
        ] {
            let mut packet = v4(ip::UDP, b"datagram");
            packet[at..at + 4].copy_from_slice(&address);
            assert_eq!(answered(&packet), None, "{address:?}");
        }
        for (at, first) in [(24, 0xff), (8, 0xff)] {
            let mut packet = v6(ip::UDP, b"datagram");
            packet[at] = first;
            assert_eq!(answered(&packet), None);
        }
        let mut packet = v6(ip::UDP, b"datagram");
        packet[8..24].fill(0);
        assert_eq!(answered(&packet), None);
    }

    #[test]
    fn only_the_first_fragment_is_answered() {
        let mut packet = v4(ip::UDP, b"datagram");
        packet[6] = 0x20;
        assert!(answered(&packet).is_some());
        packet[7] = 1;
        assert_eq!(answered(&packet), None);
        assert!(answered(&v6(FRAGMENT, &[17, 0, 0, 1, 0, 0, 0, 0])).is_some());
        assert_eq!(answered(&v6(FRAGMENT, &[17, 0, 0, 8, 0, 0, 0, 0])), None);
    }

    proptest! {
        #[test]
        fn whatever_is_answered_the_answer_is_a_whole_packet(packet in prop::collection::vec(any::<u8>(), 0..2000)) {
            if let Some(told) = answered(&packet) {
                prop_assert_eq!(ip::Header::parse(&told).unwrap().length, told.len());
                prop_assert!(told.len() <= LONGEST_V6);
            }
        }
    }
}
