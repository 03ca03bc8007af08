//! Which node a block belongs to: Calico's BlockAffinity.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;

use super::{FieldError, field, ipam_block::IpamBlock};
use crate::{Family, Kind, NodeName, Object, ObjectKey};

/// Longest object name, less one: Calico shortens a name that would reach it.
const NAME_MAX: usize = 252;

/// Length of the hash that makes a shortened name unique, and of the dashes around the range.
const HASH_LENGTH: usize = 11;
const HASH_AND_DASHES: usize = HASH_LENGTH + 2;

/// A node's claim to a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockAffinity {
    /// The affinity's name.
    pub name: String,
    /// How far the claim has come.
    pub state: AffinityState,
    /// The claiming node.
    pub node: NodeName,
    /// The block.
    pub cidr: IpNet,
    /// Marked for deletion: read it as absent.
    pub deleted: bool,
}

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AffinityState {
    /// Announced; the block is not owned yet.
    Pending,
    /// The block is owned (also Calico's old empty state).
    Confirmed,
    /// Being given up.
    PendingDeletion,
}

/// The form in which a store keeps an affinity's `spec`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    state: StoredState,
    node: Option<String>,
    #[serde(rename = "type")]
    owner: Owner,
    cidr: Option<String>,
    deleted: Flag,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum StoredState {
    #[default]
    #[serde(rename = "")]
    Old,
    Confirmed,
    Pending,
    PendingDeletion,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
enum Owner {
    #[default]
    #[serde(alias = "")]
    Host,
    Virtual,
}

/// `true` as v3 writes it, `"true"` as the older stored form does.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Bool(bool),
    Text(String),
}

impl Default for Flag {
    fn default() -> Self {
        Self::Bool(false)
    }
}

impl BlockAffinity {
    /// Announces a claim of a node to a block, named as Calico names it.
    pub fn pending(node: NodeName, cidr: IpNet) -> Self {
        let name = Self::object_name(&node, cidr);

        Self {
            name,
            state: AffinityState::Pending,
            node,
            cidr,
            deleted: false,
        }
    }

    /// Returns the affinity with another state.
    pub fn with(&self, state: AffinityState) -> Self {
        Self {
            state,
            ..self.clone()
        }
    }

    /// Returns the name of a node's affinity to a block: `NODE-BLOCKNAME`.
    ///
    /// A name of 253 bytes or more is shortened as Calico does it: the node's
    /// name is cut and a hash of `NODE+BLOCKNAME` added.
    pub fn object_name(node: &NodeName, cidr: IpNet) -> String {
        let block = IpamBlock::object_name(cidr);
        let name = format!("{node}-{block}");
        if name.len() <= NAME_MAX {
            return name;
        }
        let hash = hex::encode(Sha256::digest(format!("{node}+{block}")));
        let kept = &node.as_str()[..NAME_MAX - block.len() - HASH_AND_DASHES];

        format!("{kept}-{block}-{}", &hash[..HASH_LENGTH])
    }

    /// Returns whether the object is an affinity of a Calico pseudo-host, such as the LoadBalancer controller.
    pub(super) fn is_virtual(object: &Object) -> bool {
        field::part::<Stored>(object, "spec").is_ok_and(|stored| stored.owner == Owner::Virtual)
    }

    /// Returns the object that a store keeps.
    pub fn to_object(&self) -> Object {
        let key = ObjectKey::cluster(Kind::BlockAffinity, &self.name);
        let spec = json!({
            "state": self.state.as_str(),
            "node": self.node,
            "type": "host",
            "cidr": self.cidr,
            "deleted": self.deleted,
        });
        let version = match Family::of_net(&self.cidr) {
            Family::V4 => "4",
            Family::V6 => "6",
        };
        let mut object = Object::new(&key, spec);
        object.metadata.labels = [
            ("projectcalico.org/hostname-hash", hostname_hash(&self.node)),
            ("projectcalico.org/affinity-type", "host".to_owned()),
            ("projectcalico.org/ip-version", version.to_owned()),
        ]
        .map(|(label, value)| (label.to_owned(), value))
        .into();

        object
    }
}

