//! A new block, and the attributes of one.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::{
    NodeName,
    resource::{IpamBlock, ipam_block::Attribute},
};

/// Returns a block that nobody holds an address of yet.
///
/// `sequence_number` is the time in nanoseconds since 1970, so that a block
/// that is created anew never repeats the numbers of its predecessor;
/// `claimed_at` is RFC 3339.
pub fn new_block(
    cidr: IpNet,
    node: NodeName,
    sequence_number: u64,
    claimed_at: Option<String>,
) -> IpamBlock {
    IpamBlock {
        affinity: Some(node),
        unallocated: (0..IpamBlock::size_of(cidr)).collect(),
        sequence_number,
        affinity_claim_time: claimed_at,
        ..bare(cidr)
    }
}

/// Returns a block of nobody's with this range, to compute with.
pub(crate) fn bare(cidr: IpNet) -> IpamBlock {
    IpamBlock {
        cidr,
        affinity: None,
        deleted: false,
        allocations: BTreeMap::new(),
        unallocated: Vec::new(),
        attributes: Vec::new(),
        sequence_number: 0,
        sequence_number_for_allocation: BTreeMap::new(),
        affinity_claim_time: None,
    }
}

/// Returns the index of an attribute, which is added unless an equal one is there.
pub(crate) fn attribute(block: &mut IpamBlock, attribute: Attribute) -> usize {
    let found = block
        .attributes
        .iter()
        .position(|known| *known == attribute);

    found.unwrap_or_else(|| {
        block.attributes.push(attribute);
        block.attributes.len() - 1
    })
}

/// Drops attributes that no allocation names, and renumbers the rest.
pub(crate) fn prune(block: &mut IpamBlock) {
    let mut kept = Vec::new();
    let mut places = BTreeMap::new();
    for index in block.allocations.values_mut() {
        *index = *places.entry(*index).or_insert_with(|| {
            kept.push(block.attributes[*index].clone());
            kept.len() - 1
        });
    }
    block.attributes = kept;
}
