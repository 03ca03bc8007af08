//! Set elements on the wire: single keys in hash sets, pairs of bounds in interval sets.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Family, InterfaceName,
    nft::{Element, SetKind, Verdict},
};

use super::{
    code::{
        DATA_VALUE, DATA_VERDICT, ELEMENT_DATA, ELEMENT_F_INTERVAL_END, ELEMENT_FLAGS, ELEMENT_KEY,
        LIST_ELEMENT, SET_F_INTERVAL, SET_F_MAP, VERDICT_CHAIN, VERDICT_CODE,
    },
    expression::{NAME_LENGTH, octets, padded},
};
use crate::netlink::{Attributes, Message, address, text, u32_be};

/// What the kernel must know of a kind of set.
pub(super) struct Shape {
    /// `nft`'s number of the key's type: how `nft list` shows it (`TYPE_*` of nftables' datatype.h).
    pub(super) key_type: u32,
    /// The key's length in bytes.
    pub(super) key_length: u32,
    /// `NFT_SET_*` flags.
    pub(super) flags: u32,
    /// The key is in the machine's byte order, not the network's.
    pub(super) is_host_order: bool,
}

/// A bound or a key as it stands in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawElement {
    key: Vec<u8>,
    is_end: bool,
    verdict: Option<Verdict>,
}

/// Returns how a kind of set is declared.
pub(super) fn shape(kind: SetKind) -> Shape {
    const IPV4_ADDRESS: u32 = 7;
    const IPV6_ADDRESS: u32 = 8;
    const PROTOCOL: u32 = 12;
    const PORT: u32 = 13;
    const INTERFACE_NAME: u32 = 41;

    let (key_type, key_length, flags) = match kind {
        SetKind::Nets(Family::V4) => (IPV4_ADDRESS, 4, SET_F_INTERVAL),
        SetKind::Nets(Family::V6) => (IPV6_ADDRESS, 16, SET_F_INTERVAL),
        SetKind::Addresses(Family::V4) => (IPV4_ADDRESS, 4, 0),
        SetKind::Addresses(Family::V6) => (IPV6_ADDRESS, 16, 0),
        SetKind::Interfaces => (INTERFACE_NAME, 16, 0),
        SetKind::InterfaceAddresses(Family::V4) => (pair(INTERFACE_NAME, IPV4_ADDRESS), 20, 0),
        SetKind::InterfaceAddresses(Family::V6) => (pair(INTERFACE_NAME, IPV6_ADDRESS), 32, 0),
        SetKind::Ports => (PORT, 2, SET_F_INTERVAL),
        SetKind::AddressPorts(Family::V4) => (pair(pair(IPV4_ADDRESS, PROTOCOL), PORT), 12, 0),
        SetKind::AddressPorts(Family::V6) => (pair(pair(IPV6_ADDRESS, PROTOCOL), PORT), 24, 0),
        SetKind::InterfaceVerdicts => (INTERFACE_NAME, 16, SET_F_MAP),
    };

    Shape {
        key_type,
        key_length,
        flags,
        is_host_order: matches!(kind, SetKind::Interfaces | SetKind::InterfaceVerdicts),
    }
}

/// Returns the kind that is declared so, if it is one of ours.
pub(super) fn kind(key_type: u32, flags: u32) -> Option<SetKind> {
    [
        SetKind::Nets(Family::V4),
        SetKind::Nets(Family::V6),
        SetKind::Addresses(Family::V4),
        SetKind::Addresses(Family::V6),
        SetKind::Interfaces,
        SetKind::InterfaceAddresses(Family::V4),
        SetKind::InterfaceAddresses(Family::V6),
        SetKind::Ports,
        SetKind::AddressPorts(Family::V4),
        SetKind::AddressPorts(Family::V6),
        SetKind::InterfaceVerdicts,
    ]
    .into_iter()
    .find(|kind| {
        let shape = shape(*kind);
        shape.key_type == key_type && shape.flags == flags
    })
}

/// Returns whether an element can be in a set of this kind.
pub(super) fn fits(kind: SetKind, element: &Element) -> bool {
    match (kind, element) {
        (SetKind::Nets(family), Element::Net(net)) => Family::of_net(net) == family,
        (SetKind::Addresses(family), Element::Address(address)) => Family::of(*address) == family,
        (SetKind::Interfaces, Element::Interface(_)) => true,
        (SetKind::InterfaceAddresses(family), Element::InterfaceAddress(_, address)) => {
            Family::of(*address) == family
        }
        (SetKind::Ports, Element::Ports(first, last)) => first <= last,
        (SetKind::AddressPorts(family), Element::AddressPort(address, ..)) => {
            Family::of(*address) == family
        }
        (SetKind::InterfaceVerdicts, Element::InterfaceVerdict(..)) => true,
        (
            SetKind::Nets(_)
            | SetKind::Addresses(_)
            | SetKind::Interfaces
            | SetKind::InterfaceAddresses(_)
            | SetKind::Ports
            | SetKind::AddressPorts(_)
            | SetKind::InterfaceVerdicts,
            Element::Net(_)
            | Element::Address(_)
            | Element::Interface(_)
            | Element::InterfaceAddress(..)
            | Element::Ports(..)
            | Element::AddressPort(..)
            | Element::InterfaceVerdict(..),
        ) => false,
    }
}

