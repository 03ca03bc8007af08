//! Does a packet get there, and its answer back?
//!
//! ```text
//! Receiver (one per address, protocol and port) ◀── packet ──  Probe::send
//!          └──────────────── answer ──────────────────▶ heard: true
//! ```
//!
//! TCP connects, UDP is echoed, ICMP is the kernel's. Every other protocol, and SCTP where the kernel has none, is raw:
//! the packet that opens a connection, and the one that answers it.

mod raw;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, ipproto, recv,
        send, socket_with, sockopt,
    },
};

pub use self::raw::RawReceiver;
use crate::{
    Echo, EchoError, Ping, PingError,
    netns::{Netns, NetnsError},
    patience,
    process::timespec,
    spec::{self, Listen},
};

/// IANA protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// After how long an unanswered datagram is sent again.
const AGAIN: Duration = Duration::from_millis(300);

/// How many packets are under way at once.
const AT_ONCE: usize = 64;

/// What a datagram says.
const WORDS: &[u8] = b"does this get there";

/// A packet to send, and to be answered.
#[derive(Clone, Debug)]
pub struct Probe {
    /// From where.
    pub netns: Arc<Netns>,
    /// The sender's address and port; zero where the protocol has no ports, or any will do.
    pub from: SocketAddr,
    /// The receiver's, as the sender knows it.
    pub to: SocketAddr,
    /// The IP protocol's number.
    pub protocol: u8,
}

/// Who answers at one end.
#[derive(Debug)]
pub enum Receiver {
    /// An echo server.
    Echo(Echo),
    /// A thread with a raw socket.
    Raw(RawReceiver),
    /// Somebody else listens there already, or the kernel itself answers.
    Other,
}

/// Why it cannot be told whether a packet gets there.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A namespace could not be entered.
    #[error("the namespace to send from")]
    Netns(#[from] NetnsError),
    /// The sender's socket.
    #[error("{protocol} cannot be sent from {from}")]
    Socket {
        /// The protocol's number.
        protocol: u8,
        /// From where.
        from: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The receiver's socket.
    #[error("{protocol} cannot be answered at {to}")]
    Receiver {
        /// The protocol's number.
        protocol: u8,
        /// Where.
        to: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An echo server.
    #[error("an echo server")]
    Echo(#[from] EchoError),
}

impl Receiver {
    /// Begins to answer at an address and port.
    ///
    /// # Errors
    /// [`ProbeError`] where nobody can.
    pub fn start(netns: &Netns, to: SocketAddr, protocol: u8) -> Result<Self, ProbeError> {
        let listen = |protocol| Listen {
            protocol,
            port: to.port(),
        };
        let echo = match protocol {
            TCP => listen(spec::Protocol::Tcp),
            UDP => listen(spec::Protocol::Udp),
            ICMP | ICMPV6 => return Ok(Self::Other),
            _ => return raw::RawReceiver::start(netns, to, protocol).map(Self::Raw),
        };
        match Echo::start(netns, &[to.ip()], &[echo]) {
            Ok(echo) => Ok(Self::Echo(echo)),
            Err(EchoError::Listen { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && protocol == TCP =>
            {
                Ok(Self::Other)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Probe {
    /// Sends packets, many at once, each again and again until it is answered or its time has come. Returns, in their
    /// order, which were answered.
    pub fn send_all(probes: &[Self], usual: Duration) -> Vec<Result<bool, ProbeError>> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(probe) = probes.get(index) else {
                    return;
                };
                let answered = probe.send(usual);
                found
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((index, answered));
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(probes.len()) {
                scope.spawn(work);
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|(index, _)| *index);

        found.into_iter().map(|(_, answered)| answered).collect()
    }

    /// Sends one packet; returns whether it was answered before its time had come.
    ///
    /// # Errors
    /// [`ProbeError`] where it cannot be sent at all.
    pub fn send(&self, usual: Duration) -> Result<bool, ProbeError> {
        let deadline = Instant::now() + patience(usual);
        let sent = self.netns.run(|| match self.protocol {
            TCP => self.connects(deadline),
            UDP => self.is_echoed(deadline),
            ICMP | ICMPV6 => Ok(self.is_pinged(usual)),
            _ => raw::is_answered(self, deadline),
        })?;

        match sent {
            Ok(answered) => Ok(answered),
            // There is no way at all: nothing gets there.
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::PERM) => Ok(false),
            Err(error) => Err(ProbeError::Socket {
                protocol: self.protocol,
                from: self.from,
                source: error.into(),
            }),
        }
    }

    fn is_pinged(&self, usual: Duration) -> bool {
        let ping = Ping {
            from: Some(self.from.ip()),
            patience: patience(usual),
            ..Ping::new(self.to.ip())
        };
        let answered = ping.send_here();

        match answered {
            Ok(_) => true,
            Err(PingError::Netns(_) | PingError::Silence { .. } | PingError::Refused { .. }) => {
                false
            }
        }
    }

    /// A connection that is refused was asked for and answered too.
    fn connects(&self, deadline: Instant) -> Result<bool, Errno> {
        let socket = socket_with(
            family(self.to.ip()),
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(ipproto::TCP),
        )?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        // Nothing of it is to be left behind: the next state may ask for the same connection.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        bind(&socket, &self.from)?;
        match connect(&socket, &self.to) {
            Ok(()) | Err(Errno::CONNREFUSED) => return Ok(true),
            Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        if !wait(&socket, PollFlags::OUT, deadline)? {
            return Ok(false);
        }
        match sockopt::socket_error(&socket)? {
            Ok(()) | Err(Errno::CONNREFUSED) => Ok(true),
            Err(Errno::TIMEDOUT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_echoed(&self, deadline: Instant) -> Result<bool, Errno> {
        let socket = socket_with(
            family(self.to.ip()),
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(ipproto::UDP),
        )?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &self.from)?;
        connect(&socket, &self.to)?;
        until_answered(&socket, WORDS, deadline, |words| words == WORDS)
    }
}

/// Sends words again and again until an answer comes that will do.
fn until_answered(
    socket: &rustix::fd::OwnedFd,
    words: &[u8],
    deadline: Instant,
    is_answer: impl Fn(&[u8]) -> bool,
) -> Result<bool, Errno> {
    let mut heard = [0; 2048];
    loop {
        match send(socket, words, SendFlags::empty()) {
            // A neighbour that is not there yet, or a full queue: sent again below.
            Ok(_) | Err(Errno::HOSTUNREACH | Errno::NOBUFS | Errno::AGAIN) => {}
            // The far end says that nobody listens: it got there.
            Err(Errno::CONNREFUSED) => return Ok(true),
            Err(error) => return Err(error),
        }
        let until = deadline.min(Instant::now() + AGAIN);
        while wait(socket, PollFlags::IN, until)? {
            match recv(socket, &mut heard, RecvFlags::empty()) {
                Ok((length, _)) if is_answer(&heard[..length.min(heard.len())]) => return Ok(true),
                Ok(_) | Err(Errno::AGAIN | Errno::HOSTUNREACH) => {}
                Err(Errno::CONNREFUSED) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// Waits until a socket is ready (true) or the time has come.
fn wait(socket: &rustix::fd::OwnedFd, flags: PollFlags, until: Instant) -> Result<bool, Errno> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut sockets = [PollFd::new(socket, flags)];
        match poll(&mut sockets, Some(&timespec(left))) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}
