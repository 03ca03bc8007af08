//! A network of its own for one thread.
#![expect(
    unsafe_code,
    reason = "unshare(2) is unsafe where file descriptors are shared"
)]

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread an empty network namespace; it goes with the thread.
pub(super) fn unshare_network() {
    // SAFETY: only the network namespace is unshared; descriptors stay shared as they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("this test needs root");
}
