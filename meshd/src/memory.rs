//! The process's memory: what is freed goes back to the machine.
//!
//! An agent needs several times as much while it learns and programs a whole cluster as it keeps afterwards. glibc's
//! allocator would hold on to the difference for good: it has a heap for each thread, takes ever larger blocks from
//! them, and gives back only what lies at their ends.
//!
//! **Invariant:** this changes no behaviour; where another C library runs, nothing is done.

mod sys;

/// Bytes from which on a block of memory is a mapping of its own, which goes back as soon as it is freed: glibc's own
/// first value. It would be raised to 32 MiB as soon as a block of such a size is freed.
const LARGE: i32 = 128 << 10;

/// Bytes at the free end of the heap from which on it shrinks by itself. Above what a pass takes and frees again and
/// again: [`give_back`] is for the rest.
const SPARE: i32 = 64 << 20;

/// Sets the allocator up. Call before there is a second thread.
pub(crate) fn set_up() {
    sys::one_heap();
    sys::keep_thresholds(LARGE, SPARE);
}

/// Gives everything that is free back to the machine: a few milliseconds for a heap of a hundred MB.
pub(crate) fn give_back() {
    sys::trim();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_freed_is_given_back_and_what_is_kept_stays() {
        set_up();
        let kept: Vec<Box<[u8]>> = (0..64u8).map(|i| vec![i; 4096].into()).collect();
        let mut large: Vec<Box<[u8]>> = Vec::new();
        let mut walls: Vec<Box<[u8]>> = Vec::new();
        for _ in 0..1_000 {
            large.push(vec![1; 65_536].into());
            // What stays between them keeps the heap's end where it is.
            walls.push(vec![2; 16].into());
        }
        let full = resident();
        drop(large);

        give_back();

        let left = resident();
        assert!(full - left > 40 << 20, "{full} bytes, then {left}");
        assert!(
            kept.iter()
                .zip(0..)
                .all(|(block, i)| block.iter().all(|byte| *byte == i))
        );
        assert!(walls.iter().all(|wall| **wall == [2; 16]));
    }

    /// Returns the bytes of memory that the process has, as `/proc/self/statm` counts them.
    fn resident() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();

        pages * 4096
    }
}
