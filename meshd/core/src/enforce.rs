//! Policy: what was heard goes into the compiler, and what it asks for into the plan.
//!
//! A local pod is an endpoint from the moment it has its addresses, whatever the store says: nobody opens it by
//! removing its object. Labels, profiles and ports are the store's as soon as it has them.
//!
//! **Invariant:** a pod's interface never has rows without the rows of its policy.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName, Kind, NodeName, ObjectKey, Plan, PodName, Resource,
    event::{Link, LinkKind},
    resource::WorkloadEndpoint,
};
use policy::{
    cluster::Interface,
    compile::Options,
    compiler::{Change, Compiler, Row, RowKey},
};

use crate::{World, fact::Touched};

/// Policy as it is enforced.
#[derive(Clone, Debug)]
pub(crate) struct Enforcement {
    pub(crate) compiler: Compiler,
    /// What the compiler was told is not in the plan yet.
    is_behind: bool,
    /// This node's endpoints, as the store has them.
    stored: BTreeMap<ObjectKey, WorkloadEndpoint>,
    namespaces: BTreeSet<String>,
}

/// Returns whether an object of the kind stays in force as it was when it cannot be read any more.
pub(crate) const fn is_kept(kind: Kind) -> bool {
    match kind {
        Kind::Tier
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
        Kind::Node
        | Kind::MeshNode
        | Kind::IPPool
        | Kind::IPAMBlock
        | Kind::BlockAffinity
        | Kind::IPAMHandle
        | Kind::IPAMConfiguration
        | Kind::IPReservation
        | Kind::FelixConfiguration
        | Kind::ClusterInformation
        | Kind::MeshConfiguration
        | Kind::KeyClaim
        | Kind::AddressClaim
        | Kind::WorkloadEndpoint
        | Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Pod
        | Kind::EndpointSlice => false,
    }
}

impl Enforcement {
    /// Creates the policy of a node that has heard nothing yet.
    pub(crate) fn new(node: NodeName) -> Self {
        Self {
            compiler: Compiler::new(node),
            is_behind: true,
            stored: BTreeMap::new(),
            namespaces: BTreeSet::new(),
        }
    }

    /// Takes in the machine's links; host endpoints may be known by their addresses.
    pub(crate) fn set_links(&mut self, links: &BTreeMap<InterfaceName, Link>) -> bool {
        let own = links
            .iter()
            .filter(|(_, link)| link.kind == LinkKind::Underlay);
        let interfaces = own.map(|(name, link)| Interface {
            name: name.clone(),
            addresses: link.addresses.iter().map(ipnet::IpNet::addr).collect(),
        });
        let changed = self.compiler.set_interfaces(interfaces.collect());

        self.note(changed)
    }

    /// Takes in the settings.
    pub(crate) fn set_options(&mut self, options: &Options) -> bool {
        let changed = self.compiler.set_options(options.clone());

        self.note(changed)
    }

    /// Returns whether the store has this namespace.
    pub(crate) fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// Brings the plan up to date; returns how many rows that changed.
    pub(crate) fn write(&mut self, plan: &mut Plan) -> u64 {
        if !std::mem::take(&mut self.is_behind) {
            return 0;
        }
        let changes = self.compiler.update();
        let count = changes.len() as u64;
        plan.generation += u64::from(count > 0);
        for change in changes {
            put(change, plan);
        }

        count
    }

    fn insert(&mut self, resource: &Resource) -> bool {
        if let Resource::Namespace(namespace) = resource {
            self.namespaces.insert(namespace.name.clone());
        }
        let changed = self.compiler.insert(resource);

        self.note(changed)
    }

    fn remove(&mut self, key: &ObjectKey) -> bool {
        if key.kind == Kind::Namespace {
            self.namespaces.remove(&key.name);
        }
        let changed = self.compiler.remove(key);

        self.note(changed)
    }

    fn note(&mut self, changed: bool) -> bool {
        self.is_behind |= changed;
        changed
    }
}

