//! Objects in SQLite: one file, one writer thread, readers on snapshots beside it.
//!
//! ```text
//! Session(caller) ─ write ─▶ writer thread: authority, put, log ─ commit ─▶ feeds ─▶ Follow
//!                 ─ read ──▶ reader connections (snapshots) ◀── replay of the log ──┘
//! ```
//!
//! WAL with `synchronous=FULL`: a commit is on disk before it is acknowledged. The log keeps the
//! last changes for watchers; [`Options`] bound it. All of an object is one JSON text, which users
//! can read with any SQLite tool.

mod feed;
mod member;
mod namespace;
mod range;
mod reader;
mod schema;
mod shape;
mod write;
mod writer;

use std::{io, path::Path, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use model::{Kind, Object, ObjectKey, Revision};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use self::{feed::Feeds, reader::Readers, writer::Writer};
pub(crate) use self::{
    feed::{Committed, Follow},
    member::Admission,
    reader::Page,
    shape::OBJECT_MAX,
};
use crate::{
    Caller, StoreError,
    backend::{List, Precondition, Store, WatchStream},
    file::{create_private_folder, touch_private},
};

/// A store in a file. Clones share it; the file is closed when the last of them is dropped.
#[derive(Clone)]
pub struct Embedded {
    writer: Writer,
    readers: Readers,
    feeds: Arc<Feeds>,
    revocations: watch::Receiver<u64>,
}

/// An [`Embedded`] store on behalf of one caller.
#[derive(Clone)]
pub struct Session {
    store: Embedded,
    caller: Arc<Caller>,
}

/// How much of the past the store keeps for watchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Changes in the log at most.
    pub log_changes: i64,
    /// Their size at most, in bytes of JSON.
    pub log_bytes: i64,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its directory or its file cannot be made.
    #[error("cannot make the store's file")]
    Directory(#[source] io::Error),
    /// SQLite refused.
    #[error("cannot open the store's database")]
    Database(#[from] rusqlite::Error),
    /// The file system cannot carry a write-ahead log.
    #[error("the database cannot use a write-ahead log (its journal stays {0:?})")]
    Journal(String),
    /// The file was written by another version of meshd.
    #[error(
        "the database has form {found}, this meshd reads form {known}: run the meshd that wrote it, or restore a backup"
    )]
    Version {
        /// The file's form.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The writer's thread cannot be started.
    #[error("cannot start the writer's thread")]
    Thread(#[source] io::Error),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_changes: 50_000,
            log_bytes: 64 * 1024 * 1024,
        }
    }
}

impl Embedded {
    /// Opens the store in a file, or makes it.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; a file of a newer version is left as it is.
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let directory = path.parent().unwrap_or(Path::new("."));
        create_private_folder(directory).map_err(OpenError::Directory)?;
        // SQLite gives its other files the mode of this one.
        touch_private(path).map_err(OpenError::Directory)?;
        let connection = schema::open_writer(path)?;
        let readers = Readers::open(path)?;
        let feeds = Arc::new(Feeds::new());
        let (revoke, revocations) = watch::channel(0);
        let writer = Writer::start(connection, options, Arc::clone(&feeds), revoke)?;
        writer.begin(namespace::ensure_all);

        Ok(Self {
            writer,
            readers,
            feeds,
            revocations,
        })
    }

    /// Returns the store on behalf of a caller.
    pub fn session(&self, caller: Caller) -> Session {
        Session {
            store: self.clone(),
            caller: Arc::new(caller),
        }
    }

    /// Streams a kind in pages, all of one moment.
    pub(crate) fn pages(&self, kind: Kind) -> mpsc::Receiver<Result<Page, StoreError>> {
        self.readers.list(kind)
    }

    /// Begins a watch.
    pub(crate) fn follow(&self, kind: Kind, from: &Revision) -> Result<Follow, StoreError> {
        self.feeds.follow(self.readers.clone(), kind, from)
    }

    /// Returns one object as JSON.
    pub(crate) async fn json(&self, key: ObjectKey) -> Result<prost::bytes::Bytes, StoreError> {
        shape::check_key(&key)?;
        let found = self.readers.get(key.clone()).await?;

        found.ok_or(StoreError::NotFound(key))
    }
}

impl Store for Session {
    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<List, StoreError>> {
        async move {
            let mut pages = self.store.pages(kind);
            let mut list = List {
                objects: Vec::new(),
                revision: Revision::default(),
            };
            while let Some(page) = pages.recv().await {
                let page = page?;
                for json in &page.objects {
                    list.objects.push(feed::decode(json)?);
                }
                list.revision = page.revision;
                if page.last {
                    return Ok(list);
                }
            }

            Err(StoreError::Unavailable("the list was cut".to_owned()))
        }
        .boxed()
    }

    fn watch(&self, kind: Kind, from: Revision) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
        let follow = self.store.follow(kind, &from);

        async move {
            let batches = stream::unfold(Some(follow?), |follow| async {
                let mut follow = follow?;
                match follow.next().await {
                    Ok(batch) => {
                        let events = batch.iter().map(|change| change.event());
                        Some((events.collect::<Vec<_>>(), Some(follow)))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            });

            Ok(batches.flat_map(stream::iter).boxed())
        }
        .boxed()
    }

    fn get(&self, key: ObjectKey) -> BoxFuture<'_, Result<Object, StoreError>> {
        async move { feed::decode(&self.store.json(key).await?) }.boxed()
    }

    fn create(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
        let caller = Arc::clone(&self.caller);

        self.store
            .writer
            .write(move |writing| write::create(writing, &caller, object))
            .boxed()
    }

    fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
        let caller = Arc::clone(&self.caller);

        self.store
            .writer
            .write(move |writing| write::update(writing, &caller, object))
            .boxed()
    }

    fn patch(
        &self,
        key: ObjectKey,
        merge_patch: Value,
        expected: Precondition,
    ) -> BoxFuture<'_, Result<Object, StoreError>> {
        let caller = Arc::clone(&self.caller);

        self.store
            .writer
            .write(move |writing| write::patch(writing, &caller, &key, &merge_patch, &expected))
            .boxed()
    }

    fn delete(
        &self,
        key: ObjectKey,
        expected: Precondition,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let caller = Arc::clone(&self.caller);

        self.store
            .writer
            .write(move |writing| write::delete(writing, &caller, &key, &expected))
            .boxed()
    }
}

#[cfg(test)]
pub(crate) mod tests;
