//! What a link does with a packet that is too big for it: as a router would, it cuts an IPv4 packet that
//! may be cut, and tells the sender of any other.
//!
//! A link is no host, so what it says bears the address of the packet's destination, as if it had been
//! said there.

use crate::forge::checksum;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// What becomes of a packet that is too big.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on in pieces.
    Cut(Vec<Vec<u8>>),
    /// It is lost, and its sender gets this frame.
    Told(Vec<u8>),
    /// It is lost, and nobody may be told: it is no IP, or itself an ICMP error.
    Lost,
}

/// Decides about a frame whose packet is larger than `mtu`.
pub(super) fn decide(frame: &[u8], mtu: u16) -> Fate {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET) else {
        return Fate::Lost;
    };
    let kind = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let said = match (kind, packet.first().map(|first| first >> 4)) {
        (0x0800, Some(4)) if packet.get(6).is_some_and(|flags| flags & 0x40 == 0) => {
            return cut(ethernet, packet, mtu).map_or(Fate::Lost, Fate::Cut);
        }
        (0x0800, Some(4)) => fragmentation_needed(packet, mtu),
        (0x86dd, Some(6)) => packet_too_big(packet, mtu),
        _ => None,
    };
    let told = |said: Vec<u8>| {
        Fate::Told([&ethernet[6..12], &ethernet[..6], &ethernet[12..], &said].concat())
    };
    said.map_or(Fate::Lost, told)
}

/// Cuts an IPv4 packet into fragments (RFC 791 §3.2).
fn cut(ethernet: &[u8], packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
    let header_length = usize::from(packet[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let header = packet.get(..header_length)?;
    let payload = packet.get(header_length..total)?;
    let room = usize::from(mtu).checked_sub(header_length)? / 8 * 8;
    let before = u16::from_be_bytes([header[6], header[7]]);
    let count = payload.len().div_ceil(room.max(8));
    let piece = |(index, payload): (usize, &[u8])| {
        let more = if index + 1 < count {
            0x2000
        } else {
            before & 0x2000
        };
        let offset = (before & 0x1fff) + u16::try_from(index * room / 8).ok()?;
        let length = u16::try_from(header_length + payload.len()).ok()?;
        let mut header = header.to_vec();
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
        Some([ethernet, &header, payload].concat())
    };
    payload.chunks(room.max(8)).enumerate().map(piece).collect()
}

/// ICMP type 3 code 4 (RFC 1191), with the first 548 bytes of the packet.
fn fragmentation_needed(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header = packet.get(..20)?;
    let speaks_of_error = header[9] == 1 && matches!(packet.get(20), Some(3 | 4 | 5 | 11 | 12));
    if speaks_of_error {
        return None;
    }
    let quoted = &packet[..packet.len().min(548)];
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend_from_slice(&mtu.to_be_bytes());
    message.extend_from_slice(quoted);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    let total = u16::try_from(20 + message.len()).ok()?;
    let mut out = vec![0x45, 0];
    out.extend_from_slice(&total.to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 64, 1, 0, 0]);
    out.extend_from_slice(&header[16..20]);
    out.extend_from_slice(&header[12..16]);
    let sum = checksum(&[&out]);
    out[10..12].copy_from_slice(&sum);
    out.extend_from_slice(&message);
    Some(out)
}

/// ICMPv6 type 2 (RFC 4443 §3.2), with as much of the packet as 1280 bytes hold.
fn packet_too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header = packet.get(..40)?;
    if header[6] == 58 && packet.get(40).is_some_and(|kind| *kind < 128) {
        return None;
    }
    let quoted = &packet[..packet.len().min(1280 - 48)];
    let mut message = vec![2, 0, 0, 0];
    message.extend_from_slice(&u32::from(mtu).to_be_bytes());
    message.extend_from_slice(quoted);
    let length = u16::try_from(message.len()).ok()?;
    let pseudo = [header.get(24..40)?, header.get(8..24)?].concat();
    let tail = [
        0,
        0,
        length.to_be_bytes()[0],
        length.to_be_bytes()[1],
        0,
        0,
        0,
        58,
    ];
    let sum = checksum(&[&pseudo, &tail, &message]);
    message[2..4].copy_from_slice(&sum);
    let mut out = vec![0x60, 0, 0, 0];
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[58, 64]);
    out.extend_from_slice(&pseudo);
    out.extend_from_slice(&message);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forge::{frame, ip};

    fn ipv4(length: usize, flags: u8) -> Vec<u8> {
        let mut packet = ip("192.0.2.1", "192.0.2.2", 17, &vec![7; length - 20]);
        packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        packet[6] = flags;
        packet
    }

    #[test]
    fn a_packet_that_may_be_cut_goes_on_in_pieces_that_add_up() {
        let packet = ipv4(3000, 0);
        let Fate::Cut(pieces) = decide(&frame(&packet), 1400) else {
            panic!("not cut")
        };
        assert_eq!(pieces.len(), 3);
        let mut rebuilt = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let header = &piece[ETHERNET..ETHERNET + 20];
            assert!(piece.len() <= ETHERNET + 1400);
            assert_eq!(checksum(&[header]), [0, 0], "the header's checksum");
            let flags = u16::from_be_bytes([header[6], header[7]]);
            assert_eq!(usize::from(flags & 0x1fff) * 8, rebuilt.len());
            assert_eq!(flags & 0x2000 != 0, index < 2);
            rebuilt.extend_from_slice(&piece[ETHERNET + 20..]);
        }
        assert_eq!(rebuilt, packet[20..]);
    }

    #[test]
    fn a_sender_who_forbids_cutting_is_told_the_size() {
        let Fate::Told(answer) = decide(&frame(&ipv4(1500, 0x40)), 1400) else {
            panic!("silence")
        };
        let icmp = &answer[ETHERNET + 20..];
        assert_eq!(
            (icmp[0], icmp[1], &icmp[6..8]),
            (3, 4, &1400_u16.to_be_bytes()[..])
        );
        assert_eq!(checksum(&[icmp]), [0, 0]);
        let six = ip("2001:db8::1", "2001:db8::2", 17, &[0; 1460]);
        let Fate::Told(answer) = decide(&frame(&six), 1400) else {
            panic!("silence")
        };
        assert_eq!((answer[ETHERNET + 40], answer.len() - ETHERNET), (2, 1280));
    }

    #[test]
    fn an_error_is_not_answered_by_an_error_and_nonsense_harms_nobody() {
        let mut error = ip("192.0.2.1", "192.0.2.2", 1, &[3; 1480]);
        error[6] = 0x40;
        assert_eq!(decide(&frame(&error), 1400), Fate::Lost);
        for length in 0..60 {
            let whole = frame(&ipv4(1500, 0));
            assert_eq!(decide(&whole[..length], 1400), Fate::Lost, "{length}");
        }
    }
}
