//! Control messages of UDP sockets (`cmsg(3)`, `udp(7)`, `ip(7)`, `ipv6(7)`), written and read as plain bytes.
//!
//! A message is a `cmsghdr` (length as `size_t`, level and type as `int`), its data, and padding to the next multiple
//! of `size_t`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wire_core::Local;

const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;
/// Room for all messages that we send or ask for: segment size, traffic class, packet information.
const SPACE: usize = 128;

/// A buffer of control messages.
#[repr(align(8))]
pub(super) struct Control {
    bytes: [u8; SPACE],
    length: usize,
}

/// A control message that came with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ancillary {
    /// Length of each of the joined datagrams.
    Segment(usize),
    /// The outer traffic class.
    TrafficClass(u8),
    /// Which of our addresses it was sent to, and the device it came in on.
    Destination(IpAddr, u32),
}

impl Control {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; SPACE],
            length: 0,
        }
    }

    /// The messages written so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Room for the kernel to write messages into.
    pub(super) const fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The first `length` bytes, which the kernel has written.
    pub(super) fn received(&self, length: usize) -> &[u8] {
        &self.bytes[..length.min(SPACE)]
    }

    /// `UDP_SEGMENT`: cut the buffer every `segment` bytes.
    pub(super) fn push_segment(&mut self, segment: usize) {
        let segment = u16::try_from(segment).unwrap_or(u16::MAX);
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }

    /// `IP_TOS` or `IPV6_TCLASS`; nothing for zero, which is the socket's own.
    pub(super) fn push_traffic_class(&mut self, remote: SocketAddr, class: u8) {
        if class == 0 {
            return;
        }
        let class = libc::c_int::from(class).to_ne_bytes();
        match remote {
            SocketAddr::V4(_) => self.push(libc::IPPROTO_IP, libc::IP_TOS, &class),
            SocketAddr::V6(_) => self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
        }
    }

    /// `IP_PKTINFO` or `IPV6_PKTINFO`: leave from `local`. The route is free to change, so the device is named only
    /// where the address means nothing without it.
    pub(super) fn push_source(&mut self, remote: SocketAddr, local: Local) {
        match (remote, local.address) {
            (SocketAddr::V4(_), IpAddr::V4(address)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&address.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            (SocketAddr::V6(_), IpAddr::V6(address)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&address.octets());
                if address.is_unicast_link_local() {
                    info[16..].copy_from_slice(&local.interface.to_ne_bytes());
                }
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            (SocketAddr::V4(_), IpAddr::V6(_)) | (SocketAddr::V6(_), IpAddr::V4(_)) => (),
        }
    }

    fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let length = HEADER + data.len();
        let message = &mut self.bytes[self.length..self.length + length];
        message[..WORD].copy_from_slice(&length.to_ne_bytes());
        message[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        message[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..].copy_from_slice(data);
        self.length += length.next_multiple_of(WORD);
    }
}

/// The messages in `bytes` that we know; others are passed over.
pub(super) fn parse(mut bytes: &[u8]) -> impl Iterator<Item = Ancillary> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::from_ne_bytes(*bytes.first_chunk::<WORD>()?);
            if length < HEADER || length > bytes.len() {
                return None;
            }
            let level = word(&bytes[WORD..])?;
            let kind = word(&bytes[WORD + 4..])?;
            let ancillary = decode(level, kind, &bytes[HEADER..length]);
            bytes = bytes.get(length.next_multiple_of(WORD)..).unwrap_or(&[]);
            if ancillary.is_some() {
                return ancillary;
            }
        }
    })
}

fn decode(level: i32, kind: i32, data: &[u8]) -> Option<Ancillary> {
    match (level, kind) {
        (libc::SOL_UDP, libc::UDP_GRO) => usize::try_from(word(data)?).ok().map(Ancillary::Segment),
        (libc::IPPROTO_IP, libc::IP_TOS) => data.first().copied().map(Ancillary::TrafficClass),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
            u8::try_from(word(data)?).ok().map(Ancillary::TrafficClass)
        }
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            let address: [u8; 4] = *data.get(4..)?.first_chunk()?;
            let interface = word(data)?.cast_unsigned();
            Some(Ancillary::Destination(
                Ipv4Addr::from(address).into(),
                interface,
            ))
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let address: [u8; 16] = *data.first_chunk()?;
            let interface = word(data.get(16..)?)?.cast_unsigned();
            Some(Ancillary::Destination(
                Ipv6Addr::from(address).into(),
                interface,
            ))
        }
        _ => None,
    }
}

fn word(bytes: &[u8]) -> Option<i32> {
    bytes
        .first_chunk::<4>()
        .map(|word| i32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_can_be_read() {
        let remote: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
        let address: IpAddr = "fe80::1".parse().unwrap();
        let mut control = Control::new();
        control.push_traffic_class(remote, 0x88);
        control.push_source(
            remote,
            Local {
                address,
                interface: 7,
            },
        );
        assert_eq!(
            parse(control.bytes()).collect::<Vec<_>>(),
            [
                Ancillary::TrafficClass(0x88),
                Ancillary::Destination(address, 7)
            ]
        );
    }

    #[test]
    fn a_global_source_address_does_not_pin_the_device() {
        let remote: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
        let address: IpAddr = "2001:db8::2".parse().unwrap();
        let mut control = Control::new();
        let interface = 7;
        control.push_source(remote, Local { address, interface });
        assert_eq!(
            parse(control.bytes()).collect::<Vec<_>>(),
            [Ancillary::Destination(address, 0)]
        );
    }

    #[test]
    fn all_messages_fit() {
        let mut control = Control::new();
        let remote: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        let address: IpAddr = "2001:db8::2".parse().unwrap();
        control.push_segment(1452);
        control.push_traffic_class(remote, 1);
        let interface = 1;
        control.push_source(remote, Local { address, interface });
        assert!(control.bytes().len() <= SPACE);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            prop_assert!(parse(&bytes).count() <= bytes.len());
        }
    }
}
