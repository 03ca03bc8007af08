//! Streams: connections that carry a numbered record every millisecond, and tell what became of them.
//!
//! The far end echoes. What is measured is what the near end gets back: the longest time without a
//! byte, resets, wrong bytes; for datagrams, what was lost and what came in another order.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

use crate::{
    echo::{Echo, EchoError},
    netns::{Netns, NetnsError},
    poll_until,
    process::timespec,
    spec::Protocol,
};

pub(crate) use bulk::Bulk;
pub use bulk::{BulkError, Carried};

mod bulk;
mod datagram;
mod record;
mod segment;

/// Time between two records, where nobody asked for another.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// How long a stream may take until its first record is back.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mark that stands in every record of a stream: no frame on the underlay may carry it.
pub type Canary = [u8; 16];

/// What became of a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records that were handed to the kernel.
    pub sent: u64,
    /// Records that came back.
    pub echoed: u64,
    /// The longest time without a byte (a datagram), that which is running now included.
    pub longest_gap: Duration,
    /// Times that the connection was broken: reset, timed out, or closed by the other side.
    pub resets: u32,
    /// Times that it was made anew.
    pub reconnects: u32,
    /// Records that came back changed, or (in a connection) out of their order.
    pub wrong: u64,
    /// Datagrams that were sent and have not come back, although a thousand later ones were sent.
    pub lost: u64,
    /// Datagrams that have not come back although a later one has: late, or lost.
    pub missing: u64,
    /// Datagrams that came back after a later one.
    pub reordered: u64,
}

