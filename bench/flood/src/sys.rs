//! `sendmmsg(2)`, and raw sockets with headers of our own (`raw(7)`).
#![expect(
    unsafe_code,
    reason = "many datagrams in one call have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{mem, ptr};

/// Most datagrams in one call.
pub(crate) const MOST: usize = 64;

/// Sends the first [`MOST`] of `datagrams` through a connected socket; how many went.
pub(crate) fn send_many(socket: &impl AsRawFd, datagrams: &[&[u8]]) -> io::Result<usize> {
    // SAFETY: `iovec` and `mmsghdr` are plain data; all zero is a valid value of both.
    let (mut parts, mut messages): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let count = datagrams.len().min(MOST);
    for (at, datagram) in datagrams.iter().take(MOST).enumerate() {
        parts[at] = libc::iovec {
            iov_base: datagram.as_ptr().cast_mut().cast(),
            iov_len: datagram.len(),
        };
        messages[at].msg_hdr.msg_iov = ptr::from_mut(&mut parts[at]);
        messages[at].msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` messages point to parts, and those to data, that outlive the call, which only reads
    // the data and writes the lengths that it sent into the messages.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A socket whose datagrams begin with an IP header of our own. Needs root.
pub(crate) fn raw_socket(is_v6: bool) -> io::Result<OwnedFd> {
    let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
