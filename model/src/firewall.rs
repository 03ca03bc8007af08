//! What packet filters of other programs mean for our packets.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::Family;

/// Other programs' packet filters, as far as they concern us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewalls {
    /// Places that they offer for rules of others, and that are there.
    pub extension_points: BTreeSet<ExtensionPoint>,
    /// Packets of ours that a ruleset drops whatever else they carry.
    pub drops: BTreeSet<ForeignDrop>,
}

/// A place that a firewall offers for rules of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExtensionPoint {
    /// Docker's chain `DOCKER-USER` in the table `filter` of this family.
    DockerUser(Family),
}

/// A drop on the way of our packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForeignDrop {
    /// Whose way is blocked.
    pub course: Course,
    /// The family of these packets: the outer one of a tunnel's own.
    pub family: Family,
    /// The table, as `nft` names it: `ip filter`.
    pub table: String,
    /// The chain that drops them.
    pub chain: String,
    /// Where the kernel enters the table, in words: `chain FORWARD, hook forward, priority 0`.
    pub base: String,
}

/// A way that packets of ours take through the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Course {
    /// A tunnel's own packets, coming in from a peer.
    TunnelIn,
    /// A tunnel's own packets, going out to a peer.
    TunnelOut,
    /// From the tunnel device to a local pod.
    TunnelToPod,
    /// From a local pod to the tunnel device.
    PodToTunnel,
}

/// A rule for our packets in a firewall's extension point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Opening {
    /// Packets forwarded from and to pods pass the chain `DOCKER-USER` of this family.
    DockerUser(Family),
}

impl Course {
    /// Every way.
    pub const ALL: [Self; 4] = [
        Self::TunnelIn,
        Self::TunnelOut,
        Self::TunnelToPod,
        Self::PodToTunnel,
    ];

    /// Returns whether these are a tunnel's own packets, on the underlay.
    pub fn is_outer(self) -> bool {
        match self {
            Self::TunnelIn | Self::TunnelOut => true,
            Self::TunnelToPod | Self::PodToTunnel => false,
        }
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TunnelIn => "WireGuard packets from peers",
            Self::TunnelOut => "WireGuard packets to peers",
            Self::TunnelToPod => "packets from the tunnel to pods",
            Self::PodToTunnel => "packets from pods to the tunnel",
        })
    }
}

impl fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "table {} chain {} drops {} ({}; {})",
            self.table,
            self.chain,
            self.course,
            words(self.family),
            self.base
        )
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DockerUser(family) => {
                write!(f, "rules for pods in DOCKER-USER ({})", words(*family))
            }
        }
    }
}

fn words(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
