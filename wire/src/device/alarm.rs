//! When the control thread looks at the timers, and who may make it look earlier.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::waker::Waker;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// An alarm clock: one thread sleeps by it, all may set it forward.
pub(crate) struct Alarm {
    waker: Waker,
    /// Until when the thread sleeps, in nanoseconds after `epoch`.
    armed: AtomicU64,
    epoch: Instant,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            waker: Waker::new()?,
            armed: AtomicU64::new(NEVER),
            epoch: Instant::now(),
        })
    }

    /// The thread will sleep until `deadline`, and no longer.
    pub(super) fn arm(&self, deadline: Option<Instant>) {
        let nanos = deadline.map_or(NEVER, |deadline| self.nanos(deadline));
        self.armed.store(nanos, Ordering::SeqCst);
    }

    /// Wakes the thread if it would sleep beyond `deadline`; once, however often that is said.
    pub(super) fn hasten(&self, deadline: Instant) {
        let nanos = self.nanos(deadline);
        if self.armed.fetch_min(nanos, Ordering::SeqCst) > nanos {
            self.waker.wake();
        }
    }

    /// Wakes the thread in any case.
    pub(super) fn ring(&self) {
        self.waker.wake();
    }

    /// What woke the thread is seen to from here on.
    pub(super) fn clear(&self) {
        self.waker.clear();
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(NEVER)
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn rings(alarm: &Alarm) -> bool {
        let mut fds = [PollFd::new(alarm, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&Timespec::default())).unwrap();
        alarm.clear();
        ready == 1
    }

    #[test]
    fn only_a_nearer_deadline_wakes() {
        let alarm = Alarm::new().unwrap();
        let at = |seconds| alarm.epoch + Duration::from_secs(seconds);
        alarm.hasten(at(100));
        assert!(rings(&alarm), "nothing was armed");

        alarm.arm(Some(at(50)));
        alarm.hasten(at(50));
        alarm.hasten(at(60));
        assert!(!rings(&alarm), "it will look by then");
        alarm.hasten(at(40));
        assert!(rings(&alarm));
        alarm.hasten(at(45));
        assert!(!rings(&alarm), "it was woken for an earlier one");

        alarm.arm(None);
        alarm.hasten(at(1000));
        assert!(rings(&alarm));
    }
}
