//! Objects, parsed: one file per kind turns a stored object into a type that cannot be wrong.

pub mod address_claim;
pub mod block_affinity;
mod cluster_network_policy;
pub mod endpoint_slice;
pub mod felix_configuration;
pub(crate) mod field;
mod host_endpoint;
pub mod ip_pool;
pub mod ip_reservation;
pub mod ipam_block;
pub mod ipam_configuration;
pub mod ipam_handle;
pub mod key_claim;
mod kubernetes_network_policy;
mod label_selector;
pub mod mesh_configuration;
pub mod namespace;
mod network_policy;
mod network_set;
pub mod node;
mod profile;
pub(crate) mod rule;
pub mod service;
pub mod service_account;
mod tier;
pub mod workload_endpoint;

use serde::{Deserialize, Serialize};

pub use self::{
    address_claim::AddressClaim,
    block_affinity::{AffinityState, BlockAffinity},
    endpoint_slice::EndpointSlice,
    felix_configuration::FelixConfiguration,
    ip_pool::IpPool,
    ip_reservation::IpReservation,
    ipam_block::IpamBlock,
    ipam_configuration::IpamConfiguration,
    ipam_handle::IpamHandle,
    key_claim::KeyClaim,
    mesh_configuration::MeshConfiguration,
    namespace::Namespace,
    node::Node,
    service::Service,
    service_account::ServiceAccount,
    workload_endpoint::WorkloadEndpoint,
};
use crate::{
    Kind, Object, ObjectKey,
    policy::{HostEndpoint, NetworkSet, Policy, Profile, Tier},
};

/// An object of a kind that the agent reads, parsed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Resource {
    /// A member.
    Node(Box<Node>),
    /// A pool of addresses.
    IpPool(IpPool),
    /// A piece of a pool.
    IpamBlock(Box<IpamBlock>),
    /// A block's owner.
    BlockAffinity(BlockAffinity),
    /// Settings of the agent.
    FelixConfiguration(Box<FelixConfiguration>),
    /// Settings of our own.
    MeshConfiguration(Box<MeshConfiguration>),
    /// A granted key.
    KeyClaim(KeyClaim),
    /// A granted address.
    AddressClaim(AddressClaim),
    /// A pod's interface.
    WorkloadEndpoint(Box<WorkloadEndpoint>),
    /// A namespace.
    Namespace(Namespace),
    /// A service account.
    ServiceAccount(ServiceAccount),
    /// A service.
    Service(Box<Service>),
    /// Where a service's packets end up.
    EndpointSlice(Box<EndpointSlice>),
    /// A group of policies.
    Tier(Tier),
    /// A policy of any kind.
    Policy(Box<Policy>),
    /// Networks with labels.
    NetworkSet(Box<NetworkSet>),
    /// A host's own interface.
    HostEndpoint(Box<HostEndpoint>),
    /// Rules behind the last tier, and labels to inherit.
    Profile(Box<Profile>),
    /// A kind that the agent stores but does not read.
    Opaque(ObjectKey),
}

impl Resource {
    /// Returns the key of the object that it was read from.
    pub fn key(&self) -> ObjectKey {
        let cluster = |kind, name: String| ObjectKey::cluster(kind, name);
        match self {
            Self::Node(node) => cluster(Kind::Node, node.name.to_string()),
            Self::IpPool(pool) => cluster(Kind::IPPool, pool.name.clone()),
            Self::IpamBlock(block) => cluster(Kind::IPAMBlock, IpamBlock::object_name(block.cidr)),
            Self::BlockAffinity(affinity) => cluster(Kind::BlockAffinity, affinity.name.clone()),
            Self::FelixConfiguration(felix) => {
                cluster(Kind::FelixConfiguration, felix.name.clone())
            }
            Self::MeshConfiguration(_) => cluster(Kind::MeshConfiguration, "default".to_owned()),
            Self::KeyClaim(claim) => cluster(Kind::KeyClaim, claim.name.clone()),
            Self::AddressClaim(claim) => {
                cluster(Kind::AddressClaim, AddressClaim::object_name(claim.address))
            }
            Self::WorkloadEndpoint(endpoint) => ObjectKey::namespaced(
                Kind::WorkloadEndpoint,
                &endpoint.pod.namespace,
                &endpoint.name,
            ),
            Self::Namespace(namespace) => cluster(Kind::Namespace, namespace.name.clone()),
            Self::ServiceAccount(account) => {
                ObjectKey::namespaced(Kind::ServiceAccount, &account.namespace, &account.name)
            }
            Self::Service(service) => {
                ObjectKey::namespaced(Kind::Service, &service.namespace, &service.name)
            }
            Self::EndpointSlice(slice) => {
                ObjectKey::namespaced(Kind::EndpointSlice, &slice.namespace, &slice.name)
            }
            Self::Tier(tier) => cluster(Kind::Tier, tier.name.clone()),
            Self::Policy(policy) => policy.key.clone(),
            Self::NetworkSet(set) => set.key.clone(),
            Self::HostEndpoint(endpoint) => cluster(Kind::HostEndpoint, endpoint.name.clone()),
            Self::Profile(profile) => cluster(Kind::Profile, profile.name.clone()),
            Self::Opaque(key) => key.clone(),
        }
    }
}