/// Appends an element to the list in `message`: a key, or a range's two bounds.
pub(super) fn put(message: &mut Message, element: &Element) {
    match element {
        Element::Address(address) => put_key(message, &octets(*address), 0),
        Element::Interface(name) => put_key(message, &padded(name), 0),
        Element::InterfaceAddress(name, address) => {
            put_key(
                message,
                &[padded(name).to_vec(), octets(*address)].concat(),
                0,
            );
        }
        Element::Net(net) => {
            put_key(message, &octets(net.network()), 0);
            // A range that reaches the last address has no end.
            if let Some(end) = successor(net.broadcast()) {
                put_key(message, &octets(end), ELEMENT_F_INTERVAL_END);
            }
        }
        Element::Ports(first, last) => {
            put_key(message, &first.to_be_bytes(), 0);
            if let Some(end) = last.checked_add(1) {
                put_key(message, &end.to_be_bytes(), ELEMENT_F_INTERVAL_END);
            }
        }
        Element::AddressPort(address, protocol, port) => {
            let [high, low] = port.to_be_bytes();
            let rest = [*protocol, 0, 0, 0, high, low, 0, 0];
            put_key(message, &[&octets(*address)[..], &rest].concat(), 0);
        }
        Element::InterfaceVerdict(name, verdict) => put_entry(message, &padded(name), verdict),
    }
}

