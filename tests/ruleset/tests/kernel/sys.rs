//! The calls that Rust cannot vouch for.
#![expect(
    unsafe_code,
    reason = "unshare can split a process's file table; the request of a TUN device has no safe wrapper"
)]

use std::{
    fs::File,
    io, mem,
    net::{Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

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

/// IPv4's options of source routes, by number (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceRoute {
    Loose = 131,
    Strict = 137,
}

/// Has what a socket sends go to a router first, which is to send it on, by an option.
pub(super) fn route_by_option(
    socket: RawFd,
    kind: SourceRoute,
    router: Ipv4Addr,
) -> io::Result<()> {
    let [a, b, c, d] = router.octets();
    // Kind, length, where it begins; the list of routers; and the end of options.
    let option = [kind as u8, 7, 4, a, b, c, d, 0];

    set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &option)
}

/// Has what a socket sends go to a router first, which is to send it on, by a segment routing header (RFC 8754).
pub(super) fn route_by_header(socket: RawFd, router: Ipv6Addr, end: Ipv6Addr) -> io::Result<()> {
    // Next header, length behind the first 8 bytes in units of 8, type, segments left, last entry, flags, tag.
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend(end.octets());
    header.extend(router.octets());

    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header)
}

fn set_option(socket: RawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    match unsafe { libc::setsockopt(socket, level, name, value.as_ptr().cast(), length) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
