//! One interface of a pod: Calico's WorkloadEndpoint.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{InterfaceName, NodeName, PodName};

/// A pod's interface and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadEndpoint {
    /// The object's name (Calico's `NODE-ORCHESTRATOR-POD-ENDPOINT`).
    pub name: String,
    /// The pod.
    pub pod: PodName,
    /// Its node.
    pub node: NodeName,
    /// The host end of its veth.
    pub interface: InterfaceName,
    /// Its addresses, /32 and /128.
    pub addresses: Vec<IpNet>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its profiles.
    pub profiles: Vec<String>,
}
