//! The addresses that one owner holds: Calico's IPAMHandle.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{FieldError, field};
use crate::{Kind, NodeName, Object, ObjectKey};

/// Label that names the node whose handle it is.
pub const NODE_LABEL: &str = "meshd.dev/node";

/// How many addresses a handle holds in which block, so that a release need not look through all blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamHandle {
    /// The handle as blocks spell it; the object's name is its lower-case form.
    pub id: String,
    /// Addresses held, by block; never zero.
    pub blocks: BTreeMap<IpNet, u32>,
    /// Marked for deletion: read it as absent.
    pub deleted: bool,
    /// The node whose it is (label `meshd.dev/node`, beside Calico's form); `None` for handles of Calico's.
    #[serde(default)]
    pub node: Option<NodeName>,
}

/// The form in which a store keeps a handle's `spec`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    #[serde(rename = "handleID")]
    id: Option<String>,
    block: Option<BTreeMap<String, u32>>,
    deleted: Option<bool>,
}

impl IpamHandle {
    /// Returns a handle that holds nothing yet.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            blocks: BTreeMap::new(),
            deleted: false,
            node: None,
        }
    }

    /// Returns the same handle as a node's.
    pub fn of_node(self, node: Option<NodeName>) -> Self {
        Self { node, ..self }
    }

    /// Returns the name of the object for a handle: Calico's, the handle in lower case.
    ///
    /// Two handles that differ only in case share a name; the exact one is in the object.
    pub fn object_name(id: &str) -> String {
        id.to_lowercase()
    }

    /// Returns how many addresses the handle holds.
    pub fn count(&self) -> u32 {
        self.blocks
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns the object that a store keeps.
    pub fn to_object(&self) -> Object {
        let key = ObjectKey::cluster(Kind::IPAMHandle, Self::object_name(&self.id));
        let spec = json!({
            "handleID": self.id,
            "block": self.blocks,
            "deleted": self.deleted,
        });

        let mut object = Object::new(&key, spec);
        if let Some(node) = &self.node {
            let label = (NODE_LABEL.to_owned(), node.to_string());
            object.metadata.labels.extend([label]);
        }

        object
    }
}

impl TryFrom<&Object> for IpamHandle {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let id = field::required(stored.id, "spec.handleID", "a handle")?;
        let name = Self::object_name(&id);
        if object.metadata.name != name {
            let follows = format!("{name}, which follows from spec.handleID");
            let found = object.metadata.name.as_str();
            return Err(field::expected("metadata.name", &follows, found));
        }
        let mut blocks = BTreeMap::new();
        for (cidr, count) in stored.block.unwrap_or_default() {
            let cidr = field::network(&cidr, "spec.block")?;
            if count > 0 {
                blocks.insert(cidr, count);
            }
        }

        let node = object.metadata.labels.get(NODE_LABEL);
        let field = format!("metadata.labels[{NODE_LABEL}]");

        Ok(Self {
            id,
            blocks,
            deleted: stored.deleted.unwrap_or(false),
            node: node.map(|node| field::node(node, &field)).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_handle_that_calico_wrote_is_read_and_written_back_alike() {
        let object = object(
            "k8s-pod-network.c0ffee",
            json!({
                "handleID": "k8s-pod-network.C0FFEE",
                "block": {"10.65.4.0/26": 1, "fd00::40/122": 2},
                "deleted": false,
            }),
        );

        let handle = IpamHandle::try_from(&object).unwrap();

        assert_eq!(handle.count(), 3);
        assert_eq!(handle.to_object(), object);
    }

    #[test]
    fn a_handle_says_whose_it_is_beside_what_calico_knows() {
        let node: NodeName = "n1".parse().unwrap();
        let mut handle = IpamHandle::new("k8s-pod-network.c0ffee").of_node(Some(node));
        handle.blocks.insert("10.65.4.0/26".parse().unwrap(), 1);

        let object = handle.to_object();

        assert_eq!(object.metadata.labels["meshd.dev/node"], "n1");
        assert_eq!(IpamHandle::try_from(&object).unwrap(), handle);
    }

    #[test]
    fn a_handle_that_contradicts_itself_is_refused() {
        for (spec, field) in [
            (json!({}), "spec.handleID"),
            (json!({"handleID": "other"}), "metadata.name"),
            (
                json!({"handleID": "h", "block": {"10.65.4.1/26": 1}}),
                "spec.block",
            ),
            (
                json!({"handleID": "h", "block": {"10.65.4.0/26": -1}}),
                "spec.block.10.65.4.0/26",
            ),
        ] {
            let error = IpamHandle::try_from(&object("h", spec)).unwrap_err();

            assert_eq!(error.field, field);
        }
    }

    fn object(name: &str, spec: Value) -> Object {
        Object::new(&ObjectKey::cluster(Kind::IPAMHandle, name), spec)
    }
}
