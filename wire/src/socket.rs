//! The UDP sockets of one tunnel: IPv4 and IPv6 on the same port.
//!
//! Many datagrams travel in one call: out as one buffer that the kernel cuts (`UDP_SEGMENT`), in as one buffer that
//! the kernel has joined (`UDP_GRO`). Replies leave from the address that the peer wrote to (`IP_PKTINFO`). Datagrams
//! may be fragmented on the way, as those of the kernel's own WireGuard: the inner packet must get through.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};
use wire_core::{Endpoint, Local};

use control::{Ancillary, Control};

mod control;
mod sys;

/// Longest buffer of joined datagrams that the kernel hands out or takes.
pub(crate) const JOINED: usize = 65_536;
/// Longest buffer for `UDP_SEGMENT`: IPv4's 65,535 less the outer headers.
pub(crate) const LONGEST_BATCH: usize = 65_507;
/// Most datagrams in one `UDP_SEGMENT` call (`UDP_MAX_SEGMENTS` before Linux 6.10).
pub(crate) const LARGEST_BATCH: usize = 64;

/// What each socket may hold to be sent, in bytes: some milliseconds at 10 Gb/s.
const BUFFER: usize = 4 << 20;
/// What each may hold that was received, which the kernel doubles: all who can reach the port share it with the
/// peers, so it outlasts a third of a second of 50,000 full datagrams a second while no CPU has time for us.
const RECEIVE_BUFFER: usize = 16 << 20;
/// How long a full socket may hold up the sender before the batch is dropped.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a free port of both families is looked for when any will do.
const ATTEMPTS: u32 = 64;

/// Why the sockets could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// No socket of this family could be made.
    #[error("cannot create a UDP socket")]
    Create(#[source] io::Error),
    /// The port is in use.
    #[error("cannot listen on UDP port {port}")]
    Port {
        /// The port; 0 is any.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An option was refused.
    #[error("cannot set {what} on a UDP socket")]
    Option {
        /// The option.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    /// What to tell over UAPI.
    pub(crate) fn errno(&self) -> i32 {
        let (Self::Create(source) | Self::Port { source, .. } | Self::Option { source, .. }) = self;
        source.raw_os_error().unwrap_or(libc::EIO)
    }
}

/// Whether segmentation by the kernel is used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joining {
    On,
    Off,
}

/// Both sockets of a tunnel. Sockets close when the last holder drops the pair.
pub(crate) struct SocketPair {
    v4: Socket,
    v6: Option<Socket>,
    port: u16,
    /// Dropped with the sockets, which tells whoever has the [`Closing`]; declared after them, so dropped after them.
    _open: Sender<Infallible>,
}

/// Waits for sockets to be closed by all their holders.
pub(crate) struct Closing(Receiver<Infallible>);

impl Closing {
    /// Whether they are closed within `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}

/// One socket.
struct Socket {
    fd: OwnedFd,
    /// `UDP_SEGMENT` works here; turned off for good by the first device that cannot checksum.
    segments: AtomicBool,
}

/// What to send.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    /// One or many datagrams, all but the last `segment` bytes long.
    pub(crate) bytes: &'a [u8],
    pub(crate) segment: usize,
    pub(crate) to: Endpoint,
    /// Outer traffic class: DSCP and ECN.
    pub(crate) traffic_class: u8,
    pub(crate) patience: Patience,
}

/// What to do when the socket's buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Wait a little: this holds up the TUN device, and through it the senders.
    Wait,
    /// Drop: the caller has other work.
    Drop,
}

/// What came in: one or many datagrams of one sender, all but the last `segment` bytes long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub(crate) length: usize,
    pub(crate) segment: usize,
    pub(crate) from: Endpoint,
    pub(crate) traffic_class: u8,
}

