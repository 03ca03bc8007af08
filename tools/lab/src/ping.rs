//! One ICMP echo, through the kernel's ping sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
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

use crate::{
    netns::{Netns, NetnsError},
    process::timespec,
};

/// After how long an unanswered echo is asked for again.
const AGAIN: Duration = Duration::from_millis(250);

/// Bytes of an ICMP echo's header.
const HEADER: usize = 8;

/// An echo to be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Who is asked.
    pub to: IpAddr,
    /// From which address; none: the kernel chooses.
    pub from: Option<IpAddr>,
    /// Bytes after the ICMP header.
    pub size: usize,
    /// For how long it is asked for, several times if need be.
    pub patience: Duration,
    /// Whether it may be cut into fragments.
    pub fragments: Fragments,
}

/// Whether a packet may be cut on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragments {
    /// It may.
    #[default]
    Allowed,
    /// It bears "don't fragment", and its sender does not cut it either.
    Forbidden,
}

/// Why no echo came.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// The namespace could not be entered.
    #[error("the namespace to ping from")]
    Netns(#[from] NetnsError),
    /// Nobody answered in time.
    #[error("{to} does not answer within {patience:?}")]
    Silence {
        /// Who was asked.
        to: IpAddr,
        /// For how long.
        patience: Duration,
    },
    /// The kernel refused to send, or somebody on the way said that there is no way.
    #[error("{to} cannot be asked")]
    Refused {
        /// Who was asked.
        to: IpAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Ping {
    /// An ordinary ping, for up to two seconds.
    pub fn new(to: IpAddr) -> Self {
        Self {
            to,
            from: None,
            size: 56,
            patience: Duration::from_secs(2),
            fragments: Fragments::Allowed,
        }
    }

    /// One whole IP packet of `length` bytes, headers included, that nobody may cut.
    ///
    /// # Panics
    /// Where that is less than its headers.
    pub fn whole(to: IpAddr, length: usize) -> Self {
        let headers = HEADER + if to.is_ipv4() { 20 } else { 40 };
        Self {
            size: length - headers,
            fragments: Fragments::Forbidden,
            ..Self::new(to)
        }
    }

    /// Asks from a namespace; returns how long the answer took.
    ///
    /// # Errors
    /// [`PingError`].
    pub fn send(&self, netns: &Netns) -> Result<Duration, PingError> {
        netns.run(|| self.send_here())?
    }

    pub(crate) fn send_here(&self) -> Result<Duration, PingError> {
        let refused = |error: Errno| PingError::Refused {
            to: self.to,
            source: error.into(),
        };
        let socket = self.socket().map_err(refused)?;
        let deadline = Instant::now() + self.patience;
        let mut sequence = 0_u16;
        loop {
            sequence += 1;
            let asked = Instant::now();
            let echo = self.echo(sequence);
            match send(&socket, &echo, SendFlags::empty()) {
                Ok(_) => {}
                // A neighbour that is not there yet, or a full queue: asked again below.
                Err(Errno::HOSTUNREACH | Errno::NOBUFS | Errno::AGAIN) => {}
                Err(error) => return Err(refused(error)),
            }
            let until = deadline.min(asked + AGAIN);
            if let Some(took) = hear(&socket, &echo, asked, until).map_err(refused)? {
                return Ok(took);
            }
            if Instant::now() >= deadline {
                return Err(PingError::Silence {
                    to: self.to,
                    patience: self.patience,
                });
            }
        }
    }

    fn socket(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, protocol) = match self.to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
        if self.fragments == Fragments::Forbidden {
            match self.to {
                IpAddr::V4(_) => {
                    sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DO)
                }
                IpAddr::V6(_) => {
                    sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::DO)
                }
            }?;
        }
        if let Some(from) = self.from {
            bind(&socket, &SocketAddr::new(from, 0))?;
        }
        connect(&socket, &SocketAddr::new(self.to, 0))?;
        Ok(socket)
    }

    /// The message; the kernel fills in identifier and checksum.
    fn echo(&self, sequence: u16) -> Vec<u8> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut echo = vec![kind, 0, 0, 0, 0, 0];
        echo.extend_from_slice(&sequence.to_be_bytes());
        echo.extend((0..self.size).map(|at| at.to_le_bytes()[0]));
        echo
    }
}

/// Waits for the answer to an echo; none if it did not come.
fn hear(
    socket: &OwnedFd,
    echo: &[u8],
    asked: Instant,
    until: Instant,
) -> Result<Option<Duration>, Errno> {
    let mut buffer = vec![0; echo.len() + 64];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut waiting = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut waiting, Some(&timespec(left))) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) if is_answer(&buffer[..length], echo) => {
                return Ok(Some(asked.elapsed()));
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::HOSTUNREACH) => {}
            Err(error) => return Err(error),
        }
    }
}

/// An echo reply (type 0, or 129 in ICMPv6) of the same number and content.
fn is_answer(answer: &[u8], echo: &[u8]) -> bool {
    let kind = if echo[0] == 8 { 0 } else { 129 };
    answer.len() == echo.len()
        && answer[0] == kind
        && answer[6..] == echo[6..]
        && echo.len() >= HEADER
}
