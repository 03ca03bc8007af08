//! The agent's settings: Calico's FelixConfiguration.

use serde::{Deserialize, Serialize};

use crate::InterfaceName;

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
    pub other: std::collections::BTreeMap<String, serde_json::Value>,
}
