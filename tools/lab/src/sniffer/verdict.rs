//! Is a frame that a member sent ciphertext, a leak, or nobody's business? Pure.
//!
//! A leak is anything between a pod and another member (its pods, its tunnel addresses, its node
//! addresses) outside WireGuard, bare or inside another encapsulation; and anything that carries a
//! canary, whatever its addresses say. Pods that talk to the world beyond, and hosts that talk to
//! hosts, are nobody's business.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;
use memchr::memmem::Finder;

use super::frame::{Layer, Packet, Transport, read};

/// Whose addresses are whose, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Territory {
    /// Where pods have their addresses.
    pub pods: Vec<IpNet>,
    /// Tunnel addresses, where they lie outside the pods' prefixes or are to be told apart.
    pub tunnels: BTreeSet<IpAddr>,
    /// The members' own addresses on the underlay.
    pub members: BTreeSet<IpAddr>,
    /// UDP ports that WireGuard uses on any member.
    pub wireguard_ports: BTreeSet<u16>,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Tunnel,
    Pod,
    Member,
    Nobody,
}

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// WireGuard's: ciphertext or handshake.
    WireGuard,
    /// Plaintext that should not be there.
    Leak(Leak),
    /// Neither.
    Other,
}

/// Plaintext that should not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// What gave it away.
    pub kind: LeakKind,
    /// The frame's layers, outermost first.
    pub layers: Vec<Layer>,
    /// Source and destination of the layer that gave it away; of the innermost, for a canary.
    pub ends: Option<(IpAddr, IpAddr)>,
    /// The frame in words.
    pub summary: String,
}

/// What gave a leak away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeakKind {
    /// From a pod to a pod.
    PodToPod,
    /// A tunnel address at one end, a pod or member at the other.
    TunnelAddress,
    /// Between a pod and a member's own address.
    PodAndNode,
    /// It carries a canary.
    Canary,
}

impl fmt::Display for LeakKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodToPod => "pod to pod",
            Self::TunnelAddress => "tunnel address",
            Self::PodAndNode => "pod and node",
            Self::Canary => "canary",
        })
    }
}

impl Territory {
    /// Judges a frame that a member sent.
    pub fn judge(&self, frame: &[u8], canary: &Finder<'_>) -> Verdict {
        let packet = read(frame);
        let leak = |kind, ends| {
            let (layers, summary) = (packet.layers.clone(), packet.to_string());
            Verdict::Leak(Leak {
                kind,
                layers,
                ends,
                summary,
            })
        };
        if canary.find(frame).is_some() {
            return leak(LeakKind::Canary, packet.ends.last().copied());
        }
        for (source, destination) in &packet.ends {
            if let Some(kind) = self.between(*source, *destination) {
                return leak(kind, Some((*source, *destination)));
            }
        }
        if self.is_wireguard(&packet) {
            Verdict::WireGuard
        } else {
            Verdict::Other
        }
    }

    /// What a packet between two addresses gives away.
    fn between(&self, source: IpAddr, destination: IpAddr) -> Option<LeakKind> {
        match (self.whose(source), self.whose(destination)) {
            (Whose::Nobody, _) | (_, Whose::Nobody) | (Whose::Member, Whose::Member) => None,
            (Whose::Tunnel, _) | (_, Whose::Tunnel) => Some(LeakKind::TunnelAddress),
            (Whose::Pod, Whose::Pod) => Some(LeakKind::PodToPod),
            (Whose::Pod, Whose::Member) | (Whose::Member, Whose::Pod) => Some(LeakKind::PodAndNode),
        }
    }

    fn whose(&self, address: IpAddr) -> Whose {
        if self.members.contains(&address) {
            Whose::Member
        } else if self.tunnels.contains(&address) {
            Whose::Tunnel
        } else if self.pods.iter().any(|prefix| prefix.contains(&address)) {
            Whose::Pod
        } else {
            Whose::Nobody
        }
    }

    /// WireGuard itself: a bare datagram of one of its ports that has the shape of one of its messages
    /// (§5.4 of the WireGuard paper). The fragments of one are taken for nobody's.
    fn is_wireguard(&self, packet: &Packet<'_>) -> bool {
        let Transport::Udp {
            source,
            destination,
            payload,
        } = packet.transport
        else {
            return false;
        };
        let ours = |port| self.wireguard_ports.contains(&port);
        packet.ends.len() == 1 && (ours(source) || ours(destination)) && has_message_shape(payload)
    }
}

