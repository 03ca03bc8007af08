//! One rule: what a packet must be like, and what then happens.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Direction, PortMatch};
use crate::{Family, ObjectKey, Selector};

/// What a packet must be like, and what then happens. All criteria must hold; within a list, one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What happens to a packet that matches.
    pub action: Action,
    /// The family; `None` is both. Implied by ICMP (4) and ICMPv6 (6).
    pub family: Option<Family>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// A protocol that it must not be.
    pub not_protocol: Option<Protocol>,
    /// The ICMP type and code.
    pub icmp: Option<Icmp>,
    /// An ICMP type and code that it must not have.
    pub not_icmp: Option<Icmp>,
    /// Who sends.
    pub source: Side,
    /// Who is to get it.
    pub destination: Side,
    /// It asks for HTTP methods or paths, which no packet filter sees: an Allow with it matches nothing.
    pub http: bool,
    /// The name that the object gives the rule (`metadata.annotations.name`, ClusterNetworkPolicy's `name`).
    pub name: Option<String>,
    /// The place of the entry that it was read from, in the object's own list, from 0: one entry of a Kubernetes
    /// policy becomes a rule per protocol and peer.
    #[serde(default)]
    pub index: usize,
}

/// What happens to a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// It passes this endpoint.
    Allow,
    /// It is dropped.
    Deny,
    /// It is noted, and the next rule is asked.
    Log,
    /// The next tier is asked; behind the last one, the profiles.
    Pass,
}

/// One side of a packet. All criteria must hold; within a list, one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Networks, one of which has the address; without any, every address will do.
    pub nets: Vec<IpNet>,
    /// Networks, none of which has the address.
    pub not_nets: Vec<IpNet>,
    /// An endpoint or network set that it selects has the address. Namespace and service account are composed in.
    pub selector: Option<Selector>,
    /// No endpoint or network set that it selects has the address. Set only where `selector` is not: with one, the
    /// negation is part of it.
    pub not_selector: Option<Selector>,
    /// Ports, one of which it is; without any, every port will do.
    pub ports: Vec<PortMatch>,
    /// Ports, none of which it is.
    pub not_ports: Vec<PortMatch>,
    /// An endpoint of the service has the address, and, as a destination, the port and the protocol.
    pub service: Option<Box<ServiceRef>>,
}

/// A service that a rule names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceRef {
    /// Its namespace: the one that the rule names, else the policy's own.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An ICMP or ICMPv6 type, and maybe a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Icmp {
    /// The type, 0 to 254.
    pub kind: u8,
    /// The code; `None` is every code.
    pub code: Option<u8>,
}

/// An IP protocol by its number (IANA, "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Protocol(pub u8);

impl Rule {
    /// Returns the rule that every packet matches.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            family: None,
            protocol: None,
            not_protocol: None,
            icmp: None,
            not_icmp: None,
            source: Side::default(),
            destination: Side::default(),
            http: false,
            name: None,
            index: 0,
        }
    }
}

impl Protocol {
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite.
    pub const UDPLITE: Self = Self(136);

    /// Returns whether rules may name ports of it.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }

    /// Returns the only family that has the protocol: ICMP's and ICMPv6's.
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::ICMP => Some(Family::V4),
            Self::ICMPV6 => Some(Family::V6),
            _ => None,
        }
    }
}

/// The protocols that have names, as Calico writes them.
const NAMES: [(Protocol, &str); 6] = [
    (Protocol::TCP, "TCP"),
    (Protocol::UDP, "UDP"),
    (Protocol::ICMP, "ICMP"),
    (Protocol::ICMPV6, "ICMPv6"),
    (Protocol::SCTP, "SCTP"),
    (Protocol::UDPLITE, "UDPLite"),
];

/// The text names no protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255")]
pub struct UnknownProtocol;

/// Reads a name, in any case, or a number from 1 to 255.
impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        let named = NAMES
            .iter()
            .find(|(_, name)| name.eq_ignore_ascii_case(text));
        if let Some((protocol, _)) = named {
            return Ok(*protocol);
        }

        match text.parse() {
            Ok(number @ 1..) if !text.starts_with('+') => Ok(Self(number)),
            Ok(_) | Err(_) => Err(UnknownProtocol),
        }
    }
}

/// Writes the name, or the number of a protocol without one.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(protocol, _)| protocol == self) {
            Some((_, name)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// Where a rule was written: what `why`, counters and logs name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleRef {
    /// The object.
    pub object: ObjectKey,
    /// Its tier; none in a profile.
    pub tier: Option<String>,
    /// Which of its two lists.
    pub direction: Direction,
    /// The place in the object's own list, from 0: several rules may come from one entry of a Kubernetes policy.
    pub index: usize,
}
