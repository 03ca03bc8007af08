//! What must happen once, and how it ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Family, NodeName, PodName, PublicKey, Record,
    resource::{WorkloadEndpoint, ip_pool::AllowedUse},
};

/// Tells one action from another; comes back in [`Event::ActionDone`](crate::Event::ActionDone).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ActionId(pub u64);

/// An action with its id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// Its id, unique in a run of the agent.
    pub id: ActionId,
    /// What to do.
    pub kind: ActionKind,
}

/// What is to be done. Whoever carries it out does not retry: the brain does, with back-off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ActionKind {
    /// Create the `KeyClaim` of this key; a claim of ours that exists is a success.
    ClaimKey(PublicKey),
    /// Create the `AddressClaim` of this address, over a connection from it where that is possible.
    ClaimAddress(IpAddr),
    /// Write our own Node: record, Calico's fields and annotations.
    PublishNode(Box<NodePublication>),
    /// See to it that this node has a block of the pool: claimed by Calico's sequence.
    ClaimBlock {
        /// The pool's range.
        pool: IpNet,
        /// Prefix length of its blocks.
        block_size: u8,
    },
    /// Assign addresses: of blocks of ours, of new ones, or borrowed.
    AssignAddress(AddressRequest),
    /// Give back every address that this handle holds, in whichever blocks.
    ReleaseHandle(String),
    /// Write a pod's endpoint.
    PublishEndpoint(Box<WorkloadEndpoint>),
    /// Remove a pod's endpoint.
    RemoveEndpoint {
        /// The pod.
        pod: PodName,
        /// The endpoint's name.
        name: String,
    },
    /// Answer a pod's request: its addresses, or why it gets none.
    AnswerPod(PodName, Result<PodAnswer, String>),
}

/// What a node writes about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePublication {
    /// The node.
    pub node: NodeName,
    /// The record.
    pub record: Record,
    /// `spec.bgp.ipv4Address` / `ipv6Address`: own address per family with its subnet.
    pub addresses: BTreeMap<Family, IpNet>,
    /// `spec.wireguard.interfaceIPv4Address` / `…IPv6Address`.
    pub tunnel_addresses: BTreeMap<Family, IpAddr>,
    /// `status.wireguardPublicKey` (`V4`) and `…V6`; absent removes the field.
    pub keys: BTreeMap<Family, PublicKey>,
}

/// Addresses wanted for one holder. The same handle asking again keeps what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRequest {
    /// The handle that will hold them: `NETWORK.CONTAINERID`, or a tunnel device's.
    pub handle: String,
    /// Facts about the holder, as Calico writes them: `node`, and `pod` with `namespace`, or `type`.
    pub attributes: BTreeMap<String, String>,
    /// What the addresses are for.
    pub purpose: AllowedUse,
    /// One address of each of these families, besides [`addresses`](Self::addresses).
    pub families: BTreeSet<Family>,
    /// Pools that were asked for, by name or range; a family without any takes those that select node and namespace.
    #[serde(default)]
    pub pools: BTreeMap<Family, Vec<String>>,
    /// Exactly these, whatever pools select; at most one of each family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// What a pod gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAnswer {
    /// Its addresses, /32 and /128.
    pub addresses: Vec<IpNet>,
    /// The host end of its veth.
    pub host_interface: String,
    /// The MTU of its interface.
    pub mtu: u32,
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionResult {
    /// It is done.
    Done,
    /// Addresses were assigned, in order: one for each that was asked for.
    Addresses(Vec<IpAddr>),
    /// The store is away or refused for now: try again later.
    Retry(String),
    /// It will never succeed as asked.
    Refused(String),
}
