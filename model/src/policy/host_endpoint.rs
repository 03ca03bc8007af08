//! A host's own interface, as an endpoint of policy.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::NamedPort;
use crate::{InterfaceName, NodeName};

/// A host's interface or interfaces: Calico's HostEndpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEndpoint {
    /// The object's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The host.
    pub node: NodeName,
    /// Which of its interfaces.
    pub interface: HostInterface,
    /// Addresses that selectors take to be its own; without an interface, also what tells which interface is meant.
    pub expected_addresses: Vec<IpAddr>,
    /// Profiles, asked in this order behind the last tier.
    pub profiles: Vec<String>,
    /// Ports with names.
    pub ports: Vec<NamedPort>,
}

/// Which interfaces of a host an endpoint means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostInterface {
    /// The one of this name.
    Named(InterfaceName),
    /// `*`: each that no other host endpoint means, and what is forwarded.
    All,
    /// The one that has one of the expected addresses.
    ByAddress,
}
