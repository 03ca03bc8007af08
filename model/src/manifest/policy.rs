//! What Calico and Kubernetes refuse of a policy though it could be read.
//!
//! An object that is stored already is read without these checks: it may have been written by
//! somebody who has none.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::{
    Family, Object,
    name::is_qualified_name,
    policy::{Policy, Profile, Protocol, StagedAction, Tier},
    resource::{
        FieldError,
        field::{self, expected},
        rule::{self, Stored},
    },
};

/// The beginnings of the names of profiles that namespaces and service accounts are.
const OWNED_PROFILES: [&str; 2] = ["kns.", "ksa."];

/// Checks a policy of any kind.
pub(super) fn check(policy: &Policy, object: &Object) -> Result<(), FieldError> {
    if policy.staged == Some(StagedAction::Delete) {
        return check_deletion(object);
    }
    // Of fields that a kind does not have, there is nothing to check.
    check_types(object, "policyTypes")?;
    check_types(object, "types")?;
    check_stage(object)?;

    check_rules(object)
}

/// Checks a profile.
pub(super) fn check_profile(profile: &Profile, object: &Object) -> Result<(), FieldError> {
    if let Some(prefix) = OWNED_PROFILES
        .iter()
        .find(|prefix| profile.name.starts_with(**prefix))
    {
        let rule = format!(
            "a name that does not begin with {prefix}: that profile is made of a namespace or service account"
        );
        return Err(expected("metadata.name", &rule, profile.name.as_str()));
    }
    let built_in = Profile::default_allow();
    if profile.name == built_in.name && *profile != built_in {
        let message = "this profile is built in and allows everything";
        return Err(FieldError::new("spec", message));
    }
    for key in profile.labels.keys() {
        if !is_qualified_name(key) {
            let path = format!("spec.labelsToApply.{key}");
            return Err(FieldError::new(
                path,
                "expected a key such as app or example.org/app",
            ));
        }
    }

    check_rules(object)
}

/// Checks that a tier that every cluster has stays as it is.
pub(super) fn check_tier(tier: &Tier) -> Result<(), FieldError> {
    let Some(built_in) = Tier::built_in()
        .into_iter()
        .find(|known| known.name == tier.name)
    else {
        return Ok(());
    };
    if tier.order != built_in.order {
        let rule = format!(
            "{}, the order of tier {}",
            built_in.order.unwrap_or_default(),
            tier.name
        );
        return Err(expected("spec.order", &rule, tier.order));
    }
    if tier.default_action != built_in.default_action {
        let rule = format!(
            "{:?}, the action of tier {}",
            built_in.default_action, tier.name
        );
        return Err(expected(
            "spec.defaultAction",
            &rule,
            format!("{:?}", tier.default_action),
        ));
    }

    Ok(())
}

/// A staged deletion says what it deletes, and nothing more.
fn check_deletion(object: &Object) -> Result<(), FieldError> {
    let said = spec(object).into_iter().flatten();
    for (name, value) in said {
        let empty = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::Bool(true) | Value::Number(_) => false,
        };
        if !empty && !["tier", "stagedAction"].contains(&name.as_str()) {
            let path = format!("spec.{name}");
            return Err(FieldError::new(
                path,
                "expected nothing, as spec.stagedAction is Delete",
            ));
        }
    }

    Ok(())
}

fn check_types(object: &Object, field: &str) -> Result<(), FieldError> {
    let types = spec(object)
        .and_then(|spec| spec.get(field))
        .and_then(Value::as_array);
    let mut seen = BTreeSet::new();
    for (index, name) in types.into_iter().flatten().enumerate() {
        if !seen.insert(name.to_string()) {
            let path = format!("spec.{field}[{index}]");
            return Err(expected(&path, "each direction once", name.clone()));
        }
    }

    Ok(())
}

