//! Rows that somebody else changes again and again: each is restored ever more rarely.
//!
//! ```text
//! changed 10 times within 60 s ──▶ contested: restored after 1 s, 2 s, 4 s … 60 s
//! left alone for longer than that, and 60 s ──▶ forgotten
//! ```
//!
//! Two programs that restore their own value at once would do so for ever, at the price of the machine.

use std::{collections::BTreeMap, time::Duration};

use model::Moment;

/// How many changes by others within [`WINDOW`] make a fight.
const CHANGES: u32 = 10;

/// Within which they are counted, and after which they are forgotten.
const WINDOW: Duration = Duration::from_secs(60);

/// How long a contested row first waits, and at most.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// The rows of one target that others changed lately.
#[derive(Debug)]
pub(crate) struct Fights<K>(BTreeMap<K, Fight>);

#[derive(Clone, Copy, Debug)]
struct Fight {
    changes: u32,
    since: Moment,
    last: Moment,
    /// Zero: not contested.
    delay: Duration,
}

impl<K: Ord + Clone> Fights<K> {
    /// Notes that somebody else changed a row that was as it should be.
    pub(crate) fn note(&mut self, key: K, now: Moment) {
        let fight = self.0.entry(key).or_insert(Fight {
            changes: 0,
            since: now,
            last: now,
            delay: Duration::ZERO,
        });
        if !fight.is_contested() && now - fight.since > WINDOW {
            (fight.changes, fight.since) = (0, now);
        }
        fight.changes = fight.changes.saturating_add(1);
        fight.last = now;
        if fight.changes >= CHANGES {
            fight.delay = LONGEST_DELAY.min(FIRST_DELAY.max(fight.delay * 2));
        }
    }

    /// Forgets who left off.
    pub(crate) fn forget(&mut self, now: Moment) {
        self.0.retain(|_, fight| now < fight.forgotten_at());
    }

    /// Returns whether a row is to wait until it is restored.
    pub(crate) fn waits(&self, key: &K, now: Moment) -> bool {
        self.0
            .get(key)
            .is_some_and(|fight| fight.is_contested() && now < fight.last + fight.delay)
    }

    /// Returns the contested rows.
    pub(crate) fn contested(&self) -> impl Iterator<Item = &K> {
        let fights = self.0.iter();

        fights
            .filter(|(_, fight)| fight.is_contested())
            .map(|(key, _)| key)
    }

    /// Returns when a contested row is restored, or forgotten, next.
    pub(crate) fn next(&self, now: Moment) -> Option<Moment> {
        let contested = self.0.values().filter(|fight| fight.is_contested());

        contested
            .map(|fight| {
                let restored = fight.last + fight.delay;
                if now < restored {
                    restored
                } else {
                    fight.forgotten_at()
                }
            })
            .min()
    }
}

impl Fight {
    fn is_contested(&self) -> bool {
        !self.delay.is_zero()
    }

    fn forgotten_at(&self) -> Moment {
        self.last + self.delay + WINDOW
    }
}

impl<K> Default for Fights<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_changes_a_minute_are_no_fight_and_the_tenth_is() {
        let mut fights = Fights::default();
        for second in 0..9 {
            fights.note("rule", at(second));
        }
        assert_eq!(fights.contested().count(), 0);
        assert!(!fights.waits(&"rule", at(9)));

        fights.note("rule", at(9));

        assert_eq!(fights.contested().collect::<Vec<_>>(), [&"rule"]);
        assert!(fights.waits(&"rule", at(9)));
        assert!(!fights.waits(&"rule", at(10)));
        assert!(!fights.waits(&"another", at(9)));
    }

    #[test]
    fn changes_that_are_far_apart_are_no_fight() {
        let mut fights = Fights::default();
        for minute in 0..100 {
            fights.forget(at(minute * 61));
            fights.note("rule", at(minute * 61));
        }

        assert_eq!(fights.contested().count(), 0);
    }

    #[test]
    fn each_round_waits_twice_as_long_as_the_last_up_to_a_minute() {
        let mut fights = Fights::default();
        let mut now = at(0);
        for _ in 0..10 {
            fights.note("rule", now);
        }
        let mut waits = Vec::new();
        for _ in 0..8 {
            let next = fights.next(now).unwrap();
            waits.push((next - now).as_secs());
            now = next;
            fights.note("rule", now);
        }

        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn whoever_leaves_off_is_forgotten() {
        let mut fights = Fights::default();
        for _ in 0..10 {
            fights.note("rule", at(0));
        }
        fights.forget(at(60));
        assert_eq!(fights.contested().count(), 1);
        assert_eq!(fights.next(at(2)), Some(at(61)));

        fights.forget(at(61));

        assert_eq!(fights.contested().count(), 0);
        assert_eq!(fights.next(at(61)), None);
    }

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }
}
