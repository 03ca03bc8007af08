//! Moments for tests.
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::Now;

/// The moment so many seconds after the first call, on both clocks.
pub(crate) fn at(seconds: u64) -> Now {
    after(Duration::from_secs(seconds))
}

/// The moment so long after the first call, on both clocks.
#[expect(
    clippy::disallowed_methods,
    reason = "some instant has to be the first"
)]
pub(crate) fn after(elapsed: Duration) -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    Now {
        instant: *START.get_or_init(Instant::now) + elapsed,
        unix: elapsed,
    }
}
