//! Which node a block belongs to: Calico's BlockAffinity.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::NodeName;

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
