//! A range that pods' addresses come from.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A pool of addresses: Calico's IPPool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpPool {
    /// Its name.
    pub name: String,
    /// The range; host bits are zero.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_size: u8,
    /// Masquerade towards destinations outside all pools.
    pub nat_outgoing: bool,
    /// Takes no new allocations; those that exist stay routable.
    pub disabled: bool,
    /// What its addresses may be used for.
    pub allowed_uses: Vec<AllowedUse>,
    /// Which nodes may claim blocks (source text of a Calico selector).
    pub node_selector: String,
    /// Whether addresses are handed out without being asked for by pool.
    pub automatic: bool,
}

/// What a pool's addresses may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AllowedUse {
    /// Pods.
    Workload,
    /// Tunnel devices.
    Tunnel,
    /// Services of type LoadBalancer.
    LoadBalancer,
}
