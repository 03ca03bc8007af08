//! The flood itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};
use rustix::time::{ClockId, clock_gettime};

use crate::forger::{Forger, Kind};
use crate::sys;

/// Different datagrams made beforehand; they go round.
const POOL: usize = 4096;
/// How often a second a batch leaves.
const BEATS: u32 = 1000;
/// A batch is at most so many times smaller than what one second sends.
const CATCH_UP: f64 = 10.0;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Bytes of an Ethernet frame's payload.
const MTU: usize = 1500;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
const HOPS: u8 = 64;

/// What to send where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The WireGuard's UDP address.
    pub target: SocketAddr,
    /// Its public key.
    pub key: [u8; 32],
    /// What is sent.
    pub kind: Kind,
    /// From where.
    pub sources: Sources,
    /// Datagrams per second, at most.
    pub rate: u32,
}

/// Where datagrams come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// One socket of our own.
    Own,
    /// Another address of this network, and another port, for each; in IPv6 another /64 too, where the network has
    /// more than one. Needs root.
    Forged(IpNet),
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// Datagrams that the kernel took.
    pub datagrams: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Processor time of this thread meanwhile.
    pub processor: Duration,
}

/// Why a flood could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum FloodError {
    /// No socket, or no way to the target.
    #[error("cannot make a socket to {target}")]
    Socket {
        /// The target.
        target: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Sources of one family cannot send to the other.
    #[error("sources of {0} cannot send to {1}")]
    Family(IpNet, SocketAddr),
    /// The kernel took no more.
    #[error("cannot send")]
    Send(#[source] io::Error),
}

enum Socket {
    Own(UdpSocket),
    Raw(OwnedFd),
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Own(socket) => socket.as_raw_fd(),
            Self::Raw(socket) => socket.as_raw_fd(),
        }
    }
}

/// Sends on this thread, in the network namespace that it is in, for as long as `go_on` says yes (it is asked a
/// thousand times a second at most). A target that cannot keep up loses datagrams, as it should.
///
/// # Errors
/// See [`FloodError`]. A closed port is none.
pub fn run(plan: &Plan, mut go_on: impl FnMut() -> bool) -> Result<Sent, FloodError> {
    let socket = connect(plan)?;
    let mut pool = fill(plan);
    let (start, spent) = (Instant::now(), processor());
    let (mut sent, mut next) = (0_u64, 0_usize);
    let (mut owed, mut last) = (0.0_f64, start);
    while go_on() {
        let now = Instant::now();
        owed += (now - last).as_secs_f64() * f64::from(plan.rate);
        // What was missed for longer is not made up for: a machine without time to spare gets fewer.
        owed = owed.min(f64::from(plan.rate) / CATCH_UP);
        last = now;
        let mut left = owed as usize;
        owed -= left as f64;
        while left > 0 {
            if next >= pool.len() {
                next = 0;
                vary(&mut pool, plan.sources, sent);
            }
            let batch: Vec<&[u8]> = pool[next..]
                .iter()
                .take(left.min(sys::MOST))
                .map(Vec::as_slice)
                .collect();
            let count = match sys::send_many(&socket, &batch) {
                Ok(count) => count,
                Err(error) if is_passing(&error) => 1,
                Err(error) => return Err(FloodError::Send(error)),
            };
            sent += count as u64;
            next += count;
            left = left.saturating_sub(count);
        }
        std::thread::park_timeout(Duration::from_secs(1) / BEATS);
    }
    Ok(Sent {
        datagrams: sent,
        elapsed: start.elapsed(),
        processor: processor() - spent,
    })
}

