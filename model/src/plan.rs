//! What must be true on this machine: tables of rows, each kept by one dataplane target.
//!
//! A pass applies every *set* in the order of the tables below, then every *unset* in the opposite
//! order, and stops at the first failure. nftables comes first, in one transaction per half: a guard
//! and its exceptions appear together before any route, and both shrink after the last. What of nftables is no
//! guard is policy: it is set and unset in the first transaction alone.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Family, InterfaceName, PodName, PublicKey, Table,
    firewall::Opening,
    nft::{Chain, ChainKey, Element, NftFamily, SetKey, SetKind},
    pod::Limits,
    resource::mesh_configuration::Backend,
};

/// What this machine should look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rises with every change of a row.
    pub generation: u64,
    /// Whether absence from the plan means "must not exist".
    pub in_sync: bool,
    /// nftables sets.
    pub nft_sets: Table<SetKey, SetKind>,
    /// nftables set elements.
    pub nft_elements: Table<(SetKey, Element), ()>,
    /// nftables chains.
    pub nft_chains: Table<ChainKey, Chain>,
    /// Values under `/proc/sys`.
    pub sysctls: Table<String, String>,
    /// Pods' veth pairs.
    pub pods: Table<PodName, PodInterface>,
    /// WireGuard devices.
    pub tunnels: Table<InterfaceName, Tunnel>,
    /// Addresses on devices of ours.
    pub addresses: Table<(InterfaceName, IpNet), ()>,
    /// WireGuard peers.
    pub peers: Table<(InterfaceName, PublicKey), Peer>,
    /// Routes.
    pub routes: Table<RouteKey, Route>,
    /// Policy routing rules.
    pub rules: Table<RuleKey, ()>,
    /// Rules in other firewalls' extension points; each row is true.
    pub openings: Table<Opening, bool>,
}

/// A WireGuard device. Its private key is the keyring's; the row names the public half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The public half of the key it must have.
    pub key: PublicKey,
    /// UDP port.
    pub port: u16,
    /// Mark on its own packets.
    pub mark: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Which implementation.
    pub backend: Backend,
    /// Whether packets are taken in by a thread of the device's own (Felix's
    /// `wireguardThreadingEnabled`; `/sys/class/net/DEVICE/threaded`). For the kernel's alone.
    pub threaded: bool,
}

/// A WireGuard peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Where to send the first handshake. Set once: afterwards roaming is WireGuard's.
    pub endpoint: SocketAddr,
    /// Seconds; zero is off.
    pub keepalive: u16,
    /// What the peer may send from, and gets.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// A pod's veth pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInterface {
    /// The host end.
    pub host: InterfaceName,
    /// The end inside the pod.
    pub inside: InterfaceName,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The pod's addresses, /32 and /128.
    pub addresses: Vec<IpNet>,
    /// MTU of both ends.
    pub mtu: u32,
    /// The inner end's MAC address; absent: the kernel's choice.
    pub mac: Option<[u8; 6]>,
    /// Whether the pod forwards packets.
    pub forwards: bool,
    /// Limits on its traffic.
    pub limits: Limits,
}

/// What tells two routes apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteKey {
    /// Routing table.
    pub table: u32,
    /// Destination.
    pub destination: IpNet,
    /// Metric: lower wins. IPv6 has no zero; write 1024 there.
    pub metric: u32,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where packets go.
    pub via: RouteVia,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// MTU of the path in bytes.
    pub mtu: Option<u32>,
    /// Who owns it (`RTPROT_*`).
    pub protocol: u8,
}

/// Where a route sends packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteVia {
    /// Out of a device, scope link.
    Device(InterfaceName),
    /// To a neighbour; the kernel finds the device.
    Gateway(IpAddr),
    /// Nowhere, and the sender is told.
    Unreachable,
    /// Nowhere, silently.
    Blackhole,
    /// Back to the rules: the next table decides.
    Throw,
}

/// A policy routing rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleKey {
    /// The family.
    pub family: Family,
    /// Lower is asked first.
    pub priority: u32,
    /// Only packets from here.
    pub source: Option<IpNet>,
    /// Only packets *without* this mark (`not from all fwmark M/M`).
    pub without_mark: Option<u32>,
    /// The table to look in.
    pub table: u32,
}

/// Names a row of the plan, whichever table it is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RowKey {
    /// An nftables set.
    Set(SetKey),
    /// An element of an nftables set.
    Element(SetKey, Element),
    /// An nftables chain.
    Chain(ChainKey),
    /// A value under `/proc/sys`.
    Sysctl(String),
    /// A pod's veth pair.
    Pod(PodName),
    /// A WireGuard device.
    Tunnel(InterfaceName),
    /// An address on a device.
    Address(InterfaceName, IpNet),
    /// A WireGuard peer.
    Peer(InterfaceName, PublicKey),
    /// A route.
    Route(RouteKey),
    /// A policy routing rule.
    Rule(RuleKey),
    /// A rule in another firewall's extension point.
    Opening(Opening),
}

impl Plan {
    /// Takes less memory, where many rows came at once. Changes nothing.
    pub fn compact(&mut self) {
        self.nft_sets.compact();
        self.nft_elements.compact();
        self.nft_chains.compact();
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = |table: &NftFamily| match table {
            NftFamily::Inet => "inet",
            NftFamily::Netdev => "netdev",
        };
        match self {
            Self::Set(key) => write!(f, "set {} {}", table(&key.table), key.name),
            Self::Element(key, element) => {
                write!(f, "{element:?} in set {} {}", table(&key.table), key.name)
            }
            Self::Chain(key) => write!(f, "chain {} {}", table(&key.table), key.name),
            Self::Sysctl(name) => write!(f, "sysctl {name}"),
            Self::Pod(pod) => write!(f, "pod {pod}"),
            Self::Tunnel(device) => write!(f, "device {device}"),
            Self::Address(device, address) => write!(f, "address {address} on {device}"),
            Self::Peer(device, key) => write!(f, "peer {key} on {device}"),
            Self::Route(key) => write!(f, "route {} in table {}", key.destination, key.table),
            Self::Opening(opening) => write!(f, "{opening}"),
            Self::Rule(key) => write!(f, "rule {} to table {}", key.priority, key.table),
        }
    }
}
