//! What rules may ask of a single packet: its class, protocol, ports, user, tunnel.
//!
//! A rule that takes only some of our packets is found by asking the kernel about one of those that it
//! takes. Of the tunnels' own packets all of this is known; pods' may be anything, from any program, but
//! while the kernel forwards them their user is zero; this machine's own may be any user's.

use std::{fmt, ops::RangeInclusive};

use model::{Family, conflict::Traffic};

use crate::netlink::{Attributes, Message, u16_ne, u32_ne};

/// ICMP (RFC 792) and ICMPv6 (RFC 4443): what few rules ask for. Without a word the kernel takes UDP.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// TCP (RFC 9293), the protocol of a packet with ports of which no more is known.
const TCP: u8 = 6;

/// UDP (RFC 768).
const UDP: u8 = 17;

/// Protocols about whose packets the kernel can be asked: ICMP, TCP, UDP, and ICMPv6
/// (`rtm_getroute_parse_ip_proto`).
const ASKABLE: [u8; 4] = [ICMP, TCP, UDP, ICMPV6];

/// Bits of IPv4's type of service that a rule's own field compares (`INET_DSCP_LEGACY_TOS_MASK`).
const LEGACY_CLASS: u8 = 0x1c;

/// Bits of the traffic class that are the DSCP (RFC 2474).
const DSCP: u8 = 0xfc;

/// Attributes of a rule (`FRA_*` of linux/fib_rules.h).
mod asked {
    pub(super) const TUNNEL: u16 = 12;
    pub(super) const USERS: u16 = 20;
    pub(super) const PROTOCOL: u16 = 22;
    pub(super) const SOURCE_PORTS: u16 = 23;
    pub(super) const DESTINATION_PORTS: u16 = 24;
    pub(super) const DSCP: u16 = 25;
    pub(super) const FLOW_LABEL: u16 = 26;
    pub(super) const SOURCE_PORT_MASK: u16 = 28;
    pub(super) const DESTINATION_PORT_MASK: u16 = 29;
    pub(super) const DSCP_MASK: u16 = 30;
}

/// Attributes of a question for a route (`RTA_*` of linux/rtnetlink.h).
mod told {
    pub(super) const USER: u16 = 25;
    pub(super) const PROTOCOL: u16 = 27;
    pub(super) const SOURCE_PORT: u16 = 28;
    pub(super) const DESTINATION_PORT: u16 = 29;
}

/// A packet, as far as rules tell packets of one way apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Packet {
    class: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    user: u32,
}

impl Packet {
    /// A packet that no rule asks for in particular: an echo request.
    pub(super) fn any(family: Family) -> Self {
        let protocol = match family {
            Family::V4 => ICMP,
            Family::V6 => ICMPV6,
        };

        Self {
            class: 0,
            protocol,
            source_port: 0,
            destination_port: 0,
            user: 0,
        }
    }

    /// A tunnel's own packet to a peer.
    pub(super) fn of_tunnel(source_port: u16, destination_port: u16) -> Self {
        Self {
            protocol: UDP,
            source_port,
            destination_port,
            ..Self::any(Family::V4)
        }
    }

    /// As the kernel's own WireGuard asks for its way: by neither class nor source port.
    pub(super) fn of_kernel(self) -> Self {
        Self {
            class: 0,
            source_port: 0,
            ..self
        }
    }

    /// Returns its class: DSCP and ECN.
    pub(super) fn class(self) -> u8 {
        self.class
    }

    /// The same packet in another class.
    pub(super) fn in_class(self, class: u8) -> Self {
        Self { class, ..self }
    }

    /// Returns whether the kernel can be asked for its way.
    pub(super) fn is_askable(&self) -> bool {
        ASKABLE.contains(&self.protocol)
    }

    /// Says in a question for a route what packet is meant; the class stands in the question's header.
    pub(super) fn put(&self, request: &mut Message) {
        request.put(told::PROTOCOL, &[self.protocol]);
        for (kind, port) in [
            (told::SOURCE_PORT, self.source_port),
            (told::DESTINATION_PORT, self.destination_port),
        ] {
            if port != 0 {
                request.put(kind, &port.to_be_bytes());
            }
        }
        request.put_u32(told::USER, self.user);
    }
}

/// Ports that a rule asks for: a range, or one port under a mask.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports {
    range: RangeInclusive<u16>,
    mask: u16,
}

impl Ports {
    fn read(attributes: Attributes<'_>, range: u16, mask: u16) -> Option<Self> {
        let value = attributes.find(range)?;
        let first = u16_ne(value.get(..2)?)?;
        let last = u16_ne(value.get(2..4)?)?;

        Some(Self {
            range: first..=last,
            mask: attributes.find(mask).and_then(u16_ne).unwrap_or(u16::MAX),
        })
    }

