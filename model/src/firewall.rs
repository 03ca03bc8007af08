//! What packet filters of other programs mean for our packets.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Family, InterfaceName, constant::WORKLOAD_PREFIX, name::NameError};

/// Longest name of a zone that is taken: firewalld itself makes none of more than 17 characters.
const ZONE_MAX: usize = 64;

/// Other programs' packet filters, as far as they concern us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewalls {
    /// Places that they offer for rules of others, and that are there.
    pub extension_points: BTreeSet<ExtensionPoint>,
    /// Packets of ours that a ruleset drops whatever else they carry.
    pub drops: BTreeSet<ForeignDrop>,
}

/// A place that a firewall offers for rules of others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExtensionPoint {
    /// Docker's chain `DOCKER-USER` in the table `filter` of this family.
    DockerUser(Family),
    /// firewalld's zone `trusted`, which lets its members' packets pass.
    FirewalldTrusted,
    /// firewalld's zone of a device to the other machines, which drops what it does not name.
    FirewalldZone(ZoneName),
}

/// The name of a zone of firewalld's: 1 to 64 ASCII letters, digits, `_`, `-` and `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ZoneName(String);

/// Devices that belong to a zone of firewalld's together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ZoneMember {
    /// The interfaces of all pods, now and later.
    Pods,
    /// One device.
    Device(InterfaceName),
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
    /// Devices belong to firewalld's zone `trusted`.
    FirewalldMember(ZoneMember),
    /// UDP packets to a port pass a zone of firewalld's.
    FirewalldPort {
        /// The zone.
        zone: ZoneName,
        /// The port.
        port: u16,
    },
}

impl ZoneName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ZoneName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_-/".contains(&byte);
        if text.is_empty() || text.len() > ZONE_MAX || !text.bytes().all(is_fine) {
            return Err(NameError {
                text: text.chars().take(64).collect(),
                expected: "the name of a zone of firewalld's",
            });
        }

        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ZoneName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ZoneName> for String {
    fn from(zone: ZoneName) -> Self {
        zone.0
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ZoneMember {
    /// As firewalld writes it: a trailing `+` stands for any ending.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods => write!(f, "{WORKLOAD_PREFIX}+"),
            Self::Device(device) => write!(f, "{device}"),
        }
    }
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
            Self::FirewalldMember(member) => {
                write!(f, "{member} in firewalld's zone trusted")
            }
            Self::FirewalldPort { zone, port } => {
                write!(f, "UDP port {port} in firewalld's zone {zone}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_s_name_is_short_and_plain() {
        for fine in [
            "public",
            "libvirt-routed",
            "FedoraServer",
            "a/b",
            &"z".repeat(64),
        ] {
            assert_eq!(fine.parse::<ZoneName>().map(String::from), Ok(fine.into()));
        }
        for wrong in ["", "a b", "a\nb", "zoné", "a;b", &"z".repeat(65)] {
            assert!(wrong.parse::<ZoneName>().is_err(), "{wrong:?}");
        }
    }
}
