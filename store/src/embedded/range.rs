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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Two networks share an address exactly when one holds the other's first.
    fn oracle(blocks: &[IpNet], cidr: IpNet) -> bool {
        blocks
            .iter()
            .any(|block| block.contains(&cidr.network()) || cidr.contains(&block.network()))
    }

    #[test]
    fn an_overlap_is_found_exactly_where_looking_at_every_block_finds_one() {
        let mut random = 7_u64;
        let mut next = |below: u64| {
            // Knuth's MMIX congruence; the upper bits are the good ones.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let [mut found, mut free] = [0, 0];
        for _ in 0..60 {
            let connection = Connection::open_in_memory().unwrap();
            connection
                .execute_batch("CREATE TABLE block_range (name TEXT PRIMARY KEY, first, last)")
                .unwrap();
            let mut blocks = Vec::new();
            for _ in 0..60 {
                let length = 20 + next(13) as u8;
                let low = next(1 << 16) as u32;
                let cidr: IpNet = match next(2) {
                    0 => IpNet::new((0x0a41_0000 | low).to_be_bytes().into(), length).unwrap(),
                    _ => {
                        let address = 0xfd00_u128 << 112 | u128::from(low);
                        IpNet::new(address.to_be_bytes().into(), length + 96).unwrap()
                    }
                };
                let cidr = cidr.trunc();
                let expected = oracle(&blocks, cidr);
                let overlap = overlapping(&connection, cidr, "").unwrap();
                assert_eq!(overlap.is_some(), expected, "{cidr} among {blocks:?}");
                if expected {
                    found += 1;
                    continue;
                }
                free += 1;
                let key = ObjectKey::cluster(Kind::IPAMBlock, cidr.to_string());
                put(&connection, &Object::new(&key, json!({"cidr": cidr}))).unwrap();
                assert_eq!(
                    overlapping(&connection, cidr, &cidr.to_string()).unwrap(),
                    None
                );
                blocks.push(cidr);
            }
        }
        assert!(found > 200 && free > 200, "{found} overlap, {free} do not");
    }
}
