//! nftables, as data: the words that a ruleset of ours is written in.
//!
//! `dataplane` turns them into netlink messages; `nft list table` shows the result.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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
    pub name: String,
}

/// A chain and its rules, replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Where packets enter; `None`: only by a jump.
    pub hook: Option<Hook>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
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
    pub name: String,
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
    pub comment: String,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Match {
    /// Input interface is (not) exactly this.
    Iif(Sense, InterfaceName),
    /// Input interface name starts with this (`cali*`).
    IifPrefix(Sense, String),
    /// Input interface is (not) in a set.
    IifSet(Sense, String),
    /// Output interface is (not) exactly this.
    Oif(Sense, InterfaceName),
    /// Output interface name starts with this.
    OifPrefix(Sense, String),
    /// Output interface is (not) in a set.
    OifSet(Sense, String),
    /// The packet is of this family.
    Family(Family),
    /// Source address is (not) in a set of this family.
    Source(Sense, Family, String),
    /// Destination address is (not) in a set of this family.
    Destination(Sense, Family, String),
    /// Input interface and source address together are (not) in a set of pairs (`iifname . ip saddr @set`).
    SourceOnInterface(Sense, Family, String),
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
    /// `mark & mask == value` (or not).
    Mark {
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
    CtOriginalDestination(Sense, Family, String),
    /// The destination is one of the machine's own addresses (`fib daddr type local`).
    DestinationLocal,
    /// The source is one of the machine's own addresses.
    SourceLocal,
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
    Jump(String),
    /// Source NAT to this address, ports fully random.
    Snat(IpAddr),
    /// Masquerade, ports fully random.
    Masquerade,
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
