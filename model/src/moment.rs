//! Monotonic time, as a value.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A point in monotonic time: how long the agent has run, in microseconds.
///
/// Unlike [`std::time::Instant`] it can be written to a recording and read back.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Moment(u64);

impl Moment {
    /// The moment at which the agent started.
    pub const START: Self = Self(0);

    /// Returns the moment this long after the start. Saturates after 584,000 years.
    pub fn after_start(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// Returns how long after the start this moment is.
    pub fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self::after_start(self.since_start().saturating_add(duration))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// Returns how long after `earlier` this moment is; zero when it is before.
    fn sub(self, earlier: Self) -> Duration {
        self.since_start().saturating_sub(earlier.since_start())
    }
}
