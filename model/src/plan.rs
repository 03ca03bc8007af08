//! What must be true on this machine: tables of rows, each kept by one dataplane target.
//!
//! A pass applies every *set* in the order of the tables below, then every *unset* in the opposite
//! order, and stops at the first failure. nftables comes first, in one transaction per half: a guard
//! and its exceptions appear together before any route, and both shrink after the last.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Family, InterfaceName, PodName, PublicKey, Table,
    nft::{Chain, ChainKey, Element, SetKey, SetKind},
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
