//! Everything that a verdict depends on, at one moment.

pub(crate) mod object;

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    Family, InterfaceName, NodeName, PodName,
    policy::{HostEndpoint, NamedPort, NetworkSet, Policy, Profile, Protocol, ServiceRef, Tier},
    resource::FelixConfiguration,
};

/// Prefix of the names of profiles that stand for namespaces.
pub const NAMESPACE_PROFILE: &str = "kns.";

/// Prefix of the names of profiles that stand for service accounts.
pub const SERVICE_ACCOUNT_PROFILE: &str = "ksa.";

/// Label that holds the namespace of a pod or network set.
pub const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";

/// Label that tells who runs a workload: `k8s`.
pub const ORCHESTRATOR_LABEL: &str = "projectcalico.org/orchestrator";

/// Label that holds a pod's service account.
pub const SERVICE_ACCOUNT_LABEL: &str = "projectcalico.org/serviceaccount";

/// Names of service accounts from this length on are in no label: Kubernetes' values end at 63 bytes, and Calico draws
/// the line one byte earlier.
const SERVICE_ACCOUNT_MAX: usize = 63;

/// Everything that a verdict depends on, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// The machines.
    pub nodes: Vec<Node>,
    /// The pods, also those that use their node's network.
    pub pods: Vec<Pod>,
    /// Profiles by name, those of namespaces and service accounts among them.
    pub profiles: BTreeMap<String, Profile>,
    /// The services, with who answers for them.
    pub services: BTreeMap<ServiceRef, Service>,
    /// The tiers that exist.
    pub tiers: Vec<Tier>,
    /// The policies, staged ones too.
    pub policies: Vec<Policy>,
    /// The network sets.
    pub sets: Vec<NetworkSet>,
    /// The hosts' endpoints.
    pub host_endpoints: Vec<HostEndpoint>,
    /// The settings of every scope.
    pub configurations: Vec<FelixConfiguration>,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its interfaces, apart from the pods', the tunnels' and `lo`. Its own address of a family is the first there is.
    pub interfaces: Vec<Interface>,
}

/// An interface of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: InterfaceName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: PodName,
    /// Its machine.
    pub node: NodeName,
    /// The name of its service account; empty where it has none.
    pub service_account: String,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports of its containers that have names.
    pub ports: Vec<NamedPort>,
    /// Whose network it uses.
    pub network: PodNetwork,
}

/// Whose network a pod uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// Its own: it is an endpoint of policy.
    Own,
    /// Its node's (`hostNetwork`): it is the host.
    Host,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The addresses under which members reach it.
    pub addresses: Vec<IpAddr>,
    /// Who answers on which of its ports.
    pub backends: Vec<Backend>,
}

/// One endpoint of a service behind one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The service's protocol.
    pub protocol: Protocol,
    /// The service's port.
    pub service_port: u16,
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port.
    pub port: u16,
}

/// An endpoint of policy, with everything that selectors and rules may ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its labels, inherited ones too.
    pub(crate) labels: BTreeMap<String, String>,
    /// The addresses that stand for it in selectors.
    pub(crate) addresses: Vec<IpAddr>,
    /// Ports with names.
    pub(crate) ports: Vec<NamedPort>,
    /// The profiles behind the last tier.
    pub(crate) profiles: Vec<String>,
}

impl Cluster {
    /// Returns a node by its name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// Returns a pod by its name.
    pub fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name == *name)
    }

    /// Returns the addresses at which a pod is: on its node's network, the node's own.
    pub fn addresses_of(&self, pod: &Pod) -> Vec<IpAddr> {
        match pod.network {
            PodNetwork::Own => pod.addresses.clone(),
            PodNetwork::Host => Family::BOTH
                .into_iter()
                .filter_map(|family| self.node(&pod.node)?.address(family))
                .collect(),
        }
    }

    /// Returns the endpoint of a pod.
    pub(crate) fn workload(&self, pod: &Pod) -> Endpoint {
        let (mut labels, profiles) = pod.looks();
        self.inherit(&mut labels, &profiles);

        Endpoint {
            labels,
            addresses: pod.addresses.clone(),
            ports: pod.ports.clone(),
            profiles,
        }
    }

    /// Returns the endpoint of a host.
    pub(crate) fn host(&self, host: &HostEndpoint) -> Endpoint {
        let mut labels = host.labels.clone();
        self.inherit(&mut labels, &host.profiles);

        Endpoint {
            labels,
            addresses: host.expected_addresses.clone(),
            ports: host.ports.clone(),
            profiles: host.profiles.clone(),
        }
    }

    /// Returns the labels of a network set.
    pub(crate) fn set_labels(&self, set: &NetworkSet) -> BTreeMap<String, String> {
        let (mut labels, profiles) = looks_of_set(set);
        self.inherit(&mut labels, &profiles);

        labels
    }

    /// Adds what profiles give: own labels win, then the first profile.
    fn inherit(&self, labels: &mut BTreeMap<String, String>, profiles: &[String]) {
        for profile in profiles.iter().filter_map(|name| self.profiles.get(name)) {
            for (key, value) in &profile.labels {
                labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
}

impl Pod {
    /// Returns its own labels, those among them that everything in its place has, and the names of its profiles.
    pub(crate) fn looks(&self) -> (BTreeMap<String, String>, Vec<String>) {
        let namespace = &self.name.namespace;
        let mut labels = self.labels.clone();
        labels.insert(NAMESPACE_LABEL.into(), namespace.clone());
        labels.insert(ORCHESTRATOR_LABEL.into(), "k8s".into());
        labels.remove(SERVICE_ACCOUNT_LABEL);
        let mut profiles = vec![format!("{NAMESPACE_PROFILE}{namespace}")];
        let account = &self.service_account;
        if !account.is_empty() {
            profiles.push(format!("{SERVICE_ACCOUNT_PROFILE}{namespace}.{account}"));
            if account.len() < SERVICE_ACCOUNT_MAX {
                labels.insert(SERVICE_ACCOUNT_LABEL.into(), account.clone());
            }
        }

        (labels, profiles)
    }
}

/// Returns a network set's own labels, and the names of the profiles whose labels it has too.
pub(crate) fn looks_of_set(set: &NetworkSet) -> (BTreeMap<String, String>, Vec<String>) {
    let mut labels = set.labels.clone();
    let mut profiles = Vec::new();
    if let Some(namespace) = &set.key.namespace {
        labels.insert(NAMESPACE_LABEL.into(), namespace.clone());
        profiles.push(format!("{NAMESPACE_PROFILE}{namespace}"));
    }

    (labels, profiles)
}

impl Node {
    /// Returns its own address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
            .copied()
            .find(|address| Family::of(*address) == family)
    }

    /// Returns whether it has an address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.addresses.contains(&address))
    }
}
