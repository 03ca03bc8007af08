//! Blocks of pools: a node claims them by Calico's sequence, and writes only its own.
//!
//! Within its block a node assigns to its own pods and devices. What the authority lent to another node stays exactly
//! as it is: the lender neither takes it back nor gives it to somebody else.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use model::{
    Family, Kind, NodeName, Object, ObjectKey, Selector,
    family::host_net,
    resource::{
        BlockAffinity, IpPool, IpamBlock, IpamConfiguration, ip_pool::AllowedUse,
        ipam_block::Attribute,
    },
};

use super::{View, Write, handle};
use crate::{Denial, StoreError};

/// Blocks of a family that a node may hold: Calico's cap where the IPAM configuration names none.
const BLOCKS_MAX: usize = 20;

/// Checks what a node writes to a block.
pub(super) fn check_block(
    view: &dyn View,
    node: &NodeName,
    write: Write<'_>,
) -> Result<(), StoreError> {
    match write {
        Write::Create(object) => {
            let block = own(node, object)?;
            check_pool(view, node, block.cidr)?;
            check_overlap(view, &object.metadata.name, block.cidr)?;
            check_holders(view, node, None, &block)?;
            check_count(view, node, block.cidr)
        }
        Write::Change { old, new } => {
            let (old, new) = (own(node, old)?, own(node, new)?);
            if old.cidr != new.cidr {
                let message = "a block's range never changes";
                return Err(StoreError::denied(Denial::BlockAffinity, message));
            }
            if new.sequence_number <= old.sequence_number {
                let least = old.sequence_number.saturating_add(1);
                let message = format!("expected sequenceNumber {least} or more");
                return Err(StoreError::denied(Denial::BlockSequence, message));
            }
            check_holders(view, node, Some(&old), &new)?;
            if new.deleted {
                check_empty(&new)
            } else {
                Ok(())
            }
        }
        Write::Delete(object) => check_empty(&own(node, object)?),
    }
}

/// Checks what a node writes to an affinity.
pub(super) fn check_affinity(
    view: &dyn View,
    node: &NodeName,
    write: Write<'_>,
) -> Result<(), StoreError> {
    let parse = |object| BlockAffinity::try_from(object).map_err(StoreError::Invalid);
    let mine = |affinity: &BlockAffinity| super::node::check_owner(node, &affinity.node);
    match write {
        Write::Create(object) => {
            let affinity = parse(object)?;
            mine(&affinity)?;
            check_name(object, &BlockAffinity::object_name(node, affinity.cidr))?;
            // Its blocks' of both families, and as many that are being tried or given up.
            let limit = blocks_max(view)?.saturating_mul(4);
            super::node::check_limit(view, Kind::BlockAffinity, node, limit)
        }
        Write::Change { old, new } => {
            let (old, new) = (parse(old)?, parse(new)?);
            mine(&old)?;
            mine(&new)?;
            if old.cidr != new.cidr {
                let message = "an affinity's range never changes";
                return Err(StoreError::denied(Denial::BlockAffinity, message));
            }
            Ok(())
        }
        Write::Delete(object) => mine(&parse(object)?),
    }
}

/// Checks that an address is a node's to use: of a block of its own and not lent, or lent to it.
pub(super) fn check_inside(
    view: &dyn View,
    node: &NodeName,
    address: IpAddr,
) -> Result<(), StoreError> {
    let foreign = || {
        let message = format!("{address} is neither of a block of {node} nor lent to it");
        StoreError::denied(Denial::AddressNotInBlock, message)
    };
    let name = view
        .overlapping_block(host_net(address), "")?
        .ok_or_else(foreign)?;
    let object = view
        .get(&ObjectKey::cluster(Kind::IPAMBlock, name))?
        .ok_or_else(foreign)?;
    let block = IpamBlock::try_from(&object).map_err(StoreError::Invalid)?;
    let holder = block
        .ordinal(address)
        .and_then(|ordinal| attribute(&block, ordinal))
        .and_then(Attribute::node);
    let user = holder.as_ref().or(block.affinity.as_ref());
    if !block.deleted && user == Some(node) {
        return Ok(());
    }

    Err(foreign())
}

/// Checks whom a node gives the addresses of its block to, and from whom it takes them.
fn check_holders(
    view: &dyn View,
    node: &NodeName,
    old: Option<&IpamBlock>,
    new: &IpamBlock,
) -> Result<(), StoreError> {
    let before = |ordinal| old.and_then(|old| attribute(old, ordinal));
    let number = |block: &IpamBlock, ordinal: u32| {
        block.sequence_number_for_allocation.get(&ordinal).copied()
    };
    let mut handles = BTreeSet::new();
    for ordinal in 0..new.size() {
        let (before, after) = (before(ordinal), attribute(new, ordinal));
        let is_same =
            before == after && old.is_none_or(|old| number(old, ordinal) == number(new, ordinal));
        if is_same {
            continue;
        }
        if let Some(other) = before.and_then(Attribute::node).filter(|it| it != node) {
            let address = new.address(ordinal).map(|it| it.to_string());
            let message = format!("{} is lent to {other}", address.unwrap_or_default());
            return Err(StoreError::denied(Denial::AddressLent, message));
        }
        if let Some(holder) = after.filter(|it| !is_at_rest(it)) {
            handles.insert(own_handle(node, holder)?);
        }
    }
    for id in handles {
        handle::check_not_others(view, node, id)?;
    }

    Ok(())
}

