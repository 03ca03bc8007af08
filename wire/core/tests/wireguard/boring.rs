//! boringtun as a host: an independent implementation whose clock is the virtual one.
//!
//! It knows one peer and follows it to wherever its authentic packets come from, as boringtun's own
//! device does. Its timers have to be served every 250 ms.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use mock_instant::MockClock;
use wire_core::Now;

use crate::host::{Host, private_key, public_key};
use crate::world::after;

const TICK: Duration = Duration::from_millis(250);

pub(crate) struct Boring {
    tunn: Tunn,
    peer: SocketAddr,
    next_tick: Instant,
    buffer: Vec<u8>,
    outgoing: Vec<(SocketAddr, Vec<u8>)>,
    delivered: Vec<Vec<u8>>,
}

/// How it is set up, apart from the keys.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) psk: Option<[u8; 32]>,
    pub(crate) keepalive: Option<u16>,
    /// Behave as if under load from the first handshake on.
    pub(crate) loaded: bool,
}

impl Boring {
    /// The host with this key, and with that one's as its peer.
    pub(crate) fn new(number: u8, peer: (u8, SocketAddr), setup: Setup, now: Now) -> Self {
        set_clock(now);
        let secret = StaticSecret::from(*private_key(number).expose());
        let public = PublicKey::from(&secret);
        let limiter = setup.loaded.then(|| Arc::new(RateLimiter::new(&public, 0)));
        let theirs = PublicKey::from(public_key(peer.0).0);
        let tunn = Tunn::new(secret, theirs, setup.psk, setup.keepalive, 1, limiter);
        Self {
            tunn,
            peer: peer.1,
            next_tick: now.instant + TICK,
            buffer: vec![0; 65536],
            outgoing: Vec::new(),
            delivered: Vec::new(),
        }
    }

    /// Begins a handshake whether one is due or not.
    pub(crate) fn initiate(&mut self, now: Now) {
        set_clock(now);
        let result = self
            .tunn
            .format_handshake_initiation(&mut self.buffer, true);
        let taken = take(result);
        self.keep(taken);
    }

    fn keep(&mut self, taken: Taken) {
        match taken {
            Taken::Nothing => {}
            Taken::Datagram(datagram) => self.outgoing.push((self.peer, datagram)),
            Taken::Packet(packet) => self.delivered.push(packet),
        }
    }
}

enum Taken {
    Nothing,
    Datagram(Vec<u8>),
    Packet(Vec<u8>),
}

fn take(result: TunnResult<'_>) -> Taken {
    match result {
        TunnResult::Done | TunnResult::Err(_) => Taken::Nothing,
        TunnResult::WriteToNetwork(datagram) => Taken::Datagram(datagram.to_vec()),
        TunnResult::WriteToTunnelV4(packet, _) => Taken::Packet(packet.to_vec()),
        TunnResult::WriteToTunnelV6(packet, _) => Taken::Packet(packet.to_vec()),
    }
}

fn set_clock(now: Now) {
    MockClock::set_time(now.instant - after(Duration::ZERO).instant);
}

impl Host for Boring {
    fn send(&mut self, packet: &[u8], now: Now) {
        set_clock(now);
        let taken = take(self.tunn.encapsulate(packet, &mut self.buffer));
        self.keep(taken);
    }

    fn receive(&mut self, source: SocketAddr, datagram: &[u8], now: Now) {
        set_clock(now);
        let mut taken = take(
            self.tunn
                .decapsulate(Some(source.ip()), datagram, &mut self.buffer),
        );
        while let Taken::Datagram(datagram) = taken {
            self.keep(Taken::Datagram(datagram));
            taken = take(self.tunn.decapsulate(None, &[], &mut self.buffer));
        }
        self.keep(taken);
    }

    fn handle_timeout(&mut self, now: Now) {
        set_clock(now);
        self.next_tick = now.instant + TICK;
        let taken = take(self.tunn.update_timers(&mut self.buffer));
        self.keep(taken);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next_tick)
    }

    fn outgoing(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.outgoing)
    }

    fn delivered(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.delivered)
    }
}
