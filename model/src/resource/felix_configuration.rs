//! The agent's settings: Calico's FelixConfiguration.

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FieldError, field};
use crate::{InterfaceName, NodeName, Object, duration};

/// The name of the settings of every node.
const DEFAULT: &str = "default";

/// Prefix of the names of settings for one node.
const NODE_PREFIX: &str = "node.";

/// Settings; `None` means that this object does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FelixConfiguration {
    /// `default`, `node.NAME`, or another name with a selector.
    pub name: String,
    /// Which nodes it is for (source text), for other names.
    pub node_selector: Option<String>,
    /// When it was created, for precedence between selector-scoped ones.
    pub created: Option<String>,
    /// Encrypt.
    pub wireguard_enabled: Option<bool>,
    /// Encrypt IPv6 over a device of its own.
    pub wireguard_enabled_v6: Option<bool>,
    /// UDP port of the first device, and of stock peers.
    pub wireguard_listening_port: Option<u16>,
    /// UDP port of the IPv6 device.
    pub wireguard_listening_port_v6: Option<u16>,
    /// Priority of our rules.
    pub wireguard_routing_rule_priority: Option<u32>,
    /// Name of the first device.
    pub wireguard_interface_name: Option<InterfaceName>,
    /// Name of the IPv6 device.
    pub wireguard_interface_name_v6: Option<InterfaceName>,
    /// MTU of the first device; zero is automatic.
    pub wireguard_mtu: Option<u32>,
    /// MTU of the IPv6 device; zero is automatic.
    pub wireguard_mtu_v6: Option<u32>,
    /// Carry host-to-host traffic too.
    pub wireguard_host_encryption_enabled: Option<bool>,
    /// Persistent keepalive in seconds; zero is off.
    pub wireguard_keep_alive_seconds: Option<u16>,
    /// Threaded NAPI on kernel devices.
    pub wireguard_threading_enabled: Option<bool>,
    /// Process IPv6.
    pub ipv6_support: Option<bool>,
    /// Every other field, as written.
    pub other: BTreeMap<String, Value>,
    /// Fields that cannot be used, by path, and why; each counts as not set.
    pub invalid: BTreeMap<String, String>,
}

/// Which nodes settings are for, from general to particular.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `default`: every node.
    All,
    /// Any other name: the nodes that its selector names.
    Selected,
    /// `node.NAME`: one node.
    Node(String),
}

impl FelixConfiguration {
    /// Returns which nodes the settings are for, by their name.
    pub fn scope(&self) -> Scope {
        match (self.name.as_str(), self.name.strip_prefix(NODE_PREFIX)) {
            (DEFAULT, _) => Scope::All,
            (_, Some(node)) => Scope::Node(node.to_owned()),
            (_, None) => Scope::Selected,
        }
    }

    /// Returns the name of the settings for one node.
    pub fn name_for(node: &NodeName) -> String {
        format!("{NODE_PREFIX}{node}")
    }
}

impl TryFrom<&Object> for FelixConfiguration {
    type Error = FieldError;

    /// Reads settings. A bad field disables itself; a name that does not fit the selector disables the object.
    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let mut fields = Fields {
            rest: field::part(object, "spec")?,
            invalid: BTreeMap::new(),
        };
        let settings = Self {
            name: object.metadata.name.clone(),
            created: object.metadata.creation_timestamp.clone(),
            node_selector: fields.text("nodeSelector").filter(|text| !text.is_empty()),
            wireguard_enabled: fields.boolean("wireguardEnabled"),
            wireguard_enabled_v6: fields.boolean("wireguardEnabledV6"),
            wireguard_listening_port: fields.number("wireguardListeningPort", 1..=65535),
            wireguard_listening_port_v6: fields.number("wireguardListeningPortV6", 1..=65535),
            wireguard_routing_rule_priority: fields
                .number("wireguardRoutingRulePriority", 1..=32765),
            wireguard_interface_name: fields.interface("wireguardInterfaceName"),
            wireguard_interface_name_v6: fields.interface("wireguardInterfaceNameV6"),
            wireguard_mtu: fields.number("wireguardMTU", 0..=65535),
            wireguard_mtu_v6: fields.number("wireguardMTUV6", 0..=65535),
            wireguard_host_encryption_enabled: fields.boolean("wireguardHostEncryptionEnabled"),
            wireguard_keep_alive_seconds: fields.seconds("wireguardKeepAlive"),
            wireguard_threading_enabled: fields.boolean("wireguardThreadingEnabled"),
            ipv6_support: fields.boolean("ipv6Support"),
            other: fields.rest,
            invalid: fields.invalid,
        };
        settings.check_scope()?;

