//! A connection as the kernel describes it.

use std::net::IpAddr;

use super::HEADER;
use crate::netlink::{self, Attributes, Received, u32_be};

/// Attributes of a connection (`CTA_*` of linux/netfilter/nfnetlink_conntrack.h).
pub(super) mod attribute {
    /// How its first packet was.
    pub(in crate::conntrack) const ORIGINAL: u16 = 1;
    /// How an answer is.
    pub(super) const REPLY: u16 = 2;
    /// `IPS_*`.
    pub(super) const STATUS: u16 = 3;
    /// Its mark.
    pub(in crate::conntrack) const MARK: u16 = 8;
    /// The one that expected it.
    pub(super) const MASTER: u16 = 14;
    /// Its zone.
    pub(super) const ZONE: u16 = 18;
    /// Which bits of the mark are meant.
    pub(in crate::conntrack) const MARK_MASK: u16 = 21;
}

/// Attributes of a tuple (`CTA_TUPLE_*`).
pub(super) const IN_TUPLE_ADDRESSES: u16 = 1;
pub(super) const IN_TUPLE_PROTOCOL: u16 = 2;
const IN_TUPLE_ZONE: u16 = 3;

/// Attributes of a tuple's addresses (`CTA_IP_*`).
pub(super) const V4_SOURCE: u16 = 1;
pub(super) const V4_DESTINATION: u16 = 2;
pub(super) const V6_SOURCE: u16 = 3;
pub(super) const V6_DESTINATION: u16 = 4;

/// Attributes of a tuple's protocol (`CTA_PROTO_*`).
pub(super) const NUMBER: u16 = 1;
pub(super) const SOURCE_PORT: u16 = 2;
pub(super) const DESTINATION_PORT: u16 = 3;
pub(super) const ICMP_ID: u16 = 4;
pub(super) const ICMP_TYPE: u16 = 5;
pub(super) const ICMP_CODE: u16 = 6;
pub(super) const ICMPV6_ID: u16 = 7;
pub(super) const ICMPV6_TYPE: u16 = 8;
pub(super) const ICMPV6_CODE: u16 = 9;

/// Bits of a connection's status (`IPS_*` of linux/netfilter/nf_conntrack_common.h).
const IPS_DST_NAT: u32 = 1 << 5;
pub(super) const IPS_DYING: u32 = 1 << 9;

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What its first packet said when it came in.
    pub original: Tuple,
    /// What an answer to it says when it comes in: its source is where the first packet was sent in the end.
    pub reply: Tuple,
    /// Its mark.
    pub mark: u32,
    pub(super) status: u32,
    pub(super) zone: u16,
    /// The bytes by which the one that expected it is named.
    pub(super) master: Option<Vec<u8>>,
}

/// What tells connections apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// Ports of sender and receiver, where the protocol has some.
    pub ports: Option<(u16, u16)>,
    /// Type and code, where the protocol is ICMP or ICMPv6.
    pub icmp: Option<(u8, u8)>,
}

impl Entry {
    /// Returns whether its destination is translated.
    pub fn is_translated(&self) -> bool {
        self.status & IPS_DST_NAT != 0
    }

    /// Reads an `IPCTNL_MSG_CT_NEW`.
    pub(super) fn read(message: &Received<'_>) -> Option<Self> {
        let attributes = Attributes::new(message.payload.get(HEADER..)?);
        let number = |kind| attributes.find(kind).and_then(u32_be).unwrap_or_default();
        let original = attributes.nest(attribute::ORIGINAL);
        // Each direction may have a zone of its own, and then the connection as a whole has none.
        let zones = [
            attributes.find(attribute::ZONE),
            original.find(IN_TUPLE_ZONE),
            attributes.nest(attribute::REPLY).find(IN_TUPLE_ZONE),
        ];

        Some(Self {
            original: Tuple::read(original)?,
            reply: Tuple::read(attributes.nest(attribute::REPLY))?,
            mark: number(attribute::MARK),
            status: number(attribute::STATUS),
            zone: zones
                .into_iter()
                .flatten()
                .filter_map(u16_be)
                .find(|zone| *zone != 0)
                .unwrap_or_default(),
            master: attributes.find(attribute::MASTER).map(<[u8]>::to_vec),
        })
    }
}

impl Tuple {
    fn read(tuple: Attributes<'_>) -> Option<Self> {
        let addresses = tuple.nest(IN_TUPLE_ADDRESSES);
        let address = |v4, v6| {
            addresses
                .find(v4)
                .or_else(|| addresses.find(v6))
                .and_then(netlink::address)
        };
        let protocol = tuple.nest(IN_TUPLE_PROTOCOL);
        let port = |kind| protocol.find(kind).and_then(u16_be);
        let byte = |v4, v6| {
            let value = protocol.find(v4).or_else(|| protocol.find(v6))?;
            value.first().copied()
        };

        Some(Self {
            source: address(V4_SOURCE, V6_SOURCE)?,
            destination: address(V4_DESTINATION, V6_DESTINATION)?,
            protocol: *protocol.find(NUMBER)?.first()?,
            ports: port(SOURCE_PORT).zip(port(DESTINATION_PORT)),
            icmp: byte(ICMP_TYPE, ICMPV6_TYPE).zip(byte(ICMP_CODE, ICMPV6_CODE)),
        })
    }
}

/// Reads a short number in network byte order.
fn u16_be(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}
