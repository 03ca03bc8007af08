//! What must come back, and what must not: many questions at once, each of which is answered by an echo or not at all.
//!
//! A refusal is no answer: a port that a translation should have led elsewhere is refused too.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{End, Netns, Probe};

/// IANA protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// How long what is allowed may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long nothing must come of what is denied.
const SILENCE: Duration = Duration::from_millis(900);

/// Time between two attempts.
const AGAIN: Duration = Duration::from_millis(300);

/// What is asked.
const WORDS: &[u8] = b"is it you";

/// The first port that SCTP, which no kernel here speaks, sends from; each question has one of its own, so that none
/// goes on where an earlier one ended.
const FIRST_PORT: u16 = 20_000;

/// The number of the next question of SCTP.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// A question to a socket, and whether its echo is to come back.
#[derive(Clone, Debug)]
pub struct Ask {
    what: String,
    netns: Arc<Netns>,
    protocol: u8,
    to: SocketAddr,
    passes: bool,
}

impl Ask {
    /// Asks from there by an IP protocol: TCP and UDP are echoed, others answered as [`Probe`] says.
    pub fn new(from: &dyn End, protocol: u8, to: SocketAddr, passes: bool) -> Self {
        Self {
            what: format!("{} to {to} by protocol {protocol}", from.label()),
            netns: from.netns(),
            protocol,
            to,
            passes,
        }
    }

    /// Asks all at once; panics with those whose outcome is another than expected.
    pub fn all(state: &str, asks: &[Self]) {
        let wrong: Vec<String> = thread::scope(|scope| {
            let asked: Vec<_> = asks
                .iter()
                .map(|ask| (ask, scope.spawn(move || ask.is_answered())))
                .collect();
            let answered = asked.into_iter().map(|(ask, answered)| {
                let answered = answered.join().unwrap_or_else(|_| panic!("{}", ask.what));
                (ask, answered)
            });
            let wrong = answered.filter(|(ask, answered)| *answered != ask.passes);
            wrong
                .map(|(ask, _)| {
                    let should = if ask.passes { "must pass" } else { "must not" };
                    format!("{}: {should}", ask.what)
                })
                .collect()
        });
        assert!(wrong.is_empty(), "{state}:\n  {}", wrong.join("\n  "));
    }

    fn is_answered(&self) -> bool {
        let usual = if self.passes { PATIENCE } else { SILENCE };
        match self.protocol {
            TCP | UDP => self.is_echoed(Instant::now() + lab::patience(usual)),
            protocol => {
                let port = FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
                let probe = Probe {
                    netns: Arc::clone(&self.netns),
                    from: SocketAddr::new(any(self.to.ip()), port),
                    to: self.to,
                    protocol,
                };
                probe
                    .send(usual)
                    .unwrap_or_else(|e| panic!("{}: {e}", self.what))
            }
        }
    }

    fn is_echoed(&self, deadline: Instant) -> bool {
        let asked = self.netns.run(|| {
            loop {
                let start = Instant::now();
                let left = deadline.saturating_duration_since(start).min(2 * AGAIN);
                let heard = if left.is_zero() {
                    return Ok(false);
                } else if self.protocol == TCP {
                    by_tcp(self.to, left)
                } else {
                    by_udp(self.to, left)
                };
                match heard {
                    Ok(()) => return Ok(true),
                    Err(error) if is_no_answer(error.kind()) => {}
                    Err(error) => return Err(error),
                }
                thread::park_timeout(AGAIN.saturating_sub(start.elapsed()));
            }
        });
        match asked.map_err(std::io::Error::other) {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) | Err(error) => panic!("{}: {error}", self.what),
        }
    }
}

fn by_tcp(to: SocketAddr, patience: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(WORDS)?;
    let mut heard = [0; WORDS.len()];
    stream.read_exact(&mut heard)?;

    is_echo(&heard)
}

fn by_udp(to: SocketAddr, patience: Duration) -> std::io::Result<()> {
    let socket = UdpSocket::bind((any(to.ip()), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(WORDS)?;
    let mut heard = [0; WORDS.len() + 1];
    let length = socket.recv(&mut heard)?;

    is_echo(&heard[..length])
}

fn is_echo(heard: &[u8]) -> std::io::Result<()> {
    if heard == WORDS {
        Ok(())
    } else {
        Err(ErrorKind::InvalidData.into())
    }
}

/// Nobody answers, somebody refuses, or there is no way.
fn is_no_answer(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::TimedOut
            | ErrorKind::WouldBlock
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::UnexpectedEof
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::PermissionDenied
    )
}

fn any(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}
