//! What is known of the packets of one course.

use std::net::IpAddr;

use model::{Family, InterfaceName, firewall::Course};

/// UDP and TCP (IANA protocol numbers).
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A kind of packet of ours, as a rule may look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) course: Course,
    pub(super) family: Family,
    input: Interface,
    output: Interface,
    /// Its source or destination port, where it is a tunnel's own.
    port: u16,
    /// Addresses, where they are known.
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
}

/// Addresses that packets of ours have, on the two ends of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Example {
    /// Where a tunnel's own packets go, and come from.
    Peer(IpAddr),
    /// A pod here, and one elsewhere.
    Pods(IpAddr, IpAddr),
}

/// A device that a packet came by or leaves by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Interface {
    /// None.
    Missing,
    /// This one.
    Named(InterfaceName),
    /// One whose name begins so.
    Prefixed(&'static str),
}

impl Packet {
    /// Returns the packets of a course on these devices. `port` is the tunnel's.
    pub(super) fn new(
        course: Course,
        family: Family,
        tunnel: &InterfaceName,
        underlay: &InterfaceName,
        port: u16,
    ) -> Self {
        use Interface::{Missing, Named, Prefixed};
        let pod = Prefixed(model::constant::WORKLOAD_PREFIX);
        let (input, output) = match course {
            Course::TunnelIn => (Named(underlay.clone()), Missing),
            Course::TunnelOut => (Missing, Named(underlay.clone())),
            Course::TunnelToPod => (Named(tunnel.clone()), pod),
            Course::PodToTunnel => (pod, Named(tunnel.clone())),
        };

        Self {
            course,
            family,
            input,
            output,
            port,
            source: None,
            destination: None,
        }
    }

    /// The same packet between these two; `None` where it is none of theirs.
    pub(super) fn between(&self, example: Example) -> Option<Self> {
        let (source, destination) = match (self.course, example) {
            (Course::TunnelIn, Example::Peer(peer)) => (Some(peer), None),
            (Course::TunnelOut, Example::Peer(peer)) => (None, Some(peer)),
            (Course::TunnelToPod, Example::Pods(here, there)) => (Some(there), Some(here)),
            (Course::PodToTunnel, Example::Pods(here, there)) => (Some(here), Some(there)),
            (Course::TunnelIn | Course::TunnelOut, Example::Pods(..))
            | (Course::TunnelToPod | Course::PodToTunnel, Example::Peer(_)) => return None,
        };
        let mut known = [source, destination].into_iter().flatten();

        known
            .all(|address| Family::of(address) == self.family)
            .then(|| Self {
                source,
                destination,
                ..self.clone()
            })
    }

