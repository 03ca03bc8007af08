//! Waiting for facts.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine, and for a guest with one processor.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until `fact` holds; panics with `what` if it does not in time.
pub fn until(what: &str, fact: impl FnMut() -> bool) {
    assert!(until_within(PATIENCE, fact), "waited in vain: {what}");
}

/// Looks until `fact` holds (true) or the time is over (false).
pub fn until_within(patience: Duration, mut fact: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !fact() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    true
}