/// What is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Path of the field, as in `spec.cidr` or `spec.rules[2].ports`.
    pub field: String,
    /// What was expected, and what was found.
    pub message: String,
}

impl FieldError {
    /// Says what is wrong with a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl TryFrom<&Object> for Resource {
    type Error = FieldError;

    /// Reads an object of any kind; kinds that the agent does not read become [`Resource::Opaque`].
    fn try_from(object: &Object) -> Result<Self, FieldError> {
        Ok(match object.kind {
            Kind::Node | Kind::MeshNode => Self::Node(Box::new(object.try_into()?)),
            Kind::IPPool => Self::IpPool(object.try_into()?),
            Kind::IPAMBlock => Self::IpamBlock(Box::new(object.try_into()?)),
            Kind::BlockAffinity if BlockAffinity::is_virtual(object) => Self::Opaque(object.key()),
            Kind::BlockAffinity => Self::BlockAffinity(object.try_into()?),
            Kind::FelixConfiguration => Self::FelixConfiguration(Box::new(object.try_into()?)),
            Kind::MeshConfiguration => Self::MeshConfiguration(Box::new(object.try_into()?)),
            Kind::KeyClaim => Self::KeyClaim(object.try_into()?),
            Kind::AddressClaim => Self::AddressClaim(object.try_into()?),
            Kind::WorkloadEndpoint => Self::WorkloadEndpoint(Box::new(object.try_into()?)),
            Kind::Namespace => Self::Namespace(object.try_into()?),
            Kind::ServiceAccount => Self::ServiceAccount(object.try_into()?),
            Kind::Tier => Self::Tier(object.try_into()?),
            Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy => {
                Self::Policy(Box::new(network_policy::read(object)?))
            }
            Kind::KubernetesNetworkPolicy | Kind::StagedKubernetesNetworkPolicy => {
                Self::Policy(Box::new(kubernetes_network_policy::read(object)?))
            }
            Kind::ClusterNetworkPolicy => {
                Self::Policy(Box::new(cluster_network_policy::read(object)?))
            }
            Kind::NetworkSet | Kind::GlobalNetworkSet => {
                Self::NetworkSet(Box::new(object.try_into()?))
            }
            Kind::HostEndpoint => Self::HostEndpoint(Box::new(object.try_into()?)),
            Kind::Profile => Self::Profile(Box::new(object.try_into()?)),
            Kind::Service => Self::Service(Box::new(object.try_into()?)),
            Kind::EndpointSlice => Self::EndpointSlice(Box::new(object.try_into()?)),
            Kind::IPAMHandle => IpamHandle::try_from(object).map(|_| Self::Opaque(object.key()))?,
            Kind::IPAMConfiguration => {
                IpamConfiguration::try_from(object).map(|_| Self::Opaque(object.key()))?
            }
            Kind::IPReservation => {
                IpReservation::try_from(object).map(|_| Self::Opaque(object.key()))?
            }
            Kind::ClusterInformation | Kind::Pod => Self::Opaque(object.key()),
        })
    }
}

impl TryFrom<&Object> for Policy {
    type Error = FieldError;

    /// Reads a policy of any of the seven kinds.
    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let Resource::Policy(policy) = Resource::try_from(object)? else {
            return Err(field::expected("kind", "a policy", object.kind.as_str()));
        };

        Ok(*policy)
    }
}
