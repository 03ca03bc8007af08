//! How much anybody may take of the server, and what was refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::Denial;

/// Connections at once.
pub(super) const CONNECTIONS: usize = 4096;

/// Connections that have not shown a certificate yet, or have none.
pub(super) const STRANGERS: usize = 128;

/// Connections of one member: two families, a renewal beside each, and a restart.
pub(super) const CONNECTIONS_PER_NAME: usize = 8;

/// How long a TLS handshake may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a connection without a certificate may live.
pub(super) const STRANGER_LIFE: Duration = Duration::from_secs(30);

/// A connection on which nothing comes for so long is asked for a sign of life, and given as long.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(15);

/// Calls at once on one connection.
pub(super) const STREAMS: u32 = 128;

/// Watches at once on one connection: three agents' worth.
pub(super) const WATCHES: usize = 64;

/// Lists under way at once on one connection; more wait for their turn.
pub(super) const LISTS: usize = 2;

/// Size of a request's headers.
pub(super) const HEADERS_MAX: u32 = 16 * 1024;

/// Size of an enrolment: a token, a name and a signing request.
pub(super) const ENROL_REQUEST_MAX: usize = 16 * 1024;

/// Writes of one node a second, in the long run.
const WRITES_PER_SECOND: f64 = 50.0;

/// Writes of one node at once, after it was quiet.
pub(super) const WRITES_AT_ONCE: usize = 500;

/// How much a node may still write: a bucket that fills steadily, each write takes one out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    /// Returns a full bucket.
    pub(super) fn full(now: Instant) -> Self {
        Self {
            left: WRITES_AT_ONCE as f64,
            at: now,
        }
    }

    /// Takes one write out; returns whether there was one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * WRITES_PER_SECOND).min(WRITES_AT_ONCE as f64);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;

        true
    }

    /// Returns whether forgetting it would change nothing.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();

        self.left + passed * WRITES_PER_SECOND >= WRITES_AT_ONCE as f64
    }
}

/// What the server refused so far. Clones share the counts.
#[derive(Clone, Default)]
pub struct Counters(Arc<Counts>);

#[derive(Default)]
struct Counts {
    denied: [AtomicU64; Denial::ALL.len()],
    handshakes: AtomicU64,
    strangers: AtomicU64,
    limited: AtomicU64,
}

impl Counters {
    /// Returns how many writes each rule refused.
    pub fn denied(&self) -> impl Iterator<Item = (Denial, u64)> {
        let counts = Arc::clone(&self.0);

        Denial::ALL
            .iter()
            .zip(0..)
            .map(move |(denial, index): (_, usize)| {
                (*denial, counts.denied[index].load(Ordering::Relaxed))
            })
    }

    /// Returns how many TLS handshakes failed or took too long.
    pub fn failed_handshakes(&self) -> u64 {
        self.0.handshakes.load(Ordering::Relaxed)
    }

    /// Returns how many calls came without a certificate that is good.
    pub fn unauthenticated(&self) -> u64 {
        self.0.strangers.load(Ordering::Relaxed)
    }

    /// Returns how many connections, watches and writes were over a limit.
    pub fn limited(&self) -> u64 {
        self.0.limited.load(Ordering::Relaxed)
    }

    pub(super) fn count_denied(&self, denial: Denial) {
        let index = Denial::ALL.iter().position(|it| *it == denial);
        if let Some(count) = index.and_then(|index| self.0.denied.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_handshake(&self) {
        self.0.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_unauthenticated(&self) {
        self.0.strangers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_limited(&self) {
        self.0.limited.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_writes_without_pause_gets_its_share_and_no_more() {
        let start = Instant::now();
        let mut budget = Budget::full(start);

        let granted = (0..20_000)
            .filter(|millisecond| budget.take(start + Duration::from_millis(*millisecond)));

        // 500 at once, and 50 a second for 20 seconds.
        assert!((1499..=1500).contains(&granted.count()));
        assert!(!budget.is_full(start + Duration::from_secs(21)));
        assert!(budget.is_full(start + Duration::from_secs(31)));
    }
}
