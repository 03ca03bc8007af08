//! Handing out and taking back the addresses of one block.
//!
//! Each function returns the block as it is to be written, with the sequence
//! number raised; whoever writes it does so with the revision it was read at.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use model::{
    NodeName,
    action::AddressRequest,
    resource::{IpamBlock, ipam_block::Attribute},
};

/// How a request for an address was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// The handle held an address of the block already; nothing is to be written.
    Held(IpAddr),
    /// A free address; the block is to be written before the address is used.
    New(Box<IpamBlock>, IpAddr),
}

/// Why no address was assigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// The block is not the one that was asked for, or is about to be deleted.
    #[error("block {found} is not block {wanted}, or is being deleted")]
    WrongBlock {
        /// The block that was asked for.
        wanted: IpNet,
        /// The block that was given.
        found: IpNet,
    },
    /// Every address is taken.
    #[error("no address of block {0} is free")]
    Full(IpNet),
    /// The address that was asked for lies elsewhere.
    #[error("{address} is not in block {block}")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The block.
        block: IpNet,
    },
    /// The address that was asked for is held by somebody else.
    #[error("{address} is held by {}", holder.as_deref().unwrap_or("somebody without a handle"))]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: Option<String>,
    },
    /// The handle holds another address of the block than the one asked for.
    #[error("{handle} holds {held}, not {wanted}")]
    HoldsAnother {
        /// The handle.
        handle: String,
        /// What it holds.
        held: IpAddr,
        /// What was asked for.
        wanted: IpAddr,
    },
}

impl Assigned {
    /// Returns the address.
    pub const fn address(&self) -> IpAddr {
        match self {
            Self::Held(address) | Self::New(_, address) => *address,
        }
    }
}

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

/// Assigns one address: the one asked for, or the one that has been free longest.
///
/// A handle that holds an address of the block keeps it: asking twice is asking once.
pub fn assign(block: &IpamBlock, request: &AddressRequest) -> Result<Assigned, AssignError> {
    if block.cidr != request.block || block.deleted {
        return Err(AssignError::WrongBlock {
            wanted: request.block,
            found: block.cidr,
        });
    }
    let mut held = block.addresses_of(&request.handle);
    if let Some(address) = held.next() {
        return holds(address, held, request);
    }
    drop(held);
    let place = match request.address {
        Some(address) => place_of(block, address)?,
        None => 0,
    };
    let mut block = block.clone();
    if place >= block.unallocated.len() {
        return Err(AssignError::Full(block.cidr));
    }
    let ordinal = block.unallocated.remove(place);
    let address = block
        .address(ordinal)
        .ok_or(AssignError::Full(block.cidr))?;
    let holder = Attribute {
        handle_id: Some(request.handle.clone()),
        secondary: request.attributes.clone(),
        ..Attribute::default()
    };
    let index = attribute(&mut block, holder);
    block.allocations.insert(ordinal, index);
    block
        .sequence_number_for_allocation
        .insert(ordinal, block.sequence_number);
    block.sequence_number = block.sequence_number.saturating_add(1);

    Ok(Assigned::New(Box::new(block), address))
}

/// Gives back every address that a handle holds; `None` when it holds none, which is a success.
///
/// The addresses go to the end of the queue, so that each rests as long as possible.
pub fn release(block: &IpamBlock, handle: &str) -> Option<(IpamBlock, Vec<IpAddr>)> {
    let freed: Vec<(u32, IpAddr)> = block
        .addresses_of(handle)
        .filter_map(|address| Some((block.ordinal(address)?, address)))
        .collect();
    if freed.is_empty() {
        return None;
    }
    let mut block = block.clone();
    for (ordinal, _) in &freed {
        block.allocations.remove(ordinal);
        block.sequence_number_for_allocation.remove(ordinal);
        block.unallocated.push(*ordinal);
    }
    prune(&mut block);
    block.sequence_number = block.sequence_number.saturating_add(1);

    Some((
        block,
        freed.into_iter().map(|(_, address)| address).collect(),
    ))
}

/// Answers a handle that holds one address or more.
fn holds(
    first: IpAddr,
    mut others: impl Iterator<Item = IpAddr>,
    request: &AddressRequest,
) -> Result<Assigned, AssignError> {
    match request.address {
        Some(wanted) if wanted != first && !others.any(|address| address == wanted) => {
            Err(AssignError::HoldsAnother {
                handle: request.handle.clone(),
                held: first,
                wanted,
            })
        }
        Some(wanted) => Ok(Assigned::Held(wanted)),
        None => Ok(Assigned::Held(first)),
    }
}

/// Returns the place of a free address in the queue.
fn place_of(block: &IpamBlock, address: IpAddr) -> Result<usize, AssignError> {
    let outside = AssignError::Outside {
        address,
        block: block.cidr,
    };
    let ordinal = block.ordinal(address).ok_or(outside)?;

    block
        .unallocated
        .iter()
        .position(|free| *free == ordinal)
        .ok_or_else(|| {
            let index = block.allocations.get(&ordinal);
            let holder = index.and_then(|index| block.attributes.get(*index)?.handle_id.clone());
            AssignError::Taken { address, holder }
        })
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

#[cfg(test)]
mod tests;
