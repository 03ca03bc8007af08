//! The database's form, and how a connection to it is opened.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::OpenError;

/// The version of the form below, kept in `PRAGMA user_version`.
const VERSION: i64 = 1;

/// Objects, the log of their changes, and what the server knows of its members.
///
/// `log` holds one row a change, `json` null for a deletion. `compacted` holds, per kind, the
/// newest revision that has left the log. `block_range` orders blocks by their addresses, so that an
/// overlap is found by one look. A token's `hash` is all that is kept of it.
const FORM: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO meta VALUES ('revision', 1);
CREATE TABLE object (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    revision INTEGER NOT NULL, node TEXT, json TEXT NOT NULL,
    UNIQUE (kind, namespace, name)) STRICT;
CREATE INDEX object_node ON object (node, kind) WHERE node IS NOT NULL;
CREATE TABLE log (
    revision INTEGER PRIMARY KEY, kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    json TEXT) STRICT;
CREATE INDEX log_kind ON log (kind, revision);
CREATE TABLE compacted (kind TEXT PRIMARY KEY, revision INTEGER NOT NULL) STRICT;
CREATE TABLE block_range (
    name TEXT PRIMARY KEY, first BLOB NOT NULL, last BLOB NOT NULL) STRICT;
CREATE INDEX block_range_first ON block_range (first);
CREATE TABLE token (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, node TEXT, replaces INTEGER NOT NULL,
    expires INTEGER NOT NULL, used_by TEXT, used_key TEXT) STRICT;
CREATE TABLE certificate (
    serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL,
    expires INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX certificate_name ON certificate (role, name);
";

/// Opens the connection that writes; makes the database where there is none.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let mut connection = Connection::open(path)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))?;
    if mode != "wal" {
        return Err(OpenError::Journal(mode));
    }
    connection.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000; PRAGMA cache_size = -4000;",
    )?;
    migrate(&mut connection)?;

    Ok(connection)
}

/// Opens a connection that cannot write.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch("PRAGMA busy_timeout = 5000; PRAGMA cache_size = -1000;")?;

    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), OpenError> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    match version {
        0 => {
            transaction.execute_batch(FORM)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        VERSION => {}
        other => {
            return Err(OpenError::Version {
                found: other,
                known: VERSION,
            });
        }
    }

    Ok(transaction.commit()?)
}
