//! What the configuration asks of this node: which devices, how strict, and with which numbers.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{
    Family, InterfaceName,
    resource::mesh_configuration::{Backend, EncryptionMode, PacketLog},
    settings::Settings,
};
use policy::compile::Options;

use crate::{fact::Facts, translation::Outgoing};

/// What the configuration asks of this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wish {
    /// Whether encryption is asked for in any family.
    pub(crate) wanted: bool,
    /// What happens to packets without a tunnel.
    pub(crate) mode: EncryptionMode,
    /// Which WireGuard.
    pub(crate) backend: Backend,
    /// Whether each device takes packets in by a thread of its own.
    pub(crate) threaded: bool,
    /// The devices it takes, also while they are being torn down.
    pub(crate) devices: Vec<DeviceWish>,
    /// Ports on which stock peers listen.
    pub(crate) stock_ports: BTreeMap<Family, u16>,
    /// Priority of the rule into the tunnels' table.
    pub(crate) rule_priority: u32,
    /// Persistent keepalive in seconds; zero is off.
    pub(crate) keepalive: u16,
    /// Networks in which addresses may be claimed, preferred first.
    pub(crate) networks: Vec<IpNet>,
    /// Whether pods are reached under floating addresses too (`floatingIPs`).
    pub(crate) floating: bool,
    /// How pods' packets that leave the mesh are translated.
    pub(crate) outgoing: Outgoing,
    /// What policy follows.
    pub(crate) policy: Options,
    /// What an operator should know, by type.
    pub(crate) conditions: BTreeMap<String, String>,
}

/// A WireGuard device that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceWish {
    pub(crate) name: InterfaceName,
    /// The family whose settings it has; also which of our keys it has.
    pub(crate) native: Family,
    /// The families of the packets that it carries.
    pub(crate) families: BTreeSet<Family>,
    pub(crate) port: u16,
    /// `None`: worked out from the underlay.
    pub(crate) mtu: Option<u32>,
}

impl DeviceWish {
    /// Returns the place of its key among our own.
    pub(crate) fn slot(&self) -> usize {
        match self.native {
            Family::V4 => 0,
            Family::V6 => 1,
        }
    }
}

impl Wish {
    /// Works out the wish. `former` is what was asked before: an unreadable switch changes nothing.
    pub(crate) fn new(facts: &Facts, former: Option<&Self>) -> Self {
        let labels = facts.nodes.get(&facts.own).map(|node| &node.labels);
        let none = BTreeMap::new();
        let settings =
            Settings::effective(&facts.own, labels.unwrap_or(&none), facts.felix.values());
        let mode = facts.mesh.mode;
        let asked = carried(&settings, mode);
        let mut conditions = conditions(&settings, mode);
        let (outgoing, unusable) = Outgoing::of(&settings);
        conditions.extend(unusable.map(|text| ("OutgoingTranslation".to_owned(), text)));
        let doubtful = asked.is_empty() && switch_is_unreadable(&settings, facts);
        if doubtful {
            let text = "wireguardEnabled cannot be read; encryption stays as it was";
            conditions.insert("SettingsUnreadable".into(), text.into());
        }
        let recorded = recorded(facts);
        let held = match former {
            Some(former) if former.wanted => families_of(&former.devices),
            Some(_) => Vec::new(),
            None => recorded.clone(),
        };
        let carried = if doubtful { held } else { asked };
        let wanted = !carried.is_empty();
        let torn_down = if recorded.is_empty() {
            former
                .map(|former| families_of(&former.devices))
                .unwrap_or_default()
        } else {
            recorded
        };
        let devices = if wanted { carried } else { torn_down };

        Self {
            wanted,
            mode,
            backend: facts.mesh.backend,
            threaded: settings.wireguard_threading_enabled.value,
            devices: devices
                .into_iter()
                .map(|(f, carries)| device(&settings, f, carries))
                .collect(),
            stock_ports: BTreeMap::from([
                (Family::V4, settings.wireguard_listening_port.value),
                (Family::V6, settings.wireguard_listening_port_v6.value),
            ]),
            rule_priority: settings.wireguard_routing_rule_priority.value,
            keepalive: settings.wireguard_keep_alive_seconds.value,
            networks: facts.mesh.underlay_networks.clone(),
            outgoing,
            floating: settings.text("floatingIPs").as_deref() == Some("Enabled"),
            policy: Options {
                tells_denied: facts.mesh.packet_log == PacketLog::Denied,
                ..Options::of(&settings)
            },
            conditions,
        }
    }

    /// Returns whether a device carries the family, so that its packets are guarded.
    pub(crate) fn covers(&self, family: Family) -> bool {
        self.device_for(family).is_some()
    }

