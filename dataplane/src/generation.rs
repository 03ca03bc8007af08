//! Which generations of the machine's packet filters are ours.
//!
//! Every transaction of nftables, anybody's, makes the next generation of the network namespace, and the kernel tells
//! only its number. What commits ours notes the number that the kernel sends back with it; whoever watches takes every
//! other for somebody else's. A commit of which the number is not known counts as somebody else's too.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::Ownership;

/// The book of our generations; each clone is the same book.
#[derive(Clone)]
pub(crate) struct Generations(Arc<Mutex<Book>>);

struct Book {
    ownership: Ownership,
    /// Commits of which the end is not noted yet.
    under_way: u32,
    /// Numbers that the watching end has not seen yet.
    ours: BTreeSet<u32>,
    /// Since this one nobody else can change our tables.
    owned_since: Option<u32>,
}

/// A commit that was begun; however it ends, it is over when this is dropped.
pub(crate) struct UnderWay(Generations);

/// Generations that others made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strangers {
    /// How many.
    pub(crate) count: u32,
    /// Some were made when others could change our tables.
    pub(crate) could_change_ours: bool,
}

impl Generations {
    /// Begins a book.
    pub(crate) fn new(ownership: Ownership) -> Self {
        Self(Arc::new(Mutex::new(Book {
            ownership,
            under_way: 0,
            ours: BTreeSet::new(),
            owned_since: None,
        })))
    }

    /// Returns whether others may change our tables.
    pub(crate) fn ownership(&self) -> Ownership {
        self.book().ownership
    }

    /// Returns whether a commit since should have made our tables ours alone.
    pub(crate) fn are_committed(&self) -> bool {
        self.book().owned_since.is_some()
    }

    /// Notes that the kernel has no owners: others may change our tables.
    pub(crate) fn share(&self) {
        let mut book = self.book();
        book.ownership = Ownership::Shared;
        book.owned_since = None;
    }

    /// Begins a commit.
    pub(crate) fn begin(&self) -> UnderWay {
        self.book().under_way += 1;

        UnderWay(self.clone())
    }

    /// Tells what others did behind generation `last`, up to and with `now`, and forgets ours of these. `None` while a
    /// commit is under way: `now` may be its number.
    pub(crate) fn strangers(&self, last: u32, now: u32) -> Option<Strangers> {
        let mut book = self.book();
        if book.under_way > 0 {
            return None;
        }
        let count = book.strangers(last, now);
        let could_change_ours = count > 0
            && match book.owned_since {
                None => true,
                Some(since) if is_behind(since, now) => true,
                Some(since) if is_behind(since, last) => {
                    book.strangers(last, since.wrapping_sub(1)) > 0
                }
                Some(_) => false,
            };
        book.ours.retain(|own| is_behind(*own, now));

        Some(Strangers {
            count,
            could_change_ours,
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // What is in there is whole at every moment, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Counts generations behind `last`, up to and with `now`, that are not ours.
    fn strangers(&self, last: u32, now: u32) -> u32 {
        let all = now.wrapping_sub(last);
        let is_among = |own: &&u32| own.wrapping_sub(last).wrapping_sub(1) < all;
        let ours = self.ours.iter().filter(is_among).count();

        all.saturating_sub(u32::try_from(ours).unwrap_or(u32::MAX))
    }
}

impl UnderWay {
    /// Notes which generation the commit made, where it made one. It holds tables of ours, and where the book says
    /// that they have an owner it made us that.
    pub(crate) fn made(self, generation: Option<u32>) {
        let Some(generation) = generation else {
            return;
        };
        let mut book = self.0.book();
        book.ours.insert(generation);
        if book.ownership == Ownership::Exclusive {
            book.owned_since.get_or_insert(generation);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.book().under_way -= 1;
    }
}

/// Returns whether a generation comes later than another; numbers begin anew after the largest.
fn is_behind(generation: u32, other: u32) -> bool {
    generation.wrapping_sub(other).cast_signed() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(ours: &[u32]) -> Generations {
        let generations = Generations::new(Ownership::Exclusive);
        for own in ours {
            generations.begin().made(Some(*own));
        }
        generations
    }

    fn others(count: u32, could_change_ours: bool) -> Option<Strangers> {
        Some(Strangers {
            count,
            could_change_ours,
        })
    }

    #[test]
    fn only_what_is_not_ours_is_somebody_elses() {
        let generations = book(&[5, 7]);

        assert_eq!(generations.strangers(4, 5), others(0, false));
        assert_eq!(generations.strangers(5, 7), others(1, false));
        assert_eq!(generations.strangers(7, 7), others(0, false));
        assert_eq!(generations.strangers(7, 9), others(2, false));
    }

    #[test]
    fn what_others_did_before_we_owned_the_tables_may_concern_them() {
        assert_eq!(book(&[]).strangers(4, 5), others(1, true));
        assert_eq!(book(&[6]).strangers(4, 6), others(1, true));
        assert_eq!(book(&[6]).strangers(5, 7), others(1, false));
        // The commit came between the look at the number and this question.
        assert_eq!(book(&[6]).strangers(4, 5), others(1, true));
        let shared = book(&[4]);
        shared.share();
        assert_eq!(shared.strangers(4, 5), others(1, true));
    }

    #[test]
    fn nothing_is_said_while_a_commit_is_under_way() {
        let generations = book(&[5]);
        let commit = generations.begin();
        assert_eq!(generations.strangers(5, 6), None);

        commit.made(Some(6));
        assert_eq!(generations.strangers(5, 6), others(0, false));
        drop(generations.begin());
        assert_eq!(
            generations.strangers(6, 7),
            others(1, false),
            "its number was never told"
        );
    }

    #[test]
    fn numbers_may_begin_anew() {
        let generations = book(&[u32::MAX]);

        assert_eq!(generations.strangers(u32::MAX - 1, 1), others(2, false));
    }
}