impl AffinityState {
    /// Returns the state as Calico writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::PendingDeletion => "pendingDeletion",
        }
    }
}

impl TryFrom<&Object> for BlockAffinity {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        if stored.owner == Owner::Virtual {
            return Err(field::expected("spec.type", "\"host\"", "virtual"));
        }
        let node = field::required(stored.node, "spec.node", "the name of a node")?;
        let cidr = field::required(stored.cidr, "spec.cidr", "a network")?;

        Ok(Self {
            name: object.metadata.name.clone(),
            state: match stored.state {
                StoredState::Pending => AffinityState::Pending,
                StoredState::PendingDeletion => AffinityState::PendingDeletion,
                StoredState::Confirmed | StoredState::Old => AffinityState::Confirmed,
            },
            node: field::node(&node, "spec.node")?,
            cidr: field::network(&cidr, "spec.cidr")?,
            deleted: match &stored.deleted {
                Flag::Bool(deleted) => *deleted,
                Flag::Text(text) if text.is_empty() => false,
                Flag::Text(text) => text
                    .parse()
                    .map_err(|_| field::expected("spec.deleted", "true or false", text.as_str()))?,
            },
        })
    }
}

/// Returns the SHA3-256 of a node's name in base32 without padding: a label value of any node name.
fn hostname_hash(node: &NodeName) -> String {
    base32(&Sha3_256::digest(node.as_str()))
}

/// Encodes bytes in base32 without padding (RFC 4648 §6).
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digit = |bits: u32| char::from(ALPHABET[bits as usize & 31]);
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut pending, mut width) = (0u32, 0);
    for byte in bytes {
        pending = pending << 8 | u32::from(*byte);
        width += 8;
        while width >= 5 {
            width -= 5;
            text.push(digit(pending >> width));
        }
    }
    if width > 0 {
        text.push(digit(pending << (5 - width)));
    }

    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_survives_the_store() {
        let affinity = BlockAffinity::pending(node("n1"), "10.65.4.0/26".parse().unwrap());

        let object = affinity.to_object();

        assert_eq!(object.metadata.name, "n1-10-65-4-0-26");
        // Python: base64.b32encode(hashlib.sha3_256(b"n1").digest())
        let hash = "DM7EHBDU4L3ELKRER4A46T6QMKAGARQI4CVWBO26S4I2IDAAW6CA";
        assert_eq!(
            object.metadata.labels["projectcalico.org/hostname-hash"],
            hash
        );
        assert_eq!(object.metadata.labels["projectcalico.org/ip-version"], "4");
        assert_eq!(BlockAffinity::try_from(&object), Ok(affinity));
    }

    #[test]
    fn calicos_older_forms_are_read() {
        let key = ObjectKey::cluster(Kind::BlockAffinity, "n1-10-65-4-0-26");
        let spec = json!({"state": "", "node": "n1", "cidr": "10.65.4.0/26", "deleted": "true"});

        let affinity = BlockAffinity::try_from(&Object::new(&key, spec)).unwrap();

        assert_eq!(
            (affinity.state, affinity.deleted),
            (AffinityState::Confirmed, true)
        );
    }

    #[test]
    fn base32_is_that_of_rfc_4648() {
        // §10 of the RFC, without the padding.
        for (bytes, text) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_long_node_name_is_cut_and_stays_unique() {
        let stem = [
            "a".repeat(60),
            "b".repeat(60),
            "c".repeat(60),
            "d".repeat(57),
        ]
        .join(".");
        let [one, two] = ["x", "y"].map(|end| {
            BlockAffinity::object_name(
                &node(&format!("{stem}{end}")),
                "10.65.4.0/26".parse().unwrap(),
            )
        });

        assert_ne!(one, two);
        // By Calico's formula, computed in Python.
        assert!(one.ends_with("dd-10-65-4-0-26-f2faf461a63"), "{one}");
        for name in [&one, &two] {
            assert_eq!(name.len(), NAME_MAX);
            assert!(
                name.starts_with("aaa") && name.contains("-10-65-4-0-26-"),
                "{name}"
            );
        }
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }
}
