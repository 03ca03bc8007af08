//! `metadata`: names, labels and annotations by the rules of Kubernetes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    Kind, Object,
    kind::Scope,
    name::{is_dns_label, is_label_value, is_object_name, is_qualified_name},
    object::Metadata,
    policy::DEFAULT_TIER,
    resource::{FieldError, field::expected},
    schema::{Field, Shape},
};

/// Where older clusters keep the metadata of Calico's objects.
const STORED_METADATA: &str = "projectcalico.org/metadata";

/// Largest sum of all annotations, in bytes.
const ANNOTATIONS_MAX: usize = 256 << 10;

/// The name of an object of which there is only one.
const SINGLETON: &str = "default";

/// The kinds of policies that have a tier and directions in Calico's form.
pub(super) const TIERED: [Kind; 4] = [
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
];

const FIELDS: &[Field] = &[
    Field::required("name", Shape::Text),
    Field::optional("namespace", Shape::Text),
    Field::optional("labels", Shape::Map(&Shape::Text)),
    Field::optional("annotations", Shape::Map(&Shape::Text)),
    Field::optional("resourceVersion", Shape::Text),
    Field::optional("uid", Shape::Text),
    Field::optional("creationTimestamp", Shape::Text),
    Field::optional("deletionTimestamp", Shape::Text),
    Field::optional("deletionGracePeriodSeconds", Shape::Any),
    Field::optional("finalizers", Shape::Any),
    Field::optional("generation", Shape::Any),
    Field::optional("managedFields", Shape::Any),
    Field::optional("ownerReferences", Shape::Any),
    Field::optional("selfLink", Shape::Any),
];

/// Reads `metadata`, and what an older cluster put away in an annotation.
pub(super) fn read(kind: Kind, mut value: Value) -> Result<Metadata, FieldError> {
    if value.is_null() {
        return Err(FieldError::new(
            "metadata.name",
            "expected a name, found nothing",
        ));
    }
    Shape::Fields(FIELDS).check(&value, "metadata")?;
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| !value.is_null());
    }
    let mut metadata: Metadata = serde_json::from_value(value)
        .map_err(|error| FieldError::new("metadata", error.to_string()))?;
    if kind.api_version() == "projectcalico.org/v3" {
        unpack(&mut metadata)?;
    }

    Ok(metadata)
}

/// Reads `metadata` of a Calico object as older clusters store it.
///
/// There, the name of a policy may have its tier before it; the name that it was given is in the annotation or, of
/// the default tier, what follows the tier.
pub(super) fn read_stored(
    kind: Kind,
    value: Value,
    tier: Option<&str>,
) -> Result<Metadata, FieldError> {
    let packed = value.pointer("/annotations/projectcalico.org~1metadata");
    let packed: Option<Value> = packed
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok());
    let given = packed.and_then(|packed| Some(packed.get("name")?.as_str()?.to_owned()));
    let mut metadata = read(kind, value)?;
    if !TIERED.contains(&kind) {
        return Ok(metadata);
    }
    let in_default = matches!(tier, None | Some("" | DEFAULT_TIER));
    let stripped = metadata
        .name
        .strip_prefix("default.")
        .filter(|_| in_default);
    if let Some(name) = given.or_else(|| stripped.map(str::to_owned)) {
        metadata.name = name;
    }

    Ok(metadata)
}

/// Lays the labels and annotations that the annotation holds over those of the object.
fn unpack(metadata: &mut Metadata) -> Result<(), FieldError> {
    let Some(text) = metadata.annotations.remove(STORED_METADATA) else {
        return Ok(());
    };
    let path = format!("metadata.annotations.{STORED_METADATA}");
    let stored: BTreeMap<String, Value> =
        serde_json::from_str(&text).map_err(|error| FieldError::new(&path, error.to_string()))?;
    for (field, target) in [
        ("labels", &mut metadata.labels),
        ("annotations", &mut metadata.annotations),
    ] {
        let Some(value) = stored.get(field) else {
            continue;
        };
        let entries: Option<BTreeMap<String, String>> = serde_json::from_value(value.clone())
            .map_err(|error| FieldError::new(format!("{path}.{field}"), error.to_string()))?;
        target.extend(entries.unwrap_or_default());
    }

    Ok(())
}

