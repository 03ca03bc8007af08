//! Which host endpoint stands for an interface.

use std::collections::BTreeMap;

use model::{
    InterfaceName,
    policy::{HostEndpoint, HostInterface},
    settings::Settings,
};

use super::Evaluator;
use crate::cluster::{Endpoint, Node};

/// A host endpoint as one interface has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// It is the one for every interface that has none of its own.
    pub(super) is_wildcard: bool,
}

impl Evaluator<'_> {
    /// Returns the host endpoint of an interface: of those that name it or one of its addresses, the first by name;
    /// else the first by name of those that mean every interface.
    pub(super) fn host_endpoint(&self, node: &Node, interface: &InterfaceName) -> Option<Host<'_>> {
        let first = |means: &dyn Fn(&HostEndpoint) -> bool| {
            self.hosts
                .iter()
                .filter(|(host, _)| host.node == node.name && means(host))
                .min_by_key(|(host, _)| &host.name)
                .map(|(_, endpoint)| endpoint)
        };
        let own = first(&|host| means(host, node, interface));
        let every = || first(&|host| host.interface == HostInterface::All);

        own.map(|endpoint| Host {
            endpoint,
            is_wildcard: false,
        })
        .or_else(|| {
            every().map(|endpoint| Host {
                endpoint,
                is_wildcard: true,
            })
        })
    }

    /// Returns the settings that hold on a node.
    pub(super) fn settings(&self, node: &Node) -> Settings {
        Settings::effective(&node.name, &node.labels, &self.cluster.configurations)
    }
}

fn means(host: &HostEndpoint, node: &Node, interface: &InterfaceName) -> bool {
    match &host.interface {
        HostInterface::Named(name) => name == interface,
        HostInterface::All => false,
        HostInterface::ByAddress => {
            let named: BTreeMap<_, _> = node
                .interfaces
                .iter()
                .map(|interface| (&interface.name, &interface.addresses))
                .collect();
            named.get(interface).is_some_and(|addresses| {
                addresses
                    .iter()
                    .any(|address| host.expected_addresses.contains(address))
            })
        }
    }
}
