//! What others have, or do, where something of ours stands: named, so that a person can act; never fought over.
//!
//! ```text
//! a pass over the plan    what it could not take, or has to restore again and again   [`Conflict`]
//! a look at the machine   rules, routes, marks and network managers of others         [`Surroundings`]
//! ```

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Family, InterfaceName, plan::RowKey};

/// Something that a pass over the plan met.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Conflict {
    /// A tunnel device cannot listen: somebody else has its UDP port.
    Port {
        /// The device.
        device: InterfaceName,
        /// The port.
        port: u16,
        /// The families in which it is taken; none where that could not be seen.
        families: Vec<Family>,
        /// Who has it, in words; `None` where that is not known.
        holder: Option<String>,
    },
    /// A link of somebody else's bears the name of a tunnel device.
    Device {
        /// The name.
        device: InterfaceName,
        /// What kind of link it is, as `ip -d link` names it.
        kind: String,
    },
    /// Somebody changes an object of ours whenever it was restored.
    Contested {
        /// The object.
        row: RowKey,
    },
}

/// Others' rules, routes and network managers, as far as they concern us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// Packets of ours that go another way than planned.
    pub detours: BTreeSet<Detour>,
    /// Routes of others in our tables.
    pub routes: BTreeSet<ForeignRoute>,
    /// Rules of others that look for the mark on our tunnels' packets, as `ip rule` prints them.
    pub marks: BTreeSet<String>,
    /// Network managers that run here and were not told to leave what is ours alone.
    pub managers: BTreeSet<NetworkManager>,
    /// Devices that belong to a VRF although packets of ours go by them.
    #[serde(default)]
    pub memberships: BTreeSet<Membership>,
}

/// A device that belongs to a VRF: what comes in by it is looked up in that one's table, and is given to
/// sockets of that VRF.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Membership {
    /// The device.
    pub device: InterfaceName,
    /// What it is to us.
    pub role: Role,
    /// The VRF.
    pub vrf: InterfaceName,
    /// The VRF's routing table.
    pub table: u32,
}

/// What a device is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// A tunnel of ours.
    Tunnel,
    /// A pod's.
    Pod,
    /// Peers are reached by it.
    Underlay,
}

/// Packets of ours that others' policy routing takes elsewhere, as the kernel answers who asks it for the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Detour {
    /// Whose way it is.
    pub traffic: Traffic,
    /// How much of it.
    #[serde(default)]
    pub share: Share,
    /// One of the addresses that are not reached.
    pub example: IpAddr,
    /// The device that they should take; `None` for the tunnels' own packets, which may take any but a
    /// tunnel.
    pub planned: Option<InterfaceName>,
    /// Where they go instead.
    pub taken: Taken,
    /// The rule that takes them there.
    pub rule: ForeignRule,
}

/// How much of the packets of a way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Share {
    /// All of them.
    #[default]
    All,
    /// Those that the rule selects, by class, protocol, ports or user.
    Some,
}

/// Packets of ours that have a way of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Traffic {
    /// From pods and from this node to other nodes' pods.
    ToPods,
    /// From pods here to members' own addresses.
    ToMembers,
    /// The tunnels' own packets to peers.
    Tunnel,
}

/// Where packets go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Taken {
    /// Out of this device, by a route of this table.
    Device(InterfaceName, u32),
    /// Nowhere: a rule refuses them.
    Refused,
}

/// A policy routing rule of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForeignRule {
    /// Its priority: lower is asked first.
    pub priority: u32,
    /// The whole, as `ip rule` prints it.
    pub text: String,
}

/// A route of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForeignRoute {
    /// The table.
    pub table: u32,
    /// Where it leads.
    pub destination: IpNet,
    /// Its device, where it has one.
    pub device: Option<InterfaceName>,
    /// Who says that he made it, as `ip route` prints it: `static`, `dhcp`, or a number.
    pub protocol: String,
}

/// A program that manages a machine's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NetworkManager {
    /// NetworkManager.
    NetworkManager,
    /// systemd-networkd.
    Networkd,
}

impl NetworkManager {
    /// Every one of them.
    pub const ALL: [Self; 2] = [Self::NetworkManager, Self::Networkd];

    /// Returns the file by which it is told, where an administrator puts it.
    pub fn drop_in(self) -> &'static str {
        match self {
            Self::NetworkManager => "/etc/NetworkManager/conf.d/90-meshd.conf",
            Self::Networkd => "/etc/systemd/networkd.conf.d/90-meshd.conf",
        }
    }
}

impl fmt::Display for NetworkManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetworkManager => "NetworkManager",
            Self::Networkd => "systemd-networkd",
        })
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToPods => "packets to other nodes' pods",
            Self::ToMembers => "packets from pods to members",
            Self::Tunnel => "WireGuard packets to peers",
        })
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device, 254) => write!(f, "to {device} (table main)"),
            Self::Device(device, table) => write!(f, "to {device} (table {table})"),
            Self::Refused => write!(f, "nowhere"),
        }
    }
}

impl fmt::Display for ForeignRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(device) = &self.device {
            write!(f, " dev {device}")?;
        }
        write!(f, " proto {} in table {}", self.protocol, self.table)
    }
}
