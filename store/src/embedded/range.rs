//! Blocks ordered by their addresses, so that an overlap is found by one look.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{Kind, Object, ObjectKey};
use rusqlite::{Connection, OptionalExtension, params};

/// Notes the range of a block that was stored.
pub(super) fn put(connection: &Connection, object: &Object) -> rusqlite::Result<()> {
    if object.kind != Kind::IPAMBlock {
        return Ok(());
    }
    let cidr = object
        .body
        .get("spec")
        .and_then(|spec| spec.get("cidr")?.as_str()?.parse().ok());
    // A block without a readable range overlaps nothing; nobody uses it either.
    let Some(cidr) = cidr else {
        return remove(connection, &object.key());
    };
    let (first, last) = ends(cidr);
    connection
        .prepare_cached("INSERT OR REPLACE INTO block_range VALUES (?, ?, ?)")?
        .execute(params![object.metadata.name, first, last])?;

    Ok(())
}

/// Forgets the range of a block that was removed.
pub(super) fn remove(connection: &Connection, key: &ObjectKey) -> rusqlite::Result<()> {
    if key.kind == Kind::IPAMBlock {
        connection
            .prepare_cached("DELETE FROM block_range WHERE name = ?")?
            .execute([&key.name])?;
    }

    Ok(())
}

/// Returns the name of another block that shares an address with a range.
///
/// Ranges that are aligned to their own size either nest or are disjoint, so it is enough to look at
/// what begins inside the range, and at what begins last before it and at each possible larger size.
pub(super) fn overlapping(
    connection: &Connection,
    cidr: IpNet,
    except: &str,
) -> rusqlite::Result<Option<String>> {
    let (first, last) = ends(cidr);
    let inside: Option<String> = connection
        .prepare_cached(
            "SELECT name FROM block_range WHERE first BETWEEN ? AND ? AND name <> ? LIMIT 1",
        )?
        .query_row(params![first, last, except], |row| row.get(0))
        .optional()?;
    if inside.is_some() {
        return Ok(inside);
    }
    let mut around = connection.prepare_cached(
        "SELECT name FROM block_range WHERE first = ? AND last >= ? AND name <> ? LIMIT 1",
    )?;
    let mut larger = cidr;
    while let Some(next) = larger.supernet() {
        larger = next;
        let found: Option<String> = around
            .query_row(params![ends(larger).0, last, except], |row| row.get(0))
            .optional()?;
        if found.is_some() {
            return Ok(found);
        }
    }

    Ok(None)
}

/// Returns the first and the last address in a form that orders like addresses, each family apart.
fn ends(cidr: IpNet) -> (Vec<u8>, Vec<u8>) {
    (ordered(cidr.network()), ordered(cidr.broadcast()))
}

fn ordered(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => [&[4][..], &address.octets()].concat(),
        IpAddr::V6(address) => [&[6][..], &address.octets()].concat(),
    }
}