fn put_entry(message: &mut Message, key: &[u8], verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
    };
    message.nest(LIST_ELEMENT, |element| {
        element.nest(ELEMENT_KEY, |data| data.put(DATA_VALUE, key));
        element.nest(ELEMENT_DATA, |data| {
            data.nest(DATA_VERDICT, |verdict| {
                verdict.put(VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.put_text(VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

fn put_key(message: &mut Message, key: &[u8], flags: u32) {
    message.nest(LIST_ELEMENT, |element| {
        element.nest(ELEMENT_KEY, |data| data.put(DATA_VALUE, key));
        if flags != 0 {
            element.put_be32(ELEMENT_FLAGS, flags);
        }
    });
}

/// Reads one element of a list.
pub(super) fn read(bytes: &[u8]) -> Option<RawElement> {
    let attributes = Attributes::new(bytes);
    let flags = attributes.find(ELEMENT_FLAGS).and_then(u32_be).unwrap_or(0);

    Some(RawElement {
        key: attributes.nest(ELEMENT_KEY).find(DATA_VALUE)?.to_vec(),
        is_end: flags & ELEMENT_F_INTERVAL_END != 0,
        verdict: read_verdict(attributes.nest(ELEMENT_DATA).nest(DATA_VERDICT)),
    })
}

fn read_verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let chain = || {
        attributes
            .find(VERDICT_CHAIN)
            .and_then(text)
            .map(str::to_owned)
    };
    match u32_be(attributes.find(VERDICT_CODE)?)?.cast_signed() {
        libc::NF_ACCEPT => Some(Verdict::Accept),
        libc::NF_DROP => Some(Verdict::Drop),
        libc::NFT_JUMP => Some(Verdict::Jump(chain()?.into())),
        libc::NFT_GOTO => Some(Verdict::Goto(chain()?.into())),
        _ => None,
    }
}

/// Puts a set's raw elements together; `None` where something is in it that is no element of this kind.
pub(super) fn assemble(kind: SetKind, mut raw: Vec<RawElement>) -> Option<Vec<Element>> {
    match kind {
        SetKind::Interfaces => raw
            .iter()
            .map(|each| Some(Element::Interface(interface(&each.key)?)))
            .collect(),
        SetKind::InterfaceAddresses(_) => raw
            .iter()
            .map(|each| {
                let (name, rest) = each.key.split_at_checked(NAME_LENGTH)?;

                Some(Element::InterfaceAddress(interface(name)?, address(rest)?))
            })
            .collect(),
        SetKind::Addresses(_) => raw
            .iter()
            .map(|each| Some(Element::Address(address(&each.key)?)))
            .collect(),
        SetKind::AddressPorts(family) => raw
            .iter()
            .map(|each| address_port(family, &each.key))
            .collect(),
        SetKind::InterfaceVerdicts => raw
            .into_iter()
            .map(|each| {
                Some(Element::InterfaceVerdict(
                    interface(&each.key)?,
                    each.verdict?,
                ))
            })
            .collect(),
        SetKind::Nets(_) => {
            sort(&mut raw);
            nets(&raw)
        }
        SetKind::Ports => {
            sort(&mut raw);
            ports(&raw)
        }
    }
}

/// Sorts bounds: where one range ends and the next begins, the end comes first.
fn sort(raw: &mut [RawElement]) {
    raw.sort_by(|a, b| (&a.key, !a.is_end).cmp(&(&b.key, !b.is_end)));
}

fn address_port(family: Family, key: &[u8]) -> Option<Element> {
    let (host, rest) = key.split_at_checked(match family {
        Family::V4 => 4,
        Family::V6 => 16,
    })?;
    let [protocol, _, _, _, high, low, _, _] = *rest else {
        return None;
    };

    Some(Element::AddressPort(
        address(host)?,
        protocol,
        u16::from_be_bytes([high, low]),
    ))
}

/// Pairs the bounds of sorted ranges of ports.
fn ports(raw: &[RawElement]) -> Option<Vec<Element>> {
    let mut found = Vec::new();
    let mut open: Option<u16> = None;
    for bound in raw {
        let at = u16::from_be_bytes(bound.key.as_slice().try_into().ok()?);
        match (open.take(), bound.is_end) {
            (None, false) => open = Some(at),
            (Some(first), true) => found.push(Element::Ports(first, at.checked_sub(1)?)),
            // An end without a beginning closes the space before the first range: libnftables writes it.
            (None, true) if found.is_empty() => {}
            (None, true) | (Some(_), false) => return None,
        }
    }
    if let Some(first) = open {
        found.push(Element::Ports(first, u16::MAX));
    }

    Some(found)
}

/// Pairs the bounds of sorted ranges.
fn nets(raw: &[RawElement]) -> Option<Vec<Element>> {
    let mut found = Vec::new();
    let mut open: Option<IpAddr> = None;
    for bound in raw {
        let at = address(&bound.key)?;
        match (open.take(), bound.is_end) {
            (None, false) => open = Some(at),
            (Some(start), true) => found.push(net(start, Some(at))?),
            // An end without a beginning closes the space before the first range: libnftables writes it.
            (None, true) if found.is_empty() => {}
            (None, true) | (Some(_), false) => return None,
        }
    }
    if let Some(start) = open {
        found.push(net(start, None)?);
    }

    Some(found.into_iter().map(Element::Net).collect())
}

/// Returns the network from `start` to just before `end`; `None` where that is no network.
fn net(start: IpAddr, end: Option<IpAddr>) -> Option<IpNet> {
    (0..=Family::of(start).bits())
        .filter_map(|length| IpNet::new(start, length).ok())
        .find(|net| net.network() == start && successor(net.broadcast()) == end)
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::from(
            address.to_bits().checked_add(1)?.to_be_bytes(),
        )),
        IpAddr::V6(address) => Some(IpAddr::from(
            address.to_bits().checked_add(1)?.to_be_bytes(),
        )),
    }
}

/// Returns `nft`'s number of a key of two parts (`TYPE_BITS` of nftables' datatype.h is 6).
fn pair(first: u32, second: u32) -> u32 {
    first << 6 | second
}

fn interface(key: &[u8]) -> Option<InterfaceName> {
    text(key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_networks_and_the_last_one_are_told_apart() {
        let wanted = [
            "10.0.0.0/25",
            "10.0.0.128/25",
            "0.0.0.0/32",
            "255.255.255.255/32",
        ];
        let nets: Vec<IpNet> = wanted.iter().map(|net| net.parse().unwrap()).collect();
        let raw = nets.iter().flat_map(|net| bounds(*net)).collect();

        let mut read = assemble(SetKind::Nets(Family::V4), raw).unwrap();

        let mut expected: Vec<_> = nets.into_iter().map(Element::Net).collect();
        expected.sort();
        read.sort();
        assert_eq!(read, expected);
    }

    #[test]
    fn the_whole_space_is_one_network() {
        let all: IpNet = "::/0".parse().unwrap();

        assert_eq!(
            assemble(SetKind::Nets(Family::V6), bounds(all)),
            Some(vec![Element::Net(all)])
        );
    }

    #[test]
    fn a_range_that_is_no_network_is_foreign() {
        let raw = vec![
            RawElement {
                key: vec![10, 0, 0, 1],
                is_end: false,
                verdict: None,
            },
            RawElement {
                key: vec![10, 0, 0, 9],
                is_end: true,
                verdict: None,
            },
        ];

        assert_eq!(assemble(SetKind::Nets(Family::V4), raw), None);
    }

    fn bounds(net: IpNet) -> Vec<RawElement> {
        let start = RawElement {
            key: octets(net.network()),
            is_end: false,
            verdict: None,
        };
        let end = successor(net.broadcast()).map(|end| RawElement {
            key: octets(end),
            is_end: true,
            verdict: None,
        });

        std::iter::once(start).chain(end).collect()
    }
}
