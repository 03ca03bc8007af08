//! Reads: each on a snapshot of its own, beside the writer.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{Kind, ObjectKey, Revision};
use prost::bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    time::{Instant, timeout, timeout_at},
};

use super::{
    feed::{Batch, Committed},
    schema,
};
use crate::StoreError;

/// How many reads run at once.
const CONNECTIONS: usize = 4;

/// How large a page of a list becomes, in bytes of JSON; one object more may follow.
const PAGE_BYTES: usize = 512 * 1024;

/// How many objects a page holds at most.
const PAGE_OBJECTS: usize = 1000;

/// How many of them are lists: a single object can be read whatever lists are under way.
const LISTS: usize = CONNECTIONS - 1;

/// Pages that are read before the reader of a list has taken the first: most lists are whole then,
/// and hold no connection however slowly they are read.
const PAGES_AHEAD: usize = 4;

/// How long a list may take, its reader's slowness included: a snapshot that stays open keeps the
/// log of SQLite from being folded in.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections that cannot write. Clones share them.
#[derive(Clone)]
pub(super) struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    free: Arc<Semaphore>,
    lists: Arc<Semaphore>,
}

/// A page of a list.
pub(crate) struct Page {
    pub(crate) objects: Vec<Bytes>,
    pub(crate) revision: Revision,
    pub(crate) last: bool,
}

impl Readers {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let idle = (0..CONNECTIONS)
            .map(|_| schema::open_reader(path))
            .collect::<Result<_, _>>()?;

        Ok(Self {
            idle: Arc::new(Mutex::new(idle)),
            free: Arc::new(Semaphore::new(CONNECTIONS)),
            lists: Arc::new(Semaphore::new(LISTS)),
        })
    }

    /// Returns one object's JSON.
    pub(super) async fn get(&self, key: ObjectKey) -> Result<Option<Bytes>, StoreError> {
        self.read(move |connection| {
            connection
                .prepare_cached(
                    "SELECT json FROM object WHERE kind = ? AND namespace = ? AND name = ?",
                )?
                .query_row(
                    params![
                        key.kind.as_str(),
                        key.namespace.unwrap_or_default(),
                        key.name
                    ],
                    |row| text(row, 0),
                )
                .optional()
        })
        .await
    }

    /// Returns a batch of a kind's changes after a revision, from the log; an empty one when there are none.
    pub(super) async fn replay(
        &self,
        kind: Kind,
        after: i64,
    ) -> Result<Vec<Arc<Committed>>, StoreError> {
        self.read(move |connection| {
            let transaction = connection.transaction()?;
            if !is_known(&transaction, kind, after)? {
                return Ok(Err(StoreError::Compacted(kind)));
            }
            let mut statement = transaction.prepare_cached(
                "SELECT revision, namespace, name, json FROM log
                 WHERE kind = ? AND revision > ? ORDER BY revision",
            )?;
            let mut rows = statement.query(params![kind.as_str(), after])?;
            let mut batch = Batch::default();
            while batch.has_room()
                && let Some(row) = rows.next()?
            {
                batch.push(Arc::new(change(row, kind)?));
            }

            Ok(Ok(batch.changes))
        })
        .await?
    }

    /// Streams every object of a kind at one moment, in pages.
    pub(super) fn list(&self, kind: Kind) -> mpsc::Receiver<Result<Page, StoreError>> {
        let (pages, receiver) = mpsc::channel(PAGES_AHEAD);
        let readers = self.clone();
        tokio::spawn(async move {
            let listed = readers.send_list(kind, pages.clone()).await;
            let failure = match listed {
                Ok(true) => return,
                Ok(false) => StoreError::Unavailable("the list was read too slowly".to_owned()),
                Err(error) => error,
            };
            // Fails only where the reader has gone.
            drop(timeout(LIST_TIMEOUT, pages.send(Err(failure))).await);
        });

        receiver
    }

    async fn send_list(
        &self,
        kind: Kind,
        pages: mpsc::Sender<Result<Page, StoreError>>,
    ) -> Result<bool, StoreError> {
        let closed = |_| StoreError::Unavailable("the store was closed".to_owned());
        let _permit = self.lists.acquire().await.map_err(closed)?;
        let handle = Handle::current();
        let deadline = Instant::now() + LIST_TIMEOUT;

        self.read(move |connection| {
            let send = |page| handle.block_on(timeout_at(deadline, pages.send(Ok(page))));
            send_pages(connection, kind, |page| matches!(send(page), Ok(Ok(()))))
        })
        .await
    }

    /// Runs a read on a connection of its own.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable("the store was closed".to_owned());
        let permit = Arc::clone(&self.free)
            .acquire_owned()
            .await
            .map_err(|_| closed())?;
        let idle = Arc::clone(&self.idle);
        let task = tokio::task::spawn_blocking(move || {
            let lock = || idle.lock().unwrap_or_else(PoisonError::into_inner);
            let mut connection = lock().pop()?;
            let result = read(&mut connection);
            lock().push(connection);
            drop(permit);

            Some(result)
        });
        let result = task
            .await
            .map_err(|error| StoreError::Internal(error.to_string()))?;

        result
            .ok_or_else(closed)?
            .map_err(|error| StoreError::Internal(error.to_string()))
    }
}

/// Reads a kind from one snapshot; `send` says whether to go on. Returns whether all was sent.
fn send_pages(
    connection: &mut Connection,
    kind: Kind,
    mut send: impl FnMut(Page) -> bool,
) -> rusqlite::Result<bool> {
    let transaction = connection.transaction()?;
    let revision = Revision(current(&transaction)?.to_string());
    let mut statement = transaction
        .prepare_cached("SELECT json FROM object WHERE kind = ? ORDER BY namespace, name")?;
    let mut rows = statement.query([kind.as_str()])?;
    let mut objects = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let json = text(row, 0)?;
        bytes += json.len();
        objects.push(json);
        if bytes >= PAGE_BYTES || objects.len() >= PAGE_OBJECTS {
            let full = std::mem::take(&mut objects);
            bytes = 0;
            if !send(Page {
                objects: full,
                revision: revision.clone(),
                last: false,
            }) {
                return Ok(false);
            }
        }
    }

    Ok(send(Page {
        objects,
        revision,
        last: true,
    }))
}

/// Returns the newest revision.
pub(super) fn current(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = 'revision'")?
        .query_row((), |row| row.get(0))
}

/// Returns whether every change of a kind after a revision is in the log.
fn is_known(connection: &Connection, kind: Kind, after: i64) -> rusqlite::Result<bool> {
    let compacted: Option<i64> = connection
        .prepare_cached("SELECT revision FROM compacted WHERE kind = ?")?
        .query_row([kind.as_str()], |row| row.get(0))
        .optional()?;

    Ok(compacted.is_none_or(|compacted| after >= compacted) && after <= current(connection)?)
}

fn change(row: &Row<'_>, kind: Kind) -> rusqlite::Result<Committed> {
    let namespace: String = row.get(1)?;
    let deleted = row.get_ref(3)? == rusqlite::types::ValueRef::Null;

    Ok(Committed {
        revision: row.get(0)?,
        key: ObjectKey {
            kind,
            namespace: (!namespace.is_empty()).then_some(namespace),
            name: row.get(2)?,
        },
        json: if deleted { None } else { Some(text(row, 3)?) },
    })
}

fn text(row: &Row<'_>, index: usize) -> rusqlite::Result<Bytes> {
    row.get_ref(index)?
        .as_bytes()
        .map(Bytes::copy_from_slice)
        .map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(
                index,
                rusqlite::types::Type::Text,
                Box::new(error),
            )
        })
}
