//! What a document may leave out, filled in as Calico's clients do it.

use serde_json::{Value, json};

use super::metadata::TIERED;
use crate::{Family, Kind, Object, kind::Scope, policy::DEFAULT_TIER, resource::IpPool};

/// The namespace of an object that does not name one.
const NAMESPACE: &str = "default";

/// The label by which policies are listed tier by tier.
const TIER_LABEL: &str = "projectcalico.org/tier";

/// Fills in what the object leaves out. Values that are wrong are left for the checks.
pub(super) fn fill_in(object: &mut Object) {
    if object.kind.scope() == Scope::Namespaced {
        object
            .metadata
            .namespace
            .get_or_insert_with(|| NAMESPACE.to_owned());
    }
    if TIERED.contains(&object.kind) {
        fill_in_policy(object);
    }
    if object.kind == Kind::KubernetesNetworkPolicy {
        fill_in_policy_types(object);
    }
    if object.kind == Kind::IPPool
        && let Some(Value::Object(spec)) = object.body.get_mut("spec")
    {
        for (field, value) in pool_defaults(spec.get("cidr")) {
            let set = spec.get(field).is_some_and(|value| *value != Value::Null);
            if !set {
                spec.insert(field.to_owned(), value);
            }
        }
    }
}

/// Names the tier in a label, and the directions: what comes in, unless there are rules for what goes out alone.
fn fill_in_policy(object: &mut Object) {
    let Some(Value::Object(spec)) = object.body.get_mut("spec") else {
        return;
    };
    let tier = spec.get("tier").and_then(Value::as_str);
    let tier = tier.filter(|tier| !tier.is_empty()).unwrap_or(DEFAULT_TIER);
    let labels = &mut object.metadata.labels;
    labels.insert(TIER_LABEL.to_owned(), tier.to_owned());
    let has = |field: &str| {
        let list = spec.get(field).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    };
    let deletes = spec.get("stagedAction").and_then(Value::as_str) == Some("Delete");
    if has("types") || deletes {
        return;
    }
    let types = match (has("ingress"), has("egress")) {
        (_, false) => json!(["Ingress"]),
        (false, true) => json!(["Egress"]),
        (true, true) => json!(["Ingress", "Egress"]),
    };
    spec.insert("types".to_owned(), types);
}

/// Names the directions of a Kubernetes policy as its API server does: what comes in, always, and what goes out where
/// there are rules for it.
fn fill_in_policy_types(object: &mut Object) {
    let Some(Value::Object(spec)) = object.body.get_mut("spec") else {
        return;
    };
    let has = |field: &str| {
        let list = spec.get(field).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    };
    if has("policyTypes") {
        return;
    }
    let types = if has("egress") {
        json!(["Ingress", "Egress"])
    } else {
        json!(["Ingress"])
    };
    spec.insert("policyTypes".to_owned(), types);
}

fn pool_defaults(cidr: Option<&Value>) -> Vec<(&'static str, Value)> {
    let net = cidr
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<ipnet::IpNet>().ok());
    let block_size = net.map(|net| IpPool::default_block_size(Family::of_net(&net)));
    let mut defaults = vec![
        ("ipipMode", json!("Never")),
        ("vxlanMode", json!("Never")),
        ("nodeSelector", json!("all()")),
        ("allowedUses", json!(["Workload", "Tunnel"])),
        ("assignmentMode", json!("Automatic")),
    ];
    defaults.extend(block_size.map(|size| ("blockSize", json!(size))));

    defaults
}
