//! Calico's Profile.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    FieldError, field,
    rule::{self, Entries},
};
use crate::{
    Object,
    policy::{Action, Profile, Rule},
};

/// The form in which a store keeps a profile's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    ingress: Option<Vec<Value>>,
    egress: Option<Vec<Value>>,
    labels_to_apply: Option<BTreeMap<String, String>>,
}

impl Profile {
    /// Returns the profile that every cluster has: it allows everything both ways.
    pub fn default_allow() -> Self {
        Self {
            name: "projectcalico-default-allow".to_owned(),
            ingress: vec![Rule::new(Action::Allow)],
            egress: vec![Rule::new(Action::Allow)],
            labels: BTreeMap::new(),
            invalid: BTreeMap::new(),
        }
    }
}

impl TryFrom<&Object> for Profile {
    type Error = FieldError;

    /// Reads a profile; rules that cannot be read are in [`Profile::invalid`].
    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let mut invalid = BTreeMap::new();
        let mut rules = |values: Option<&Vec<Value>>, path: &str| -> Vec<Rule> {
            let read = |value: &Value, path: &str, index| {
                rule::rule(value, path, index, None).map(|rule| vec![rule])
            };
            rule::list(values, path, Entries::WithAction, &mut invalid, read)
        };

        Ok(Self {
            name: object.metadata.name.clone(),
            ingress: rules(stored.ingress.as_ref(), "spec.ingress"),
            egress: rules(stored.egress.as_ref(), "spec.egress"),
            labels: stored.labels_to_apply.unwrap_or_default(),
            invalid,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn a_profiles_rules_are_of_no_namespace_and_a_bad_one_denies() {
        let key = ObjectKey::cluster(Kind::Profile, "p");
        let spec = json!({
            "ingress": [
                {"action": "Allow", "source": {"selector": "has(a)"}},
                {"action": "Deny", "source": {"selector": "has("}},
            ],
            "labelsToApply": {"team": "a"},
        });

        let profile = Profile::try_from(&Object::new(&key, spec)).unwrap();

        let selector = profile.ingress[0].source.selector.as_ref().unwrap();
        assert_eq!(selector.to_string(), "has(a)");
        let denied = Rule {
            index: 1,
            ..Rule::new(Action::Deny)
        };
        assert_eq!(profile.ingress[1], denied);
        let invalid: Vec<_> = profile.invalid.keys().collect();
        assert_eq!(invalid, ["spec.ingress[1].source.selector"]);
        assert_eq!(profile.labels["team"], "a");
    }
}
