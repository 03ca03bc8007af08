//! A piece of a pool, with who uses which address: Calico's IPAMBlock.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::NodeName;

/// A block and its allocations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamBlock {
    /// The range.
    pub cidr: IpNet,
    /// The node it is affine to.
    pub affinity: Option<NodeName>,
    /// Marked for deletion: read it as absent.
    pub deleted: bool,
    /// For each allocated ordinal, the index of its attributes.
    pub allocations: BTreeMap<u32, usize>,
    /// Free ordinals, the longest free first.
    pub unallocated: Vec<u32>,
    /// Who holds allocated addresses.
    pub attributes: Vec<Attribute>,
    /// Rises by one with every write.
    pub sequence_number: u64,
    /// The block's sequence number when an ordinal was assigned.
    pub sequence_number_for_allocation: BTreeMap<u32, u64>,
    /// When the affinity was claimed, RFC 3339.
    pub affinity_claim_time: Option<String>,
}

/// Who holds an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// The handle it is released by.
    pub handle_id: Option<String>,
    /// Facts about the holder: `pod`, `namespace`, `node`, `type`, `timestamp`.
    pub secondary: BTreeMap<String, String>,
    /// When it was released and began to cool down, RFC 3339.
    pub released_at: Option<String>,
}
