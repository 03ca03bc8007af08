//! The one call that Rust cannot vouch for.
#![expect(
    unsafe_code,
    reason = "unshare is unsafe in rustix because it can split a process's file table"
)]

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a network namespace of its own.
pub(super) fn leave_network() -> rustix::io::Result<()> {
    // SAFETY: only the network namespace is left; files, memory and everything else stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}
