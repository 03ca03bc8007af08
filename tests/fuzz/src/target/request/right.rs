//! Who may change what: the table of claims, read a second time and without the store's code.

use model::{Kind, NodeName, Object, ObjectKey, kind::Scope};
use serde_json::Value;
use store::Identity;

use super::Everything;
use crate::target::{Broken, promise};

/// Checks what a call that was accepted did to one object, given all that was stored before and after it.
pub(super) fn check(
    caller: Option<&Identity>,
    key: &ObjectKey,
    before: &Everything,
    after: &Everything,
) -> Result<(), Broken> {
    match caller {
        Some(Identity::Admin(_)) => Ok(()),
        Some(Identity::Node(_)) if key.kind == Kind::Namespace => {
            with_its_endpoints(key, before, after)
        }
        Some(Identity::Node(node)) => of_node(node, before.get(key), after.get(key)),
        None => Err(Broken::new("a stranger changed something")),
    }
}

/// A namespace that a node's call made or removed: the server's own, empty but for its mark, which came with the
/// first endpoint in it or went with the last object in it.
fn with_its_endpoints(
    key: &ObjectKey,
    before: &Everything,
    after: &Everything,
) -> Result<(), Broken> {
    let inside = |all: &Everything| -> Vec<Kind> {
        all.keys()
            .filter(|other| other.kind.scope() == Scope::Namespaced)
            .filter(|other| other.namespace.as_deref() == Some(&*key.name))
            .map(|other| other.kind)
            .collect()
    };
    let (was, is) = (before.get(key), after.get(key));
    let is_explained = match (was, is) {
        (None, Some(made)) => is_as_made(made) && inside(after).contains(&Kind::WorkloadEndpoint),
        (Some(made), None) => is_as_made(made) && inside(after).is_empty(),
        (Some(_), Some(_)) | (None, None) => false,
    };
    promise(is_explained, || {
        format!("a node's call changed the namespace {was:?} to {is:?}")
    })
}

fn is_as_made(namespace: &Object) -> bool {
    let metadata = &namespace.metadata;
    let marks: Vec<&str> = metadata.annotations.keys().map(String::as_str).collect();

    marks == ["meshd.dev/made-for-endpoints"]
        && metadata.labels.is_empty()
        && spec_is_empty(namespace)
}

fn spec_is_empty(object: &Object) -> bool {
    let spec = object.body.get("spec").and_then(Value::as_object);

    spec.is_none_or(serde_json::Map::is_empty)
}

fn of_node(node: &NodeName, before: Option<&Object>, after: Option<&Object>) -> Result<(), Broken> {
    let name = node.as_str();
    let Some(one) = after.or(before) else {
        return Ok(());
    };
    let both = || [before, after].into_iter().flatten();
    let said = |field: &'static str| both().all(|object| spec(object, field) == Some(name));
    let is_own = match one.kind {
        Kind::Node => {
            own_words(before, after)?;
            one.metadata.name == name
        }
        // Created, and from then on the authority's.
        Kind::KeyClaim | Kind::AddressClaim => before.is_none() && said("node"),
        Kind::BlockAffinity | Kind::WorkloadEndpoint => said("node"),
        Kind::IPAMBlock => {
            let affinity = format!("host:{name}");
            both().all(|object| spec(object, "affinity") == Some(&affinity))
        }
        Kind::MeshNode
        | Kind::IPPool
        | Kind::IPAMHandle
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
        | Kind::Profile => false,
    };
    promise(is_own, || format!("{name} changed {before:?} to {after:?}"))
}

fn spec<'a>(object: &'a Object, field: &str) -> Option<&'a str> {
    object.body.get("spec")?.get(field).and_then(Value::as_str)
}

/// A node's own object: changed, neither made nor removed, and its labels stay.
fn own_words(before: Option<&Object>, after: Option<&Object>) -> Result<(), Broken> {
    let (Some(before), Some(after)) = (before, after) else {
        return Err(Broken::new("a node made or removed its own Node"));
    };
    promise(before.metadata.labels == after.metadata.labels, || {
        "a node labelled itself".into()
    })?;
    let foreign = |object: &Object| -> Vec<(String, String)> {
        let ours =
            |name: &str| name.contains("meshd.dev/") || name.starts_with("projectcalico.org/");
        let annotations = object.metadata.annotations.iter();
        annotations
            .filter(|(name, _)| !ours(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    promise(foreign(before) == foreign(after), || {
        "a node wrote annotations that are not its own".into()
    })
}
