//! Settings for which Calico has no word: `MeshConfiguration/default`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{FieldError, field};
use crate::Object;

/// Settings of the mesh. Every default is the first value that the design names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshConfiguration {
    /// What happens to packets that have no usable tunnel.
    pub mode: EncryptionMode,
    /// Which WireGuard is used.
    pub backend: Backend,
    /// Networks inside which every member may claim its addresses, preferred first.
    pub underlay_networks: Vec<IpNet>,
    /// What becomes of our packets in other programs' packet filters.
    pub foreign_firewalls: ForeignFirewalls,
    /// What becomes of connections that policy allowed once and no longer does.
    #[serde(default)]
    pub established_connections: EstablishedConnections,
    /// Which packets are told to whoever listens.
    #[serde(default)]
    pub packet_log: PacketLog,
    /// What becomes of a container whose pod the store does not have.
    #[serde(default)]
    pub unknown_pods: UnknownPods,
}

/// What becomes of a container whose pod the store does not have: nobody said what labels it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnknownPods {
    /// It gets no interface.
    #[default]
    Refuse,
    /// It is a pod without labels: what policy says of its whole namespace counts.
    NamespaceOnly,
}

/// What happens to packets that have no usable tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncryptionMode {
    /// They are dropped.
    #[default]
    Strict,
    /// They travel in plaintext, as Calico's do.
    Permissive,
}

/// Which WireGuard is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// The kernel's where it has one, else `meshwire`.
    #[default]
    Auto,
    /// The kernel's.
    Kernel,
    /// `meshwire`.
    Userspace,
}

/// What becomes of our packets in other programs' packet filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForeignFirewalls {
    /// The extension points that they offer let our packets pass.
    #[default]
    Open,
    /// They stay as they are; what they drop is reported.
    Report,
}

/// What becomes of connections that policy allowed once and no longer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EstablishedConnections {
    /// They are cut: after each change of policy every connection is judged anew.
    #[default]
    Recheck,
    /// They go on until they end by themselves, as under Calico.
    Keep,
}

/// Which packets are told to the groups of nfnetlink_log, with the rule that decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PacketLog {
    /// Those that `Log` rules match.
    #[default]
    Rules,
    /// Those that are denied too.
    Denied,
}

/// The form in which a store keeps the settings' `spec`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    encryption: Option<StoredEncryption>,
    underlay: Option<StoredUnderlay>,
    #[serde(rename = "foreignFirewalls")]
    foreign_firewalls: Option<ForeignFirewalls>,
    policy: Option<StoredPolicy>,
    cni: Option<StoredCni>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredCni {
    #[serde(rename = "unknownPods")]
    unknown_pods: Option<UnknownPods>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredEncryption {
    mode: Option<EncryptionMode>,
    backend: Option<Backend>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredPolicy {
    #[serde(rename = "establishedConnections")]
    established_connections: Option<EstablishedConnections>,
    #[serde(rename = "packetLog")]
    packet_log: Option<PacketLog>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredUnderlay {
    networks: Option<Vec<String>>,
}

impl TryFrom<&Object> for MeshConfiguration {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let encryption = stored.encryption.unwrap_or_default();
        let policy = stored.policy.unwrap_or_default();
        let networks = stored
            .underlay
            .and_then(|underlay| underlay.networks)
            .unwrap_or_default();
        let underlay_networks = networks
            .iter()
            .enumerate()
            .map(|(index, text)| field::network(text, &format!("spec.underlay.networks[{index}]")))
            .collect::<Result<_, _>>()?;

        Ok(Self {
            mode: encryption.mode.unwrap_or_default(),
            backend: encryption.backend.unwrap_or_default(),
            underlay_networks,
            foreign_firewalls: stored.foreign_firewalls.unwrap_or_default(),
            established_connections: policy.established_connections.unwrap_or_default(),
            packet_log: policy.packet_log.unwrap_or_default(),
            unknown_pods: stored
                .cni
                .unwrap_or_default()
                .unknown_pods
                .unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn settings_that_say_nothing_are_strict() {
        assert_eq!(read(json!({})), Ok(MeshConfiguration::default()));
        assert_eq!(MeshConfiguration::default().mode, EncryptionMode::Strict);
    }

    #[test]
    fn settings_are_read_and_bad_ones_name_their_field() {
        let spec = json!({
            "encryption": {"mode": "Permissive", "backend": "Userspace"},
            "underlay": {"networks": ["192.0.2.0/24", "2001:db8::/64"]},
            "foreignFirewalls": "Report",
            "policy": {"establishedConnections": "Keep", "packetLog": "Denied"},
            "cni": {"unknownPods": "NamespaceOnly"},
        });
        assert_eq!(
            read(spec),
            Ok(MeshConfiguration {
                mode: EncryptionMode::Permissive,
                backend: Backend::Userspace,
                underlay_networks: vec![
                    "192.0.2.0/24".parse().unwrap(),
                    "2001:db8::/64".parse().unwrap(),
                ],
                foreign_firewalls: ForeignFirewalls::Report,
                established_connections: EstablishedConnections::Keep,
                packet_log: PacketLog::Denied,
                unknown_pods: UnknownPods::NamespaceOnly,
            })
        );

        let bad_mode = read(json!({"encryption": {"mode": "Lax"}})).unwrap_err();
        assert_eq!(bad_mode.field, "spec.encryption.mode");
        let bad_word = read(json!({"policy": {"establishedConnections": "Cut"}})).unwrap_err();
        assert_eq!(bad_word.field, "spec.policy.establishedConnections");
        let bad_network = read(json!({"underlay": {"networks": ["192.0.2.0/24", "x"]}}));
        assert_eq!(bad_network.unwrap_err().field, "spec.underlay.networks[1]");
    }

    fn read(spec: Value) -> Result<MeshConfiguration, FieldError> {
        let key = ObjectKey::cluster(Kind::MeshConfiguration, "default");
        MeshConfiguration::try_from(&Object::new(&key, spec))
    }
}
