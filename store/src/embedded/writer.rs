//! The one thread that writes.
//!
//! ```text
//! jobs ─▶ up to 64 in one transaction, each in a savepoint ─▶ commit (fsync) ─▶ watchers ─▶ answers
//! ```
//!
//! A job that fails leaves nothing behind and does not harm the others of its transaction. Nobody
//! is answered before the commit.

use std::{sync::Arc, thread};

use jiff::Timestamp;
use model::{Kind, Object, ObjectKey};
use prost::bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Options,
    feed::{Committed, Feeds, decode},
    reader,
};
use crate::StoreError;

/// Jobs that may wait for the writer.
const QUEUE: usize = 1024;

/// Jobs in one transaction.
const GROUP: usize = 64;

/// Rows of the log that one commit removes at most.
const COMPACT_CHUNK: i64 = 256;

/// Where jobs are handed in. Clones hand in to the same thread.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<Box<dyn Job>>);

/// What a job works on: a transaction.
pub(super) struct Writing<'c> {
    pub(super) connection: &'c Connection,
    /// When the transaction began.
    pub(super) now: Timestamp,
    revision: i64,
    changes: Vec<Committed>,
    /// How many certificates end with this transaction.
    pub(super) revoked: usize,
}

/// What the thread owns.
struct Thread {
    connection: Connection,
    options: Options,
    feeds: Arc<Feeds>,
    revocations: watch::Sender<u64>,
    log: LogSize,
}

/// How much the log holds.
#[derive(Clone, Copy, Default)]
struct LogSize {
    rows: i64,
    bytes: i64,
}

trait Job: Send {
    /// Does the work; returns whether it is to stay.
    fn run(&mut self, writing: &mut Writing<'_>) -> bool;

    /// Answers; `Err` where the transaction as a whole failed.
    fn finish(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Task<T, F> {
    work: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl Writer {
    /// Starts the thread; it ends when the last writer is dropped.
    ///
    /// `revocations` rises whenever certificates were revoked, after the commit.
    pub(super) fn start(
        connection: Connection,
        options: Options,
        feeds: Arc<Feeds>,
        revocations: watch::Sender<u64>,
    ) -> Result<Self, super::OpenError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let log = connection.query_row(
            "SELECT count(*), coalesce(sum(length(json)), 0) FROM log",
            (),
            |row| {
                Ok(LogSize {
                    rows: row.get(0)?,
                    bytes: row.get(1)?,
                })
            },
        )?;
        let thread = Thread {
            connection,
            options,
            feeds,
            revocations,
            log,
        };
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || thread.run(queue))
            .map_err(super::OpenError::Thread)?;

        Ok(Self(jobs))
    }

    /// Has work done in a transaction before all other work; a failure is logged. For a writer that nobody uses yet.
    pub(super) fn begin(
        &self,
        work: impl FnOnce(&mut Writing<'_>) -> Result<(), StoreError> + Send + 'static,
    ) {
        let (reply, _) = oneshot::channel();
        let logged = move |writing: &mut Writing<'_>| {
            work(writing)
                .inspect_err(|error| tracing::error!(%error, "The store is not as it should be"))
        };
        let task = Task {
            work: Some(logged),
            result: None,
            reply,
        };
        if self.0.try_send(Box::new(task)).is_err() {
            tracing::error!("the store's writer ended as it began");
        }
    }

    /// Has work done in a transaction, and returns once that is on disk.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writing<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable("the store was closed".to_owned());
        let (reply, answer) = oneshot::channel();
        let task = Task {
            work: Some(work),
            result: None,
            reply,
        };
        self.0.send(Box::new(task)).await.map_err(|_| closed())?;

        answer.await.map_err(|_| closed())?
    }
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnOnce(&mut Writing<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, writing: &mut Writing<'_>) -> bool {
        self.result = self.work.take().map(|work| work(writing));

        matches!(self.result, Some(Ok(_)))
    }

    fn finish(self: Box<Self>, committed: Result<(), StoreError>) {
        let lost = || Err(StoreError::Internal("the work was never done".to_owned()));
        let result = match (self.result, committed) {
            (Some(Ok(_)), Err(error)) => Err(error),
            (result, Ok(()) | Err(_)) => result.unwrap_or_else(lost),
        };
        // Fails only where nobody waits for the answer any more.
        drop(self.reply.send(result));
    }
}

impl Thread {
    fn run(mut self, mut queue: mpsc::Receiver<Box<dyn Job>>) {
        let mut jobs = Vec::with_capacity(GROUP);
        while let Some(first) = queue.blocking_recv() {
            jobs.push(first);
            while jobs.len() < GROUP
                && let Ok(next) = queue.try_recv()
            {
                jobs.push(next);
            }
            let committed = self.commit(&mut jobs).map_err(|error| {
                tracing::error!(%error, "a transaction of the store failed");
                StoreError::Unavailable(format!("the database: {error}"))
            });
            for job in jobs.drain(..) {
                job.finish(committed.clone());
            }
        }
    }

