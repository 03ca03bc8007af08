//! What a pod's interface is to be like beyond its addresses: asked for by the network configuration, the pod's
//! annotations or its namespace's, in Calico's words, and checked by whoever read them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    Family,
    policy::{NamedPort, Protocol},
};

/// Burst of a limit that says none, in bits: 4 Gi (Calico's default; `qos.projectcalico.org/ingressBurst`).
pub const BURST_DEFAULT: u64 = 4 << 30;

/// What a pod's interface is to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodWish {
    /// Families that must get an address; empty: each that has a pool.
    pub families: BTreeSet<Family>,
    /// Pools (names or CIDRs) to take addresses from, in order (`ipv4pools`, `ipv6pools`); absent: each that is
    /// handed out without being asked for.
    pub pools: BTreeMap<Family, Vec<String>>,
    /// Addresses that nobody assigns: the pod has them whatever the pools say (`ipAddrsNoIpam`).
    pub unmanaged: Vec<IpAddr>,
    /// The largest packet, in bytes, where that is less than the mesh's.
    pub mtu: Option<u32>,
    /// The inner end's MAC address (`hwAddr`, `mac`); absent: the kernel's choice.
    pub mac: Option<[u8; 6]>,
    /// The pod forwards packets (`container_settings.allow_ip_forwarding`).
    pub forwards: bool,
    /// Further addresses under which the pod is reached (`floatingIPs`).
    pub floating: Vec<IpAddr>,
    /// The host's ports that lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// The ports of its containers that have names.
    pub named_ports: Vec<NamedPort>,
    /// Limits on its traffic.
    pub limits: Limits,
}

/// A port of the host that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// The host's address; absent: each, of both families.
    pub address: Option<IpAddr>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The host's port.
    pub port: u16,
    /// The pod's port.
    pub target: u16,
}

/// Limits on a pod's traffic, by its direction as the pod sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Towards the pod.
    pub ingress: Option<Limit>,
    /// From the pod.
    pub egress: Option<Limit>,
}

/// A token bucket: so much at once, then so much a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bits a second.
    pub rate: u64,
    /// Bits.
    pub burst: u64,
    /// Bits a second that a burst may reach; absent: as fast as the link goes.
    #[serde(default)]
    pub peak: Option<u64>,
    /// Bytes that may go at once at the peak rate; absent: the interface's MTU.
    #[serde(default)]
    pub peak_burst: Option<u32>,
}

impl Limits {
    /// Returns whether there is none.
    pub const fn is_none(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}
