//! What a node says about itself: one canonical JSON text beside Calico's annotations.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Family, NodeName, PublicKey, constant::RECORD_MAX};

/// The version of [`Record`] that we write and read.
pub const RECORD_VERSION: u64 = 1;

/// A node's own description, published as annotation `meshd.dev/record`.
///
/// The stored form is canonical JSON (keys sorted, no blanks) of at most 4 KiB.
/// Fields that we do not know are kept; a version that we do not know disables
/// the record, with a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Always [`RECORD_VERSION`].
    pub version: u64,
    /// The node that wrote it.
    pub node: NodeName,
    /// Rises with every change of the record, also across restarts.
    pub epoch: u64,
    /// The node's tunnels: 1..n from `Accepting` until its devices are gone again, else none.
    pub tunnels: Vec<TunnelClaim>,
    /// Where the node's tunnels can be reached on the underlay: at most one address per family, preferred first.
    pub endpoints: Vec<IpAddr>,
    /// The node's own addresses, each backed by an `AddressClaim`.
    pub addresses: Vec<IpAddr>,
    /// How far the node has come in enabling encryption.
    pub phase: Phase,
    /// Conditions the node reports about itself, by type: a reason in words. Bounded by the record's size.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, String>,
    /// Reserved for the signature of a later version.
    pub signature: Option<String>,
    /// Fields that a later version added.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// One WireGuard device that a node offers to its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelClaim {
    /// The device's public key.
    pub key: PublicKey,
    /// The UDP port it listens on.
    pub port: u16,
    /// The families of the packets it carries inside.
    pub families: Vec<Family>,
}

/// How far a node has come in enabling or disabling encryption.
///
/// ```text
/// Off ─▶ Accepting ─▶ Sending ─▶ Enforced        wanted
/// Off ◀─ Leaving   ◀─ Accepting ◀─ …             not wanted any more
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Phase {
    /// No tunnel; everything travels as routed.
    #[default]
    Off,
    /// No longer sends encrypted, still accepts it: its device goes once no peer sends encrypted.
    Leaving,
    /// Guard, device and tunnel policy are live: takes packets encrypted or plain.
    Accepting,
    /// Sends encrypted to every member it waits for.
    Sending,
    /// Sends and takes nothing but encrypted.
    Enforced,
}

/// Why a record is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than 4 KiB.
    #[error("the record has {0} bytes; at most {RECORD_MAX} are read")]
    TooLong(usize),
    /// Not JSON, or not of the record's shape.
    #[error("the record is not readable: {0}")]
    Malformed(String),
    /// Written by a version of meshd that we do not know.
    #[error("the record has version {0}, this agent reads version {RECORD_VERSION}")]
    UnknownVersion(u64),
    /// The record names another node than the one that carries it.
    #[error("the record names node {0}")]
    WrongNode(NodeName),
}

impl Record {
    /// Parses the annotation of node `carrier`.
    pub fn parse(text: &str, carrier: &NodeName) -> Result<Self, RecordError> {
        if text.len() > RECORD_MAX {
            return Err(RecordError::TooLong(text.len()));
        }
        let malformed = |error: serde_json::Error| RecordError::Malformed(error.to_string());
        let value: Value = serde_json::from_str(text).map_err(malformed)?;
        let version = value.get("version").and_then(Value::as_u64).unwrap_or(0);
        if version != RECORD_VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        let record: Self = serde_json::from_value(value).map_err(malformed)?;
        if record.node != *carrier {
            return Err(RecordError::WrongNode(record.node));
        }

        Ok(record)
    }

    /// Returns the canonical JSON text.
    ///
    /// `serde_json`'s maps are sorted, so going through a value sorts every key.
    pub fn encode(&self) -> Result<String, RecordError> {
        let text = serde_json::to_value(self)
            .map_err(|error| RecordError::Malformed(error.to_string()))?
            .to_string();
        if text.len() > RECORD_MAX {
            return Err(RecordError::TooLong(text.len()));
        }

        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text_and_keeps_what_it_does_not_know() {
        let text = record()
            .encode()
            .unwrap()
            .replace("\"version\":1}", "\"version\":1,\"zeal\":1}");

        let parsed = Record::parse(&text, &"n1".parse().unwrap()).unwrap();

        assert_eq!(parsed.unknown.get("zeal"), Some(&Value::from(1)));
        assert_eq!(parsed.encode().unwrap(), text);
    }

    #[test]
    fn a_record_of_another_version_node_or_size_is_refused_with_its_reason() {
        let text = record().encode().unwrap();
        let n1 = "n1".parse().unwrap();

        let newer = text.replace("\"version\":1", "\"version\":2");
        assert_eq!(
            Record::parse(&newer, &n1),
            Err(RecordError::UnknownVersion(2))
        );
        let n2 = "n2".parse().unwrap();
        assert_eq!(
            Record::parse(&text, &n2),
            Err(RecordError::WrongNode(n1.clone()))
        );
        let long = "x".repeat(RECORD_MAX + 1);
        assert_eq!(
            Record::parse(&long, &n1),
            Err(RecordError::TooLong(RECORD_MAX + 1))
        );
    }

    fn record() -> Record {
        Record {
            version: RECORD_VERSION,
            node: "n1".parse().unwrap(),
            epoch: 3,
            tunnels: vec![TunnelClaim {
                key: PublicKey::new([1; 32]).unwrap(),
                port: 51820,
                families: vec![Family::V4, Family::V6],
            }],
            endpoints: vec!["192.0.2.1".parse().unwrap()],
            addresses: vec!["192.0.2.1".parse().unwrap()],
            phase: Phase::Accepting,
            conditions: BTreeMap::new(),
            signature: None,
            unknown: BTreeMap::new(),
        }
    }
}