fn connect(plan: &Plan) -> Result<Socket, FloodError> {
    let failed = |source| FloodError::Socket {
        target: plan.target,
        source,
    };
    match (plan.sources, plan.target) {
        (Sources::Own, target) => {
            let any: SocketAddr = match target {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).map_err(failed)?;
            socket.connect(target).map_err(failed)?;
            Ok(Socket::Own(socket))
        }
        (Sources::Forged(sources), target) => {
            if sources.addr().is_ipv4() != target.is_ipv4() {
                return Err(FloodError::Family(sources, target));
            }
            let socket = sys::raw_socket(target.is_ipv6()).map_err(failed)?;
            let whole = SocketAddr::new(target.ip(), 0);
            rustix::net::connect(&socket, &whole).map_err(|errno| failed(errno.into()))?;
            Ok(Socket::Raw(socket))
        }
    }
}

/// Datagrams, with headers where those are ours to write.
fn fill(plan: &Plan) -> Vec<Vec<u8>> {
    let mut forger = Forger::new(&plan.key, 1);
    let count = match plan.kind {
        Kind::Oversize => POOL / 32,
        Kind::Initiations
        | Kind::Responses
        | Kind::Cookies
        | Kind::Data
        | Kind::Garbage
        | Kind::Truncated => POOL,
    };
    let mut pool: Vec<Vec<u8>> = (0..count).map(|_| forger.forge(plan.kind)).collect();
    if let Sources::Forged(_) = plan.sources {
        for datagram in &mut pool {
            encapsulate(datagram, plan.target);
        }
        vary(&mut pool, plan.sources, 0);
    }
    pool
}

/// Puts IP and UDP headers before a payload, with sources of zero.
///
/// IPv4's own checksum is the kernel's to fill in, and UDP's may be zero there (RFC 768). Over IPv6 it may not
/// (RFC 8200 §8.1): it is that of a source of zero, and [`vary`] keeps it true.
fn encapsulate(datagram: &mut Vec<u8>, target: SocketAddr) {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let ip_header = match target {
        SocketAddr::V4(_) => IPV4_HEADER,
        SocketAddr::V6(_) => IPV6_HEADER,
    };
    datagram.truncate(MTU - ip_header - UDP_HEADER);
    let udp_length = UDP_HEADER + datagram.len();
    let mut headers = vec![0; ip_header + UDP_HEADER];
    let udp = ip_header;
    headers[udp + 2..udp + 4].copy_from_slice(&target.port().to_be_bytes());
    headers[udp + 4..udp + 6].copy_from_slice(&length(udp_length));
    match target.ip() {
        IpAddr::V4(ip) => {
            headers[0] = 0x45;
            headers[2..4].copy_from_slice(&length(ip_header + udp_length));
            headers[8..10].copy_from_slice(&[HOPS, UDP]);
            headers[16..20].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            headers[0] = 0x60;
            headers[4..6].copy_from_slice(&length(udp_length));
            headers[6..8].copy_from_slice(&[UDP, HOPS]);
            headers[24..40].copy_from_slice(&ip.octets());
            let pseudo = [0, UDP];
            let parts = [
                &ip.octets()[..],
                &length(udp_length),
                &pseudo,
                &headers[udp..],
                datagram,
            ];
            let checksum = !parts.into_iter().fold(0, sum);
            // Zero would mean none.
            let checksum = if checksum == 0 { u16::MAX } else { checksum };
            headers[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
        }
    }
    datagram.splice(..0, headers);
}

/// One's complement sum (RFC 1071), on top of another; bytes behind an odd end count as zero.
fn sum(before: u16, bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));

    words.fold(before, add)
}

fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);

    sum + u16::from(carry)
}

