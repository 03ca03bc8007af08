//! Who may change what: the table of claims, read a second time and without the store's code.

use model::{Kind, NodeName, Object};
use serde_json::Value;
use store::Identity;

use crate::target::{Broken, promise};

/// Checks one change that was accepted.
pub(super) fn check(
    caller: Option<&Identity>,
    before: Option<&Object>,
    after: Option<&Object>,
) -> Result<(), Broken> {
    match caller {
        Some(Identity::Admin(_)) => Ok(()),
        Some(Identity::Node(node)) => of_node(node, before, after),
        None => Err(Broken::new("a stranger changed something")),
    }
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