/// Why a stream could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A namespace could not be entered.
    #[error("a namespace of the stream")]
    Netns(#[from] NetnsError),
    /// The far end could not be started.
    #[error("the far end of the stream")]
    Echo(#[from] EchoError),
    /// The near end could not be started.
    #[error("the near end of the stream")]
    Start(#[source] std::io::Error),
    /// Nothing came back.
    #[error("no record came back from {to} within {PATIENCE:?}; so far {report:?}")]
    Silence {
        /// The far end.
        to: SocketAddr,
        /// What became of it.
        report: Report,
    },
}

/// A stream between two namespaces; dropping it ends both ends.
#[derive(Debug)]
pub struct Stream {
    to: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _echo: Option<Echo>,
}

/// What both threads see.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    tally: Mutex<Tally>,
}

/// A report, and when the last byte came.
#[derive(Debug, Default)]
struct Tally {
    report: Report,
    last: Option<Instant>,
    /// How many records had been sent, up to and with the newest that came back.
    newest: u64,
    /// How many records had been sent when the past was forgotten.
    forgotten: u64,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Tally {
    /// Something came.
    fn heard(&mut self, now: Instant) {
        let gap = self.last.map_or(Duration::ZERO, |last| now - last);
        self.report.longest_gap = self.report.longest_gap.max(gap);
        self.last = Some(now);
    }

    fn report(&self, now: Instant) -> Report {
        let running = self
            .last
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        Report {
            longest_gap: self.report.longest_gap.max(running),
            ..self.report
        }
    }
}

/// The near end of a stream: where it goes and what it carries.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Address to come from; none: the kernel chooses.
    pub from: Option<IpAddr>,
    /// The far end.
    pub to: SocketAddr,
    /// What every record bears.
    pub canary: Canary,
    /// Time between two records.
    pub tick: Duration,
}

impl Stream {
    /// Starts a stream to an echo server of its own on `to`'s address `address`.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::Silence`] where the first record did not come back.
    pub fn between(
        near: &Netns,
        far: &Netns,
        protocol: Protocol,
        address: IpAddr,
        canary: Canary,
        tick: Duration,
    ) -> Result<Self, StreamError> {
        let echo = Echo::on(far, protocol, address)?;
        let port = echo
            .addresses()
            .first()
            .map_or(0, |(_, address)| address.port());
        let ends = Ends {
            from: None,
            to: SocketAddr::new(address, port),
            canary,
            tick,
        };
        Self::start(near, protocol, ends, Some(echo))
    }

    /// Starts a stream to an echo server that is there already.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::Silence`] where the first record did not come back.
    pub fn to(near: &Netns, protocol: Protocol, ends: Ends) -> Result<Self, StreamError> {
        Self::start(near, protocol, ends, None)
    }

    fn start(
        near: &Netns,
        protocol: Protocol,
        ends: Ends,
        echo: Option<Echo>,
    ) -> Result<Self, StreamError> {
        let shared = Shared {
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
        };
        let shared = Arc::new(shared);
        let theirs = Arc::clone(&shared);
        // The thread is born inside the namespace, because sockets are made anew after a reset.
        let started = near.run(|| {
            thread::Builder::new()
                .name("stream".to_owned())
                .spawn(move || match protocol {
                    Protocol::Tcp | Protocol::Sctp => segment::run(protocol, ends, &theirs),
                    Protocol::Udp => datagram::run(ends, &theirs),
                })
        })?;
        let thread = Some(started.map_err(StreamError::Start)?);
        let stream = Self {
            to: ends.to,
            shared,
            thread,
            _echo: echo,
        };
        let deadline = Instant::now() + PATIENCE;
        if poll_until(deadline, || stream.report().echoed > 0) {
            return Ok(stream);
        }
        Err(StreamError::Silence {
            to: ends.to,
            report: stream.report(),
        })
    }

    /// What became of it so far.
    pub fn report(&self) -> Report {
        self.shared.tally().report(Instant::now())
    }

    /// The far end.
    pub fn to_address(&self) -> SocketAddr {
        self.to
    }

    /// Forgets the gaps, resets and losses so far: the next report speaks of what comes from now on.
    pub fn forget(&self) {
        let mut tally = self.shared.tally();
        let (sent, echoed) = (tally.report.sent, tally.report.echoed);
        tally.report = Report {
            sent,
            echoed,
            ..Report::default()
        };
        tally.last = Some(Instant::now());
        tally.forgotten = sent;
    }

    /// Waits until records that were sent from now on are back; false if none came in time.
    pub fn is_alive(&self, patience: Duration) -> bool {
        // A datagram of before may be lost, so what counts is that a later record came back.
        let sent = self.report().sent;
        poll_until(Instant::now() + patience, || {
            self.shared.tally().newest > sent
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("a stream's thread panicked");
        }
    }
}

/// When the next record is due: those that a busy machine has missed are left out but for a few, so
/// that no burst of them overflows a queue and looks like a loss on the way.
fn catch_up(due: Instant, tick: Duration, now: Instant) -> Instant {
    let behind = now.saturating_duration_since(due);
    if behind > tick * 16 { now } else { due }
}

/// A connected, non-blocking socket; a connection may still be on its way.
fn open(protocol: Protocol, ends: &Ends) -> Result<OwnedFd, Errno> {
    let family = if ends.to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Sctp => (SocketType::STREAM, Some(rustix::net::ipproto::SCTP)),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, number)?;
    if protocol == Protocol::Tcp {
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    if let Some(from) = ends.from {
        bind(&socket, &SocketAddr::new(from, 0))?;
    }
    match connect(&socket, &ends.to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Waits until something can be read (or written, where that is wanted), or until a time.
fn wait(socket: &OwnedFd, flags: PollFlags, until: Instant) -> Result<PollFlags, Errno> {
    let left = until.saturating_duration_since(Instant::now());
    let mut waiting = [PollFd::from_borrowed_fd(socket.as_fd(), flags)];
    match poll(&mut waiting, Some(&timespec(left))) {
        Ok(_) => Ok(waiting[0].revents()),
        Err(Errno::INTR) => Ok(PollFlags::empty()),
        Err(error) => Err(error),
    }
}