/// Checks name, namespace, labels and annotations.
pub(super) fn check(object: &Object) -> Result<(), FieldError> {
    check_name(object)?;
    let metadata = &object.metadata;
    match (object.kind.scope(), &metadata.namespace) {
        (Scope::Cluster, Some(namespace)) => {
            let none = format!("none, as kind {} lives in no namespace", object.kind);
            return Err(expected("metadata.namespace", &none, namespace.as_str()));
        }
        (Scope::Namespaced, Some(namespace)) if !is_dns_label(namespace) => {
            return Err(expected(
                "metadata.namespace",
                "a lower-case DNS label",
                namespace.as_str(),
            ));
        }
        (Scope::Namespaced, None) => {
            return Err(FieldError::new(
                "metadata.namespace",
                "expected a namespace, found nothing",
            ));
        }
        (Scope::Cluster, None) | (Scope::Namespaced, Some(_)) => {}
    }
    for (key, value) in &metadata.labels {
        let path = format!("metadata.labels.{key}");
        if !is_qualified_name(key) {
            return Err(FieldError::new(
                path,
                "expected a key such as app or example.org/app",
            ));
        }
        if !is_label_value(value) {
            let rule =
                "at most 63 letters, digits, `-`, `_` or `.`, a letter or digit at both ends";
            return Err(expected(&path, rule, value.as_str()));
        }
    }

    check_annotations(&metadata.annotations)
}

fn check_name(object: &Object) -> Result<(), FieldError> {
    let name = object.metadata.name.as_str();
    let wrong = |rule: &str| Err(expected("metadata.name", rule, name));
    match object.kind {
        Kind::MeshConfiguration | Kind::ClusterInformation if name != SINGLETON => {
            wrong(&format!("{SINGLETON}, the only {} there is", object.kind))
        }
        Kind::Namespace | Kind::Service if !is_dns_label(name) => wrong("a lower-case DNS label"),
        Kind::Tier => {
            if is_dns_label(name) {
                Ok(())
            } else {
                wrong("a lower-case DNS label: at most 63 letters, digits and `-`")
            }
        }
        Kind::NetworkPolicy | Kind::StagedNetworkPolicy if is_foreign_policy(name) => Ok(()),
        Kind::NetworkPolicy
        | Kind::StagedNetworkPolicy
        | Kind::GlobalNetworkPolicy
        | Kind::StagedGlobalNetworkPolicy => {
            if is_object_name(name) && name.split('.').count() <= 2 {
                Ok(())
            } else {
                wrong("lower-case letters, digits and `-`, with one `.` at most")
            }
        }
        Kind::Node
        | Kind::MeshNode
        | Kind::IPPool
        | Kind::IPAMBlock
        | Kind::BlockAffinity
        | Kind::IPAMHandle
        | Kind::IPAMConfiguration
        | Kind::IPReservation
        | Kind::WorkloadEndpoint
        | Kind::FelixConfiguration
        | Kind::ClusterInformation
        | Kind::MeshConfiguration
        | Kind::KeyClaim
        | Kind::AddressClaim
        | Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Pod
        | Kind::EndpointSlice
        | Kind::KubernetesNetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::StagedKubernetesNetworkPolicy
        | Kind::NetworkSet
        | Kind::GlobalNetworkSet
        | Kind::HostEndpoint
        | Kind::Profile => {
            if is_object_name(name) {
                Ok(())
            } else {
                wrong("lower-case letters, digits, `-` and `.`, a letter or digit at both ends")
            }
        }
    }
}

/// Returns whether a name is one that Calico gives to another system's policy.
fn is_foreign_policy(name: &str) -> bool {
    ["knp.default.", "ossg.default."]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(is_object_name))
        && is_object_name(name)
}

fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), FieldError> {
    for key in annotations.keys() {
        if !is_qualified_name(&key.to_ascii_lowercase()) {
            let path = format!("metadata.annotations.{key}");
            return Err(FieldError::new(
                path,
                "expected a key such as example.org/note",
            ));
        }
    }
    let size: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > ANNOTATIONS_MAX {
        let most = format!("at most {ANNOTATIONS_MAX} bytes in all");
        return Err(expected("metadata.annotations", &most, size));
    }

    Ok(())
}
