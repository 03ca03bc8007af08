//! What is in a set or a map, so that it is found without a walk.
//!
//! Intervals of one set do not overlap, except between two changes that belong together: one network takes the place
//! of another. Nobody is judged then.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::{IpAddr, Ipv6Addr},
};

use model::{
    InterfaceName,
    nft::{Element, Verdict},
};

/// What is in a set: elements of one sort.
#[derive(Clone, Debug, Default)]
pub(super) enum Content {
    /// Nothing yet.
    #[default]
    Nothing,
    /// Networks: first and last address.
    Nets(BTreeSet<(IpAddr, IpAddr)>),
    /// Addresses.
    Addresses(BTreeSet<IpAddr>),
    /// Interfaces.
    Interfaces(BTreeSet<InterfaceName>),
    /// Interfaces, each with addresses.
    Pairs(BTreeMap<InterfaceName, BTreeSet<IpAddr>>),
    /// Ranges of ports.
    Ports(BTreeSet<(u16, u16)>),
    /// Address, protocol and port.
    AddressPorts(BTreeSet<(IpAddr, u8, u16)>),
    /// What happens on each interface: one target, but for the moment between two changes.
    Verdicts(BTreeMap<InterfaceName, Vec<Target>>),
}

/// A map's verdict, with a number for its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Accepted.
    Accept,
    /// Dropped.
    Drop,
    /// Into a chain, and back.
    Jump(u32),
    /// Into a chain for good.
    Goto(u32),
}

/// Returns the collection of a sort; what is there of another sort is forgotten.
macro_rules! sort {
    ($content:expr, $sort:ident) => {{
        if !matches!($content, Content::$sort(_)) {
            *$content = Content::$sort(Default::default());
        }
        let Content::$sort(found) = $content else {
            unreachable!("it has just been made so")
        };
        found
    }};
}

impl Content {
    /// Takes less memory: what came in order lies in nodes that are half empty.
    pub(super) fn compact(&mut self) {
        match self {
            Self::Nets(nets) => *nets = mem::take(nets).into_iter().collect(),
            Self::Addresses(set) => *set = mem::take(set).into_iter().collect(),
            Self::Interfaces(names) => *names = mem::take(names).into_iter().collect(),
            Self::Pairs(pairs) => *pairs = mem::take(pairs).into_iter().collect(),
            Self::Ports(ports) => *ports = mem::take(ports).into_iter().collect(),
            Self::AddressPorts(set) => *set = mem::take(set).into_iter().collect(),
            Self::Verdicts(verdicts) => *verdicts = mem::take(verdicts).into_iter().collect(),
            Self::Nothing => {}
        }
    }

    /// Adds an element; `chain` is the number of the one that it leads to. Returns whether it is new.
    pub(super) fn insert(&mut self, element: &Element, chain: Option<u32>) -> bool {
        match element {
            Element::Net(net) => sort!(self, Nets).insert((net.network(), net.broadcast())),
            Element::Address(address) => sort!(self, Addresses).insert(*address),
            Element::Interface(name) => sort!(self, Interfaces).insert(name.clone()),
            Element::InterfaceAddress(name, address) => sort!(self, Pairs)
                .entry(name.clone())
                .or_default()
                .insert(*address),
            Element::Ports(first, last) => sort!(self, Ports).insert((*first, *last)),
            Element::AddressPort(address, protocol, port) => {
                sort!(self, AddressPorts).insert((*address, *protocol, *port))
            }
            Element::InterfaceVerdict(name, verdict) => {
                let targets = sort!(self, Verdicts).entry(name.clone()).or_default();
                let Some(target) = Target::new(verdict, chain).filter(|new| !targets.contains(new))
                else {
                    return false;
                };
                targets.push(target);
                true
            }
        }
    }

    /// Removes an element; returns whether it was there.
    pub(super) fn remove(&mut self, element: &Element, chain: Option<u32>) -> bool {
        match (self, element) {
            (Self::Nets(nets), Element::Net(net)) => nets.remove(&(net.network(), net.broadcast())),
            (Self::Addresses(addresses), Element::Address(address)) => addresses.remove(address),
            (Self::Interfaces(names), Element::Interface(name)) => names.remove(name),
            (Self::Pairs(pairs), Element::InterfaceAddress(name, address)) => pairs
                .get_mut(name)
                .is_some_and(|addresses| addresses.remove(address)),
            (Self::Ports(ports), Element::Ports(first, last)) => ports.remove(&(*first, *last)),
            (Self::AddressPorts(set), Element::AddressPort(address, protocol, port)) => {
                set.remove(&(*address, *protocol, *port))
            }
            (Self::Verdicts(verdicts), Element::InterfaceVerdict(name, verdict)) => {
                let Some(targets) = verdicts.get_mut(name) else {
                    return false;
                };
                let before = targets.len();
                targets.retain(|target| Some(*target) != Target::new(verdict, chain));
                let is_less = targets.len() < before;
                if targets.is_empty() {
                    verdicts.remove(name);
                }
                is_less
            }
            (
                Self::Nothing
                | Self::Nets(_)
                | Self::Addresses(_)
                | Self::Interfaces(_)
                | Self::Pairs(_)
                | Self::Ports(_)
                | Self::AddressPorts(_)
                | Self::Verdicts(_),
                _,
            ) => false,
        }
    }

