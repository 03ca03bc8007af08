//! Calico's Tier.

use serde::Deserialize;

use super::{FieldError, field};
use crate::{
    Object,
    policy::{Tier, TierAction},
};

/// The form in which a store keeps a tier's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    order: Option<f64>,
    default_action: Option<String>,
}

impl TryFrom<&Object> for Tier {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let default_action = match stored.default_action.as_deref() {
            None | Some("" | "Deny") => TierAction::Deny,
            Some("Pass") => TierAction::Pass,
            Some(other) => {
                return Err(field::expected("spec.defaultAction", "Deny or Pass", other));
            }
        };

        Ok(Self {
            name: object.metadata.name.clone(),
            order: stored.order,
            default_action,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn a_tier_that_says_nothing_is_the_last_and_denies() {
        assert_eq!(read(json!({})), Ok(Tier::missing("net")));
        assert_eq!(
            read(json!({"order": -1.5, "defaultAction": "Pass"})),
            Ok(Tier {
                name: "net".into(),
                order: Some(-1.5),
                default_action: TierAction::Pass,
            })
        );
        assert_eq!(
            read(json!({"defaultAction": "pass"})).unwrap_err().field,
            "spec.defaultAction"
        );
    }

    fn read(spec: Value) -> Result<Tier, FieldError> {
        Tier::try_from(&Object::new(&ObjectKey::cluster(Kind::Tier, "net"), spec))
    }
}
