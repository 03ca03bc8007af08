//! What every stored object must look like, whoever writes it.

use model::{
    Kind, Object, ObjectKey, Resource,
    kind::Scope,
    name::{is_dns_label, is_object_name},
    resource::ipam_handle::NODE_LABEL,
};
use serde_json::Value;

use crate::StoreError;

/// Largest object, in bytes of JSON.
pub(crate) const OBJECT_MAX: usize = 256 * 1024;

/// Largest Node, in bytes of JSON: a record, and what Calico writes beside it.
const NODE_MAX: usize = 16 * 1024;

/// Checks names, scope and version, and writes the version that we write.
pub(super) fn check(object: &mut Object) -> Result<(), StoreError> {
    let key = object.key();
    check_key(&key)?;
    let ours = object.kind.api_version();
    let stored =
        ours.starts_with("projectcalico.org/") && object.api_version == "crd.projectcalico.org/v1";
    if object.api_version != ours && !stored {
        let message = format!("expected {ours}, found {:?}", clip(&object.api_version));
        return Err(StoreError::invalid("apiVersion", message));
    }
    object.api_version = ours.to_owned();

    Resource::try_from(&*object)
        .map(|_| ())
        .map_err(StoreError::Invalid)
}

/// Checks that a key can name an object.
pub(super) fn check_key(key: &ObjectKey) -> Result<(), StoreError> {
    if !is_object_name(&key.name) {
        let message = format!(
            "expected a lower-case DNS subdomain, found {:?}",
            clip(&key.name)
        );
        return Err(StoreError::invalid("metadata.name", message));
    }
    match (key.kind.scope(), key.namespace.as_deref()) {
        (Scope::Cluster, None) => Ok(()),
        (Scope::Namespaced, Some(namespace)) if is_dns_label(namespace) => Ok(()),
        (Scope::Cluster, Some(_)) => Err(StoreError::invalid(
            "metadata.namespace",
            format!("{} has no namespace", key.kind),
        )),
        (Scope::Namespaced, _) => Err(StoreError::invalid(
            "metadata.namespace",
            format!("expected the namespace of the {}", key.kind),
        )),
    }
}

/// Checks an object's size.
pub(super) fn check_size(key: &ObjectKey, bytes: usize) -> Result<(), StoreError> {
    let limit = if key.kind == Kind::Node {
        NODE_MAX
    } else {
        OBJECT_MAX
    };
    if bytes > limit {
        return Err(StoreError::TooLarge {
            what: key.to_string(),
            bytes,
            limit,
        });
    }

    Ok(())
}

/// Returns the node that an object belongs to, for kinds that belong to nodes.
pub(super) fn owner(object: &Object) -> Option<&str> {
    let spec = |field| object.body.get("spec")?.get(field).and_then(Value::as_str);
    match object.kind {
        Kind::KeyClaim | Kind::AddressClaim | Kind::BlockAffinity | Kind::WorkloadEndpoint => {
            spec("node")
        }
        Kind::IPAMBlock => spec("affinity")?.strip_prefix("host:"),
        Kind::IPAMHandle => object.metadata.labels.get(NODE_LABEL).map(String::as_str),
        Kind::Node
        | Kind::MeshNode
        | Kind::IPPool
        | Kind::IPAMConfiguration
        | Kind::IPReservation
        | Kind::FelixConfiguration
        | Kind::ClusterInformation
        | Kind::MeshConfiguration
        | Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Pod
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
        | Kind::Profile => None,
    }
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}
