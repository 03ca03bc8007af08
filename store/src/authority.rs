//! What a caller may write: the claims of the mesh, and who grants them.
//!
//! An administrator may do everything that keeps objects well formed. A node speaks only for
//! itself; what it may write is listed kind by kind in `node`, and everything else is refused.
//! Called within the transaction that writes, so that what was checked is what is stored.

mod address;
mod block;
mod difference;
mod handle;
mod node;
mod tier;

use ipnet::IpNet;
use model::{Kind, Object, ObjectKey};

use crate::{Caller, Identity, StoreError};

/// A write that is about to happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Write<'a> {
    /// An object that does not exist yet.
    Create(&'a Object),
    /// An object that exists.
    Change {
        /// As it is.
        old: &'a Object,
        /// As it will be.
        new: &'a Object,
    },
    /// An object that goes.
    Delete(&'a Object),
}

/// What is stored.
pub(crate) trait View {
    /// Returns one object.
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError>;

    /// Returns every object of a kind.
    fn list(&self, kind: Kind) -> Result<Vec<Object>, StoreError>;

    /// Returns every object of a kind that belongs to a node.
    fn list_of(&self, kind: Kind, node: &str) -> Result<Vec<Object>, StoreError>;

    /// Returns how many those are.
    fn count_of(&self, kind: Kind, node: &str) -> Result<usize, StoreError>;

    /// Returns the name of a block that shares an address with a range, other than `except`.
    fn overlapping_block(&self, cidr: IpNet, except: &str) -> Result<Option<String>, StoreError>;
}

/// Checks that a caller may make a write.
///
/// # Errors
///
/// [`StoreError::Forbidden`] with the rule that forbids it; [`StoreError::Invalid`] where an
/// administrator's object contradicts what is stored.
pub(crate) fn check(view: &dyn View, caller: &Caller, write: Write<'_>) -> Result<(), StoreError> {
    match &caller.identity {
        Identity::Admin(_) => admin(view, write),
        Identity::Node(name) => node::Node {
            view,
            name,
            origin: caller.origin.as_ref(),
        }
        .check(write),
    }
}

/// Checks an administrator's object by itself and beside what is stored.
fn admin(view: &dyn View, write: Write<'_>) -> Result<(), StoreError> {
    let (old, new) = match write {
        Write::Create(new) => (None, new),
        Write::Change { old, new } => (Some(old), new),
        Write::Delete(old) if old.kind == Kind::Tier => return tier::check_delete(view, old),
        Write::Delete(_) => return Ok(()),
    };
    let mut beside: Vec<Object> = old.cloned().into_iter().collect();
    for kind in model::manifest::neighbours(new.kind) {
        beside.extend(view.list(*kind)?);
    }

    model::manifest::validate(new, beside.iter()).map_err(StoreError::Invalid)
}

#[cfg(test)]
mod tests;
