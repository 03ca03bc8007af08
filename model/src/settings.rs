//! The settings of one node, out of every FelixConfiguration, each with where it came from.
//!
//! ```text
//! built in  <  default  <  the oldest whose selector names the node  <  node.NAME
//! ```
//!
//! Deliberately not here: Felix's configuration file and environment, which
//! whoever starts the agent lays over the result.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    InterfaceName, NodeName, Selector, constant,
    resource::{FelixConfiguration, felix_configuration::Scope},
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// Nobody set it: the built-in default.
    BuiltIn,
    /// The FelixConfiguration of this name.
    FelixConfiguration(String),
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting<T> {
    /// What holds.
    pub value: T,
    /// Who said so.
    pub source: Source,
}

/// What holds on a node. Every field is documented at [`FelixConfiguration`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    missing_docs,
    reason = "the same fields as FelixConfiguration, documented there"
)]
pub struct Settings {
    pub wireguard_enabled: Setting<Option<bool>>,
    pub wireguard_enabled_v6: Setting<Option<bool>>,
    pub wireguard_listening_port: Setting<u16>,
    pub wireguard_listening_port_v6: Setting<u16>,
    pub wireguard_routing_rule_priority: Setting<u32>,
    pub wireguard_interface_name: Setting<InterfaceName>,
    pub wireguard_interface_name_v6: Setting<InterfaceName>,
    pub wireguard_mtu: Setting<u32>,
    pub wireguard_mtu_v6: Setting<u32>,
    pub wireguard_host_encryption_enabled: Setting<bool>,
    pub wireguard_keep_alive_seconds: Setting<u16>,
    pub wireguard_threading_enabled: Setting<bool>,
    pub ipv6_support: Setting<bool>,
    /// Every other field that somebody set, by name.
    pub other: BTreeMap<String, Setting<Value>>,
    /// What an operator should know: unusable fields, selectors and objects that lost to an older one.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Works out what holds on a node with these labels.
    ///
    /// The order of `configurations` does not matter.
    pub fn effective<'a>(
        node: &NodeName,
        labels: &BTreeMap<String, String>,
        configurations: impl IntoIterator<Item = &'a FelixConfiguration>,
    ) -> Self {
        let mut warnings = Vec::new();
        let layers = layers(node, labels, configurations, &mut warnings);
        let pick = Picker(&layers);
        let name =
            |text: &str| -> InterfaceName { text.parse().expect("the constants name interfaces") };

        Self {
            wireguard_enabled: pick.optional(|c| c.wireguard_enabled),
            wireguard_enabled_v6: pick.optional(|c| c.wireguard_enabled_v6),
            wireguard_listening_port: pick
                .or(constant::TUNNEL_PORT, |c| c.wireguard_listening_port),
            wireguard_listening_port_v6: pick
                .or(constant::TUNNEL_PORT_V6, |c| c.wireguard_listening_port_v6),
            wireguard_routing_rule_priority: pick.or(constant::TUNNEL_RULE_PRIORITY, |c| {
                c.wireguard_routing_rule_priority
            }),
            wireguard_interface_name: pick.or(name(constant::TUNNEL_DEVICE), |c| {
                c.wireguard_interface_name.clone()
            }),
            wireguard_interface_name_v6: pick.or(name(constant::TUNNEL_DEVICE_V6), |c| {
                c.wireguard_interface_name_v6.clone()
            }),
            wireguard_mtu: pick.or(0, |c| c.wireguard_mtu),
            wireguard_mtu_v6: pick.or(0, |c| c.wireguard_mtu_v6),
            wireguard_host_encryption_enabled: pick
                .or(false, |c| c.wireguard_host_encryption_enabled),
            wireguard_keep_alive_seconds: pick.or(0, |c| c.wireguard_keep_alive_seconds),
            wireguard_threading_enabled: pick.or(false, |c| c.wireguard_threading_enabled),
            ipv6_support: pick.or(true, |c| c.ipv6_support),
            other: pick.others(),
            warnings,
        }
    }
}

impl Settings {
    /// Returns what somebody wrote into a field of [`other`](Self::other), numbers too; `None` where it is empty.
    pub fn text(&self, field: &str) -> Option<String> {
        match &self.other.get(field)?.value {
            Value::Null => None,
            Value::String(text) => (!text.is_empty()).then(|| text.clone()),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Some(other.to_string())
            }
        }
    }
}

/// The configurations that hold for the node, from weak to strong.
fn layers<'a>(
    node: &NodeName,
    labels: &BTreeMap<String, String>,
    configurations: impl IntoIterator<Item = &'a FelixConfiguration>,
    warnings: &mut Vec<String>,
) -> Vec<&'a FelixConfiguration> {
    let mut layers: Vec<(Scope, &FelixConfiguration)> = configurations
        .into_iter()
        .filter(|configuration| holds_for(configuration, node, labels, warnings))
        .map(|configuration| (configuration.scope(), configuration))
        .collect();
    layers.sort_by(|(a, left), (b, right)| (a, age(left)).cmp(&(b, age(right))));
    layers.dedup_by(|(scope, younger), (kept, older)| {
        let loses = *scope == Scope::Selected && *kept == Scope::Selected;
        if loses {
            warnings.push(format!(
                "FelixConfiguration {} is not used: {} is older and selects the node too",
                younger.name, older.name
            ));
        }
        loses
    });
    let layers: Vec<_> = layers
        .into_iter()
        .map(|(_, configuration)| configuration)
        .collect();
    for layer in &layers {
        warnings.extend(layer.invalid.iter().map(|(field, message)| {
            format!("FelixConfiguration {}: {field}: {message}", layer.name)
        }));
    }
    warnings.sort();

    layers
}