impl World {
    /// Takes in an object, as far as it is policy's.
    pub(crate) fn learn_policy(&mut self, resource: &Resource) -> Touched {
        if let Resource::WorkloadEndpoint(endpoint) = resource {
            let key = resource.key();
            if endpoint.node == self.facts.own {
                self.policy.stored.insert(key, (**endpoint).clone());
                return self.refresh_endpoint(&endpoint.pod);
            }
            self.policy.stored.remove(&key);
        }

        touched_if(self.policy.insert(resource))
    }

    /// Forgets an object, as far as it is policy's.
    pub(crate) fn forget_policy(&mut self, key: &ObjectKey) -> Touched {
        let Some(endpoint) = self.policy.stored.remove(key) else {
            return touched_if(self.policy.remove(key));
        };
        self.publish_again(&endpoint.pod);

        self.refresh_endpoint(&endpoint.pod)
    }

    /// Puts back what the store lacks of the endpoints of our pods, once it has told all it has.
    pub(crate) fn publish_missing(&mut self) {
        let stored = self.policy.stored.values();
        let stored = stored
            .map(|endpoint| &endpoint.pod)
            .collect::<BTreeSet<_>>();
        let placed = self.pods.placed().map(|(name, _)| name);
        let missing = placed.filter(|name| !stored.contains(name));
        for name in missing.cloned().collect::<Vec<_>>() {
            self.publish_again(&name);
        }
    }

    /// Tells the compiler what a local pod is now.
    pub(crate) fn refresh_endpoint(&mut self, pod: &PodName) -> Touched {
        let name = WorkloadEndpoint::object_name(&self.facts.own, pod);
        let key = ObjectKey::namespaced(Kind::WorkloadEndpoint, &pod.namespace, name);
        let stored = self.policy.stored.get(&key).cloned();
        let endpoint = match (self.placed_endpoint(pod), stored) {
            (Some(own), Some(stored)) => Some(WorkloadEndpoint {
                labels: stored.labels,
                profiles: stored.profiles,
                ports: stored.ports,
                ..own
            }),
            (own, stored) => own.or(stored),
        };
        let changed = match endpoint {
            Some(endpoint) => {
                let resource = Resource::WorkloadEndpoint(Box::new(endpoint));
                self.policy.insert(&resource)
            }
            None => self.policy.remove(&key),
        };

        touched_if(changed)
    }

    /// Returns what an operator should know of policy, by type.
    pub(crate) fn policy_conditions(&self) -> BTreeMap<String, String> {
        let refused = self.policy.compiler.refused();
        let refused = refused.iter().map(|(key, why)| format!("{key}: {why}"));
        let homeless = self
            .pods
            .placed()
            .filter(|(name, _)| !self.policy.has_namespace(&name.namespace))
            .map(|(name, _)| format!("{name} is closed: its namespace does not exist"));
        let found = [
            ("PolicyRefused", summary(refused)),
            ("NamespaceMissing", summary(homeless)),
        ];

        found
            .into_iter()
            .filter_map(|(name, text)| Some((name.to_owned(), text?)))
            .collect()
    }
}

/// Returns the first of some findings, and how many more there are.
fn summary(mut findings: impl Iterator<Item = String>) -> Option<String> {
    let first = findings.next()?;

    Some(match findings.count() {
        0 => first,
        more => format!("{first}; and {more} more"),
    })
}

fn touched_if(changed: bool) -> Touched {
    if changed {
        Touched::policy()
    } else {
        Touched::nothing()
    }
}

fn put(change: Change, plan: &mut Plan) {
    match change {
        Change::Set(Row::Set(key, kind)) => plan.nft_sets.set(key, kind),
        Change::Set(Row::Element(key, element)) => plan.nft_elements.set((key, element), ()),
        Change::Set(Row::Chain(key, chain)) => plan.nft_chains.set(key, chain),
        Change::Unset(RowKey::Set(key)) => plan.nft_sets.unset(&key),
        Change::Unset(RowKey::Element(key, element)) => plan.nft_elements.unset(&(key, element)),
        Change::Unset(RowKey::Chain(key)) => plan.nft_chains.unset(&key),
    }
}