    fn fit(&self, port: u16) -> bool {
        if self.mask == u16::MAX {
            self.range.contains(&port)
        } else {
            (port ^ self.range.start()) & self.mask == 0
        }
    }
}

/// What a rule asks of a single packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asks {
    /// Value and mask.
    class: Option<(u8, u8)>,
    protocol: Option<u8>,
    source_ports: Option<Ports>,
    destination_ports: Option<Ports>,
    users: Option<RangeInclusive<u32>>,
    /// The number of a flow-based tunnel: no packet of ours came out of one.
    tunnel: Option<u64>,
    /// A flow label, which differs from connection to connection.
    label: Option<u32>,
}

impl Asks {
    /// Reads what a rule asks; `class` is its header's type of service.
    pub(super) fn read(attributes: Attributes<'_>, class: u8, family: Family) -> Self {
        let byte = |kind| attributes.find(kind)?.first().copied();
        let full = byte(asked::DSCP).map(|dscp| {
            let mask = byte(asked::DSCP_MASK).map_or(DSCP, |mask| mask << 2);
            (dscp << 2, mask)
        });
        let mask = match family {
            Family::V4 => LEGACY_CLASS,
            Family::V6 => DSCP,
        };
        let big_endian = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        let users = |bytes: &[u8]| Some(u32_ne(bytes.get(..4)?)?..=u32_ne(bytes.get(4..8)?)?);
        let label = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));

        Self {
            class: full.or_else(|| (class != 0).then_some((class, mask))),
            protocol: byte(asked::PROTOCOL).filter(|protocol| *protocol != 0),
            source_ports: Ports::read(attributes, asked::SOURCE_PORTS, asked::SOURCE_PORT_MASK),
            destination_ports: Ports::read(
                attributes,
                asked::DESTINATION_PORTS,
                asked::DESTINATION_PORT_MASK,
            ),
            users: attributes.find(asked::USERS).and_then(users),
            tunnel: attributes.find(asked::TUNNEL).and_then(big_endian),
            label: attributes.find(asked::FLOW_LABEL).and_then(label),
        }
    }

    /// Returns whether a packet is one of those that are asked for.
    pub(super) fn fit(&self, packet: &Packet) -> bool {
        let class = self.class;
        let ports =
            |asked: &Option<Ports>, port| asked.as_ref().is_none_or(|asked| asked.fit(port));

        self.tunnel.is_none()
            && self.label.is_none()
            && class.is_none_or(|(value, mask)| packet.class & mask == value & mask)
            && self.protocol.is_none_or(|asked| asked == packet.protocol)
            && ports(&self.source_ports, packet.source_port)
            && ports(&self.destination_ports, packet.destination_port)
            && self
                .users
                .as_ref()
                .is_none_or(|users| users.contains(&packet.user))
    }

    /// Returns a packet of a way that fits, where one is possible; `plain` is the one of which nothing is
    /// known.
    pub(super) fn sample(
        &self,
        traffic: Traffic,
        is_forwarded: bool,
        plain: &Packet,
    ) -> Option<Packet> {
        let mut packet = *plain;
        match traffic {
            // All of it is known.
            Traffic::Tunnel => {}
            Traffic::ToPods | Traffic::ToMembers => {
                let has_ports = self.source_ports.is_some() || self.destination_ports.is_some();
                let protocol = self.protocol.or(has_ports.then_some(TCP));
                packet.protocol = protocol.unwrap_or(packet.protocol);
                packet.class = self.class.map_or(packet.class, |(value, _)| value);
                let first = |ports: &Option<Ports>| ports.as_ref().map_or(0, |p| *p.range.start());
                packet.source_port = first(&self.source_ports);
                packet.destination_port = first(&self.destination_ports);
                if let (Some(users), false) = (&self.users, is_forwarded) {
                    packet.user = *users.start();
                }
            }
        }

        self.fit(&packet).then_some(packet)
    }
}

