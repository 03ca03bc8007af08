//! A granted WireGuard key.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{FieldError, field};
use crate::{Kind, NodeName, Object, ObjectKey, PublicKey};

/// Grants the key whose hash is its name to one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyClaim {
    /// SHA-256 of the public key, lower-case hex.
    pub name: String,
    /// Who may use the key.
    pub node: NodeName,
}

/// The form in which a store keeps a claim's `spec`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct StoredClaim {
    pub(super) node: Option<String>,
}

impl KeyClaim {
    /// Claims a key for a node.
    pub fn new(key: PublicKey, node: NodeName) -> Self {
        Self {
            name: key.claim_name(),
            node,
        }
    }

    /// Returns whether a text could be a claim's name: 64 lower-case hex digits.
    pub fn is_name(text: &str) -> bool {
        text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }

    /// Returns the object that a store keeps.
    pub fn to_object(&self) -> Object {
        let key = ObjectKey::cluster(Kind::KeyClaim, &self.name);

        Object::new(&key, json!({"node": self.node}))
    }
}

impl TryFrom<&Object> for KeyClaim {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let name = &object.metadata.name;
        if !Self::is_name(name) {
            let hash = "the SHA-256 of a public key in lower-case hex";
            return Err(field::expected("metadata.name", hash, name.as_str()));
        }
        let stored: StoredClaim = field::part(object, "spec")?;
        let node = field::required(stored.node, "spec.node", "the name of a node")?;

        Ok(Self {
            name: name.clone(),
            node: field::node(&node, "spec.node")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_claim_survives_the_store() {
        let claim = KeyClaim::new(PublicKey::new([7; 32]).unwrap(), "n1".parse().unwrap());

        assert_eq!(KeyClaim::try_from(&claim.to_object()), Ok(claim));
    }

    #[test]
    fn a_claim_of_no_key_or_no_node_is_refused() {
        let mut object =
            KeyClaim::new(PublicKey::new([7; 32]).unwrap(), "n1".parse().unwrap()).to_object();
        object.body.insert("spec".into(), json!({}));
        assert_eq!(KeyClaim::try_from(&object).unwrap_err().field, "spec.node");

        object.metadata.name = "AB".repeat(32);
        assert_eq!(
            KeyClaim::try_from(&object).unwrap_err().field,
            "metadata.name"
        );
    }
}
