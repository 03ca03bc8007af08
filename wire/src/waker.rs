//! Wakes a thread that sleeps in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// A level-triggered flag that can be polled for.
pub(crate) struct Waker {
    flag: OwnedFd,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let flag = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { flag })
    }

    /// Wakes the sleeper, now or when it next goes to sleep.
    pub(crate) fn wake(&self) {
        match rustix::io::write(&self.flag, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => (),
            Err(errno) => tracing::error!(%errno, "cannot wake a thread"),
        }
    }

    /// Lowers the flag; the sleeper does so before it looks for work.
    pub(crate) fn clear(&self) {
        match rustix::io::read(&self.flag, &mut [0u8; 8]) {
            Ok(_) | Err(Errno::AGAIN) => (),
            Err(errno) => tracing::error!(%errno, "cannot clear a waker"),
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.flag.as_fd()
    }
}
