//! What is known beside policies and whom they select: nodes, interfaces, hosts' endpoints, settings.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{
    InterfaceName, NodeName,
    policy::{HostEndpoint, HostInterface},
    resource::{self, FelixConfiguration},
};

use crate::cluster::{Cluster, Interface, Node};

/// The name of the interface of another node that is known by its addresses alone.
const UNNAMED: &str = "unnamed";

/// What is known beside policies and whom they select.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    node: NodeName,
    interfaces: Vec<Interface>,
    nodes: BTreeMap<String, Node>,
    hosts: BTreeMap<String, HostEndpoint>,
    settings: BTreeMap<String, FelixConfiguration>,
}

impl Facts {
    pub(super) const fn new(node: NodeName) -> Self {
        Self {
            node,
            interfaces: Vec::new(),
            nodes: BTreeMap::new(),
            hosts: BTreeMap::new(),
            settings: BTreeMap::new(),
        }
    }

    /// Returns the node for which policy is compiled.
    pub(super) const fn node(&self) -> &NodeName {
        &self.node
    }

    pub(super) fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Sets the node's own interfaces; returns whether anything changed.
    pub(super) fn set_interfaces(&mut self, interfaces: Vec<Interface>) -> bool {
        let changed = interfaces != self.interfaces;
        self.interfaces = interfaces;

        changed
    }

    /// Returns the host endpoints of the node itself.
    pub(super) fn own_hosts(&self) -> impl Iterator<Item = &HostEndpoint> {
        let hosts = self.hosts.values();

        hosts.filter(|host| host.node == self.node)
    }

    pub(super) fn put_node(&mut self, node: &resource::Node) -> bool {
        let known = Node {
            name: node.name.clone(),
            labels: node.labels.clone(),
            interfaces: vec![Interface {
                name: UNNAMED.parse().expect("seven letters name an interface"),
                addresses: node.addresses.iter().map(IpNet::addr).collect(),
            }],
        };

        put(&mut self.nodes, node.name.as_str(), known)
    }

    pub(super) fn remove_node(&mut self, name: &str) -> bool {
        self.nodes.remove(name).is_some()
    }

    pub(super) fn put_host(&mut self, host: &HostEndpoint) -> bool {
        put(&mut self.hosts, &host.name, host.clone())
    }

    pub(super) fn remove_host(&mut self, name: &str) -> bool {
        self.hosts.remove(name).is_some()
    }

    pub(super) fn put_settings(&mut self, settings: &FelixConfiguration) -> bool {
        put(&mut self.settings, &settings.name, settings.clone())
    }

    pub(super) fn remove_settings(&mut self, name: &str) -> bool {
        self.settings.remove(name).is_some()
    }

    /// Adds nodes, hosts' endpoints and settings to a cluster.
    pub(super) fn fill(&self, cluster: &mut Cluster) {
        cluster.host_endpoints = self.hosts.values().cloned().collect();
        cluster.configurations = self.settings.values().cloned().collect();
        let mut nodes: BTreeMap<NodeName, Node> = self
            .nodes
            .values()
            .map(|node| (node.name.clone(), self.with_interfaces(node)))
            .collect();
        let own = nodes.entry(self.node.clone()).or_insert_with(|| Node {
            name: self.node.clone(),
            labels: BTreeMap::new(),
            interfaces: Vec::new(),
        });
        own.interfaces.clone_from(&self.interfaces);
        cluster.nodes = nodes.into_values().collect();
    }

    /// Returns another node with its interfaces as it and its host endpoints speak of them: those that have names, and
    /// one for its own addresses.
    fn with_interfaces(&self, node: &Node) -> Node {
        let mut named: Vec<Interface> = Vec::new();
        let mut taken = BTreeSet::new();
        for host in self.hosts.values().filter(|host| host.node == node.name) {
            if let HostInterface::Named(name) = &host.interface {
                taken.extend(host.expected_addresses.iter().copied());
                named.push(interface(name, host));
            }
        }
        let mut node = node.clone();
        for own in &mut node.interfaces {
            own.addresses.retain(|address| !taken.contains(address));
        }
        node.interfaces.extend(named);

        node
    }
}

fn interface(name: &InterfaceName, host: &HostEndpoint) -> Interface {
    Interface {
        name: name.clone(),
        addresses: host.expected_addresses.clone(),
    }
}

/// Puts a value in; returns whether that changed anything.
fn put<V: PartialEq>(map: &mut BTreeMap<String, V>, name: &str, value: V) -> bool {
    if map.get(name) == Some(&value) {
        return false;
    }
    map.insert(name.to_owned(), value);

    true
}
