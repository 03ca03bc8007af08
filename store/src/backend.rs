//! The contract that every store keeps.

use std::fmt;

use futures::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use model::{Kind, Object, ObjectKey, Revision};
use serde_json::Value;

use crate::StoreError;

/// Keeps objects, on behalf of one caller.
///
/// A value of this type speaks for whoever it was made for: a [`Session`](crate::Session) for the
/// [`Caller`](crate::Caller) it was opened with, a [`Client`](crate::Client) for the certificate it
/// holds. There is no way to write without an identity.
///
/// # Guarantees
///
/// - A write that returned `Ok` is durable, and every later `get`, `list` and `watch` sees it.
/// - A write either happens whole or not at all; a refused one changes nothing.
/// - Two objects of one key never exist at once; every write gives the object another revision.
/// - `watch(kind, r)` yields every change of the kind that was committed after `r`, in the order of
///   commits and without a gap, until its stream ends. A revision that is too old gives
///   [`StoreError::Compacted`], at once or as the stream's last item: list again.
/// - A `list` is what was stored at one moment, and its revision is that moment.
///
/// # Assumptions
///
/// - Revisions are opaque and belong to the kind they were read from. Nothing orders changes of
///   different kinds against each other.
/// - Whoever gets [`StoreError::Unavailable`] from a write does not know whether it happened, and
///   reads before trying again.
///
/// # Errors
///
/// As [`StoreError`] says; [`StoreError::Forbidden`] and [`StoreError::Invalid`] will come again
/// for the same input, the others depend on what is stored.
pub trait Store: Send + Sync {
    /// Returns every object of a kind and the revision to watch from.
    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<List, StoreError>>;

    /// Streams the same list in pieces, which all have its revision: whoever takes them one by one never holds them
    /// all. It yields at least one, and ends after the first error; only then is the list cut.
    fn pages(&self, kind: Kind) -> PageStream<'_> {
        stream::once(self.list(kind)).boxed()
    }

    /// Streams what happens to a kind after a revision.
    fn watch(&self, kind: Kind, from: Revision) -> BoxFuture<'_, Result<WatchStream, StoreError>>;

    /// Returns one object.
    fn get(&self, key: ObjectKey) -> BoxFuture<'_, Result<Object, StoreError>>;

    /// Stores an object that must not exist yet, and returns it as stored.
    fn create(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>>;

    /// Replaces the object that is stored at exactly `object`'s own revision.
    ///
    /// An object without a revision is [`StoreError::Invalid`].
    fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>>;

    /// Applies a JSON merge patch (RFC 7396) to a stored object, and returns it as stored.
    ///
    /// A patch that changes nothing writes nothing and returns the object as it is.
    fn patch(
        &self,
        key: ObjectKey,
        merge_patch: Value,
        expected: Precondition,
    ) -> BoxFuture<'_, Result<Object, StoreError>>;

    /// Removes an object.
    fn delete(
        &self,
        key: ObjectKey,
        expected: Precondition,
    ) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Every object of a kind at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// The objects, by namespace and name.
    pub objects: Vec<Object>,
    /// The moment; what a watch goes on from.
    pub revision: Revision,
}

/// What a write expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The object at exactly this revision; otherwise [`StoreError::Conflict`].
    Revision(Revision),
    /// The object, however new.
    Any,
}

/// One thing that happened to a kind.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// The object was created or changed; its own revision says how far the watch has come.
    Applied(Object),
    /// The object is gone.
    Deleted {
        /// What tells it apart.
        key: ObjectKey,
        /// How far the watch has come.
        revision: Revision,
    },
    /// Nothing else happened up to this revision.
    Bookmark(Revision),
}

/// What [`Store::pages`] yields: parts of one list, in order.
pub type PageStream<'a> = BoxStream<'a, Result<List, StoreError>>;

/// What [`Store::watch`] yields; it ends after the first error.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, StoreError>>;

impl WatchEvent {
    /// Returns the revision to watch from after this event.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Applied(object) => object.revision(),
            Self::Deleted { revision, .. } | Self::Bookmark(revision) => revision.clone(),
        }
    }
}

impl fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