    /// Runs the jobs in one transaction, and tells watchers once it is on disk.
    fn commit(&mut self, jobs: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let revision = reader::current(&transaction)?;
        let mut writing = Writing {
            connection: &transaction,
            now: Timestamp::now(),
            revision,
            changes: Vec::new(),
            revoked: 0,
        };
        for job in jobs {
            writing.savepoint(job.as_mut())?;
        }
        let Writing {
            changes,
            revoked,
            revision: newest,
            ..
        } = writing;
        let mut log = self.log;
        if newest != revision {
            transaction
                .prepare_cached("UPDATE meta SET value = ? WHERE name = 'revision'")?
                .execute([newest])?;
            log.grow(&changes);
            compact(&transaction, &mut log, &self.options)?;
        }
        transaction.commit()?;
        self.log = log;
        for change in changes {
            self.feeds.publish(change);
        }
        if revoked > 0 {
            self.revocations.send_modify(|count| *count += 1);
        }

        Ok(())
    }
}

impl Writing<'_> {
    /// Runs one job so that it can be undone alone.
    fn savepoint(&mut self, job: &mut dyn Job) -> rusqlite::Result<()> {
        let before = (self.revision, self.changes.len(), self.revoked);
        self.execute("SAVEPOINT job")?;
        if !job.run(self) {
            let kept;
            (self.revision, kept, self.revoked) = before;
            self.changes.truncate(kept);
            self.execute("ROLLBACK TO job")?;
        }

        self.execute("RELEASE job")
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(()).map(|_| ())
    }

    /// Returns a stored object.
    pub(super) fn object(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        let json: Option<String> = self
            .connection
            .prepare_cached(
                "SELECT json FROM object WHERE kind = ? AND namespace = ? AND name = ?",
            )?
            .query_row(
                params![
                    key.kind.as_str(),
                    key.namespace.as_deref().unwrap_or(""),
                    key.name
                ],
                |row| row.get(0),
            )
            .optional()?;

        json.map(|json| decode(json.as_bytes())).transpose()
    }

    /// Returns every object of a kind.
    pub(super) fn objects(&self, kind: Kind) -> Result<Vec<Object>, StoreError> {
        self.decoded(
            "SELECT json FROM object WHERE kind = ?",
            params![kind.as_str()],
        )
    }

    /// Returns every object of a kind that belongs to a node.
    pub(super) fn objects_of(&self, kind: Kind, node: &str) -> Result<Vec<Object>, StoreError> {
        let sql = "SELECT json FROM object WHERE node = ? AND kind = ?";

        self.decoded(sql, params![node, kind.as_str()])
    }

    fn decoded(
        &self,
        sql: &str,
        parameters: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<Object>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        let mut objects = Vec::new();
        while let Some(row) = rows.next()? {
            let json: String = row.get(0)?;
            objects.push(decode(json.as_bytes())?);
        }

        Ok(objects)
    }

    /// Stores an object under the next revision, and returns it as stored.
    pub(super) fn put(&mut self, mut object: Object) -> Result<Object, StoreError> {
        let revision = self.revision + 1;
        object.metadata.resource_version = Some(revision.to_string());
        let key = object.key();
        let json = serde_json::to_string(&object)
            .map_err(|error| StoreError::Internal(error.to_string()))?;
        super::shape::check_size(&key, json.len())?;
        let namespace = key.namespace.as_deref().unwrap_or("");
        let kind = key.kind.as_str();
        self.connection
            .prepare_cached(
                "INSERT INTO object (kind, namespace, name, revision, node, json)
                 VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT (kind, namespace, name) DO UPDATE SET
                 revision = excluded.revision, node = excluded.node, json = excluded.json",
            )?
            .execute(params![
                kind,
                namespace,
                key.name,
                revision,
                super::shape::owner(&object),
                json
            ])?;
        super::range::put(self.connection, &object)?;
        self.log(revision, key, Some(Bytes::from(json)))?;

        Ok(object)
    }

    /// Removes a stored object.
    pub(super) fn remove(&mut self, key: ObjectKey) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM object WHERE kind = ? AND namespace = ? AND name = ?")?
            .execute(params![
                key.kind.as_str(),
                key.namespace.as_deref().unwrap_or(""),
                key.name
            ])?;
        super::range::remove(self.connection, &key)?;

        self.log(self.revision + 1, key, None)
    }

    fn log(
        &mut self,
        revision: i64,
        key: ObjectKey,
        json: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let text = json.as_ref().map(|json| String::from_utf8_lossy(json));
        self.connection
            .prepare_cached(
                "INSERT INTO log (revision, kind, namespace, name, json) VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                revision,
                key.kind.as_str(),
                key.namespace.as_deref().unwrap_or(""),
                key.name,
                text
            ])?;
        self.revision = revision;
        self.changes.push(Committed {
            revision,
            key,
            json,
        });

        Ok(())
    }
}

impl LogSize {
    fn grow(&mut self, changes: &[Committed]) {
        for change in changes {
            self.rows += 1;
            self.bytes += change.json.as_ref().map_or(0, |json| json.len() as i64);
        }
    }

    fn exceeds(&self, options: &Options) -> bool {
        self.rows > options.log_changes || self.bytes > options.log_bytes
    }
}

/// Removes the oldest changes while the log is too large, and remembers per kind how far that went.
fn compact(connection: &Connection, log: &mut LogSize, options: &Options) -> rusqlite::Result<()> {
    while log.exceeds(options) && log.rows > 1 {
        // The newest change stays, and no more goes than is too much.
        let rows = (log.rows - options.log_changes)
            .clamp(1, COMPACT_CHUNK)
            .min(log.rows - 1);
        let (until, bytes): (i64, i64) = connection
            .prepare_cached(
                "SELECT max(revision), coalesce(sum(length(json)), 0)
                 FROM (SELECT revision, json FROM log ORDER BY revision LIMIT ?)",
            )?
            .query_row([rows], |row| Ok((row.get(0)?, row.get(1)?)))?;
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO compacted
                 SELECT kind, max(revision) FROM log WHERE revision <= ? GROUP BY kind",
            )?
            .execute([until])?;
        connection
            .prepare_cached("DELETE FROM log WHERE revision <= ?")?
            .execute([until])?;
        log.rows -= rows;
        log.bytes -= bytes;
    }

    Ok(())
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Internal(format!("the database: {error}"))
    }
}
