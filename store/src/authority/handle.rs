//! Handles: what counts the addresses of one holder. A node writes those of its own pods and devices.

use std::collections::BTreeMap;

use cni_ipam::handle::tunnels_node;
use ipnet::IpNet;
use model::{
    Kind, NodeName, Object, ObjectKey,
    resource::{IpamBlock, IpamHandle},
};

use super::{View, Write};
use crate::{Denial, StoreError};

/// Under this handle Calico's Windows nodes keep addresses of a block.
pub(super) const WINDOWS_RESERVED: &str = "windows-reserved-ipam-handle";

/// Handles that a node may hold at once: one for each pod, twice over, and its devices'.
const HANDLES_MAX: usize = 2048;

/// Blocks that a handle may count.
const BLOCKS_MAX: usize = 64;

/// Checks what a node writes to a handle.
pub(super) fn check(view: &dyn View, node: &NodeName, write: Write<'_>) -> Result<(), StoreError> {
    match write {
        Write::Create(object) => {
            let handle = parse(object)?;
            if handle.node.as_ref() != Some(node) {
                let message = format!("a handle of {node} has the label meshd.dev/node: {node}");
                return Err(StoreError::denied(Denial::NotYourHandle, message));
            }
            check_bare(object)?;
            check_name(node, &handle.id)?;
            check_blocks(view, node, &BTreeMap::new(), &handle)?;
            super::node::check_limit(view, Kind::IPAMHandle, node, HANDLES_MAX)
        }
        Write::Change { old, new } => {
            let (before, after) = (parse(old)?, parse(new)?);
            check_owner(view, node, &before)?;
            if after.id != before.id || new.metadata.labels != old.metadata.labels {
                let message = "what a handle is called, and whose it is, never changes";
                return Err(StoreError::denied(Denial::NotYourHandle, message));
            }
            check_blocks(view, node, &before.blocks, &after)
        }
        Write::Delete(object) => check_owner(view, node, &parse(object)?),
    }
}

/// Checks that a handle, which a node is about to give an address, is not another's.
pub(super) fn check_not_others(
    view: &dyn View,
    node: &NodeName,
    id: &str,
) -> Result<(), StoreError> {
    check_name(node, id)?;
    let key = ObjectKey::cluster(Kind::IPAMHandle, IpamHandle::object_name(id));
    match view.get(&key)? {
        Some(object) => check_owner(view, node, &parse(&object)?),
        None => Ok(()),
    }
}

/// Checks that a handle is the node's: by its label or, where Calico wrote it, by what it counts.
fn check_owner(view: &dyn View, node: &NodeName, handle: &IpamHandle) -> Result<(), StoreError> {
    let is_its = match &handle.node {
        Some(owner) => owner == node,
        None => {
            let mut all = true;
            for cidr in handle.blocks.keys() {
                all &= is_own_block(view, node, *cidr)?;
            }
            all
        }
    };
    if is_its {
        return Ok(());
    }
    let message = format!("the handle {} is not {node}'s", handle.id);

    Err(StoreError::denied(Denial::NotYourHandle, message))
}

/// A node counts more only in blocks of its own.
fn check_blocks(
    view: &dyn View,
    node: &NodeName,
    before: &BTreeMap<IpNet, u32>,
    after: &IpamHandle,
) -> Result<(), StoreError> {
    if after.blocks.len() > BLOCKS_MAX {
        let message = format!("a handle counts at most {BLOCKS_MAX} blocks");
        return Err(StoreError::denied(Denial::Limit, message));
    }
    for (cidr, count) in &after.blocks {
        let grew = before.get(cidr).is_none_or(|before| before < count);
        if grew && !is_own_block(view, node, *cidr)? {
            let message = format!("{cidr} is not a block of {node}");
            return Err(StoreError::denied(Denial::BlockAffinity, message));
        }
    }

    Ok(())
}

fn is_own_block(view: &dyn View, node: &NodeName, cidr: IpNet) -> Result<bool, StoreError> {
    let key = ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(cidr));
    let object = view.get(&key)?;
    let block = object.and_then(|object| IpamBlock::try_from(&object).ok());

    Ok(block.is_some_and(|block| block.affinity.as_ref() == Some(node)))
}

/// The handle of a tunnel device is that device's node's.
fn check_name(node: &NodeName, id: &str) -> Result<(), StoreError> {
    if tunnels_node(id).is_none_or(|name| name == node.as_str()) {
        return Ok(());
    }
    let message = format!("the handle {id} is of another node's device");

    Err(StoreError::denied(Denial::NotYourHandle, message))
}

/// Labels are an administrator's, but for the one that says whose the handle is.
fn check_bare(object: &Object) -> Result<(), StoreError> {
    if object.metadata.labels.len() == 1 && object.metadata.annotations.is_empty() {
        return Ok(());
    }
    let message = "a handle has the label meshd.dev/node, and no other";

    Err(StoreError::denied(Denial::Labels, message))
}

fn parse(object: &Object) -> Result<IpamHandle, StoreError> {
    IpamHandle::try_from(object).map_err(StoreError::Invalid)
}
