//! A later state: what changes, and the packets then.

use std::collections::BTreeMap;

use model::resource::FieldError;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Source, or_default,
    probe::Probe,
    report::ResourceError,
    state::State,
    topology::{NamespaceEntry, PodEntry},
};

/// A later state. Within one step deletions come first, then what is created, applied and relabelled.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    /// Objects that are created or replaced.
    #[serde(deserialize_with = "or_default")]
    pub apply: Vec<Value>,
    /// Objects that go.
    #[serde(deserialize_with = "or_default")]
    pub delete: Vec<Deletion>,
    /// New labels.
    #[serde(deserialize_with = "or_default")]
    pub relabel: Vec<Relabel>,
    /// Namespaces that come.
    #[serde(deserialize_with = "or_default")]
    pub create_namespaces: Vec<NamespaceEntry>,
    /// Namespaces that go, and everything in them.
    #[serde(deserialize_with = "or_default")]
    pub delete_namespaces: Vec<String>,
    /// Pods that come.
    #[serde(deserialize_with = "or_default")]
    pub create_pods: Vec<PodEntry>,
    /// Pods that go: `NAMESPACE/NAME`.
    #[serde(deserialize_with = "or_default")]
    pub delete_pods: Vec<String>,
    /// The packets then.
    #[serde(deserialize_with = "or_default")]
    pub probes: Vec<Probe>,
}

/// An object that goes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Deletion {
    /// Group and version, where the kind alone does not tell.
    #[serde(default)]
    pub api_version: Option<String>,
    /// The kind.
    pub kind: String,
    /// The namespace, for kinds that have one.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

/// Labels in place of all that were there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relabel {
    /// The pod: `NAMESPACE/NAME`.
    #[serde(default)]
    pub pod: Option<String>,
    /// Or the namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

impl Step {
    /// Makes the changes; returns what is wrong with objects.
    pub(super) fn take(
        &self,
        state: &mut State,
        index: usize,
    ) -> Result<Vec<ResourceError>, FieldError> {
        let path = |list: &str, place: usize| format!("steps[{index}].{list}[{place}]");
        let mut errors = Vec::new();
        for deletion in &self.delete {
            errors.extend(state.delete(deletion));
        }
        for (place, pod) in self.delete_pods.iter().enumerate() {
            state.delete_pod(pod, &path("deletePods", place))?;
        }
        for (place, namespace) in self.delete_namespaces.iter().enumerate() {
            state.delete_namespace(namespace, &path("deleteNamespaces", place))?;
        }
        for (place, namespace) in self.create_namespaces.iter().enumerate() {
            state.add_namespace(namespace, &path("createNamespaces", place))?;
        }
        for (place, pod) in self.create_pods.iter().enumerate() {
            state.add_pod(pod, &path("createPods", place))?;
        }
        let sources: Vec<Source> = self
            .apply
            .iter()
            .enumerate()
            .map(|(place, value)| Source {
                value: Ok(value.clone()),
                position: path("apply", place),
            })
            .collect();
        errors.extend(state.apply(&sources));
        for (place, relabel) in self.relabel.iter().enumerate() {
            state.relabel(relabel, &path("relabel", place))?;
        }

        Ok(errors)
    }
}
