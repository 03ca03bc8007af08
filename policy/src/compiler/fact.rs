//! What is known: objects, as far as policy asks about them.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName, Kind, NodeName, ObjectKey, Resource,
    policy::{HostEndpoint, HostInterface, ServiceRef},
    resource,
};

use crate::{
    cluster::{
        Cluster, Interface, Node, Service,
        object::{self, Origin},
    },
    compile::{Workload, unshared},
};

/// What is known.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    node: NodeName,
    interfaces: Vec<Interface>,
    objects: BTreeMap<ObjectKey, Resource>,
}

impl Facts {
    pub(super) const fn new(node: NodeName) -> Self {
        Self {
            node,
            interfaces: Vec::new(),
            objects: BTreeMap::new(),
        }
    }

    pub(super) const fn node(&self) -> &NodeName {
        &self.node
    }

    /// Takes in an object; returns whether anything changed.
    pub(super) fn insert(&mut self, resource: &Resource) -> bool {
        let key = resource.key();
        if !is_asked_about(key.kind) || self.objects.get(&key) == Some(resource) {
            return false;
        }
        self.objects.insert(key, resource.clone());

        true
    }

    /// Forgets an object; returns whether anything changed.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> bool {
        let node = ObjectKey::cluster(Kind::Node, &key.name);
        let key = if key.kind == Kind::MeshNode {
            &node
        } else {
            key
        };

        self.objects.remove(key).is_some()
    }

    /// Sets the node's own interfaces; returns whether anything changed.
    pub(super) fn set_interfaces(&mut self, interfaces: Vec<Interface>) -> bool {
        let changed = interfaces != self.interfaces;
        self.interfaces = interfaces;

        changed
    }

    /// Returns everything as the evaluator sees it.
    pub(super) fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::default();
        let mut profiles = vec![object::built_in()];
        let mut services = Vec::new();
        let mut slices = Vec::new();
        for (key, resource) in &self.objects {
            match resource {
                Resource::WorkloadEndpoint(endpoint) => cluster.pods.push(object::pod(endpoint)),
                Resource::Namespace(namespace) => {
                    profiles.extend(object::of_namespace(namespace));
                }
                Resource::ServiceAccount(account) => {
                    profiles.push((Origin::Account(key.clone()), account.profile()));
                }
                Resource::Service(service) => services.push(service.as_ref()),
                Resource::EndpointSlice(slice) => slices.push(slice.as_ref()),
                Resource::Tier(tier) => cluster.tiers.push(tier.clone()),
                Resource::Policy(policy) => cluster.policies.push(policy.as_ref().clone()),
                Resource::NetworkSet(set) => cluster.sets.push(set.as_ref().clone()),
                Resource::HostEndpoint(host) => cluster.host_endpoints.push(host.as_ref().clone()),
                Resource::Profile(profile) => {
                    profiles.push((Origin::Object, profile.as_ref().clone()));
                }
                Resource::FelixConfiguration(settings) => {
                    cluster.configurations.push(settings.as_ref().clone());
                }
                Resource::Node(_)
                | Resource::IpPool(_)
                | Resource::IpamBlock(_)
                | Resource::BlockAffinity(_)
                | Resource::MeshConfiguration(_)
                | Resource::KeyClaim(_)
                | Resource::AddressClaim(_)
                | Resource::Opaque(_) => {}
            }
        }
        cluster.nodes = self.nodes(&cluster.host_endpoints);
        cluster.services = of_slices(&services, &slices);
        profiles.sort_by(|a, b| a.0.cmp(&b.0));
        let profiles = profiles.into_iter();
        cluster.profiles = profiles
            .map(|(_, profile)| (profile.name.clone(), profile))
            .collect();

        cluster
    }

    /// Returns the node's own pods.
    pub(super) fn workloads(&self, cluster: &Cluster) -> Vec<Workload> {
        let own = self.objects.values().filter_map(|resource| match resource {
            Resource::WorkloadEndpoint(endpoint) if endpoint.node == self.node => {
                Some(endpoint.as_ref())
            }
            _ => None,
        });
        let claims = own.map(|endpoint| {
            let asked = cluster.workload(&object::pod(endpoint));
            let workload = Workload {
                interface: endpoint.interface.clone(),
                labels: asked.labels,
                profiles: asked.profiles,
            };

            (endpoint.pod.clone(), workload)
        });

        unshared(claims.collect())
    }

    /// Returns the nodes, this one always among them.
    fn nodes(&self, hosts: &[HostEndpoint]) -> Vec<Node> {
        let known = self.objects.values().filter_map(|resource| match resource {
            Resource::Node(node) => Some(node.as_ref()),
            Resource::IpPool(_)
            | Resource::IpamBlock(_)
            | Resource::BlockAffinity(_)
            | Resource::FelixConfiguration(_)
            | Resource::MeshConfiguration(_)
            | Resource::KeyClaim(_)
            | Resource::AddressClaim(_)
            | Resource::WorkloadEndpoint(_)
            | Resource::Namespace(_)
            | Resource::ServiceAccount(_)
            | Resource::Service(_)
            | Resource::EndpointSlice(_)
            | Resource::Tier(_)
            | Resource::Policy(_)
            | Resource::NetworkSet(_)
            | Resource::HostEndpoint(_)
            | Resource::Profile(_)
            | Resource::Opaque(_) => None,
        });
        let mut nodes: BTreeMap<NodeName, Node> = known
            .map(|node| (node.name.clone(), other(node, hosts)))
            .collect();
        let own = nodes.entry(self.node.clone()).or_insert_with(|| Node {
            name: self.node.clone(),
            labels: BTreeMap::new(),
            interfaces: Vec::new(),
        });
        own.interfaces.clone_from(&self.interfaces);

        nodes.into_values().collect()
    }
}

