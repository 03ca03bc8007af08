//! Who decides about addresses in blocks that are not a node's own.

use futures::future::BoxFuture;
use model::{
    NodeName,
    ipam::{Plea, Verdict},
};

use crate::{Session, StoreError};

/// The authority over addresses in others' blocks.
///
/// # Guarantees
///
/// - What a node gets is noted in the block with that node's name, whatever the plea says.
/// - Nobody loses an address that another node than the one that pleads has.
/// - To plead again for the same handle is to plead once.
///
/// # Assumptions
///
/// - `node` is whom the caller's certificate names; `store` may write everything.
///
/// # Errors
///
/// The store's. What will not be done is a [`Verdict::Refused`].
pub trait Lender: Send + Sync {
    /// Judges what a node asks, and does it.
    fn judge(
        &self,
        node: NodeName,
        plea: Plea,
        store: Session,
    ) -> BoxFuture<'_, Result<Verdict, StoreError>>;
}
