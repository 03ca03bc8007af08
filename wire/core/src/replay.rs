//! The replay window: which counters of a session have been seen (RFC 6479, with the kernel's
//! sizes).
use crate::limit::{REJECT_AFTER_MESSAGES, WINDOW, WINDOW_BITS};

const WORDS: u64 = WINDOW_BITS / 64;

/// A ring of bits, one per counter. The words ahead of the newest counter are cleared when it moves
/// on, which is why the window is one word shorter than the ring.
pub(crate) struct ReplayWindow {
    /// One more than the greatest counter accepted; 0 before the first.
    next: u64,
    seen: [u64; WORDS as usize],
}

impl ReplayWindow {
    pub(crate) const fn new() -> Self {
        Self {
            next: 0,
            seen: [0; WORDS as usize],
        }
    }

    /// Accepts a counter once, if it is not older than the window.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if counter >= REJECT_AFTER_MESSAGES || self.next > REJECT_AFTER_MESSAGES {
            return false;
        }
        let position = counter + 1;
        if position + WINDOW < self.next {
            return false;
        }
        if position > self.next {
            self.advance(position);
        }
        let bit = 1 << (position % 64);
        let word = &mut self.seen[(position / 64 % WORDS) as usize];
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    fn advance(&mut self, position: u64) {
        let from = self.next / 64;
        let words = (position / 64 - from).min(WORDS);
        for i in 1..=words {
            self.seen[((from + i) % WORDS) as usize] = 0;
        }
        self.next = position;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = WINDOW + 1;

    fn expect(cases: &[(u64, bool)]) {
        let mut window = ReplayWindow::new();
        for (i, &(counter, fresh)) in cases.iter().enumerate() {
            assert_eq!(window.accept(counter), fresh, "case {i}: counter {counter}");
        }
    }

    /// The cases of the kernel's self test (`drivers/net/wireguard/selftest/counter.c`).
    #[test]
    fn the_kernels_mixed_cases_hold() {
        expect(&[
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (LIMIT, true),
            (LIMIT - 1, true),
            (LIMIT - 1, false),
            (LIMIT - 2, true),
            (2, true),
            (2, false),
            (LIMIT + 16, true),
            (3, false),
            (LIMIT + 16, false),
            (LIMIT * 4, true),
            (LIMIT * 4 - (LIMIT - 1), true),
            (10, false),
            (LIMIT * 4 - LIMIT, false),
            (LIMIT * 4 - (LIMIT + 1), false),
            (LIMIT * 4 - (LIMIT - 2), true),
            (LIMIT * 4 + 1 - LIMIT, false),
            (0, false),
            (REJECT_AFTER_MESSAGES, false),
            (REJECT_AFTER_MESSAGES - 1, true),
            (REJECT_AFTER_MESSAGES, false),
            (REJECT_AFTER_MESSAGES - 1, false),
            (REJECT_AFTER_MESSAGES - 2, true),
            (REJECT_AFTER_MESSAGES + 1, false),
            (REJECT_AFTER_MESSAGES + 2, false),
            (REJECT_AFTER_MESSAGES - 2, false),
            (REJECT_AFTER_MESSAGES - 3, true),
            (0, false),
        ]);
    }

    #[test]
    fn the_kernels_runs_hold() {
        let run = |counters: &mut dyn Iterator<Item = u64>, then: &[(u64, bool)]| {
            let mut cases: Vec<_> = counters.map(|c| (c, true)).collect();
            cases.extend_from_slice(then);
            expect(&cases);
        };
        run(&mut (1..=WINDOW), &[(0, true), (0, false)]);
        run(&mut (2..=WINDOW + 1), &[(1, true), (0, false)]);
        run(&mut (0..=WINDOW).rev(), &[]);
        run(&mut (1..=WINDOW + 1).rev(), &[(0, false)]);
        run(&mut (1..=WINDOW).rev(), &[(WINDOW + 1, true), (0, false)]);
        run(&mut (1..=WINDOW).rev(), &[(0, true), (WINDOW + 1, true)]);
    }

    /// The obvious twin: remembers everything.
    #[derive(Default)]
    struct Everything {
        greatest: Option<u64>,
        seen: BTreeSet<u64>,
    }

    impl Everything {
        fn accept(&mut self, counter: u64) -> bool {
            let too_old = self.greatest.is_some_and(|g| counter + WINDOW < g);
            self.greatest = self.greatest.max(Some(counter));
            !too_old && self.seen.insert(counter)
        }
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_one_that_remembers_everything(
            steps in proptest::collection::vec((0_u64..20_000, 0_u64..3), 1..400)
        ) {
            let (mut window, mut oracle) = (ReplayWindow::new(), Everything::default());
            let mut base = 0;
            for (offset, jump) in steps {
                base += jump * 5000;
                let counter = base + offset;
                prop_assert_eq!(window.accept(counter), oracle.accept(counter), "{}", counter);
            }
        }
    }
}
