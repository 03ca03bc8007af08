//! What must happen once, and how it ended.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Family, NodeName, PodName, PublicKey, Record, resource::WorkloadEndpoint};

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
    /// Claim one block of the pool by Calico's sequence.
    ClaimBlock {
        /// The pool's range.
        pool: IpNet,
        /// Prefix length of its blocks.
        block_size: u8,
    },
    /// Assign one address in a block of ours.
    AssignAddress(AddressRequest),
    /// Give back every address that this handle holds in blocks of ours.
    ReleaseHandle {
        /// The handle.
        handle: String,
        /// The blocks to look in.
        blocks: Vec<IpNet>,
    },
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

/// One address wanted from a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRequest {
    /// The block.
    pub block: IpNet,
    /// The handle that will hold it.
    pub handle: String,
    /// Facts about the holder, as Calico writes them.
    pub attributes: BTreeMap<String, String>,
    /// Exactly this address, or whichever is free.
    pub address: Option<IpAddr>,
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
    /// An address was assigned.
    Address(IpAddr),
    /// The store is away or refused for now: try again later.
    Retry(String),
    /// It will never succeed as asked.
    Refused(String),
}