        Ok(settings)
    }
}

impl FelixConfiguration {
    fn check_scope(&self) -> Result<(), FieldError> {
        let selected = self.scope() == Scope::Selected;
        match &self.node_selector {
            None if selected => {
                let message = "expected a selector: only default and node.NAME go without one";
                Err(FieldError::new("spec.nodeSelector", message))
            }
            Some(text) if !selected => {
                let none =
                    "nothing: default and node.NAME say by their name which nodes they are for";
                Err(field::expected("spec.nodeSelector", none, text.as_str()))
            }
            None | Some(_) => Ok(()),
        }
    }
}

/// The fields that are not read yet, and those that could not be.
struct Fields {
    rest: BTreeMap<String, Value>,
    invalid: BTreeMap<String, String>,
}

impl Fields {
    fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.rest.remove(name)?;
        if value.is_null() {
            return None;
        }
        let parsed = parse(&value);
        if parsed.is_none() {
            let error = field::expected(&format!("spec.{name}"), expected, value);
            self.invalid.insert(error.field, error.message);
        }

        parsed
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.read(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    fn boolean(&mut self, name: &str) -> Option<bool> {
        self.read(name, "true or false", Value::as_bool)
    }

    fn number<T: TryFrom<u64>>(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<T> {
        let expected = format!("a number from {} to {}", range.start(), range.end());

        self.read(name, &expected, |value| {
            value
                .as_u64()
                .filter(|number| range.contains(number))?
                .try_into()
                .ok()
        })
    }

    fn interface(&mut self, name: &str) -> Option<InterfaceName> {
        self.read(
            name,
            "an interface name (1 to 15 characters, no `/`)",
            |value| value.as_str()?.parse().ok(),
        )
    }

    fn seconds(&mut self, name: &str) -> Option<u16> {
        self.read(name, "a duration from 0s to 65535s such as 25s", |value| {
            duration::parse(value.as_str()?)?.as_secs().try_into().ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn settings_are_read_and_others_kept() {
        let settings = read(
            "default",
            json!({"wireguardEnabled": true, "wireguardKeepAlive": "25s", "wireguardMTU": 0, "bpfEnabled": false}),
        )
        .unwrap();

        assert_eq!(
            settings,
            FelixConfiguration {
                name: "default".into(),
                wireguard_enabled: Some(true),
                wireguard_keep_alive_seconds: Some(25),
                wireguard_mtu: Some(0),
                other: BTreeMap::from([("bpfEnabled".into(), json!(false))]),
                ..FelixConfiguration::default()
            }
        );
    }

    #[test]
    fn a_bad_setting_disables_itself_and_says_why() {
        let settings = read(
            "default",
            json!({"wireguardEnabled": true, "wireguardListeningPort": 70000, "wireguardInterfaceName": "a/b"}),
        )
        .unwrap();

        assert_eq!(settings.wireguard_enabled, Some(true));
        assert_eq!(settings.wireguard_listening_port, None);
        assert_eq!(
            settings.invalid["spec.wireguardListeningPort"],
            "expected a number from 1 to 65535, found 70000"
        );
        assert!(settings.invalid.contains_key("spec.wireguardInterfaceName"));
    }

    #[test]
    fn only_names_without_a_meaning_have_a_selector() {
        let selector = json!({"nodeSelector": "has(gpu)"});

        assert_eq!(
            read("gpu", selector.clone()).unwrap().scope(),
            Scope::Selected
        );
        assert_eq!(
            read("node.n1", json!({})).unwrap().scope(),
            Scope::Node("n1".into())
        );
        assert_eq!(
            read("gpu", json!({})).unwrap_err().field,
            "spec.nodeSelector"
        );
        assert_eq!(
            read("default", selector).unwrap_err().field,
            "spec.nodeSelector"
        );
    }

    fn read(name: &str, spec: Value) -> Result<FelixConfiguration, FieldError> {
        let key = ObjectKey::cluster(Kind::FelixConfiguration, name);
        FelixConfiguration::try_from(&Object::new(&key, spec))
    }
}
