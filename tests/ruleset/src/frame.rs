//! Headers as the bytes of an IP packet, and the mark by which a packet is known again.
//!
//! A question is what opens a connection: SYN, INIT, a datagram, an echo request. An answer is what the kernel takes
//! for one. Checksums are right, or connection tracking would not look at them.

use std::net::IpAddr;

use model::policy::Protocol;
use policy::packet::{Header, Ports};

/// What marks a packet as ours; its number follows.
const MAGIC: [u8; 8] = *b"ruleset\n";

/// What a packet is to be taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first of a connection.
    Question,
    /// What comes back.
    Answer,
}

/// What a packet is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its number: no two probes have the same.
    pub number: u32,
    /// What it is to be taken for.
    pub part: Part,
}

/// Returns whether a question with this header can be sent and answered: TCP, UDP, SCTP, and of ICMP what asks.
pub fn is_question(header: &Header) -> bool {
    match header.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => true,
        Protocol::ICMP => header.icmp.is_some_and(|icmp| [8, 13].contains(&icmp.kind)),
        Protocol::ICMPV6 => header
            .icmp
            .is_some_and(|icmp| [128, 139].contains(&icmp.kind)),
        _ => false,
    }
}

/// Returns the bytes of an IP packet.
pub fn write(header: &Header, tag: Tag) -> Vec<u8> {
    let content = match header.protocol {
        Protocol::TCP => tcp(header, tag),
        Protocol::UDP => udp(header, tag),
        Protocol::SCTP => sctp(header, tag),
        Protocol::ICMP | Protocol::ICMPV6 => icmp(header, tag),
        other => panic!("a packet of {other}"),
    };

    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(20 + content.len()).unwrap().to_be_bytes();
            // Version 4, five words; do not fragment; 64 hops (RFC 791).
            let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64];
            packet.extend([header.protocol.0, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
            packet.extend(content);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            // Version 6; 64 hops (RFC 8200).
            let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], header.protocol.0, 64];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(content);
            packet
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            panic!("addresses of two families: {header:?}")
        }
    }
}

/// Returns the tag of a packet of ours, wherever in it that stands.
pub fn tag(packet: &[u8]) -> Option<Tag> {
    let at = packet
        .windows(MAGIC.len())
        .position(|bytes| bytes == MAGIC)?;
    let rest = packet.get(at + MAGIC.len()..)?;
    let number = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
    let part = match rest.get(4)? {
        0 => Part::Question,
        1 => Part::Answer,
        other => panic!("no part of ours: {other}"),
    };

    Some(Tag { number, part })
}

/// Returns source and destination address of an IP packet, and the ports where there are any.
pub fn ends(packet: &[u8]) -> (IpAddr, IpAddr, Option<Ports>) {
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let (source, destination, protocol, content) = match packet[0] >> 4 {
        4 => (&packet[12..16], &packet[16..20], packet[9], &packet[20..]),
        6 => (&packet[8..24], &packet[24..40], packet[6], &packet[40..]),
        other => panic!("IP version {other}"),
    };
    let port = |at: usize| u16::from_be_bytes([content[at], content[at + 1]]);
    let ports = Protocol(protocol).has_ports().then(|| Ports {
        source: port(0),
        destination: port(2),
    });

    (address(source), address(destination), ports)
}

fn payload(tag: Tag) -> Vec<u8> {
    let mut payload = MAGIC.to_vec();
    payload.extend(tag.number.to_be_bytes());
    payload.extend(match tag.part {
        Part::Question => [0, 0, 0, 0],
        Part::Answer => [1, 0, 0, 0],
    });

    payload
}

fn ports(header: &Header) -> Vec<u8> {
    let ports = header.ports.unwrap();

    [ports.source.to_be_bytes(), ports.destination.to_be_bytes()].concat()
}

