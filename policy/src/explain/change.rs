//! One change to a cluster, small enough to propose.

use std::collections::BTreeMap;

use model::{
    Object, ObjectKey, PodName, manifest,
    policy::{Direction, Policy, Profile},
    resource::{FelixConfiguration, Namespace},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, NAMESPACE_PROFILE},
    scenario::object_name,
};

/// One change to a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// A pod gets labels that it does not have.
    LabelPod(PodName, BTreeMap<String, String>),
    /// A namespace gets labels that it does not have.
    LabelNamespace(String, BTreeMap<String, String>),
    /// A rule goes: the one at this place of the object's list.
    RemoveRule(ObjectKey, Direction, usize),
    /// A policy comes, as it would be applied, and what it does in words.
    AddPolicy(Value, String),
    /// A namespace becomes known.
    AddNamespace(String),
    /// A field of FelixConfiguration/default changes.
    Set(&'static str, &'static str),
}

impl Change {
    /// How much of a change it is: the order in which changes are proposed.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::LabelPod(..) => 1,
            Self::LabelNamespace(..) => 2,
            Self::AddPolicy(..) => 3,
            Self::RemoveRule(..) => 4,
            Self::AddNamespace(_) => 5,
            Self::Set(..) => 6,
        }
    }

    /// Returns the cluster as it would be; `None` where the change cannot be made.
    pub(super) fn applied(&self, cluster: &Cluster) -> Option<Cluster> {
        let mut changed = cluster.clone();
        match self {
            Self::LabelPod(name, labels) => {
                let pod = changed.pods.iter_mut().find(|pod| pod.name == *name)?;
                pod.labels.extend(labels.clone());
            }
            Self::LabelNamespace(name, labels) => {
                let name = format!("{NAMESPACE_PROFILE}{name}");
                let profile = changed.profiles.get_mut(&name)?;
                let labels = labels.iter();
                let inherited = labels.map(|(key, value)| (inherited(key), value.clone()));
                profile.labels.extend(inherited);
            }
            Self::RemoveRule(key, direction, index) => {
                let mut policies = changed.policies.iter_mut();
                let policy = policies.find(|policy| policy.key == *key)?;
                match direction {
                    Direction::Ingress => &mut policy.ingress,
                    Direction::Egress => &mut policy.egress,
                }
                .retain(|rule| rule.index != *index);
            }
            Self::AddPolicy(value, _) => changed.policies.push(policy(value)?),
            Self::AddNamespace(name) => {
                let profile: Profile = Namespace {
                    name: name.clone(),
                    labels: BTreeMap::new(),
                }
                .profile();
                changed.profiles.insert(profile.name.clone(), profile);
            }
            Self::Set(field, value) => {
                let settings = default_settings(&mut changed)?;
                settings.other.insert((*field).to_owned(), json!(value));
            }
        }

        Some(changed)
    }

    /// Returns what `meshctl apply` takes to make it, where an object of its own says it.
    pub(super) fn manifest(&self) -> Option<Value> {
        match self {
            Self::AddPolicy(value, _) => Some(value.clone()),
            Self::AddNamespace(name) => Some(json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name},
            })),
            Self::LabelPod(..)
            | Self::LabelNamespace(..)
            | Self::RemoveRule(..)
            | Self::Set(..) => None,
        }
    }

    /// Says it in words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::LabelPod(name, labels) => format!("label pod {name} {}", written(labels)),
            Self::LabelNamespace(name, labels) => {
                format!("label namespace {name} {}", written(labels))
            }
            Self::RemoveRule(key, direction, index) => {
                let list = match direction {
                    Direction::Ingress => "ingress",
                    Direction::Egress => "egress",
                };
                format!("remove {list} rule {index} of {}", object_name(key))
            }
            Self::AddPolicy(_, words) => words.clone(),
            Self::AddNamespace(name) => format!("make namespace {name} known"),
            Self::Set(field, value) => {
                format!("set {field} of FelixConfiguration default to {value}")
            }
        }
    }
}

/// Returns the policy that a manifest makes, if a store would take it.
fn policy(value: &Value) -> Option<Policy> {
    let object: Object = manifest::object(value.clone()).ok()?;
    let policy = Policy::try_from(&object).ok()?;

    policy.invalid.is_empty().then_some(policy)
}

fn default_settings(cluster: &mut Cluster) -> Option<&mut FelixConfiguration> {
    let is_default = |settings: &FelixConfiguration| settings.name == "default";
    if !cluster.configurations.iter().any(is_default) {
        cluster.configurations.push(FelixConfiguration {
            name: "default".to_owned(),
            ..FelixConfiguration::default()
        });
    }

    cluster
        .configurations
        .iter_mut()
        .find(|settings| is_default(settings))
}

fn inherited(key: &str) -> String {
    format!("{}{key}", model::selector::NAMESPACE_PREFIX)
}

fn written(labels: &BTreeMap<String, String>) -> String {
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));

    labels.collect::<Vec<_>>().join(" ")
}
