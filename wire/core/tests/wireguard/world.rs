//! A virtual network and clock: hosts, datagrams under way, and a ledger of every packet.
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use wire_core::Now;

use crate::host::{Host, packet};

/// The moment so long after the first call, on both clocks; wall time begins in 2026.
#[expect(
    clippy::disallowed_methods,
    reason = "some instant has to be the first"
)]
pub(crate) fn after(elapsed: Duration) -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    let instant = *START.get_or_init(Instant::now) + elapsed;
    Now {
        instant,
        unix: Duration::from_secs(1_767_225_600) + elapsed,
    }
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What the network does to datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Of a hundred, how many are lost.
    pub(crate) loss: u32,
    /// Of a hundred, how many arrive twice.
    pub(crate) twice: u32,
    pub(crate) delay: Duration,
    /// Random extra delay; more than the distance of two datagrams reorders them.
    pub(crate) jitter: Duration,
}

pub(crate) const CALM: Weather = Weather {
    loss: 0,
    twice: 0,
    delay: millis_const(10),
    jitter: Duration::ZERO,
};

const fn millis_const(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Any host that a test may want back as what it is.
pub(crate) trait AnyHost: Host + Any {}
impl<T: Host + Any> AnyHost for T {}

pub(crate) struct World {
    pub(crate) elapsed: Duration,
    pub(crate) weather: Weather,
    /// Every datagram that was ever sent: source, destination, bytes.
    pub(crate) wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// Keep `wire`?
    pub(crate) tapped: bool,
    pub(crate) ledger: Ledger,
    hosts: BTreeMap<SocketAddr, Box<dyn AnyHost>>,
    under_way: BTreeMap<(Duration, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    rng: ChaCha20Rng,
    serial: u64,
}

/// What became of every packet.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) sent: BTreeSet<Vec<u8>>,
    pub(crate) delivered: BTreeSet<Vec<u8>>,
    /// Data messages with a packet inside that the network lost.
    pub(crate) lost: usize,
    next: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            elapsed: Duration::ZERO,
            weather: CALM,
            wire: Vec::new(),
            tapped: false,
            ledger: Ledger::default(),
            hosts: BTreeMap::new(),
            under_way: BTreeMap::new(),
            rng: ChaCha20Rng::seed_from_u64(seed),
            serial: 0,
        }
    }

    pub(crate) fn now(&self) -> Now {
        after(self.elapsed)
    }

    pub(crate) fn add(&mut self, address: SocketAddr, host: impl AnyHost) {
        self.hosts.insert(address, Box::new(host));
        self.collect(address);
    }

    /// Takes a host off the network.
    pub(crate) fn remove<T: 'static>(&mut self, address: SocketAddr) -> T {
        let host: Box<dyn Any> = self.hosts.remove(&address).expect("the host is there");
        *host.downcast().expect("the host is of that kind")
    }

    /// Lets a test act on a host.
    pub(crate) fn with<T: 'static, R>(
        &mut self,
        address: SocketAddr,
        act: impl FnOnce(&mut T, Now) -> R,
    ) -> R {
        let now = self.now();
        let host: &mut dyn Any = self
            .hosts
            .get_mut(&address)
            .expect("the host is there")
            .as_mut();
        let result = act(host.downcast_mut().expect("the host is of that kind"), now);
        self.collect(address);
        result
    }

    /// Sends a new packet between hosts by their numbers.
    pub(crate) fn send(&mut self, from: (u8, SocketAddr), to: u8, more: usize) {
        let packet = packet(from.0, to, self.ledger.next, more);
        self.ledger.next += 1;
        self.ledger.sent.insert(packet.clone());
        let now = self.now();
        self.hosts
            .get_mut(&from.1)
            .expect("the host is there")
            .send(&packet, now);
        self.collect(from.1);
    }

    /// Puts a datagram on the network, as an attacker may.
    pub(crate) fn inject(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        datagram: Vec<u8>,
    ) {
        let at = self.elapsed + self.weather.delay;
        self.serial += 1;
        self.under_way
            .insert((at, self.serial), (source, destination, datagram));
    }

    pub(crate) fn random(&mut self, below: u32) -> u32 {
        self.rng.next_u32() % below
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.elapsed + duration;
        while let Some(next) = self.next_step().filter(|next| *next <= end) {
            self.elapsed = self.elapsed.max(next);
            self.step();
        }
        self.elapsed = end;
    }

    fn next_step(&self) -> Option<Duration> {
        let arrival = self.under_way.keys().next().map(|(at, _)| *at);
        let start = after(Duration::ZERO).instant;
        let timeouts = self.hosts.values().filter_map(|host| host.poll_timeout());
        let timeout = timeouts.min().map(|at| at.saturating_duration_since(start));
        arrival.into_iter().chain(timeout).min()
    }

    fn step(&mut self) {
        let now = self.now();
        while let Some(entry) = self
            .under_way
            .first_entry()
            .filter(|e| e.key().0 <= self.elapsed)
        {
            let (source, destination, datagram) = entry.remove();
            if let Some(host) = self.hosts.get_mut(&destination) {
                host.receive(source, &datagram, now);
                self.collect(destination);
            }
        }
        for address in self.hosts.keys().copied().collect::<Vec<_>>() {
            let host = self
                .hosts
                .get_mut(&address)
                .expect("its address was just read");
            if host.poll_timeout().is_some_and(|at| at <= now.instant) {
                host.handle_timeout(now);
                self.collect(address);
            }
        }
    }

    fn collect(&mut self, address: SocketAddr) {
        let host = self.hosts.get_mut(&address).expect("the host is there");
        let (outgoing, delivered) = (host.outgoing(), host.delivered());
        for packet in delivered {
            self.ledger.deliver(packet);
        }
        for (destination, datagram) in outgoing {
            self.carry(address, destination, datagram);
        }
    }

    fn carry(&mut self, source: SocketAddr, destination: SocketAddr, datagram: Vec<u8>) {
        if self.tapped {
            self.wire.push((source, destination, datagram.clone()));
        }
        if self.random(100) < self.weather.loss {
            self.ledger.lost += usize::from(carries_a_packet(&datagram));
            return;
        }
        let copies = if self.random(100) < self.weather.twice {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let jitter = self.weather.jitter.as_micros() as u32;
            let extra = if jitter == 0 { 0 } else { self.random(jitter) };
            let at = self.elapsed + self.weather.delay + Duration::from_micros(extra.into());
            self.serial += 1;
            self.under_way
                .insert((at, self.serial), (source, destination, datagram.clone()));
        }
    }
}

impl Ledger {
    fn deliver(&mut self, packet: Vec<u8>) {
        assert!(
            self.sent.contains(&packet),
            "a packet was delivered that nobody sent"
        );
        assert!(
            self.delivered.insert(packet),
            "a packet was delivered twice"
        );
    }

    /// Packets sent and not delivered.
    pub(crate) fn missing(&self) -> usize {
        self.sent.len() - self.delivered.len()
    }
}

fn carries_a_packet(datagram: &[u8]) -> bool {
    datagram[0] == 4 && datagram.len() > 32
}
