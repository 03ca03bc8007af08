//! The blocks that a node tries, one after the other.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::NodeName;

/// 32-bit FNV-1: offset basis and prime (Fowler, Noll, Vo).
const FNV_BASIS: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// Every block of a pool once, from a place that depends on the node, around the end.
///
/// Nodes that start together so seldom try the same block.
#[derive(Clone, Debug)]
pub struct Candidates {
    pool: IpNet,
    block_size: u8,
    next: u128,
    left: u128,
}

impl Candidates {
    /// Lists the blocks of a pool for a node; none when blocks are larger than the pool.
    pub fn new(pool: IpNet, block_size: u8, node: &NodeName) -> Self {
        let pool = pool.trunc();
        let count = match block_size.checked_sub(pool.prefix_len()) {
            Some(bits) if block_size <= pool.max_prefix_len() => {
                1u128.checked_shl(bits.into()).unwrap_or(u128::MAX)
            }
            Some(_) | None => 0,
        };
        let start = u128::from(fnv1(node.as_str().as_bytes()));

        Self {
            pool,
            block_size,
            next: start.checked_rem(count).unwrap_or(0),
            left: count,
        }
    }

    fn total(&self) -> u128 {
        1u128
            .checked_shl((self.block_size - self.pool.prefix_len()).into())
            .unwrap_or(u128::MAX)
    }

    fn block(&self, index: u128) -> Option<IpNet> {
        match self.pool {
            IpNet::V4(pool) => {
                let shift = u32::from(32 - self.block_size);
                let offset = u32::try_from(index).ok()?.checked_shl(shift).unwrap_or(0);
                let first = u32::from(pool.network()).checked_add(offset)?;
                Ipv4Net::new(first.into(), self.block_size)
                    .ok()
                    .map(IpNet::V4)
            }
            IpNet::V6(pool) => {
                let shift = u32::from(128 - self.block_size);
                let offset = index.checked_shl(shift).unwrap_or(0);
                let first = u128::from(pool.network()).checked_add(offset)?;
                Ipv6Net::new(first.into(), self.block_size)
                    .ok()
                    .map(IpNet::V6)
            }
        }
    }
}

impl Iterator for Candidates {
    type Item = IpNet;

    fn next(&mut self) -> Option<IpNet> {
        if self.left == 0 {
            return None;
        }
        let block = self.block(self.next)?;
        self.left -= 1;
        self.next = (self.next + 1) % self.total();

        Some(block)
    }
}

/// Brings blocks of a pool, which are in order, into the order in which a node tries them.
pub(crate) fn rotate(blocks: &mut [IpNet], pool: IpNet, block_size: u8, node: &NodeName) {
    let Some(start) = Candidates::new(pool, block_size, node).next() else {
        return;
    };
    let first = blocks.partition_point(|block| *block < start);
    blocks.rotate_left(first);
}

/// Returns the 32-bit FNV-1 hash (multiply, then exclusive or) of bytes.
fn fnv1(bytes: &[u8]) -> u32 {
    bytes.iter().fold(FNV_BASIS, |hash, byte| {
        hash.wrapping_mul(FNV_PRIME) ^ u32::from(*byte)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_block_of_a_pool_is_tried_once() {
        for (pool, block_size, count) in [
            ("10.65.0.0/24", 26, 4),
            ("10.65.0.0/26", 26, 1),
            ("10.0.0.0/16", 32, 65536),
            ("0.0.0.0/0", 12, 4096),
            ("fd00::/116", 122, 64),
            ("10.65.0.0/27", 26, 0),
        ] {
            let pool: IpNet = pool.parse().unwrap();
            let blocks: Vec<_> = Candidates::new(pool, block_size, &node("n1")).collect();

            assert_eq!(blocks.len(), count, "{pool}");
            assert_eq!(blocks.iter().collect::<BTreeSet<_>>().len(), count);
            assert!(
                blocks
                    .iter()
                    .all(|block| pool.contains(block) && block.prefix_len() == block_size)
            );
        }
    }

    #[test]
    fn a_pool_without_end_is_walked_lazily() {
        let mut blocks = Candidates::new("fd00::/8".parse().unwrap(), 122, &node("n1"));

        assert!(blocks.next() != blocks.next());
    }

    #[test]
    fn nodes_start_at_different_blocks() {
        let starts: BTreeSet<_> = (0..64)
            .map(|n| {
                Candidates::new("10.0.0.0/16".parse().unwrap(), 26, &node(&format!("n{n}"))).next()
            })
            .collect();

        assert!(starts.len() > 48, "{} starts for 64 nodes", starts.len());
    }

    #[test]
    fn the_hash_is_fnv_1() {
        // Test vectors of the FNV reference (www.isthe.com/chongo/tech/comp/fnv).
        for (text, hash) in [
            ("", 0x811c_9dc5),
            ("a", 0x050c_5d7e),
            ("foobar", 0x31f0_b262),
        ] {
            assert_eq!(fnv1(text.as_bytes()), hash, "{text}");
        }
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }
}
