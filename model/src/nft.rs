//! nftables, as data: the words that a ruleset of ours is written in.
//!
//! `dataplane` turns them into netlink messages; `nft list table` shows the result.

mod name;

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::name::Name;
use crate::{Family, InterfaceName};

/// One of our two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NftFamily {
    /// `table inet meshd`.
    Inet,
    /// `table netdev meshd`.
    Netdev,
}

/// What tells chains apart: table and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainKey {
    /// The table.
    pub table: NftFamily,
    /// The chain's name; never an nft keyword.
    pub name: Name,
}

/// The guard's chains in `inet meshd`; the others there are policy's.
const GUARD_CHAINS: [&str; 6] = [
    "barrier",
    "translate",
    "antispoof",
    "hostport_in",
    "hostport_out",
    "hostport_back",
];

/// The guard's sets in `inet meshd`, without the family behind the name; the others there are policy's.
const GUARD_SETS: [&str; 9] = [
    "space", "anypool", "natpool", "open", "member", "own", "openhost", "workload", "tunnels",
];

impl ChainKey {
    /// Returns whether the chain is one of the guard's. What is not is policy's.
    pub fn is_guards(&self) -> bool {
        match self.table {
            NftFamily::Inet => GUARD_CHAINS.contains(&self.name.as_str()),
            NftFamily::Netdev => true,
        }
    }

    /// Returns whether the chain is there for pods that run.
    pub fn is_of_pods(&self) -> bool {
        self.is_guards() && self.name.starts_with("hostport_")
    }
}

impl SetKey {
    /// Returns whether the set is one of the guard's. What is not is policy's.
    pub fn is_guards(&self) -> bool {
        let stem = self.name.strip_suffix(['4', '6']).unwrap_or(&self.name);
        match self.table {
            NftFamily::Inet => GUARD_SETS.contains(&stem),
            NftFamily::Netdev => true,
        }
    }
}

/// A chain and its rules, replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Where packets enter; `None`: only by a jump.
    pub hook: Option<Hook>,
    /// The rules, in order.
    pub rules: Arc<[Rule]>,
}

/// Where a base chain hangs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The point in the packet's path.
    pub point: HookPoint,
    /// Lower runs earlier (`NF_IP_PRI_*` of linux/netfilter_ipv4.h).
    pub priority: i32,
    /// What the chain is for.
    pub kind: ChainKind,
    /// Accept or drop what no rule decided.
    pub policy: Policy,
}

/// A point in the packet's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookPoint {
    /// `prerouting`.
    Prerouting,
    /// `input`.
    Input,
    /// `forward`.
    Forward,
    /// `output`.
    Output,
    /// `postrouting`.
    Postrouting,
    /// netdev `ingress` of these devices.
    Ingress(Vec<InterfaceName>),
    /// netdev `egress` of these devices.
    Egress(Vec<InterfaceName>),
}

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChainKind {
    /// `filter`.
    Filter,
    /// `nat`.
    Nat,
}

/// A base chain's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// `accept`.
    Accept,
    /// `drop`.
    Drop,
}

/// What tells sets apart: table and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SetKey {
    /// The table.
    pub table: NftFamily,
    /// The set's name; never an nft keyword.
    pub name: Name,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetKind {
    /// Networks of a family (an interval set with auto-merge off: elements never overlap).
    Nets(Family),
    /// Single addresses of a family (a hash set).
    Addresses(Family),
    /// Interface names.
    Interfaces,
    /// Pairs of an input interface and a source address of a family (`ifname . ipv4_addr`, a hash set).
    InterfaceAddresses(Family),
    /// Ranges of ports (an interval set; elements never overlap).
    Ports,
    /// Address, protocol and port together, of a family (`ipv4_addr . inet_proto . inet_service`, a hash set).
    AddressPorts(Family),
    /// A map: what happens to packets of an interface (`ifname : verdict`, hashed).
    InterfaceVerdicts,
}

