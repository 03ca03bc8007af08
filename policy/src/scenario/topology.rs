//! The machines, pods and others of a policy test, as written.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;
use serde_json::Value;

use super::or_default;

/// The machines, pods and others.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Topology {
    /// Namespaces. A pod of one that is not here has no profile, as where Kubernetes' object is not yet known.
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<NamespaceEntry>,
    /// Service accounts; each namespace has `default` anyhow.
    #[serde(deserialize_with = "or_default")]
    pub service_accounts: Vec<ServiceAccountEntry>,
    /// Machines.
    #[serde(deserialize_with = "or_default")]
    pub nodes: Vec<NodeEntry>,
    /// Pods.
    #[serde(deserialize_with = "or_default")]
    pub pods: Vec<PodEntry>,
    /// Services.
    #[serde(deserialize_with = "or_default")]
    pub services: Vec<ServiceEntry>,
    /// Other machines.
    #[serde(deserialize_with = "or_default")]
    pub outside: Vec<OutsideEntry>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceEntry {
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountEntry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Its interfaces' addresses, by the interfaces' names; the first address of each family is the node's.
    #[serde(default, deserialize_with = "or_default")]
    pub interfaces: BTreeMap<String, Vec<IpAddr>>,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PodEntry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node; the first one if not said.
    #[serde(default)]
    pub node: Option<String>,
    /// Its service account; `default` if not said.
    #[serde(default)]
    pub service_account: Option<String>,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<IpAddr>,
    /// Ports of its containers that have names.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<NamedPortEntry>,
    /// Where it listens when real packets are sent: `PROTOCOL/PORT`.
    #[serde(default, deserialize_with = "or_default")]
    pub listens: Vec<String>,
    /// It uses its node's network.
    #[serde(default)]
    pub host_network: bool,
}

/// A port of a container that has a name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedPortEntry {
    /// The name.
    pub name: String,
    /// The number.
    pub port: u16,
    /// TCP, UDP or SCTP; TCP if not said.
    #[serde(default)]
    pub protocol: Option<Value>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceEntry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    #[serde(default, rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<ServicePortEntry>,
    /// The pods behind it: `NAMESPACE/NAME`.
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<String>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePortEntry {
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// The port at the service's addresses.
    pub port: u16,
    /// The port at the pods, by number or name; the same if not said.
    #[serde(default)]
    pub target_port: Option<Value>,
    /// TCP, UDP or SCTP; TCP if not said.
    #[serde(default)]
    pub protocol: Option<Value>,
}

/// Another machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutsideEntry {
    /// Its name.
    pub name: String,
    /// Its addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<IpAddr>,
}
