//! What an agent tells people and programs about itself: the answers of its local API.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Family, NodeName, ObjectKey, Phase, PodName, PublicKey};

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This node.
    pub node: NodeName,
    /// The agent's version.
    pub version: String,
    /// Whether the store can be reached.
    pub store_connected: bool,
    /// Whether everything the store held at the start has been seen.
    pub in_sync: bool,
    /// Whether the node does its part: in sync, and all applied that it needs as a whole. A pod that
    /// is in trouble does not change that.
    pub ready: bool,
    /// Whether the machine matches the plan.
    pub converged: bool,
    /// What was refused, by target: whatever stands behind it in the plan's order waits.
    pub failures: BTreeMap<String, String>,
    /// Rows of the plan that wait for what they stand on.
    pub incomplete: Vec<IncompleteStatus>,
    /// Encryption.
    pub encryption: Encryption,
    /// Own addresses that peers use.
    pub addresses: Vec<IpAddr>,
    /// Own blocks.
    pub blocks: Vec<IpNet>,
    /// Local pods.
    pub pods: Vec<PodStatus>,
    /// Number of peers by state.
    pub peers: BTreeMap<String, usize>,
    /// What an operator should know, by type.
    pub conditions: BTreeMap<String, String>,
}

/// A row of the plan that could not be set because what it stands on is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IncompleteStatus {
    /// The row.
    pub row: String,
    /// What is missing.
    pub reason: String,
    /// Whether the node as a whole needs it: readiness and the switching of encryption wait for it.
    pub essential: bool,
}

/// Where encryption stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// Whether the configuration asks for it on this node.
    pub wanted: bool,
    /// Strict or Permissive.
    pub mode: String,
    /// Own phase.
    pub phase: Phase,
    /// Members that have reached at least `Sending`, this node included.
    pub members_ready: usize,
    /// All members.
    pub members: usize,
    /// In words: `Off`, `Enabling 2/3 nodes`, `Enforced`, `Disabling 1/3 nodes`.
    pub summary: String,
    /// The WireGuard implementation in use, per device.
    pub devices: Vec<DeviceStatus>,
}

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// `kernel`, `meshwire`, or `none` while the device is not there.
    pub backend: String,
    /// Why this one, or why none.
    pub backend_reason: String,
    /// Its public key.
    pub key: PublicKey,
    /// Its UDP port.
    pub port: u16,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A local pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// The pod.
    pub pod: PodName,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Its interface on the host.
    pub interface: String,
}

/// One row of `GET /v1/peers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeName,
    /// Where it stands.
    pub state: PeerState,
    /// The same for each family in which something could travel to it.
    pub families: BTreeMap<Family, PeerState>,
    /// Why, when the state is not `Encrypted`.
    pub reason: Option<String>,
    /// The peer's own phase.
    pub phase: Phase,
    /// Its key.
    pub key: Option<PublicKey>,
    /// Seconds since its key was first seen by this agent.
    pub key_age_seconds: Option<u64>,
    /// Where its packets come from or go to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake.
    pub handshake_age_seconds: Option<u64>,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Prefixes behind it.
    pub allowed_ips: Vec<IpNet>,
}

/// How packets to a peer travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PeerState {
    /// Encrypted, and nothing else is accepted from it; in the kernel, not only in the plan.
    Encrypted,
    /// One family is encrypted and the other is not.
    Partly,
    /// Both ends are switching.
    Enabling,
    /// In plaintext: encryption is off.
    Plain,
    /// In plaintext although encryption is on (Permissive).
    PlainPermitted,
    /// Dropped: it has no usable tunnel.
    Unreachable,
}

/// A version of an object: what `POST /v1/applied` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The object.
    pub key: ObjectKey,
    /// Its revision in the store.
    pub revision: String,
}
