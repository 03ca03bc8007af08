//! What the body of each kind may hold: names, types and ranges of its fields, as data.
//!
//! A schema says what one field may be. What fields say about each other, and
//! objects about each other, is checked where a kind is parsed
//! ([`Resource`](crate::Resource)) and in [`manifest`](crate::manifest).

mod calico;
mod felix;
mod mesh;
mod shape;

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