    /// Returns whether an address is in it.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.contains(&address),
            Self::Nets(nets) => nets
                .range(..=(address, IpAddr::V6(Ipv6Addr::from_bits(u128::MAX))))
                .next_back()
                .is_some_and(|(_, last)| address <= *last),
            Self::Nothing
            | Self::Interfaces(_)
            | Self::Pairs(_)
            | Self::Ports(_)
            | Self::AddressPorts(_)
            | Self::Verdicts(_) => false,
        }
    }

    /// Returns whether a port is in one of its ranges.
    pub(super) fn has_port(&self, port: u16) -> bool {
        let Self::Ports(ports) = self else {
            return false;
        };
        let below = ports.range(..=(port, u16::MAX)).next_back();

        below.is_some_and(|(_, last)| port <= *last)
    }

    /// Returns whether an address, a protocol and a port together are in it.
    pub(super) fn has_address_port(&self, address: IpAddr, protocol: u8, port: u16) -> bool {
        matches!(self, Self::AddressPorts(set) if set.contains(&(address, protocol, port)))
    }

    /// Returns whether an interface is in it.
    pub(super) fn has_interface(&self, name: &InterfaceName) -> bool {
        matches!(self, Self::Interfaces(names) if names.contains(name))
    }

    /// Returns whether an interface and an address together are in it.
    pub(super) fn has_pair(&self, name: &InterfaceName, address: IpAddr) -> bool {
        let Self::Pairs(pairs) = self else {
            return false;
        };

        pairs.get(name).is_some_and(|set| set.contains(&address))
    }

    /// Returns what it says of an interface.
    pub(super) fn target(&self, name: &InterfaceName) -> Option<Target> {
        let Self::Verdicts(verdicts) = self else {
            return None;
        };

        verdicts.get(name)?.last().copied()
    }
}

impl Target {
    fn new(verdict: &Verdict, chain: Option<u32>) -> Option<Self> {
        match verdict {
            Verdict::Accept => Some(Self::Accept),
            Verdict::Drop => Some(Self::Drop),
            Verdict::Jump(_) => chain.map(Self::Jump),
            Verdict::Goto(_) => chain.map(Self::Goto),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_ends_where_it_says() {
        let mut content = Content::default();
        let nets = ["10.0.0.0/25", "10.0.1.0/24", "fd00::/64", "ff00::/8"];
        for net in nets {
            assert!(content.insert(&Element::Net(net.parse().unwrap()), None));
        }
        let has = |address: &str| content.has_address(address.parse().unwrap());

        let inside = [
            "10.0.0.0",
            "10.0.0.127",
            "10.0.1.255",
            "fd00::ffff",
            "ffff::",
        ];
        let outside = [
            "9.255.255.255",
            "10.0.0.128",
            "10.0.2.0",
            "fd00:0:0:1::",
            "::",
        ];
        assert_eq!(inside.map(has), [true; 5]);
        assert_eq!(outside.map(has), [false; 5]);
    }

    #[test]
    fn a_network_may_take_the_place_of_another_in_any_order() {
        let [small, large] = ["10.0.0.0/25", "10.0.0.0/24"]
            .map(|net| Element::Net(net.parse::<ipnet::IpNet>().unwrap()));
        let mut content = Content::default();
        content.insert(&small, None);

        content.insert(&large, None);
        content.remove(&small, None);

        assert!(content.has_address("10.0.0.200".parse().unwrap()));
    }

    #[test]
    fn an_interface_may_change_chains_in_any_order() {
        let name: InterfaceName = "cali1".parse().unwrap();
        let entry =
            |chain: &str| Element::InterfaceVerdict(name.clone(), Verdict::Goto(chain.into()));
        let mut content = Content::default();
        content.insert(&entry("b"), Some(2));

        content.insert(&entry("a"), Some(1));
        assert!(content.remove(&entry("b"), Some(2)));

        assert_eq!(content.target(&name), Some(Target::Goto(1)));
        assert!(!content.remove(&entry("b"), Some(2)));
    }
}