/// As `ip rule` prints it, each with a blank before it.
impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.class {
            Some((value, LEGACY_CLASS)) => write!(f, " tos {value:#04x}")?,
            Some((value, _)) => write!(f, " dscp {}", value >> 2)?,
            None => {}
        }
        if let Some(tunnel) = self.tunnel {
            write!(f, " tun_id {tunnel}")?;
        }
        if let Some(users) = &self.users {
            write!(f, " uidrange {}-{}", users.start(), users.end())?;
        }
        match self.protocol {
            Some(TCP) => write!(f, " ipproto tcp")?,
            Some(UDP) => write!(f, " ipproto udp")?,
            Some(number) => write!(f, " ipproto {number}")?,
            None => {}
        }
        for (word, ports) in [
            ("sport", &self.source_ports),
            ("dport", &self.destination_ports),
        ] {
            let Some(Ports { range, mask }) = ports else {
                continue;
            };
            write!(f, " {word} {}", range.start())?;
            if range.start() != range.end() {
                write!(f, "-{}", range.end())?;
            }
            if *mask != u16::MAX {
                write!(f, "/{mask:#x}")?;
            }
        }
        if let Some(label) = self.label {
            write!(f, " flowlabel {label:#x}")?;
        }

        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rule asks, as the kernel would send it.
    fn asks(attributes: &[(u16, &[u8])], class: u8) -> Asks {
        let mut bytes = Vec::new();
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Asks::read(Attributes::new(&bytes), class, Family::V4)
    }

    fn range<T: Copy>(first: T, last: T, bytes: impl Fn(T) -> Vec<u8>) -> Vec<u8> {
        [bytes(first), bytes(last)].concat()
    }

    fn ports(first: u16, last: u16) -> Vec<u8> {
        range(first, last, |port| port.to_ne_bytes().to_vec())
    }

    fn users(first: u32, last: u32) -> Vec<u8> {
        range(first, last, |user| user.to_ne_bytes().to_vec())
    }

    #[test]
    fn what_is_asked_is_written_as_ip_writes_it() {
        let (from, to, who) = (ports(10, 20), ports(443, 443), users(1000, 1999));
        let all = asks(
            &[
                (asked::TUNNEL, &5_u64.to_be_bytes()),
                (asked::USERS, &who),
                (asked::PROTOCOL, &[TCP]),
                (asked::SOURCE_PORTS, &from),
                (asked::DESTINATION_PORTS, &to),
            ],
            0x10,
        );

        let text = " tos 0x10 tun_id 5 uidrange 1000-1999 ipproto tcp sport 10-20 dport 443";
        assert_eq!(all.to_string(), text);
        assert_eq!(asks(&[(asked::DSCP, &[34])], 0).to_string(), " dscp 34");
        assert_eq!(asks(&[], 0).to_string(), "");
    }

    #[test]
    fn pods_send_whatever_a_rule_asks_for() {
        let to = ports(443, 443);
        let https = asks(&[(asked::DESTINATION_PORTS, &to)], 0);
        let plain = Packet::any(Family::V4);

        let sample = https.sample(Traffic::ToPods, true, &plain).unwrap();
        assert_eq!((sample.protocol, sample.destination_port), (TCP, 443));
        assert!(https.fit(&sample) && !https.fit(&plain));
    }

    #[test]
    fn what_is_forwarded_has_no_user_and_what_is_sent_here_may_have_any() {
        let (root, people) = (users(0, 10), users(1000, 1999));
        let root = asks(&[(asked::USERS, &root)], 0);
        let people = asks(&[(asked::USERS, &people)], 0);
        let plain = Packet::any(Family::V4);
        let can =
            |asks: &Asks, forwarded| asks.sample(Traffic::ToPods, forwarded, &plain).is_some();

        assert!(can(&root, true) && can(&root, false));
        assert!(!can(&people, true) && can(&people, false));
    }

    #[test]
    fn of_a_tunnels_own_packet_all_is_known() {
        let (ours, others) = (ports(51820, 51820), ports(53, 53));
        let plain = Packet::of_tunnel(51820, 51821);
        let takes = |asks: &Asks| asks.sample(Traffic::Tunnel, false, &plain).is_some();

        assert!(takes(&asks(&[(asked::SOURCE_PORTS, &ours)], 0)));
        assert!(!takes(&asks(&[(asked::SOURCE_PORTS, &others)], 0)));
        assert!(takes(&asks(&[(asked::PROTOCOL, &[UDP])], 0)));
        assert!(!takes(&asks(&[(asked::PROTOCOL, &[TCP])], 0)));
        // The kernel's own asks for its way before it has a source port.
        assert!(!asks(&[(asked::SOURCE_PORTS, &ours)], 0).fit(&plain.of_kernel()));
    }

    #[test]
    fn no_packet_of_ours_comes_out_of_a_tunnel_with_a_number() {
        let numbered = asks(&[(asked::TUNNEL, &5_u64.to_be_bytes())], 0);
        assert_eq!(
            numbered.sample(Traffic::ToPods, true, &Packet::any(Family::V4)),
            None
        );
    }

    #[test]
    fn ports_under_a_mask_fit_by_their_bits() {
        let port = ports(0x1000, 0x1000);
        let masked = asks(
            &[
                (asked::SOURCE_PORTS, &port),
                (asked::SOURCE_PORT_MASK, &0xf000_u16.to_ne_bytes()),
            ],
            0,
        );
        let from = |port| masked.fit(&Packet::of_tunnel(port, 1));

        assert!(from(0x1fff) && !from(0x2000));
    }
}