/// A member of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Element {
    /// A network.
    Net(IpNet),
    /// An address.
    Address(IpAddr),
    /// An interface name.
    Interface(InterfaceName),
    /// An interface and an address that may be seen on it.
    InterfaceAddress(InterfaceName, IpAddr),
    /// A range of ports, first and last.
    Ports(u16, u16),
    /// An address, a protocol's number and a port.
    AddressPort(IpAddr, u8, u16),
    /// An interface and what happens to its packets: one for each interface.
    InterfaceVerdict(InterfaceName, Verdict),
}

/// What a map says of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Accepted by the chain that asked.
    Accept,
    /// Dropped.
    Drop,
    /// Into another chain, and back behind the rule that asked.
    Jump(Name),
    /// Into another chain, and from its end to where the chain that asked was called from.
    Goto(Name),
}

/// Conditions that must all hold, then what happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// Count the packets that get here.
    pub counter: bool,
    /// What happens.
    pub statement: Statement,
    /// Shown by `nft list`; why the rule is there.
    pub comment: Name,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Match {
    /// Input interface is (not) exactly this.
    Iif(Sense, InterfaceName),
    /// Input interface name starts with this (`cali*`).
    IifPrefix(Sense, String),
    /// Input interface is (not) in a set.
    IifSet(Sense, Name),
    /// Output interface is (not) exactly this.
    Oif(Sense, InterfaceName),
    /// Output interface name starts with this.
    OifPrefix(Sense, String),
    /// Output interface is (not) in a set.
    OifSet(Sense, Name),
    /// The packet is of this family.
    Family(Family),
    /// Source address is (not) in a set of this family.
    Source(Sense, Family, Name),
    /// Destination address is (not) in a set of this family.
    Destination(Sense, Family, Name),
    /// Input interface and source address together are (not) in a set of pairs (`iifname . ip saddr @set`).
    SourceOnInterface(Sense, Family, Name),
    /// Source address is (not) in this network.
    SourceNet(Sense, IpNet),
    /// Destination address is (not) in this network.
    DestinationNet(Sense, IpNet),
    /// Layer-4 protocol number is (not) this.
    Protocol(Sense, u8),
    /// Layer-4 destination port (after [`Match::Protocol`]).
    DestinationPort(u16),
    /// ICMPv6 type (after a protocol match).
    Icmpv6Type(u8),
    /// ICMP or ICMPv6 type, and maybe code, is (not) this (after a match of protocol and family).
    Icmp(Sense, u8, Option<u8>),
    /// Port is (not) in this range, first and last included (after a match of a protocol that has ports).
    Port(End, Sense, u16, u16),
    /// Port is (not) in a set of ranges (after a match of a protocol that has ports).
    PortSet(End, Sense, Name),
    /// Address, protocol and port of one end together are (not) in a set of this family. A packet whose protocol has
    /// no ports is read as if it had: the set must hold none of such a protocol.
    AddressPort(End, Sense, Family, Name),
    /// `mark & mask == value` (or not).
    Mark {
        /// Equal or not.
        sense: Sense,
        /// Bits looked at.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// `ct mark & mask == value` (or not); never holds of a packet without a connection.
    CtMark {
        /// Equal or not.
        sense: Sense,
        /// Bits looked at.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// Conntrack state is one of these bits.
    CtState(CtState),
    /// The packet runs in a connection's reply direction.
    CtReply,
    /// The connection has a translated destination (`ct status dnat`).
    CtDnat,
    /// The connection's original destination is (not) in a set of this family.
    CtOriginalDestination(Sense, Family, Name),
    /// The destination is one of the machine's own addresses (`fib daddr type local`).
    DestinationLocal,
    /// The destination is (not) one that is somebody else's alone (`fib daddr type unicast`): neither the machine's own
    /// nor a group's, and not without a route.
    DestinationElsewhere(Sense),
    /// The packet itself says by which ways it wants to go.
    Detour(Detour),
    /// The source is one of the machine's own addresses.
    SourceLocal,
}

impl Match {
    /// Returns the set that it asks, and whether to be in it.
    pub const fn set(&self) -> Option<(Sense, &Name)> {
        match self {
            Self::IifSet(sense, name)
            | Self::OifSet(sense, name)
            | Self::Source(sense, _, name)
            | Self::Destination(sense, _, name)
            | Self::SourceOnInterface(sense, _, name)
            | Self::PortSet(_, sense, name)
            | Self::AddressPort(_, sense, _, name)
            | Self::CtOriginalDestination(sense, _, name) => Some((*sense, name)),
            Self::Iif(..)
            | Self::IifPrefix(..)
            | Self::Oif(..)
            | Self::OifPrefix(..)
            | Self::Family(_)
            | Self::SourceNet(..)
            | Self::DestinationNet(..)
            | Self::Protocol(..)
            | Self::DestinationPort(_)
            | Self::Icmpv6Type(_)
            | Self::Icmp(..)
            | Self::Port(..)
            | Self::Mark { .. }
            | Self::CtMark { .. }
            | Self::CtState(_)
            | Self::CtReply
            | Self::CtDnat
            | Self::DestinationLocal
            | Self::DestinationElsewhere(_)
            | Self::Detour(_)
            | Self::SourceLocal => None,
        }
    }
}

/// How a packet names the ways by which it wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Detour {
    /// IPv4's option of loose source routes (RFC 791).
    Loose,
    /// IPv4's option of strict source routes.
    Strict,
    /// IPv6's routing header of whatever type (RFC 8200, section 4.4).
    Header,
}

impl Detour {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Loose, Self::Strict, Self::Header];
}

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum End {
    /// Who sends.
    Source,
    /// Who is to get it.
    Destination,
}