/// Returns whether policy asks about objects of a kind.
const fn is_asked_about(kind: Kind) -> bool {
    match kind {
        Kind::Node
        | Kind::MeshNode
        | Kind::WorkloadEndpoint
        | Kind::FelixConfiguration
        | Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::Tier
        | Kind::NetworkPolicy
        | Kind::GlobalNetworkPolicy
        | Kind::KubernetesNetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::StagedNetworkPolicy
        | Kind::StagedGlobalNetworkPolicy
        | Kind::StagedKubernetesNetworkPolicy
        | Kind::NetworkSet
        | Kind::GlobalNetworkSet
        | Kind::HostEndpoint
        | Kind::Profile => true,
        Kind::IPPool
        | Kind::IPAMBlock
        | Kind::BlockAffinity
        | Kind::IPAMHandle
        | Kind::ClusterInformation
        | Kind::MeshConfiguration
        | Kind::KeyClaim
        | Kind::AddressClaim
        | Kind::Pod => false,
    }
}

/// Returns another node as policy sees it. Its interfaces are known by what it and its host endpoints say of them:
/// those that have names, and one for its own addresses.
fn other(node: &resource::Node, hosts: &[HostEndpoint]) -> Node {
    let mut interfaces: Vec<Interface> = Vec::new();
    let mut taken = BTreeSet::new();
    for host in hosts.iter().filter(|host| host.node == node.name) {
        if let HostInterface::Named(name) = &host.interface {
            taken.extend(host.expected_addresses.iter().copied());
            interfaces.push(Interface {
                name: name.clone(),
                addresses: host.expected_addresses.clone(),
            });
        }
    }
    let addresses = node.addresses.iter().map(ipnet::IpNet::addr);
    let addresses = addresses
        .filter(|address| !taken.contains(address))
        .collect();
    interfaces.insert(
        0,
        Interface {
            name: unnamed(),
            addresses,
        },
    );

    Node {
        name: node.name.clone(),
        labels: node.labels.clone(),
        interfaces,
    }
}

/// The name of the interface of another node that is known by its addresses alone.
fn unnamed() -> InterfaceName {
    "unnamed".parse().expect("seven letters name an interface")
}

/// Returns the services and who answers for them.
fn of_slices(
    services: &[&resource::Service],
    slices: &[&resource::EndpointSlice],
) -> BTreeMap<ServiceRef, Service> {
    let mut found = BTreeMap::new();
    for service in services {
        let of_service = slices.iter().filter(|slice| {
            slice.namespace == service.namespace
                && slice.service.as_deref() == Some(service.name.as_str())
        });
        let name = ServiceRef {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        };
        let backends = of_service.flat_map(|slice| object::backends(service, slice));
        found.insert(
            name,
            Service {
                addresses: service.cluster_addresses.clone(),
                backends: backends.collect(),
            },
        );
    }

    found
}