    /// Returns the hooks that it passes (`enum nf_inet_hooks`), in order.
    pub(super) fn hooks(&self) -> &'static [u32] {
        match self.course {
            Course::TunnelIn => &[0, 1],
            Course::TunnelOut => &[3, 4],
            Course::TunnelToPod | Course::PodToTunnel => &[0, 2, 4],
        }
    }

    /// Returns what `meta` loads at a hook that knows both devices (`NFT_META_*` of nf_tables.h).
    pub(super) fn meta(&self, key: u32) -> Option<Vec<u8>> {
        const PROTOCOL: u32 = 1;
        const INPUT_NAME: u32 = 6;
        const OUTPUT_NAME: u32 = 7;
        const FAMILY: u32 = 15;
        const LAYER_4: u32 = 16;

        match key {
            PROTOCOL => Some(match self.family {
                Family::V4 => vec![0x08, 0x00],
                Family::V6 => vec![0x86, 0xdd],
            }),
            INPUT_NAME => self.input.bytes(),
            OUTPUT_NAME => self.output.bytes(),
            FAMILY => Some(vec![crate::address::family_number(self.family)]),
            LAYER_4 => Some(vec![self.protocol()]),
            _ => None,
        }
    }

    /// Returns what `ct` loads (`NFT_CT_*`): it is the first of its connection, and nobody translated it.
    pub(super) fn ct(&self, key: u32) -> Option<Vec<u8>> {
        const STATE: u32 = 0;
        const DIRECTION: u32 = 1;
        const STATUS: u32 = 2;
        /// `NF_CT_STATE_BIT(IP_CT_NEW)`.
        const NEW: u32 = 1 << 3;

        match key {
            STATE => Some(NEW.to_ne_bytes().to_vec()),
            DIRECTION => Some(vec![0]),
            STATUS => Some(vec![0; 4]),
            _ => None,
        }
    }

    /// Returns bytes of the packet (`NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`).
    pub(super) fn payload(&self, base: u32, offset: u32, length: u32) -> Option<Vec<u8>> {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;

        let port = Some(self.port.to_be_bytes().to_vec());
        match (base, offset, length) {
            (NETWORK, 9, 1) if self.family == Family::V4 => Some(vec![self.protocol()]),
            (NETWORK, 6, 1) if self.family == Family::V6 => Some(vec![self.protocol()]),
            (TRANSPORT, 0, 2) if self.course == Course::TunnelOut => port,
            (TRANSPORT, 2, 2) if self.course == Course::TunnelIn => port,
            (NETWORK, offset, length) => self.address(offset, length),
            _ => None,
        }
    }

    /// Returns bytes of an address in the network header (RFC 791 §3.1, RFC 8200 §3).
    fn address(&self, offset: u32, length: u32) -> Option<Vec<u8>> {
        let octets = |address: Option<IpAddr>| match address? {
            IpAddr::V4(v4) => Some(v4.octets().to_vec()),
            IpAddr::V6(v6) => Some(v6.octets().to_vec()),
        };
        let (first, size) = match self.family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        let (address, start) = match offset.checked_sub(first)? {
            start if start < size => (self.source, start),
            start if start < 2 * size => (self.destination, start - size),
            _ => return None,
        };
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;

        octets(address)?.get(start..end).map(<[u8]>::to_vec)
    }

    fn protocol(&self) -> u8 {
        if self.course.is_outer() { UDP } else { TCP }
    }
}

impl Interface {
    /// Returns a name as registers hold it; of a prefix nothing but itself is known.
    fn bytes(&self) -> Option<Vec<u8>> {
        let text = match self {
            Self::Missing => "",
            Self::Named(name) => name.as_str(),
            Self::Prefixed(prefix) => return Some(prefix.as_bytes().to_vec()),
        };
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(16, 0);

        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_address_is_read_whole_or_by_its_beginning_and_an_unknown_one_not_at_all() {
        let name: InterfaceName = "eth0".parse().unwrap();
        let any = Packet::new(Course::TunnelIn, Family::V4, &name, &name, 51820);
        let peer = Example::Peer("192.0.2.7".parse().unwrap());
        let packet = any.between(peer).unwrap();

        assert_eq!(packet.payload(1, 12, 4), Some(vec![192, 0, 2, 7]));
        assert_eq!(packet.payload(1, 12, 3), Some(vec![192, 0, 2]));
        assert_eq!(packet.payload(1, 16, 4), None, "where it goes");
        assert_eq!(packet.payload(1, 14, 4), None, "both");
        assert_eq!(any.payload(1, 12, 4), None);
        let v6 = Example::Peer("2001:db8::7".parse().unwrap());
        assert_eq!(any.between(v6), None);
    }

    #[test]
    fn pods_addresses_change_places_with_the_way() {
        let name: InterfaceName = "eth0".parse().unwrap();
        let (here, there) = ("fd65::1".parse().unwrap(), "fd65::41".parse().unwrap());
        let ends = |course| {
            let any = Packet::new(course, Family::V6, &name, &name, 51820);
            let packet = any.between(Example::Pods(here, there)).unwrap();
            let last = |offset| packet.payload(1, offset, 16).map(|bytes| bytes[15]);
            [last(8), last(24)]
        };

        assert_eq!(ends(Course::TunnelToPod), [Some(0x41), Some(1)]);
        assert_eq!(ends(Course::PodToTunnel), [Some(1), Some(0x41)]);
    }
}