/// Whether a condition must hold or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sense {
    /// It must hold.
    Is,
    /// It must not hold.
    Not,
}

/// Conntrack states, any of which matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtState {
    /// `new`.
    pub new: bool,
    /// `established`.
    pub established: bool,
    /// `related`.
    pub related: bool,
    /// `invalid`.
    pub invalid: bool,
    /// `untracked`: without a connection, on purpose.
    #[serde(default)]
    pub untracked: bool,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statement {
    /// Accepted by this chain.
    Accept,
    /// Dropped.
    Drop,
    /// Back to the caller.
    Return,
    /// Into another chain, and back.
    Jump(Name),
    /// Into another chain; its end is this chain's end.
    Goto(Name),
    /// What a map of verdicts says of the input interface; an interface that is not in it goes on.
    InputVerdict(Name),
    /// What a map of verdicts says of the output interface; an interface that is not in it goes on.
    OutputVerdict(Name),
    /// Accepted, and no connection is made of it (`notrack accept`; before connection tracking only).
    AcceptUntracked,
    /// Told to whoever listens, and on.
    Log(Nflog),
    /// Told to whoever listens, and dropped.
    LogAndDrop(Nflog),
    /// Source NAT to this address, ports fully random. This and [`Masquerade`](Self::Masquerade) stand in the guard's
    /// file, which the version before reads too.
    Snat(IpAddr),
    /// Source NAT to this address, ports fully random, of a range (first and last).
    SnatPorts(IpAddr, (u16, u16)),
    /// Masquerade, ports fully random.
    Masquerade,
    /// Masquerade, ports fully random, of a range (first and last).
    MasqueradePorts((u16, u16)),
    /// Destination NAT to this address, and to this port where there is one.
    Dnat(IpAddr, Option<u16>),
    /// `mark = (mark & !mask) | value`.
    SetMark {
        /// Bits written.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// Only count (with [`Rule::counter`]) and go on.
    Continue,
}

/// Whom a packet is told to: listeners of a group of nfnetlink_log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nflog {
    /// The group.
    pub group: u16,
    /// What is said with the packet, at most 127 bytes (`NF_LOG_PREFIXLEN` of linux/netfilter/nf_log.h, less the NUL).
    pub prefix: Name,
}
