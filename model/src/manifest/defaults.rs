//! What a document may leave out, filled in as Calico's clients do it.

use serde_json::{Value, json};

use crate::{Family, Kind, Object, kind::Scope, resource::IpPool};

/// The namespace of an object that does not name one.
const NAMESPACE: &str = "default";

/// Fills in what the object leaves out. Values that are wrong are left for the checks.
pub(super) fn fill_in(object: &mut Object) {
    if object.kind.scope() == Scope::Namespaced {
        object
            .metadata
            .namespace
            .get_or_insert_with(|| NAMESPACE.to_owned());
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
