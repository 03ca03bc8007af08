//! Blocks of pools: a node claims them by Calico's sequence, and writes only its own.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Kind, NodeName, Object, ObjectKey, Selector,
    resource::{BlockAffinity, IpPool, IpamBlock, ip_pool::AllowedUse},
};

use super::{View, Write};
use crate::{Denial, StoreError};

/// Blocks that a node may hold: Calico's cap where its IPAM configuration names none.
const BLOCKS_MAX: usize = 20;

/// Affinities that a node may hold: its blocks', and as many that are being tried or given up.
const AFFINITIES_MAX: usize = 2 * BLOCKS_MAX;

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
            super::node::check_limit(view, Kind::IPAMBlock, node, BLOCKS_MAX)
        }
        Write::Change { old, new } => {
            let (old, new) = (own(node, old)?, own(node, new)?);
            if old.cidr != new.cidr {
                let message = "a block's range never changes";
                return Err(StoreError::denied(Denial::BlockAffinity, message));
            }
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
            super::node::check_limit(view, Kind::BlockAffinity, node, AFFINITIES_MAX)
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

/// Checks that an address is inside a block of a node.
pub(super) fn check_inside(
    view: &dyn View,
    node: &NodeName,
    address: IpAddr,
) -> Result<(), StoreError> {
    for object in view.list_of(Kind::IPAMBlock, node.as_str())? {
        let block = IpamBlock::try_from(&object).map_err(StoreError::Invalid)?;
        if !block.deleted && block.cidr.contains(&address) {
            return Ok(());
        }
    }
    let message = format!("{address} is not inside a block of {node}");

    Err(StoreError::denied(Denial::AddressNotInBlock, message))
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
