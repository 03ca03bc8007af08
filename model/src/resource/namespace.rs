//! Kubernetes' Namespace, and the profile that it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FieldError;
use crate::{
    Object,
    policy::{Action, Profile, Rule},
    selector::NAMESPACE_PREFIX,
};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Namespace {
    /// Returns the name of a namespace's profile: `kns.NAME`.
    pub fn profile_name(name: &str) -> String {
        format!("kns.{name}")
    }

    /// Returns the profile that endpoints of the namespace have: it allows everything, and hands on the labels, each
    /// with `pcns.` before it, and the name as `pcns.projectcalico.org/name`.
    pub fn profile(&self) -> Profile {
        Profile {
            name: Self::profile_name(&self.name),
            ingress: vec![Rule::new(Action::Allow)],
            egress: vec![Rule::new(Action::Allow)],
            labels: inherited(NAMESPACE_PREFIX, &self.name, &self.labels),
            invalid: BTreeMap::new(),
        }
    }
}

/// Returns labels as endpoints inherit them, and the name of whom they inherit them from.
pub(super) fn inherited(
    prefix: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let name = ("projectcalico.org/name", name);

    labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .chain([name])
        .map(|(key, value)| (format!("{prefix}{key}"), value.to_owned()))
        .collect()
}

impl TryFrom<&Object> for Namespace {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        Ok(Self {
            name: object.metadata.name.clone(),
            labels: object.metadata.labels.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::ServiceAccount;

    #[test]
    fn a_namespace_is_a_profile_that_allows_everything_and_hands_on_its_labels() {
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let namespace = Namespace {
            name: "shop".into(),
            labels: labels.clone(),
        };
        let account = ServiceAccount {
            namespace: "shop".into(),
            name: "web".into(),
            labels,
        };
        let with = |pairs: [(&str, &str); 2]| {
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into_iter()
                .collect::<BTreeMap<_, _>>()
        };

        let profile = namespace.profile();

        assert_eq!(
            profile,
            Profile {
                name: "kns.shop".into(),
                labels: with([("pcns.team", "a"), ("pcns.projectcalico.org/name", "shop")]),
                ..Profile::default_allow()
            }
        );
        assert_eq!(
            account.profile(),
            Profile {
                name: "ksa.shop.web".into(),
                ingress: Vec::new(),
                egress: Vec::new(),
                labels: with([("pcsa.team", "a"), ("pcsa.projectcalico.org/name", "web")]),
                invalid: BTreeMap::new(),
            }
        );
    }
}