impl SocketPair {
    /// Listens on `port` of every address of both families; port 0 takes one that is free in both.
    ///
    /// # Errors
    /// See [`BindError`]. A machine without IPv6 is none.
    pub(crate) fn bind(
        port: u16,
        mark: u32,
        joining: Joining,
    ) -> Result<(Self, Closing), BindError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match Self::bind_once(port, mark, joining) {
                Err(BindError::Port { source, .. })
                    if port == 0
                        && attempt < ATTEMPTS
                        && source.kind() == io::ErrorKind::AddrInUse => {}
                done => return done,
            }
        }
    }

    fn bind_once(port: u16, mark: u32, joining: Joining) -> Result<(Self, Closing), BindError> {
        let v4 = Socket::bind((Ipv4Addr::UNSPECIFIED, port).into(), mark, joining)?;
        let port = v4.port()?;
        let v6 = match Socket::bind((Ipv6Addr::UNSPECIFIED, port).into(), mark, joining) {
            Ok(socket) => Some(socket),
            Err(error) if error.errno() == libc::EAFNOSUPPORT => None,
            Err(error) if error.errno() == libc::EADDRNOTAVAIL => None,
            Err(error) => return Err(error),
        };
        let (open, closing) = channel();
        let pair = Self {
            v4,
            v6,
            port,
            _open: open,
        };
        Ok((pair, Closing(closing)))
    }

    /// The port both listen on.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Marks everything sent from now on.
    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.sockets().try_for_each(|socket| socket.set_mark(mark))
    }

    /// Both sockets, to poll for input: IPv4 first.
    pub(crate) fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.v4.fd.as_fd(), self.v6.as_ref().map(|v6| v6.fd.as_fd()))
    }

    /// Sends, with whatever fallback the way needs.
    ///
    /// # Errors
    /// The last one, when nothing helped; the datagrams are lost.
    pub(crate) fn send(&self, outgoing: &Outgoing<'_>) -> io::Result<()> {
        let socket = match outgoing.to.remote {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => {
                let none = || io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
                self.v6.as_ref().ok_or_else(none)?
            }
        };
        socket.send(outgoing)
    }

    /// Receives from the IPv4 socket (`first`) or the IPv6 one; `Ok(None)`: nothing there.
    pub(crate) fn receive(
        &self,
        family: Family,
        buffer: &mut [u8],
    ) -> io::Result<Option<Incoming>> {
        match (family, &self.v6) {
            (Family::V4, _) => self.v4.receive(buffer),
            (Family::V6, Some(v6)) => v6.receive(buffer),
            (Family::V6, None) => Ok(None),
        }
    }

    fn sockets(&self) -> impl Iterator<Item = &Socket> {
        [&self.v4].into_iter().chain(&self.v6)
    }
}

