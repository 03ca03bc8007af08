//! Time as a value.
use std::time::{Duration, Instant};

/// The moment of a call: a monotonic clock for timers, and the wall clock for TAI64N timestamps
/// and "last handshake".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time; every deadline is computed from it.
    pub instant: Instant,
    /// Wall time since the Unix epoch.
    pub unix: Duration,
}

/// A TAI64N label, big endian, as an initiation carries it; later labels compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(pub(crate) [u8; 12]);

/// TAI64 label of the Unix epoch: 2⁶² plus the 10 s by which TAI was ahead then
/// (<https://cr.yp.to/libtai/tai64.html>).
const UNIX_EPOCH: u64 = (1 << 62) + 10;

/// Labels are rounded down to 2²⁴ ns (16.8 ms) as in the kernel, so that they tell little about
/// our clock; finer than the 20 ms between two initiations that a peer accepts.
const GRANULE: u64 = 1 << 24;

impl Timestamp {
    /// The label of `now`, or the one after `last` where the wall clock has not moved on: a peer
    /// takes no label twice.
    pub(crate) fn after(last: Option<Self>, now: Now) -> Self {
        let nanos = u64::from(now.unix.subsec_nanos()) & !(GRANULE - 1);
        let label = Self::new(now.unix.as_secs(), nanos);
        match last {
            Some(last) if last >= label => last.successor(),
            Some(_) | None => label,
        }
    }

    fn new(unix_seconds: u64, nanos: u64) -> Self {
        let mut label = [0; 12];
        label[..8].copy_from_slice(&UNIX_EPOCH.wrapping_add(unix_seconds).to_be_bytes());
        label[8..].copy_from_slice(&(nanos as u32).to_be_bytes());
        Self(label)
    }

    fn successor(self) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = self.0;
        let seconds = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).wrapping_sub(UNIX_EPOCH);
        let nanos = u64::from(u32::from_be_bytes([n0, n1, n2, n3])) + GRANULE;
        if nanos < 1_000_000_000 {
            Self::new(seconds, nanos)
        } else {
            Self::new(seconds.wrapping_add(1), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_clock::at;

    #[test]
    fn the_label_of_the_epoch_is_that_of_the_specification() {
        let label = Timestamp::after(None, at(0));
        assert_eq!(hex::encode(label.0), "400000000000000a00000000");
    }

    #[test]
    fn a_label_is_never_repeated_when_the_wall_clock_stands_or_goes_back() {
        let mut last = Timestamp::after(None, at(1000));
        for seconds in [1000, 1000, 999, 0, 1000] {
            let next = Timestamp::after(Some(last), at(seconds));
            assert!(next > last);
            last = next;
        }
    }

    #[test]
    fn a_successor_carries_into_the_seconds() {
        let mut label = Timestamp::new(7, 0);
        for _ in 0..60 {
            label = label.successor();
        }
        assert_eq!(label, Timestamp::new(8, 0));
    }
}
