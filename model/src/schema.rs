//! What the body of each kind may hold: names, types and ranges of its fields, as data.
//!
//! A schema says what one field may be. What fields say about each other, and
//! objects about each other, is checked where a kind is parsed
//! ([`Resource`](crate::Resource)) and in [`manifest`](crate::manifest).

mod calico;
mod felix;
mod kubernetes;
mod mesh;
mod policy;
mod shape;
mod text;

pub use self::shape::{Field, Shape};
use crate::{Kind, Object, resource::FieldError};

/// Returns the fields of a kind beside `apiVersion`, `kind` and `metadata`.
///
/// `None` for kinds whose bodies are only stored.
pub const fn of(kind: Kind) -> Option<&'static [Field]> {
    match kind {
        Kind::Node | Kind::MeshNode => Some(calico::NODE),
        Kind::IPPool => Some(calico::IP_POOL),
        Kind::IPAMBlock => Some(calico::IPAM_BLOCK),
        Kind::BlockAffinity => Some(calico::BLOCK_AFFINITY),
        Kind::IPAMHandle => Some(calico::IPAM_HANDLE),
        Kind::IPAMConfiguration => Some(calico::IPAM_CONFIGURATION),
        Kind::IPReservation => Some(calico::IP_RESERVATION),
        Kind::WorkloadEndpoint => Some(calico::WORKLOAD_ENDPOINT),
        Kind::FelixConfiguration => Some(felix::FELIX_CONFIGURATION),
        Kind::ClusterInformation => Some(calico::CLUSTER_INFORMATION),
        Kind::MeshConfiguration => Some(mesh::MESH_CONFIGURATION),
        Kind::KeyClaim | Kind::AddressClaim => Some(mesh::CLAIM),
        Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Pod
        | Kind::EndpointSlice => None,
        Kind::Tier => Some(policy::TIER),
        Kind::NetworkPolicy => Some(policy::NETWORK_POLICY),
        Kind::GlobalNetworkPolicy => Some(policy::GLOBAL_NETWORK_POLICY),
        Kind::StagedNetworkPolicy => Some(policy::STAGED_NETWORK_POLICY),
        Kind::StagedGlobalNetworkPolicy => Some(policy::STAGED_GLOBAL_NETWORK_POLICY),
        Kind::KubernetesNetworkPolicy => Some(kubernetes::NETWORK_POLICY),
        Kind::StagedKubernetesNetworkPolicy => Some(kubernetes::STAGED_NETWORK_POLICY),
        Kind::ClusterNetworkPolicy => Some(kubernetes::CLUSTER_NETWORK_POLICY),
        Kind::NetworkSet | Kind::GlobalNetworkSet => Some(policy::NETWORK_SET),
        Kind::HostEndpoint => Some(policy::HOST_ENDPOINT),
        Kind::Profile => Some(policy::PROFILE),
    }
}

/// Checks the body of an object field by field; the error names the first that is wrong.
pub fn check(object: &Object) -> Result<(), FieldError> {
    match of(object.kind) {
        Some(fields) => {
            shape::check_fields(object.body.iter().map(|(k, v)| (k.as_str(), v)), fields, "")
        }
        None => Ok(()),
    }
}