/// Which of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Socket {
    fn bind(address: SocketAddr, mark: u32, joining: Joining) -> Result<Self, BindError> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| BindError::Create(errno.into()))?;
        let failed = |what| move |source: io::Error| BindError::Option { what, source };
        set_family_options(&fd, address.is_ipv4())
            .map_err(|errno| failed("address options")(errno.into()))?;
        set_buffers(&fd).map_err(|errno| failed("buffers")(errno.into()))?;
        sys::set_packet_info(&fd, address.is_ipv4()).map_err(failed("packet information"))?;
        let segments = joining == Joining::On && sys::probe_segments(&fd);
        if joining == Joining::On
            && let Err(error) = sys::set_joining(&fd)
        {
            tracing::info!(%error, "the kernel does not join datagrams");
        }
        let socket = Self {
            fd,
            segments: AtomicBool::new(segments),
        };
        if mark != 0 {
            socket.set_mark(mark).map_err(failed("the mark"))?;
        }
        bind(&socket.fd, &address).map_err(|errno| BindError::Port {
            port: address.port(),
            source: errno.into(),
        })?;
        Ok(socket)
    }

    fn port(&self) -> Result<u16, BindError> {
        let failed = |errno: Errno| BindError::Create(errno.into());
        let address = getsockname(&self.fd).map_err(failed)?;
        let address = SocketAddr::try_from(address).map_err(failed)?;
        Ok(address.port())
    }

    fn set_mark(&self, mark: u32) -> io::Result<()> {
        sys::set_mark(&self.fd, mark)
    }

    fn send(&self, outgoing: &Outgoing<'_>) -> io::Result<()> {
        let many = outgoing.bytes.len() > outgoing.segment;
        if !many {
            return self.send_one(outgoing);
        }
        if self.segments.load(Ordering::Relaxed) {
            match self.send_raw(outgoing, Some(outgoing.segment)) {
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    self.segments.store(false, Ordering::Relaxed);
                    tracing::info!("a device cannot segment; datagrams go one by one from now on");
                }
                // The path's MTU is below the segment, or our address is gone: that is this batch's own trouble.
                Err(error) if is_curable(&error) => {}
                done => return done,
            }
        }
        let mut result = Ok(());
        for bytes in outgoing.bytes.chunks(outgoing.segment) {
            result = self.send_one(&Outgoing { bytes, ..*outgoing });
        }
        result
    }

    /// Sends a single datagram; where its source address is no longer ours, from whatever address the kernel takes.
    fn send_one(&self, outgoing: &Outgoing<'_>) -> io::Result<()> {
        match self.send_raw(outgoing, None) {
            Err(error) if outgoing.to.local.is_some() && is_curable(&error) => {
                let to = Endpoint::from(outgoing.to.remote);
                self.send_raw(&Outgoing { to, ..*outgoing }, None)
            }
            done => done,
        }
    }

    fn send_raw(&self, outgoing: &Outgoing<'_>, segment: Option<usize>) -> io::Result<()> {
        let mut control = Control::new();
        if let Some(segment) = segment {
            control.push_segment(segment);
        }
        control.push_traffic_class(outgoing.to.remote, outgoing.traffic_class);
        if let Some(local) = outgoing.to.local {
            control.push_source(outgoing.to.remote, local);
        }
        let wait = outgoing.patience == Patience::Wait;
        let to = &outgoing.to.remote;
        loop {
            match sys::send(&self.fd, outgoing.bytes, to, control.bytes(), wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                done => return done,
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Incoming>> {
        let mut control = Control::new();
        let received = match sys::receive(&self.fd, buffer, control.space()) {
            Ok(received) => received,
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut incoming = Incoming {
            length: received.length,
            segment: received.length,
            from: received.from.into(),
            traffic_class: 0,
        };
        for ancillary in control::parse(control.received(received.control_length)) {
            match ancillary {
                Ancillary::Segment(segment) => incoming.segment = segment.max(1),
                Ancillary::TrafficClass(class) => incoming.traffic_class = class,
                Ancillary::Destination(address, interface) => {
                    incoming.from.local = Some(Local { address, interface });
                }
            }
        }
        Ok(Some(incoming))
    }
}

/// Errors that mean: look again later.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Errors that another way of sending may cure: a source address that is gone, segments longer than the path's MTU.
fn is_curable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::EMSGSIZE
                | libc::EADDRNOTAVAIL
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
        )
    )
}

fn set_family_options(fd: &OwnedFd, v4: bool) -> Result<(), Errno> {
    if v4 {
        sockopt::set_ip_mtu_discover(fd, Ipv4PathMtuDiscovery::DONT)?;
        sockopt::set_ip_recvtos(fd, true)
    } else {
        sockopt::set_ipv6_v6only(fd, true)?;
        sockopt::set_ipv6_mtu_discover(fd, Ipv6PathMtuDiscovery::DONT)?;
        sockopt::set_ipv6_recvtclass(fd, true)
    }
}

/// Beyond the administrator's limits where we may, up to them where not.
fn set_buffers(fd: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_recv_buffer_size_force(fd, RECEIVE_BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(fd, RECEIVE_BUFFER))?;
    sockopt::set_socket_send_buffer_size_force(fd, BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(fd, BUFFER))?;
    sockopt::set_socket_timeout(fd, Timeout::Send, Some(PATIENCE))
}
