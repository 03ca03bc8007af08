//! The system calls that no safe interface covers: new namespaces, TAP devices, packet sockets.
#![expect(
    unsafe_code,
    reason = "the kernel's interfaces that rustix does not wrap safely"
)]

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::thread::UnshareFlags;

/// What the calling thread takes its own copy of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unshare {
    /// A new, empty network namespace.
    Network,
    /// A copy of the mount namespace (and of root and working directory).
    Mounts,
    /// Root and working directory, without which a thread cannot enter a mount namespace.
    Directories,
}

/// Gives the calling thread something of its own.
///
/// # Errors
/// As `unshare(2)`.
pub(crate) fn unshare(what: Unshare) -> io::Result<()> {
    let flags = match what {
        Unshare::Network => UnshareFlags::NEWNET,
        Unshare::Mounts => UnshareFlags::NEWNS,
        Unshare::Directories => UnshareFlags::FS,
    };
    // SAFETY: the call is unsafe for `FILES` only, which is never among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Makes a TAP device in the calling thread's network namespace; it lives as long as the descriptor.
///
/// # Errors
/// Where `/dev/net/tun` is missing, or the name is taken or longer than 15 bytes.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).expect("both flags are below 2^15");
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result)?;
    Ok(OwnedFd::from(file))
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no interface name",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Opens a non-blocking packet socket that sees every frame on one device.
///
/// # Errors
/// Where the device does not exist or the caller is not root.
pub(crate) fn packet_socket(device: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `socket` takes three integers. Protocol 0 receives nothing until `bind` below.
    let raw = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: `raw` was just returned by `socket` and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut address = link_address();
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)
        .expect("ETH_P_ALL is 3")
        .to_be();
    address.sll_ifindex = i32::try_from(device).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `address` is a `sockaddr_ll` that lives across the call, and the length is its own.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length::<libc::sockaddr_ll>(),
        )
    };
    check(bound)?;
    Ok(socket)
}

/// A frame as a packet socket sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Bytes on the wire; more than the buffer held where it was cut off.
    pub(crate) length: usize,
    /// Whether this host sent it.
    pub(crate) direction: Direction,
}

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Sent by this host.
    Outgoing,
    /// Received.
    Incoming,
}

/// Receives one frame; `None` where none is waiting.
///
/// # Errors
/// As `recvfrom(2)`; `ENETDOWN` says once that the device went down.
pub(crate) fn receive_frame(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Seen>> {
    let mut address = link_address();
    let mut size = length::<libc::sockaddr_ll>();
    // SAFETY: buffer and address are exclusively borrowed, and both lengths are their own.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            (&raw mut address).cast(),
            &raw mut size,
        )
    };
    let Ok(length) = usize::try_from(received) else {
        let error = io::Error::last_os_error();
        let empty = error.kind() == io::ErrorKind::WouldBlock;
        return if empty { Ok(None) } else { Err(error) };
    };
    let outgoing = address.sll_pkttype == libc::PACKET_OUTGOING;
    let direction = if outgoing {
        Direction::Outgoing
    } else {
        Direction::Incoming
    };
    Ok(Some(Seen { length, direction }))
}

/// Frames that a packet socket lost for want of room since the last call.
///
/// # Errors
/// As `getsockopt(2)`.
pub(crate) fn packet_drops(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut size = length::<libc::tpacket_stats>();
    // SAFETY: the option writes one `tpacket_stats`, whose size is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut size,
        )
    };
    check(result)?;
    Ok(u64::from(statistics.tp_drops))
}

fn link_address() -> libc::sockaddr_ll {
    // SAFETY: `sockaddr_ll` is plain data for which all zeroes are a valid value.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("AF_PACKET is 17");
    address
}

fn length<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("the structures here are a few bytes")
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
