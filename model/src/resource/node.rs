//! A member of the mesh, in the form of Calico's Node.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FieldError, field};
use crate::{
    Family, NodeName, Object, PublicKey, Record, constant::RECORD_ANNOTATION, record::RecordError,
};

/// A member of the mesh: Calico's Node with our record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its labels, which only an administrator writes.
    pub labels: BTreeMap<String, String>,
    /// `spec.bgp.ipv4Address` and `ipv6Address`: the node's own address per family, with its subnet.
    pub addresses: Vec<IpNet>,
    /// `spec.wireguard`: the tunnel devices' addresses.
    pub tunnel_addresses: Vec<IpAddr>,
    /// `status.wireguardPublicKey`; `Err` says why it is not usable.
    pub key_v4: Option<Result<PublicKey, String>>,
    /// `status.wireguardPublicKeyV6`.
    pub key_v6: Option<Result<PublicKey, String>>,
    /// The record; `None` on a stock Calico node, `Err` says why it is disabled.
    pub record: Option<Result<Record, String>>,
    /// Fields that cannot be used, by path, and why; each counts as absent.
    pub invalid: BTreeMap<String, String>,
}

impl From<RecordError> for String {
    fn from(error: RecordError) -> Self {
        error.to_string()
    }
}

impl TryFrom<&Object> for Node {
    type Error = FieldError;

    /// Reads a node. Only a bad name disables it; any other bad field disables itself.
    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let name = field::node(&object.metadata.name, "metadata.name")?;
        let mut invalid = BTreeMap::new();
        let mut addresses = Vec::new();
        let mut tunnel_addresses = Vec::new();
        for family in Family::BOTH {
            let path = ["spec", "bgp", address_field(family)];
            addresses.extend(read(object, path, &mut invalid, |text, path| {
                let address = field::interface(text, path)?;
                of_family(address, address.addr(), family, path)
            }));
            let path = ["spec", "wireguard", tunnel_field(family)];
            tunnel_addresses.extend(read(object, path, &mut invalid, |text, path| {
                let address = field::address(text, path)?;
                of_family(address, address, family, path)
            }));
        }

        Ok(Self {
            labels: object.metadata.labels.clone(),
            addresses,
            tunnel_addresses,
            key_v4: key(object, key_field(Family::V4)),
            key_v6: key(object, key_field(Family::V6)),
            record: object
                .metadata
                .annotations
                .get(RECORD_ANNOTATION)
                .map(|text| Record::parse(text, &name).map_err(String::from)),
            name,
            invalid,
        })
    }
}

/// Returns the field of `spec.bgp` that holds a node's own address.
pub(crate) const fn address_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4Address",
        Family::V6 => "ipv6Address",
    }
}

/// Returns the field of `spec.wireguard` that holds a tunnel device's address.
pub(crate) const fn tunnel_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "interfaceIPv4Address",
        Family::V6 => "interfaceIPv6Address",
    }
}

/// Returns the field of `status` that holds the public key of a family's device.
pub(crate) const fn key_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "wireguardPublicKey",
        Family::V6 => "wireguardPublicKeyV6",
    }
}

/// Reads one text field; a bad one is noted and counts as absent.
fn read<T>(
    object: &Object,
    [part, group, field]: [&str; 3],
    invalid: &mut BTreeMap<String, String>,
    parse: impl FnOnce(&str, &str) -> Result<T, FieldError>,
) -> Option<T> {
    let value = object.body.get(part)?.get(group)?.get(field)?;
    let path = format!("{part}.{group}.{field}");
    let result = match value {
        Value::Null => return None,
        Value::String(text) if text.is_empty() => return None,
        Value::String(text) => parse(text, &path),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(field::expected(&path, "a text", value.clone()))
        }
    };
    result
        .map_err(|error| invalid.insert(error.field, error.message))
        .ok()
}

/// Refuses an address of the other family than its field is for.
fn of_family<T>(value: T, address: IpAddr, family: Family, path: &str) -> Result<T, FieldError> {
    if Family::of(address) != family {
        let version = match family {
            Family::V4 => "an IPv4 address",
            Family::V6 => "an IPv6 address",
        };
        return Err(field::expected(path, version, address.to_string()));
    }

    Ok(value)
}

/// Reads a public key; an empty text is how Calico says "no key".
fn key(object: &Object, field: &str) -> Option<Result<PublicKey, String>> {
    match object.body.get("status")?.get(field)? {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.parse().map_err(|error| format!("{error}"))),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Some(Err("expected 32 bytes in base64".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn a_stock_calico_node_is_read() {
        let key = PublicKey::new([7; 32]).unwrap();
        let object = object(
            json!({
                "bgp": {"asNumber": 64512, "ipv4Address": "192.0.2.1/24", "ipv6Address": "2001:db8::1/64"},
                "wireguard": {"interfaceIPv4Address": "10.65.4.1"},
                "orchRefs": [{"nodeName": "n1", "orchestrator": "k8s"}],
            }),
            json!({"wireguardPublicKey": key}),
        );

        let node = Node::try_from(&object).unwrap();

        assert_eq!(
            node,
            Node {
                name: "n1".parse().unwrap(),
                labels: BTreeMap::new(),
                addresses: vec![
                    "192.0.2.1/24".parse().unwrap(),
                    "2001:db8::1/64".parse().unwrap()
                ],
                tunnel_addresses: vec!["10.65.4.1".parse().unwrap()],
                key_v4: Some(Ok(key)),
                key_v6: None,
                record: None,
                invalid: BTreeMap::new(),
            }
        );
    }

    #[test]
    fn a_bad_field_disables_itself_and_nothing_else() {
        let mut object = object(
            json!({
                "bgp": {"ipv4Address": "192.0.2.300/24", "ipv6Address": "192.0.2.1/24"},
                "wireguard": {"interfaceIPv4Address": 7},
            }),
            json!({"wireguardPublicKey": "short", "wireguardPublicKeyV6": ""}),
        );
        object
            .metadata
            .annotations
            .insert(RECORD_ANNOTATION.into(), "{}".into());

        let node = Node::try_from(&object).unwrap();

        assert_eq!(
            node.invalid.keys().collect::<Vec<_>>(),
            [
                "spec.bgp.ipv4Address",
                "spec.bgp.ipv6Address",
                "spec.wireguard.interfaceIPv4Address"
            ]
        );
        assert_eq!(node.addresses, []);
        assert_eq!(node.key_v4, Some(Err("expected 32 bytes in base64".into())));
        assert_eq!(node.key_v6, None);
        assert!(node.record.unwrap().is_err());
    }

    fn object(spec: Value, status: Value) -> Object {
        let mut object = Object::new(&ObjectKey::cluster(Kind::Node, "n1"), spec);
        object.body.insert("status".into(), status);
        object
    }
}
