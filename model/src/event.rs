//! What sources tell the brain. Every event can be written to a [recording](crate::recording) and read back.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    ActionId, ActionResult, Family, InterfaceName, Kind, ObjectKey, Pass, PodName, PublicKey,
    Resource, cni::CniName, conflict::Surroundings, firewall::Firewalls, pod::PodWish,
};

/// Something that the agent learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The store has this object, or a newer version of it.
    Applied(Resource),
    /// The store has an object of this key that cannot be used.
    ///
    /// It disables itself, never its neighbours; an earlier version of it is no longer used either.
    Invalid(ObjectKey, String),
    /// The store has no such object any more.
    Deleted(ObjectKey),
    /// Every object of the kind that the store had when the agent began to listen has been delivered.
    ///
    /// Until then absence means "not heard of yet". No order holds between kinds.
    InSync(Kind),
    /// After a gap, the objects of the kind are told again: all until the next [`InSync`](Self::InSync) is one change.
    OutOfSync(Kind),
    /// Whether the store can be reached.
    StoreConnected(bool),
    /// The addresses of ours from which the store's server saw us, as it told us.
    ServerSawUs(Vec<IpAddr>),
    /// The machine's links and addresses, whole: the underlay as the kernel has it.
    Underlay(BTreeMap<InterfaceName, Link>),
    /// The keys of this node's tunnel devices, in the order of the devices; the private halves stay in the keyring.
    Keys(Vec<PublicKey>),
    /// The first or a later handshake with a peer was completed on a device of ours.
    Handshake {
        /// The device.
        device: InterfaceName,
        /// The peer.
        peer: PublicKey,
    },
    /// Other programs' packet filters, as far as they concern us.
    Firewalls(Firewalls),
    /// Others' rules, routes and network managers, as far as they concern us.
    Surroundings(Surroundings),
    /// A pod asks for its interface (CNI ADD).
    PodRequested(PodRequest),
    /// A pod's interface is to go (CNI DEL).
    PodReleased(PodName),
    /// An action came to an end.
    ActionDone(ActionId, ActionResult),
    /// The dataplane finished a pass over the plan.
    PlanApplied(Pass),
    /// Time passed.
    Tick,
}

/// A network interface of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its largest packet, in bytes.
    pub mtu: u32,
    /// Administratively up and with carrier.
    pub up: bool,
    /// What kind of link it is.
    pub kind: LinkKind,
    /// Its addresses with their subnets, link-local ones left out.
    pub addresses: Vec<IpNet>,
}

/// What kind of link an interface is, as far as the plan cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// The loopback.
    Loopback,
    /// A pod's host end (by its name's prefix).
    Workload,
    /// A tunnel device of ours, or another agent's overlay device.
    Tunnel,
    /// Everything else: packets leave the machine by it.
    Underlay,
}

/// A pod that asks for its interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRequest {
    /// The pod.
    pub pod: PodName,
    /// The network that it asks to be in: the first half of the handle that holds its addresses.
    #[serde(default = "PodRequest::usual_network")]
    pub network: CniName,
    /// The sandbox (container) it belongs to: the handle's other half.
    pub sandbox: String,
    /// Path of the pod's network namespace, as in `/run/netns/x` or `/proc/1/ns/net`.
    pub netns: String,
    /// The interface's name inside the pod.
    pub interface: InterfaceName,
    /// The pod's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The pod's service account.
    #[serde(default)]
    pub service_account: Option<String>,
    /// Addresses that the pod must get; empty: one per family that has a pool.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// What else its interface is to be like.
    #[serde(default)]
    pub wish: Box<PodWish>,
}

impl PodRequest {
    /// The network's name in Calico's CNI configuration, `k8s-pod-network`.
    pub fn usual_network() -> CniName {
        CniName::usual()
    }
}

/// Which families something is about.
pub type Families = std::collections::BTreeSet<Family>;
