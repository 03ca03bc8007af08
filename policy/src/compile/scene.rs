//! What a node's ruleset is compiled from.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::{
    InterfaceName, NodeName, PodName,
    policy::{HostEndpoint, HostInterface, NamedPort, Policy, Profile, ServiceRef, Tier},
    resource::WorkloadEndpoint,
    settings::Settings,
};

use super::Options;
use crate::cluster::{Backend, Cluster, Interface, Node, PodNetwork};

type Labels = BTreeMap<String, String>;

/// Everything that a node's ruleset depends on, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The node's own pods.
    pub workloads: Vec<Workload>,
    /// The node's own interfaces that have a host endpoint.
    pub hosts: Vec<Host>,
    /// Whatever selectors may select, in the whole cluster.
    pub members: Vec<Member>,
    /// Who answers for each service.
    pub services: BTreeMap<ServiceRef, Vec<Backend>>,
    /// The tiers that exist.
    pub tiers: Vec<Tier>,
    /// The policies, in no order; staged ones are passed over.
    pub policies: Vec<Policy>,
    /// The profiles by name.
    pub profiles: BTreeMap<String, Profile>,
    /// The node's settings.
    pub options: Options,
}

/// A pod of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The host end of its interface.
    pub interface: InterfaceName,
    /// Its labels, inherited ones too.
    pub labels: Labels,
    /// The profiles behind the last tier.
    pub profiles: Vec<String>,
}

/// An interface of the node's own, and the host endpoint that stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The interface; `None` is each that has no host endpoint of its own.
    pub interface: Option<InterfaceName>,
    /// The endpoint's labels, inherited ones too.
    pub labels: Labels,
    /// The profiles behind the last tier.
    pub profiles: Vec<String>,
}

/// What selectors may select: an endpoint or a network set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its labels, inherited ones too.
    pub labels: Labels,
    /// Its networks; an endpoint's addresses are networks of one.
    pub nets: Vec<IpNet>,
    /// Ports with names.
    pub ports: Vec<NamedPort>,
}

impl Scene {
    /// Returns what one node sees of a cluster; a node that the cluster does not have sees no endpoints of its own.
    pub fn of_node(cluster: &Cluster, name: &NodeName) -> Self {
        let labels = cluster.node(name).map(|node| node.labels.clone());
        let settings =
            Settings::effective(name, &labels.unwrap_or_default(), &cluster.configurations);
        let services = cluster.services.iter();

        Self {
            workloads: workloads(cluster, name),
            hosts: cluster
                .node(name)
                .map(|node| hosts(cluster, node))
                .unwrap_or_default(),
            members: members(cluster),
            services: services
                .map(|(service, known)| (service.clone(), known.backends.clone()))
                .collect(),
            tiers: cluster.tiers.clone(),
            policies: cluster.policies.clone(),
            profiles: cluster.profiles.clone(),
            options: Options::of(&settings),
        }
    }
}

fn workloads(cluster: &Cluster, node: &NodeName) -> Vec<Workload> {
    let pods = cluster.pods.iter();

    pods.filter(|pod| pod.node == *node && pod.network == PodNetwork::Own)
        .map(|pod| {
            let endpoint = cluster.workload(pod);

            Workload {
                interface: WorkloadEndpoint::host_interface(&pod.name),
                labels: endpoint.labels,
                profiles: endpoint.profiles,
            }
        })
        .collect()
}

/// Returns whether an interface has another name than that of the pod's own.
pub(crate) fn is_stranger(interface: &InterfaceName, pod: &PodName) -> bool {
    WorkloadEndpoint::host_interface(pod) != *interface
}

fn hosts(cluster: &Cluster, node: &Node) -> Vec<Host> {
    let own = cluster.host_endpoints.iter();
    let own = own.filter(|endpoint| endpoint.node == node.name);

    chosen(own, &node.interfaces)
        .into_iter()
        .map(|(interface, endpoint)| Host {
            interface,
            labels: cluster.host(endpoint).labels,
            profiles: endpoint.profiles.clone(),
        })
        .collect()
}

/// Returns the endpoint of each interface: of a node's own that name it or one of its addresses, the first by name. For
/// the others, the first by name of those that mean every interface.
pub(crate) fn chosen<'a>(
    own: impl Iterator<Item = &'a HostEndpoint>,
    known: &[Interface],
) -> BTreeMap<Option<InterfaceName>, &'a HostEndpoint> {
    let mut own: Vec<&HostEndpoint> = own.collect();
    own.sort_by_key(|endpoint| std::cmp::Reverse(&endpoint.name));

    let mut chosen = BTreeMap::new();
    for endpoint in own {
        for interface in interfaces(endpoint, known) {
            chosen.insert(interface, endpoint);
        }
    }

    chosen
}

fn interfaces(endpoint: &HostEndpoint, known: &[Interface]) -> Vec<Option<InterfaceName>> {
    match &endpoint.interface {
        HostInterface::Named(name) => vec![Some(name.clone())],
        HostInterface::All => vec![None],
        HostInterface::ByAddress => known
            .iter()
            .filter(|interface| {
                let mut addresses = interface.addresses.iter();
                addresses.any(|address| endpoint.expected_addresses.contains(address))
            })
            .map(|interface| Some(interface.name.clone()))
            .collect(),
    }
}

fn members(cluster: &Cluster) -> Vec<Member> {
    let pods = cluster.pods.iter();
    let pods = pods
        .filter(|pod| pod.network == PodNetwork::Own)
        .map(|pod| cluster.workload(pod));
    let hosts = cluster
        .host_endpoints
        .iter()
        .map(|endpoint| cluster.host(endpoint));
    let endpoints = pods.chain(hosts).map(|endpoint| Member {
        labels: endpoint.labels,
        nets: endpoint.addresses.into_iter().map(IpNet::from).collect(),
        ports: endpoint.ports,
    });
    let sets = cluster.sets.iter().map(|set| Member {
        labels: cluster.set_labels(set),
        nets: set.nets.clone(),
        ports: Vec::new(),
    });

    endpoints.chain(sets).collect()
}