/// Checks where a policy is asked: before tracking or before destination NAT, it is for forwarded packets too.
fn check_stage(object: &Object) -> Result<(), FieldError> {
    let Some(spec) = spec(object) else {
        return Ok(());
    };
    let is = |field: &str| spec.get(field) == Some(&Value::Bool(true));
    let early = ["doNotTrack", "preDNAT"]
        .into_iter()
        .find(|field| is(field));
    if let Some(field) = early
        && !is("applyOnForward")
    {
        let message = format!("expected true, as spec.{field} is true");
        return Err(FieldError::new("spec.applyOnForward", message));
    }
    if !is("preDNAT") {
        return Ok(());
    }
    let list = |field: &str| {
        spec.get(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    if list("egress").next().is_some() {
        let message = "expected no rules, as spec.preDNAT is true";
        return Err(FieldError::new("spec.egress", message));
    }
    if let Some(index) = list("types").position(|name| name.as_str() == Some("Egress")) {
        let path = format!("spec.types[{index}]");
        return Err(expected(
            &path,
            "Ingress alone, as spec.preDNAT is true",
            "Egress",
        ));
    }

    Ok(())
}

fn check_rules(object: &Object) -> Result<(), FieldError> {
    let Some(spec) = spec(object) else {
        return Ok(());
    };
    for direction in ["ingress", "egress"] {
        let rules = spec.get(direction).and_then(Value::as_array);
        for (index, value) in rules.into_iter().flatten().enumerate() {
            let path = format!("spec.{direction}[{index}]");
            let stored: Stored = field::member(value, &path)?;
            check_families(&stored, &path)?;
            check_services(&stored, direction, &path)?;
            check_http(&stored, direction, &path)?;
            check_metadata(value, &path)?;
        }
    }

    Ok(())
}

/// A rule is of one family; that a network excludes every address leaves nothing to match.
fn check_families(stored: &Stored, path: &str) -> Result<(), FieldError> {
    let family = |version: u64| if version == 6 { Family::V6 } else { Family::V4 };
    let mut whole = stored.version.map(family);
    let not_protocol =
        rule::protocol(stored.not_protocol.as_ref(), &format!("{path}.notProtocol"))?;
    if let (Some(family), Some(of)) = (whole, not_protocol.and_then(Protocol::family))
        && family != of
    {
        let rule = format!("none: notProtocol is of {of}");
        return Err(expected(
            &format!("{path}.ipVersion"),
            &rule,
            stored.version,
        ));
    }
    let sides = [
        ("source", &stored.source),
        ("destination", &stored.destination),
    ];
    for (side, entity) in sides {
        let Some(entity) = entity else { continue };
        for (name, nets) in [("nets", &entity.nets), ("notNets", &entity.not_nets)] {
            for (index, text) in nets.iter().flatten().enumerate() {
                let path = format!("{path}.{side}.{name}[{index}]");
                let Ok(net) = text.parse::<IpNet>() else {
                    continue;
                };
                let found = Family::of_net(&net);
                let of = *whole.get_or_insert(found);
                if found != of {
                    let only = format!("a network of {of}, as the rest of the rule");
                    return Err(expected(&path, &only, text.as_str()));
                }
                if name == "notNets" && net.prefix_len() == 0 {
                    let message = "expected less than every address: the rule would match nothing";
                    return Err(FieldError::new(path, message));
                }
            }
        }
    }

    Ok(())
}

/// A service is at the other end, and brings its own ports.
fn check_services(stored: &Stored, direction: &str, path: &str) -> Result<(), FieldError> {
    let own = if direction == "ingress" {
        "destination"
    } else {
        "source"
    };
    for (side, entity) in [
        ("source", &stored.source),
        ("destination", &stored.destination),
    ] {
        let Some(entity) = entity.as_ref().filter(|entity| entity.services.is_some()) else {
            continue;
        };
        if side == own {
            let message =
                format!("expected none: {direction} rules name services at the other end");
            return Err(FieldError::new(format!("{path}.{side}.services"), message));
        }
        for (name, ports) in [("ports", &entity.ports), ("notPorts", &entity.not_ports)] {
            if side == "destination" && ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
                let message = "expected none beside services, which have ports of their own";
                return Err(FieldError::new(format!("{path}.{side}.{name}"), message));
            }
        }
    }

    Ok(())
}

/// HTTP is a matter of what is allowed to come in over TCP.
fn check_http(stored: &Stored, direction: &str, path: &str) -> Result<(), FieldError> {
    let Some(http) = stored.http.as_ref().filter(|http| !http.is_null()) else {
        return Ok(());
    };
    let path = format!("{path}.http");
    if direction == "egress" {
        return Err(FieldError::new(path, "expected none in an egress rule"));
    }
    if stored.action.as_deref() != Some("Allow") {
        return Err(FieldError::new(path, "expected action Allow beside it"));
    }
    let protocol = rule::protocol(stored.protocol.as_ref(), &path)?;
    if protocol.is_some_and(|protocol| protocol != Protocol::TCP) {
        return Err(FieldError::new(path, "expected protocol TCP beside it"));
    }
    let list = |name: &str| {
        http.get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let mut seen = BTreeSet::new();
    for (index, method) in list("methods").enumerate() {
        if !seen.insert(method.to_string()) {
            let path = format!("{path}.methods[{index}]");
            return Err(expected(&path, "each method once", method.clone()));
        }
    }
    for (index, entry) in list("paths").enumerate() {
        check_http_path(entry, &format!("{path}.paths[{index}]"))?;
    }

    Ok(())
}

fn check_http_path(entry: &Value, path: &str) -> Result<(), FieldError> {
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let (name, text) = match (text("exact"), text("prefix")) {
        (Some(text), None) => ("exact", text),
        (None, Some(text)) => ("prefix", text),
        (Some(_), Some(_)) | (None, None) => {
            return Err(FieldError::new(path, "expected either exact or prefix"));
        }
    };
    if !text.starts_with('/') || text.contains(['?', ' ', '#']) {
        let rule = "a path that begins with `/`, without `?`, `#` and blanks";
        return Err(expected(&format!("{path}.{name}"), rule, text));
    }

    Ok(())
}

fn check_metadata(rule: &Value, path: &str) -> Result<(), FieldError> {
    let annotations = rule
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    for key in annotations.into_iter().flat_map(Map::keys) {
        if !is_qualified_name(&key.to_ascii_lowercase()) {
            let path = format!("{path}.metadata.annotations.{key}");
            return Err(FieldError::new(
                path,
                "expected a key such as example.org/note",
            ));
        }
    }

    Ok(())
}

fn spec(object: &Object) -> Option<&Map<String, Value>> {
    object.body.get("spec")?.as_object()
}

#[cfg(test)]
mod tests;
