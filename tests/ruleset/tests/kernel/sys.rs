//! The calls that Rust cannot vouch for.
#![expect(
    unsafe_code,
    reason = "unshare can split a process's file table; the request of a TUN device has no safe wrapper"
)]

use std::{fs::File, io, mem, os::fd::AsRawFd, os::unix::fs::OpenOptionsExt};

use libc::{c_char, c_ulong, ifreq};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a network namespace of its own.
pub(super) fn leave_network() -> rustix::io::Result<()> {
    // SAFETY: only the network namespace is left; files, memory and everything else stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// `_IOW('T', 202, int)`: attach the file to a device.
const TUNSETIFF: c_ulong = 0x4004_54ca;

/// Makes a TUN device in the calling thread's network namespace, and returns its other end. It goes when that is
/// closed; reading from it waits for nothing.
pub(super) fn tun(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an `ifreq` is bytes and integers; all zero is a value of it.
    let mut request: ifreq = unsafe { mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "{name} is too long");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(file),
    }
}
