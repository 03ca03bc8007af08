//! From a commit to those who watch.
//!
//! Each kind has a ring of its last changes in memory. A watcher that falls behind the ring goes on
//! from the log, and one that falls behind the log is told to list again: the writer never waits,
//! and a slow watcher costs no memory.

use std::{collections::BTreeMap, sync::Arc};

use model::{Kind, Object, ObjectKey, Revision};
use prost::bytes::Bytes;
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::reader::Readers;
use crate::{StoreError, backend::WatchEvent};

/// Changes of one kind that are kept in memory for watchers.
const RING: usize = 256;

/// Most changes in one batch.
const BATCH_CHANGES: usize = 128;

/// Size of a batch in bytes of JSON; one change more may follow, so that any object fits a message.
const BATCH_BYTES: usize = 512 * 1024;

/// A change that is on disk.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) revision: i64,
    pub(crate) key: ObjectKey,
    /// The object; `None`: it was deleted.
    pub(crate) json: Option<Bytes>,
}

/// Where the writer puts what it committed.
pub(super) struct Feeds(BTreeMap<Kind, broadcast::Sender<Arc<Committed>>>);

/// One watch: knows how far it has come.
pub(crate) struct Follow {
    readers: Readers,
    kind: Kind,
    last: i64,
    live: broadcast::Receiver<Arc<Committed>>,
    /// The log may hold more than `last`.
    behind: bool,
}

/// Changes that fit one message.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Arc<Committed>>,
    bytes: usize,
}

impl Batch {
    /// Returns whether one change more may follow.
    pub(super) fn has_room(&self) -> bool {
        self.changes.len() < BATCH_CHANGES && self.bytes < BATCH_BYTES
    }

    /// Adds a change.
    pub(super) fn push(&mut self, change: Arc<Committed>) {
        self.bytes += change.json.as_ref().map_or(0, Bytes::len);
        self.changes.push(change);
    }
}

impl Feeds {
    pub(super) fn new() -> Self {
        Self(
            Kind::ALL
                .iter()
                .map(|kind| (*kind, broadcast::Sender::new(RING)))
                .collect(),
        )
    }

    /// Hands a change to whoever watches its kind.
    pub(super) fn publish(&self, change: Committed) {
        if let Some(sender) = self.0.get(&change.key.kind)
            && sender.receiver_count() > 0
        {
            // Fails only where nobody watches any more.
            drop(sender.send(Arc::new(change)));
        }
    }

    /// Begins a watch after a revision.
    pub(super) fn follow(
        &self,
        readers: Readers,
        kind: Kind,
        from: &Revision,
    ) -> Result<Follow, StoreError> {
        let last = from.0.parse().map_err(|_| StoreError::Compacted(kind))?;
        let sender = self.0.get(&kind).ok_or(StoreError::Compacted(kind))?;

        Ok(Follow {
            readers,
            kind,
            last,
            live: sender.subscribe(),
            behind: true,
        })
    }
}

impl Follow {
    /// Waits for changes, and returns them in the order of their commits.
    ///
    /// Safe to drop while it waits: nothing is lost then.
    pub(crate) async fn next(&mut self) -> Result<Vec<Arc<Committed>>, StoreError> {
        loop {
            if self.behind {
                let batch = self.readers.replay(self.kind, self.last).await?;
                self.behind = !batch.is_empty();
                if let Some(newest) = batch.last() {
                    self.last = newest.revision;
                    return Ok(batch);
                }
            }
            let first = match self.live.recv().await {
                Ok(change) => change,
                Err(RecvError::Lagged(_)) => {
                    self.behind = true;
                    continue;
                }
                Err(RecvError::Closed) => {
                    return Err(StoreError::Unavailable("the store was closed".to_owned()));
                }
            };
            let batch = self.batch(first);
            if let Some(newest) = batch.last() {
                self.last = newest.revision;
                return Ok(batch);
            }
        }
    }

    /// Takes what is there without waiting; leaves out what the log has given already.
    fn batch(&mut self, first: Arc<Committed>) -> Vec<Arc<Committed>> {
        let mut batch = Batch::default();
        batch.push(first);
        while batch.has_room() {
            match self.live.try_recv() {
                Ok(change) => batch.push(change),
                Err(TryRecvError::Lagged(_)) => {
                    self.behind = true;
                    break;
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        batch.changes.retain(|change| change.revision > self.last);

        batch.changes
    }

    /// Returns how far the watch has come.
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.last.to_string())
    }
}

impl Committed {
    /// Returns the change as a watcher in this process sees it.
    pub(super) fn event(&self) -> Result<WatchEvent, StoreError> {
        let Some(json) = &self.json else {
            let revision = Revision(self.revision.to_string());
            return Ok(WatchEvent::Deleted {
                key: self.key.clone(),
                revision,
            });
        };

        decode(json).map(WatchEvent::Applied)
    }
}

/// Reads an object that the store wrote.
pub(super) fn decode(json: &[u8]) -> Result<Object, StoreError> {
    serde_json::from_slice(json)
        .map_err(|error| StoreError::Internal(format!("a stored object: {error}")))
}