/// Returns by what a node's own pod or device holds an address.
fn own_handle<'a>(node: &NodeName, holder: &'a Attribute) -> Result<&'a str, StoreError> {
    let named = holder.node();
    if named.as_ref() != Some(node) {
        let named = named.map_or_else(|| "nobody".to_owned(), |it| it.to_string());
        let message = format!("{node} gives addresses to its own, not to what names {named}");
        return Err(StoreError::denied(Denial::NotYourNode, message));
    }
    let without = "an address is held by a handle";

    holder
        .handle_id
        .as_deref()
        .ok_or_else(|| StoreError::denied(Denial::NotYourHandle, without))
}

/// Returns whether nobody holds an address: it cools down, or Calico's Windows nodes keep it.
fn is_at_rest(holder: &Attribute) -> bool {
    match holder.handle_id.as_deref() {
        None => holder.released_at.is_some(),
        Some(id) => id == handle::WINDOWS_RESERVED,
    }
}

fn attribute(block: &IpamBlock, ordinal: u32) -> Option<&Attribute> {
    block.attributes.get(*block.allocations.get(&ordinal)?)
}

/// Checks that a node may have one more block of a family.
fn check_count(view: &dyn View, node: &NodeName, cidr: IpNet) -> Result<(), StoreError> {
    let limit = blocks_max(view)?;
    let family = Family::of_net(&cidr);
    let blocks = view.list_of(Kind::IPAMBlock, node.as_str())?;
    let of_family = |object: &&Object| {
        IpamBlock::try_from(*object).is_ok_and(|it| Family::of_net(&it.cidr) == family)
    };
    let count = blocks.iter().filter(of_family).count();
    if count < limit {
        return Ok(());
    }
    let message = format!("{node} holds {count} {family} blocks, and may hold no more");

    Err(StoreError::denied(Denial::Limit, message))
}

/// Returns how many blocks of a family a node may hold. Settings that cannot be read allow Calico's cap.
fn blocks_max(view: &dyn View) -> Result<usize, StoreError> {
    let object = view.get(&ObjectKey::cluster(Kind::IPAMConfiguration, "default"))?;
    let limit = object
        .and_then(|object| IpamConfiguration::try_from(&object).ok())
        .and_then(|configuration| configuration.max_blocks_per_host)
        .and_then(|limit| usize::try_from(limit).ok());

    Ok(limit.unwrap_or(BLOCKS_MAX))
}

/// Reads a block that must be affine to the node.
fn own(node: &NodeName, object: &Object) -> Result<IpamBlock, StoreError> {
    let block = IpamBlock::try_from(object).map_err(StoreError::Invalid)?;
    if block.affinity.as_ref() != Some(node) {
        let owner = block
            .affinity
            .map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
        let message = format!(
            "the block {} is affine to {owner}, not to {node}",
            block.cidr
        );
        return Err(StoreError::denied(Denial::BlockAffinity, message));
    }

    Ok(block)
}

fn check_name(object: &Object, expected: &str) -> Result<(), StoreError> {
    if object.metadata.name == expected {
        return Ok(());
    }
    let message = format!(
        "expected the name {expected}, found {}",
        object.metadata.name
    );

    Err(StoreError::denied(Denial::Name, message))
}

fn check_empty(block: &IpamBlock) -> Result<(), StoreError> {
    if block.allocations.is_empty() {
        return Ok(());
    }
    let count = block.allocations.len();
    let message = format!(
        "the block {} still has {count} addresses in use",
        block.cidr
    );

    Err(StoreError::denied(Denial::BlockInUse, message))
}

/// Checks that an enabled pool has this block, and selects the node.
fn check_pool(view: &dyn View, node: &NodeName, cidr: IpNet) -> Result<(), StoreError> {
    let pools = view.list(Kind::IPPool)?;
    let fits = |pool: &IpPool| {
        !pool.disabled
            && pool.cidr.contains(&cidr)
            && pool.block_size == cidr.prefix_len()
            && pool
                .allowed_uses
                .iter()
                .any(|used| *used != AllowedUse::LoadBalancer)
    };
    let pool = pools
        .iter()
        .filter_map(|pool| IpPool::try_from(pool).ok())
        .find(fits);
    let Some(pool) = pool else {
        let message = format!("no enabled IPPool has {cidr} as one of its blocks");
        return Err(StoreError::denied(Denial::BlockNotInPool, message));
    };
    let labels = view
        .get(&ObjectKey::cluster(Kind::Node, node.as_str()))?
        .map(|object| object.metadata.labels)
        .unwrap_or_default();
    // A selector that cannot be read selects nobody.
    let selected = pool
        .node_selector
        .parse::<Selector>()
        .is_ok_and(|it| it.matches(&labels));
    if !selected {
        let message = format!("the IPPool {} does not select {node}", pool.name);
        return Err(StoreError::denied(Denial::BlockSelector, message));
    }

    Ok(())
}

fn check_overlap(view: &dyn View, name: &str, cidr: IpNet) -> Result<(), StoreError> {
    let Some(other) = view.overlapping_block(cidr, name)? else {
        return Ok(());
    };
    let message = format!("{cidr} overlaps the block {other}");

    Err(StoreError::denied(Denial::BlockOverlap, message))
}
