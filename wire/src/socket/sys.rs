//! `sendmsg` and `recvmsg` with control messages, and the socket options that have no safe wrapper.
#![expect(
    unsafe_code,
    reason = "UDP_SEGMENT, UDP_GRO and IP_PKTINFO are reached only through raw messages"
)]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_int, iovec, msghdr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

/// What `recvmsg` filled in.
pub(super) struct Received {
    pub(super) length: usize,
    pub(super) from: SocketAddr,
    pub(super) control_length: usize,
}

/// Sends `bytes` to `to` with `control` messages; waits for room in the socket's buffer if `wait`.
pub(super) fn send(
    fd: &OwnedFd,
    bytes: &[u8],
    to: &SocketAddr,
    control: &[u8],
    wait: bool,
) -> io::Result<()> {
    let (mut name, name_length) = encode(to);
    let mut part = iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut message = empty();
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_length;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len() as _;
    }
    let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: name, iovec, data and control outlive the call, and `sendmsg` only reads them.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Receives into `buffer` and `control`, without waiting. A datagram longer than `buffer` is an error.
pub(super) fn receive(fd: &OwnedFd, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Received> {
    // SAFETY: `sockaddr_storage` is plain data; all zero is a valid value of it.
    let mut name: sockaddr_storage = unsafe { mem::zeroed() };
    let mut part = iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut message = empty();
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len() as _;
    // SAFETY: all four buffers are exclusively ours for the call, and their lengths are given.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(Received {
        length,
        from: decode(&name)?,
        control_length: message.msg_controllen,
    })
}

/// Asks for the destination address of every datagram.
pub(super) fn set_packet_info(fd: &OwnedFd, v4: bool) -> io::Result<()> {
    if v4 {
        set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    } else {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    }
}

/// Asks the kernel to join datagrams of one sender.
pub(super) fn set_joining(fd: &OwnedFd) -> io::Result<()> {
    set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel knows how to cut one buffer into datagrams.
pub(super) fn probe_segments(fd: &OwnedFd) -> bool {
    set_option(fd, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Marks every packet of the socket (`SO_MARK`).
pub(super) fn set_mark(fd: &OwnedFd, mark: u32) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
}

fn set_option(fd: &OwnedFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one `int`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn empty() -> msghdr {
    // SAFETY: `msghdr` is plain data; all zero (null pointers, lengths of zero) is a valid value of it.
    unsafe { mem::zeroed() }
}

/// The address in the kernel's form, and the length of that.
fn encode(address: &SocketAddr) -> (sockaddr_storage, socklen_t) {
    // SAFETY: `sockaddr_storage` is plain data; all zero is a valid value of it.
    let mut storage: sockaddr_storage = unsafe { mem::zeroed() };
    let length = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: `sockaddr_storage` is large and aligned enough for every address family.
            let place = unsafe { &mut *(&raw mut storage).cast::<sockaddr_in>() };
            place.sin_family = libc::AF_INET as _;
            place.sin_port = v4.port().to_be();
            place.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            size_of::<sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            // SAFETY: `sockaddr_storage` is large and aligned enough for every address family.
            let place = unsafe { &mut *(&raw mut storage).cast::<sockaddr_in6>() };
            place.sin6_family = libc::AF_INET6 as _;
            place.sin6_port = v6.port().to_be();
            place.sin6_addr.s6_addr = v6.ip().octets();
            place.sin6_scope_id = v6.scope_id();
            size_of::<sockaddr_in6>()
        }
    };
    (storage, length as socklen_t)
}

/// The address that the kernel wrote.
fn decode(storage: &sockaddr_storage) -> io::Result<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which of the two it is; `sockaddr_storage` is large and aligned enough.
            let place = unsafe { &*(&raw const *storage).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(place.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddrV4::new(ip, u16::from_be(place.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which of the two it is; `sockaddr_storage` is large and aligned enough.
            let place = unsafe { &*(&raw const *storage).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(place.sin6_addr.s6_addr);
            let port = u16::from_be(place.sin6_port);
            Ok(SocketAddrV6::new(ip, port, 0, place.sin6_scope_id).into())
        }
        _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
}