/// The four message types: their first word (little endian) and their length. Several data messages may
/// stand in one datagram before the device cuts it, so those have a least length only.
fn has_message_shape(payload: &[u8]) -> bool {
    match payload {
        [1, 0, 0, 0, ..] => payload.len() == 148,
        [2, 0, 0, 0, ..] => payload.len() == 92,
        [3, 0, 0, 0, ..] => payload.len() == 64,
        [4, 0, 0, 0, ..] => payload.len() >= 32,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forge::{ethernet, frame, gre, ip, later_fragment, udp, vlan, vxlan};

    fn territory() -> Territory {
        Territory {
            pods: vec![
                "10.65.0.0/16".parse().unwrap(),
                "fd00:65::/64".parse().unwrap(),
            ],
            tunnels: BTreeSet::from(["10.65.9.1".parse().unwrap(), "172.31.0.1".parse().unwrap()]),
            members: ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]
                .map(|address| address.parse().unwrap())
                .into(),
            wireguard_ports: BTreeSet::from([51820]),
        }
    }

    fn judge(frame: &[u8]) -> Verdict {
        territory().judge(frame, &Finder::new(b"the canary sings"))
    }

    /// Pod to pod, tunnel address to pod, pod to node; for both families, both ways.
    fn forbidden() -> Vec<(LeakKind, Vec<u8>)> {
        let pairs = [
            (LeakKind::PodToPod, "10.65.0.2", "10.65.1.2"),
            (LeakKind::TunnelAddress, "10.65.9.1", "10.65.1.2"),
            (LeakKind::TunnelAddress, "172.31.0.1", "192.0.2.2"),
            (LeakKind::PodAndNode, "10.65.0.2", "192.0.2.2"),
            (LeakKind::PodToPod, "fd00:65::2", "fd00:65::102"),
            (LeakKind::PodAndNode, "fd00:65::2", "2001:db8::2"),
        ];
        let both = pairs
            .into_iter()
            .flat_map(|(kind, a, b)| [(kind, a, b), (kind, b, a)]);
        both.map(|(kind, a, b)| (kind, ip(a, b, 17, &udp(5000, 51820, b"hello"))))
            .collect()
    }

    fn assert_leak(frame: &[u8], kind: LeakKind, layers: &[Layer]) {
        let Verdict::Leak(leak) = judge(frame) else {
            panic!("not seen: {}", read(frame));
        };
        assert_eq!(
            (
                leak.kind,
                &leak.layers[..leak.layers.len().min(layers.len())]
            ),
            (kind, layers)
        );
    }

    #[test]
    fn what_is_bare_is_seen() {
        for (kind, packet) in forbidden() {
            assert_leak(&frame(&packet), kind, &[]);
        }
    }

    #[test]
    fn a_vlan_tag_hides_nothing() {
        for (kind, packet) in forbidden() {
            let tagged = vlan(&frame(&packet), 7);
            assert_leak(&tagged, kind, &[Layer::Vlan]);
            let mut twice = vlan(&tagged, 9);
            assert_leak(&twice, kind, &[Layer::Vlan, Layer::Vlan]);
            // The tags that providers use, of IEEE 802.1ad and from before it.
            for tag in [[0x88, 0xa8], [0x91, 0x00]] {
                twice[12..14].copy_from_slice(&tag);
                assert_leak(&twice, kind, &[Layer::Vlan, Layer::Vlan]);
            }
        }
    }

    #[test]
    fn vxlan_hides_nothing() {
        for (kind, packet) in forbidden() {
            let inner = vxlan(&frame(&packet));
            let v4 = ip("192.0.2.1", "192.0.2.2", 17, &inner);
            assert_leak(&frame(&v4), kind, &[Layer::Ipv4, Layer::Vxlan]);
            let v6 = ip("2001:db8::1", "2001:db8::2", 17, &inner);
            assert_leak(&frame(&v6), kind, &[Layer::Ipv6, Layer::Vxlan]);
        }
    }

    #[test]
    fn ip_in_ip_and_gre_hide_nothing() {
        for (kind, packet) in forbidden() {
            let number = if packet[0] >> 4 == 4 { 4 } else { 41 };
            let outer = ip("192.0.2.1", "192.0.2.2", number, &packet);
            assert_leak(&frame(&outer), kind, &[Layer::Ipv4]);
            let outer = ip("2001:db8::1", "2001:db8::2", number, &packet);
            assert_leak(&frame(&outer), kind, &[Layer::Ipv6]);
            let outer = ip("192.0.2.1", "192.0.2.2", 47, &gre(&packet));
            assert_leak(&frame(&outer), kind, &[Layer::Ipv4, Layer::Gre]);
        }
    }

    #[test]
    fn a_fragment_hides_nothing_be_it_the_first_or_the_last() {
        for (kind, packet) in forbidden() {
            let last = frame(&later_fragment(&packet));
            assert_leak(&last, kind, &[]);
            assert_eq!(read(&last).transport, Transport::Rest);
        }
        let mut outer = ip(
            "192.0.2.1",
            "192.0.2.2",
            4,
            &ip("10.65.0.2", "10.65.1.2", 6, &[]),
        );
        outer[6] = 0x20;
        assert_leak(
            &frame(&outer),
            LeakKind::PodToPod,
            &[Layer::Ipv4, Layer::Fragment],
        );
        let first = [17, 0, 0, 1, 0, 0, 0, 7];
        let packet = ip("fd00:65::2", "fd00:65::102", 44, &first);
        assert_leak(
            &frame(&packet),
            LeakKind::PodToPod,
            &[Layer::Ipv6, Layer::Fragment],
        );
    }

    #[test]
    fn extension_headers_hide_nothing() {
        let inner = ip("fd00:65::2", "fd00:65::102", 58, &[]);
        let options = [&[41, 0, 1, 4, 0, 0, 0, 0], &inner[..]].concat();
        for kind in [0, 43, 60] {
            let packet = ip("2001:db8::1", "2001:db8::2", kind, &options);
            assert_leak(
                &frame(&packet),
                LeakKind::PodToPod,
                &[Layer::Ipv6, Layer::Ipv6],
            );
        }
    }

    #[test]
    fn a_canary_is_found_whatever_carries_it() {
        let payload = [&[4, 0, 0, 0], &[7; 40][..], b"the canary sings", &[7; 40]].concat();
        let packet = ip("192.0.2.1", "192.0.2.2", 17, &udp(51820, 51820, &payload));
        assert_leak(&frame(&packet), LeakKind::Canary, &[Layer::Ipv4]);
        assert_leak(
            &ethernet(0x1234, b"..the canary sings.."),
            LeakKind::Canary,
            &[],
        );
    }

    #[test]
    fn clean_traffic_is_never_called_a_leak() {
        let wireguard = |first: u8, length: usize| {
            let mut payload = vec![0; length];
            payload[0] = first;
            frame(&ip(
                "192.0.2.1",
                "192.0.2.2",
                17,
                &udp(51820, 51820, &payload),
            ))
        };
        for (first, length) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1452), (4, 60_000)] {
            assert_eq!(
                judge(&wireguard(first, length)),
                Verdict::WireGuard,
                "{first} {length}"
            );
        }
        for (first, length) in [(1, 147), (2, 93), (3, 32), (4, 31), (5, 148), (0x45, 200)] {
            assert_eq!(
                judge(&wireguard(first, length)),
                Verdict::Other,
                "{first} {length}"
            );
        }
        let others = [
            ip("192.0.2.1", "192.0.2.2", 6, &[0; 20]),
            ip("10.65.0.2", "203.0.113.9", 6, &[0; 20]),
            ip("203.0.113.9", "10.65.0.2", 6, &[0; 20]),
            ip("192.0.2.1", "203.0.113.9", 17, &udp(51820, 53, &[4; 40])),
            ip("2001:db8::1", "ff02::1", 58, &[135]),
        ];
        for packet in others {
            assert_eq!(judge(&frame(&packet)), Verdict::Other);
        }
        assert_eq!(judge(&ethernet(0x0806, &[0; 28])), Verdict::Other);
    }

    #[test]
    fn wireguard_inside_an_overlay_is_not_taken_for_ciphertext_of_ours() {
        let inner = ip(
            "192.0.2.1",
            "192.0.2.2",
            17,
            &udp(51820, 51820, &[&[4, 0, 0, 0][..], &[9; 60]].concat()),
        );
        let outer = ip("192.0.2.1", "192.0.2.2", 17, &vxlan(&frame(&inner)));
        assert_eq!(judge(&frame(&outer)), Verdict::Other);
    }

    #[test]
    fn no_prefix_of_any_frame_harms_the_reader() {
        let inside = |(_, packet): (LeakKind, Vec<u8>)| {
            frame(&ip("192.0.2.1", "192.0.2.2", 17, &vxlan(&frame(&packet))))
        };
        for whole in forbidden().into_iter().map(inside) {
            for length in 0..whole.len() {
                judge(&whole[..length]);
            }
        }
        let mut nested = ip("10.0.0.1", "10.0.0.2", 6, &[]);
        for _ in 0..200 {
            nested = ip("192.0.2.1", "192.0.2.2", 4, &nested);
        }
        assert_eq!(judge(&frame(&nested)), Verdict::Other);
        let chain = ip("2001:db8::1", "2001:db8::2", 0, &[0; 60_000]);
        assert_eq!(judge(&frame(&chain)), Verdict::Other);
    }
}