fn holds_for(
    configuration: &FelixConfiguration,
    node: &NodeName,
    labels: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> bool {
    match configuration.scope() {
        Scope::All => true,
        Scope::Node(name) => name == node.as_str(),
        Scope::Selected => {
            let text = configuration.node_selector.as_deref().unwrap_or_default();
            match text.parse::<Selector>() {
                Ok(selector) => selector.matches(labels),
                Err(error) => {
                    warnings.push(format!(
                        "FelixConfiguration {} is not used: spec.nodeSelector: {error}",
                        configuration.name
                    ));
                    false
                }
            }
        }
    }
}

/// Orders selector-scoped configurations: the oldest first, then by name; an unknown age is the youngest.
fn age(configuration: &FelixConfiguration) -> (bool, Option<Timestamp>, &str) {
    let created = configuration.created.as_deref();
    let created: Option<Timestamp> = created.and_then(|text| text.parse().ok());

    (created.is_none(), created, &configuration.name)
}

/// Takes each value from the strongest layer that has it.
struct Picker<'a>(&'a [&'a FelixConfiguration]);

impl Picker<'_> {
    fn or<T>(&self, default: T, field: impl Fn(&FelixConfiguration) -> Option<T>) -> Setting<T> {
        self.find(field).unwrap_or(Setting {
            value: default,
            source: Source::BuiltIn,
        })
    }

    fn optional<T>(&self, field: impl Fn(&FelixConfiguration) -> Option<T>) -> Setting<Option<T>> {
        self.or(None, |configuration| field(configuration).map(Some))
    }

    fn find<T>(&self, field: impl Fn(&FelixConfiguration) -> Option<T>) -> Option<Setting<T>> {
        self.0.iter().rev().find_map(|configuration| {
            let source = Source::FelixConfiguration(configuration.name.clone());
            field(configuration).map(|value| Setting { value, source })
        })
    }

    fn others(&self) -> BTreeMap<String, Setting<Value>> {
        self.0
            .iter()
            .flat_map(|configuration| {
                configuration.other.iter().map(|(name, value)| {
                    let source = Source::FelixConfiguration(configuration.name.clone());
                    (
                        name.clone(),
                        Setting {
                            value: value.clone(),
                            source,
                        },
                    )
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_particular_beats_the_general_field_by_field() {
        let all = with("default", |c| {
            c.wireguard_enabled = Some(true);
            c.wireguard_mtu = Some(1400);
            c.wireguard_keep_alive_seconds = Some(25);
            c.other.insert("logSeverityScreen".into(), json!("Debug"));
        });
        let selected = selected("gpu", "has(gpu)", "2026-01-01T00:00:00Z", 1300);
        let own = with("node.n1", |c| c.wireguard_enabled = Some(false));
        let foreign = with("node.n2", |c| c.wireguard_mtu = Some(1));

        let settings = effective(&[&own, &foreign, &selected, &all]);

        let from = |value, name: &str| Setting {
            value,
            source: Source::FelixConfiguration(name.into()),
        };
        assert_eq!(settings.wireguard_enabled, from(Some(false), "node.n1"));
        assert_eq!(
            settings.wireguard_mtu,
            Setting {
                value: 1300,
                source: Source::FelixConfiguration("gpu".into())
            }
        );
        assert_eq!(settings.wireguard_keep_alive_seconds.value, 25);
        assert_eq!(
            settings.wireguard_listening_port,
            Setting {
                value: 51820,
                source: Source::BuiltIn
            }
        );
        assert_eq!(settings.other["logSeverityScreen"].value, json!("Debug"));
        assert_eq!(settings.warnings, [""; 0]);
    }

    #[test]
    fn of_two_selectors_the_older_wins_in_any_order() {
        let old = selected("z-old", "has(gpu)", "2026-01-01T00:00:00Z", 1300);
        let new = selected("a-new", "has(gpu)", "2026-01-01T00:00:00.5Z", 1200);

        for order in [[&old, &new], [&new, &old]] {
            let settings = effective(&order);
            assert_eq!(settings.wireguard_mtu.value, 1300);
            assert_eq!(
                settings.warnings,
                ["FelixConfiguration a-new is not used: z-old is older and selects the node too"]
            );
        }
    }

    #[test]
    fn a_selector_that_cannot_be_read_selects_nobody_and_is_named() {
        let settings = effective(&[&selected("bad", "has(", "2026-01-01T00:00:00Z", 1300)]);

        assert_eq!(settings.wireguard_mtu.value, 0);
        assert!(settings.warnings[0].starts_with("FelixConfiguration bad is not used"));
    }

    fn effective(configurations: &[&FelixConfiguration]) -> Settings {
        let labels = BTreeMap::from([("gpu".to_owned(), String::new())]);
        Settings::effective(
            &"n1".parse().unwrap(),
            &labels,
            configurations.iter().copied(),
        )
    }

    fn with(name: &str, change: impl FnOnce(&mut FelixConfiguration)) -> FelixConfiguration {
        let mut configuration = FelixConfiguration {
            name: name.into(),
            ..Default::default()
        };
        change(&mut configuration);
        configuration
    }

    fn selected(name: &str, selector: &str, created: &str, mtu: u32) -> FelixConfiguration {
        with(name, |c| {
            c.node_selector = Some(selector.into());
            c.created = Some(created.into());
            c.wireguard_mtu = Some(mtu);
        })
    }
}