    /// Returns the device that carries the family.
    pub(crate) fn device_for(&self, family: Family) -> Option<&DeviceWish> {
        self.devices
            .iter()
            .find(|device| device.families.contains(&family))
    }

    /// Returns whether what has no tunnel may pass in plaintext.
    pub(crate) fn permits_plain(&self) -> bool {
        match self.mode {
            EncryptionMode::Strict => false,
            EncryptionMode::Permissive => true,
        }
    }
}

type Carried = (Family, BTreeSet<Family>);

/// Returns the devices that the settings ask for, by native family, and what each carries.
///
/// In Strict, the only device carries both families unless the other one is switched off by name;
/// in Permissive each family has its own switch, as in Calico.
fn carried(settings: &Settings, mode: EncryptionMode) -> Vec<Carried> {
    let v4 = settings.wireguard_enabled.value;
    let v6 = settings.wireguard_enabled_v6.value;
    let alone = |family| vec![(family, BTreeSet::from([family]))];
    let both = |family| vec![(family, BTreeSet::from(Family::BOTH))];
    let spans = mode == EncryptionMode::Strict;

    match (v4.unwrap_or(false), v6.unwrap_or(false)) {
        (true, true) => [alone(Family::V4), alone(Family::V6)].concat(),
        (true, false) if spans && v6.is_none() => both(Family::V4),
        (true, false) => alone(Family::V4),
        (false, true) if spans && v4.is_none() => both(Family::V6),
        (false, true) => alone(Family::V6),
        (false, false) => Vec::new(),
    }
}

fn families_of(devices: &[DeviceWish]) -> Vec<Carried> {
    devices
        .iter()
        .map(|device| (device.native, device.families.clone()))
        .collect()
}

/// Returns the devices that our own record speaks of: an agent that starts in the middle goes on.
fn recorded(facts: &Facts) -> Vec<Carried> {
    let Some(Some(Ok(record))) = facts.nodes.get(&facts.own).map(|node| &node.record) else {
        return Vec::new();
    };

    record
        .tunnels
        .iter()
        .map(|tunnel| {
            let second = facts.keys.get(1) == Some(&tunnel.key);
            let native = if second { Family::V6 } else { Family::V4 };
            (native, tunnel.families.iter().copied().collect())
        })
        .collect()
}

fn device(settings: &Settings, native: Family, families: BTreeSet<Family>) -> DeviceWish {
    let (name, port, mtu) = match native {
        Family::V4 => (
            &settings.wireguard_interface_name,
            &settings.wireguard_listening_port,
            &settings.wireguard_mtu,
        ),
        Family::V6 => (
            &settings.wireguard_interface_name_v6,
            &settings.wireguard_listening_port_v6,
            &settings.wireguard_mtu_v6,
        ),
    };

    DeviceWish {
        name: name.value.clone(),
        native,
        families,
        port: port.value,
        mtu: (mtu.value != 0).then_some(mtu.value),
    }
}

/// Returns whether a configuration that may hold here has a switch that could not be read.
fn switch_is_unreadable(settings: &Settings, facts: &Facts) -> bool {
    let switches = ["wireguardEnabled", "wireguardEnabledV6"];
    let named = |text: &str| switches.iter().any(|name| text.contains(name));
    let whole = facts
        .invalid
        .keys()
        .any(|key| key.kind == model::Kind::FelixConfiguration);

    whole || settings.warnings.iter().any(|warning| named(warning))
}

fn conditions(settings: &Settings, mode: EncryptionMode) -> BTreeMap<String, String> {
    let mut conditions = BTreeMap::new();
    let mut say = |name: &str, text: &str| conditions.insert(name.to_owned(), text.to_owned());
    if settings.wireguard_host_encryption_enabled.value {
        say(
            "HostEncryption",
            "wireguardHostEncryptionEnabled is not supported yet",
        );
    }
    let off = (
        settings.wireguard_enabled.value,
        settings.wireguard_enabled_v6.value,
    );
    match off {
        (Some(true), Some(false)) => {
            say(
                "PlainIPv6",
                "wireguardEnabledV6 is false: IPv6 between nodes is not encrypted",
            );
        }
        (Some(false), Some(true)) => {
            say(
                "PlainIPv4",
                "wireguardEnabled is false: IPv4 between nodes is not encrypted",
            );
        }
        (Some(true), None) if mode == EncryptionMode::Permissive => {
            say(
                "PlainIPv6",
                "Permissive: IPv6 needs wireguardEnabledV6 of its own",
            );
        }
        (None, Some(true)) if mode == EncryptionMode::Permissive => {
            say(
                "PlainIPv4",
                "Permissive: IPv4 needs wireguardEnabled of its own",
            );
        }
        (Some(_) | None, Some(_) | None) => {}
    }
    if !settings.warnings.is_empty() {
        say("Settings", &settings.warnings.join("; "));
    }

    conditions
}