fn tcp(header: &Header, tag: Tag) -> Vec<u8> {
    let (sequence, acknowledged, flags) = match tag.part {
        Part::Question => (tag.number, 0, 0x02),
        Part::Answer => (!tag.number, tag.number.wrapping_add(1), 0x12),
    };
    let mut segment = ports(header);
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    // Five words of header; SYN or SYN and ACK; a window; checksum, urgent pointer (RFC 9293).
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload(tag));
    sealed(header, segment, 16)
}

fn udp(header: &Header, tag: Tag) -> Vec<u8> {
    let payload = payload(tag);
    let mut datagram = ports(header);
    datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let datagram = sealed(header, datagram, 6);
    assert_ne!(datagram[6..8], [0, 0], "no checksum at all");

    datagram
}

/// INIT and INIT ACK must be alone in their packet: the tag is a parameter of theirs (RFC 9260).
fn sctp(header: &Header, tag: Tag) -> Vec<u8> {
    let asker = tag.number | 1;
    let (chunk, verification, initiate) = match tag.part {
        Part::Question => (1, 0, asker),
        Part::Answer => (2, asker, !tag.number | 1),
    };
    let payload = payload(tag);
    let mut packet = ports(header);
    packet.extend(u32::to_be_bytes(verification));
    packet.extend([0; 4]);
    packet.extend([chunk, 0]);
    // The chunk: 20 bytes of its own, a parameter's header, the tag.
    packet.extend(u16::try_from(24 + payload.len()).unwrap().to_be_bytes());
    packet.extend(initiate.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(tag.number.to_be_bytes());
    // A parameter that whoever does not know it skips.
    packet.extend([0x80, 0x42]);
    packet.extend(u16::try_from(4 + payload.len()).unwrap().to_be_bytes());
    packet.extend(payload);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);

    packet
}

fn icmp(header: &Header, tag: Tag) -> Vec<u8> {
    let icmp = header.icmp.unwrap();
    let number = tag.number.to_be_bytes();
    let mut message = vec![icmp.kind, icmp.code, 0, 0, number[2], number[3], 0, 1];
    message.extend(payload(tag));
    if header.protocol == Protocol::ICMPV6 {
        return sealed(header, message, 2);
    }
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);

    message
}

/// Writes the checksum over content and pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
fn sealed(header: &Header, mut content: Vec<u8>, at: usize) -> Vec<u8> {
    let mut covered = Vec::new();
    for address in [header.source, header.destination] {
        match address {
            IpAddr::V4(address) => covered.extend(address.octets()),
            IpAddr::V6(address) => covered.extend(address.octets()),
        }
    }
    // The sum does not mind that IPv4 writes the length in two bytes.
    covered.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    covered.extend([0, 0, 0, header.protocol.0]);
    covered.extend(&content);
    let sum = match checksum(&covered) {
        0 => 0xffff,
        sum => sum,
    };
    content[at..at + 2].copy_from_slice(&sum.to_be_bytes());

    content
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }

    !u16::try_from(sum).unwrap()
}

/// CRC-32C, reflected (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1 == 1;
            crc >>= 1;
            if carry {
                crc ^= 0x82f6_3b78;
            }
        }
    }

    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::packet::IcmpHeader;

    #[test]
    fn the_check_values_of_the_standards_come_out() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }

    #[test]
    fn what_is_written_is_known_again() {
        for (protocol, icmp) in [
            (Protocol::TCP, None),
            (Protocol::UDP, None),
            (Protocol::SCTP, None),
            (Protocol::ICMPV6, Some(IcmpHeader { kind: 128, code: 0 })),
        ] {
            let header = Header {
                source: "fd00::1".parse().unwrap(),
                destination: "2001:db8::2".parse().unwrap(),
                protocol,
                ports: protocol.has_ports().then_some(Ports {
                    source: 1,
                    destination: 65535,
                }),
                icmp,
            };
            let sent = Tag {
                number: 70_000,
                part: Part::Answer,
            };

            let bytes = write(&header, sent);

            assert_eq!(tag(&bytes), Some(sent));
            assert_eq!(
                ends(&bytes),
                (header.source, header.destination, header.ports)
            );
        }
    }
}
