//! `fork(2)` and `signalfd(2)`.
#![expect(
    unsafe_code,
    reason = "neither has a safe wrapper: what is safe depends on when it is called"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

/// On which side of a fork we are.
pub(super) enum Side {
    Parent,
    Child,
}

/// Splits the process in two.
pub(super) fn fork() -> io::Result<Side> {
    // SAFETY: `detach` is called while there is one thread, so the child owns every lock and may do anything.
    match unsafe { libc::fork() } {
        0 => Ok(Side::Child),
        pid if pid > 0 => Ok(Side::Parent),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Blocks `signals` and gives a descriptor that is readable when one of them is pending.
pub(super) fn catch(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set; the others read or change it; all numbers are valid signals.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    };
    // SAFETY: the set is initialised and outlives the call; the old mask is not asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: the set is initialised and outlives the call; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
