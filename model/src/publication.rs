//! What a node writes about itself, as a patch of its Node object.

use serde_json::{Map, Value, json};

use crate::{
    Family, Object,
    action::NodePublication,
    constant::RECORD_ANNOTATION,
    record::RecordError,
    resource::node::{address_field, key_field, tunnel_field},
};

impl NodePublication {
    /// Returns the JSON merge patch (RFC 7396) that brings a Node object up to date.
    ///
    /// It names exactly the fields that a node writes about itself; what the
    /// publication does not have is removed. An error says why the record
    /// cannot be written.
    pub fn merge_patch(&self) -> Result<Value, RecordError> {
        let mut bgp = Map::new();
        let mut wireguard = Map::new();
        let mut status = Map::new();
        for family in Family::BOTH {
            bgp.insert(
                address_field(family).into(),
                json!(self.addresses.get(&family)),
            );
            let address = self.tunnel_addresses.get(&family);
            wireguard.insert(tunnel_field(family).into(), json!(address));
            status.insert(key_field(family).into(), json!(self.keys.get(&family)));
        }
        let addresses: Vec<Value> = self
            .addresses
            .values()
            .map(|net| json!({"address": net.addr(), "type": "CalicoNodeIP"}))
            .collect();

        Ok(json!({
            "metadata": {"annotations": {RECORD_ANNOTATION: self.record.encode()?}},
            "spec": {"bgp": bgp, "wireguard": wireguard, "addresses": addresses},
            "status": status,
        }))
    }

    /// Brings a Node object up to date; it is left as it was when that fails.
    pub fn apply_to(&self, node: &mut Object) -> Result<(), PublishError> {
        let patch = self.merge_patch()?;
        let mut value = serde_json::to_value(&*node).map_err(PublishError::Shape)?;
        merge(&mut value, &patch);
        *node = serde_json::from_value(value).map_err(PublishError::Shape)?;

        Ok(())
    }
}

/// Why a Node object could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The record cannot be written.
    #[error("the record cannot be written: {0}")]
    Record(#[from] RecordError),
    /// What came out is no object.
    #[error("the patched node is no object")]
    Shape(#[source] serde_json::Error),
}

/// Applies a JSON merge patch (RFC 7396 §2): objects are merged, `null` removes, anything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, change) in patch {
        if change.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.as_str()).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Kind, NodeName, ObjectKey, Phase, PublicKey, Record, resource::Node};

    #[test]
    fn a_published_node_is_read_back_as_it_was_meant() {
        let publication = publication();
        let mut object = Object::new(
            &ObjectKey::cluster(Kind::Node, "n1"),
            json!({"bgp": {"asNumber": 64512, "ipv6Address": "2001:db8::9/64"}}),
        );
        object.body.insert(
            "status".into(),
            json!({"wireguardPublicKeyV6": "old", "podCIDRs": []}),
        );
        object.metadata.labels.insert("zone".into(), "a".into());

        publication.apply_to(&mut object).unwrap();

        let node = Node::try_from(&object).unwrap();
        assert_eq!(node.record, Some(Ok(publication.record)));
        assert_eq!(node.addresses, ["192.0.2.1/24".parse().unwrap()]);
        assert_eq!(
            node.tunnel_addresses,
            ["10.65.4.1".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!((node.key_v4, node.key_v6), (Some(Ok(key())), None));
        assert_eq!(node.labels["zone"], "a");
        assert_eq!(object.body["spec"]["bgp"]["asNumber"], 64512);
        assert_eq!(
            object.body["status"],
            json!({"wireguardPublicKey": key(), "podCIDRs": []})
        );
    }

    #[test]
    fn a_merge_patch_does_what_rfc_7396_says() {
        // Appendix A of the RFC.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut merged = target;
            merge(&mut merged, &patch);
            assert_eq!(merged, result);
        }
    }

    fn key() -> PublicKey {
        PublicKey::new([7; 32]).unwrap()
    }

    fn publication() -> NodePublication {
        let node: NodeName = "n1".parse().unwrap();
        NodePublication {
            record: Record {
                version: crate::record::RECORD_VERSION,
                node: node.clone(),
                epoch: 1,
                tunnels: Vec::new(),
                endpoints: vec!["192.0.2.1".parse().unwrap()],
                addresses: vec!["192.0.2.1".parse().unwrap()],
                phase: Phase::Off,
                conditions: BTreeMap::new(),
                signature: None,
                unknown: BTreeMap::new(),
            },
            node,
            addresses: BTreeMap::from([(Family::V4, "192.0.2.1/24".parse().unwrap())]),
            tunnel_addresses: BTreeMap::from([(Family::V4, "10.65.4.1".parse().unwrap())]),
            keys: BTreeMap::from([(Family::V4, key())]),
        }
    }
}