/// Gives every datagram another source.
fn vary(pool: &mut [Vec<u8>], sources: Sources, serial: u64) {
    let Sources::Forged(network) = sources else {
        return;
    };
    for (at, datagram) in pool.iter_mut().enumerate() {
        // Neighbouring serial numbers become addresses that are far from each other.
        let mixed = (serial + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let port = (mixed as u16 | 1024).to_be_bytes();
        match network {
            IpNet::V4(network) => {
                let hosts = u64::from(u32::MAX >> network.prefix_len().min(31));
                let host = (mixed >> 32) % hosts;
                let address = Ipv4Addr::from(u32::from(network.network()) | host as u32);
                datagram[12..16].copy_from_slice(&address.octets());
                datagram[IPV4_HEADER..IPV4_HEADER + 2].copy_from_slice(&port);
            }
            IpNet::V6(network) => {
                let address = neutral(network, mixed, u16::from_be_bytes(port));
                datagram[8..24].copy_from_slice(&address.octets());
                datagram[IPV6_HEADER..IPV6_HEADER + 2].copy_from_slice(&port);
            }
        }
    }
}

/// An address of the network that, together with the port, adds nothing to a checksum: its last word makes up for the
/// rest (as RFC 6296 §3.1 does).
fn neutral(network: Ipv6Net, mixed: u64, port: u16) -> Ipv6Addr {
    let wide = u128::from(mixed) << 64 | u128::from(mixed.rotate_left(32));
    let host = u128::from(network.hostmask()) & wide & !0xffff;
    let address = u128::from(network.network()) | host;
    let rest = add(sum(0, &address.to_be_bytes()), port);

    Ipv6Addr::from(address | u128::from(!rest))
}

/// Errors of a datagram before, or of a queue that is full for now.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENOBUFS | libc::EINTR | libc::EAGAIN)
    )
}

fn processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_the_rate_that_was_asked_for() {
        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        target
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let plan = Plan {
            target: target.local_addr().unwrap(),
            key: [1; 32],
            kind: Kind::Initiations,
            sources: Sources::Own,
            rate: 2000,
        };
        let end = Instant::now() + Duration::from_secs(1);
        let sent = run(&plan, || Instant::now() < end).unwrap();
        let expected = sent.elapsed.as_secs_f64() * 2000.0;
        let ratio = sent.datagrams as f64 / expected;
        assert!((0.05..=1.01).contains(&ratio), "{sent:?}");
        let mut buffer = [0; 2000];
        assert_eq!(target.recv(&mut buffer).unwrap(), 148);
    }

    #[test]
    fn forged_sources_differ_and_stay_in_their_network() {
        let plan = Plan {
            target: "192.0.2.1:51820".parse().unwrap(),
            key: [1; 32],
            kind: Kind::Initiations,
            sources: Sources::Forged("198.18.0.0/15".parse().unwrap()),
            rate: 1,
        };
        let pool = fill(&plan);
        let sources: std::collections::BTreeSet<_> =
            pool.iter().map(|d| d[12..16].to_vec()).collect();
        assert!(sources.len() > POOL * 9 / 10);
        assert!(
            sources
                .iter()
                .all(|source| source[0] == 198 && source[1] & 0xfe == 18)
        );
        assert_eq!(pool[0].len(), 148 + 28);
    }

    #[test]
    fn forged_sources_of_ipv6_come_from_many_networks_under_true_checksums() {
        let plan = Plan {
            target: "[2001:db8:9::2]:51820".parse().unwrap(),
            key: [1; 32],
            kind: Kind::Garbage,
            sources: Sources::Forged("2001:db8:100::/40".parse().unwrap()),
            rate: 1,
        };
        let pool = fill(&plan);
        let networks: std::collections::BTreeSet<_> =
            pool.iter().map(|d| d[8..16].to_vec()).collect();
        assert!(networks.len() > POOL * 9 / 10);

        for datagram in &pool {
            assert_eq!(datagram[8..13], [0x20, 0x01, 0x0d, 0xb8, 0x01]);
            // RFC 8200 §8.1, over the whole of it: addresses, length, next header, datagram.
            let (addresses, udp) = (&datagram[8..40], &datagram[40..]);
            let parts = [addresses, &udp[4..6], &[0, 17], udp];
            assert_eq!(parts.into_iter().fold(0, sum), u16::MAX);
        }
    }
}
