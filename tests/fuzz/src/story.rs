//! Stories about two live tunnels and whoever is between them, told in text, one step a line.
//!
//! ```text
//!   b ──sends──▶ pool ──carry, move, forge, cut, splice──▶ a          a ──everything──▶ b (unless b is deaf)
//! ```
//!
//! `a` is what is tested; `b` is its peer and behaves; `c` is a peer that never says anything. What `b` sent lies
//! in the pool until a step does something with it, counted from the newest. Every text is a story: numbers that
//! are missing are 0, words that mean nothing are passed over.
//!
//! | step | what happens |
//! |---|---|
//! | `begin` | `b` wants to talk: an initiation goes into the pool |
//! | `send N` | `b` seals an IP packet of `N` bytes for `a` |
//! | `spoof N` | the same with a source that belongs to `c` |
//! | `junk N` | the same with `N` bytes that are no IP packet |
//! | `ask N` | `a` sends a packet of `N` bytes to `b`, or to `c` where `N` is odd |
//! | `deliver` | everything in the pool that `a` has not seen yet arrives |
//! | `carry N` | one datagram of the pool arrives, perhaps again |
//! | `move N PORT` | the same from another address |
//! | `forge N AT XOR MAC` | one arrives with a byte changed; `MAC` 1: with its `mac1` made right again |
//! | `cut N LENGTH` | one arrives with another length |
//! | `splice N M AT` | the beginning of one and the end of another arrive |
//! | `raw HEX` | these bytes arrive |
//! | `flood N` | `N` initiations by nobody, with a right `mac1`, arrive from as many addresses |
//! | `wait MS` | time passes |
//! | `deaf`, `hear` | what `a` sends is lost, or arrives |
//! | `psk N`, `key`, `mute` (no key), `drop`, `add`, `down`, `up` | `a` is configured |

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
    time::{Duration, Instant},
};

use wire_core::{
    AllowedIpChange, DATA_OVERHEAD, DropReason, Endpoint, Message, Now, Outbound, Payload,
    PeerChange, PeerUpdate, PresharedKey, PrivateKey, PublicKey, Refusal, Tunnel, Verdict,
};

use crate::{Broken, Fate, target::promise};

mod datagram;

use datagram::{Essence, essence, sign};

/// Steps of one story at most; the rest is not told.
const STEPS: usize = 400;
/// Datagrams that are kept.
const POOL: usize = 512;
/// Times that timers may fire in one step: two tunnels, a day at a handshake every five seconds.
const FIRINGS: usize = 100_000;
/// Datagrams of all floods of a story: each costs a key agreement.
const FLOOD: u64 = 2048;
/// Longest wait of one step: a bit over three times the life of a session.
const LONGEST_WAIT: u64 = 600_000;

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;

/// How `a` looks from outside: what no stranger may change.
type Portrait = (
    Vec<(PublicKey, Option<Endpoint>, Option<Duration>, u64, u64)>,
    Option<Instant>,
);

/// What `b` sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealed {
    /// From its own address.
    Own,
    /// From an address of `c`.
    Foreign,
}

/// A datagram on its way to `a`.
struct Flying {
    bytes: Vec<u8>,
    seen: bool,
}

/// The two tunnels and all that was ever sent.
pub struct Story {
    a: Tunnel,
    b: Tunnel,
    elapsed: Duration,
    pool: Vec<Flying>,
    /// What `b` really said, but for what nobody can authenticate.
    genuine: BTreeSet<Essence>,
    /// What `a` took since it was configured last.
    taken: BTreeSet<Essence>,
    sealed: BTreeMap<Vec<u8>, Sealed>,
    delivered: BTreeSet<Vec<u8>>,
    is_deaf: bool,
    serial: u64,
    flood_left: u64,
    fate: Fate,
}

impl Story {
    /// Tells a story.
    ///
    /// # Errors
    /// The promise that `a` broke.
    pub fn tell(text: &str) -> Result<Fate, Broken> {
        let mut story = Self::new();
        story.exchange()?;
        for line in text.lines().take(STEPS) {
            story.step(line)?;
            story.exchange()?;
        }
        Ok(story.fate)
    }

    fn new() -> Self {
        let mut story = Self {
            a: Tunnel::new([A; 32]),
            b: Tunnel::new([B; 32]),
            elapsed: Duration::ZERO,
            pool: Vec::new(),
            genuine: BTreeSet::new(),
            taken: BTreeSet::new(),
            sealed: BTreeMap::new(),
            delivered: BTreeSet::new(),
            is_deaf: false,
            serial: 0,
            flood_left: FLOOD,
            fate: Fate::default(),
        };
        let now = story.now();
        story.a.set_private_key(Some(private(A)), now);
        story.b.set_private_key(Some(private(B)), now);
        introduce(&mut story.a, B, None, now);
        introduce(&mut story.a, C, None, now);
        introduce(&mut story.b, A, Some(outer(A)), now);
        story
    }

    fn now(&self) -> Now {
        static START: OnceLock<Instant> = OnceLock::new();
        Now {
            instant: *START.get_or_init(Instant::now) + self.elapsed,
            unix: Duration::from_secs(1_767_225_600) + self.elapsed,
        }
    }

    fn step(&mut self, line: &str) -> Result<(), Broken> {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let number = |at: usize| -> u64 { rest.get(at).and_then(|n| n.parse().ok()).unwrap_or(0) };
        match verb {
            "begin" => self.seal(&[], 0),
            "send" => self.send(number(0), Sealed::Own),
            "spoof" => self.send(number(0), Sealed::Foreign),
            "junk" => self.junk(number(0)),
            "ask" => self.ask(number(0))?,
            "deliver" => self.deliver()?,
            "carry" => self.carry(number(0), outer(B))?,
            "move" => self.carry(number(0), from_port(number(1)))?,
            "forge" => self.forge(number(0), number(1), number(2), number(3) == 1)?,
            "cut" => self.cut(number(0), number(1))?,
            "splice" => self.splice(number(0), number(1), number(2))?,
            "raw" => {
                let bytes = hex::decode(rest.join("")).unwrap_or_default();
                self.arrive(outer(9), &bytes)?;
            }
            "flood" => self.flood(number(0))?,
            "wait" => self.wait(number(0))?,
            "deaf" => self.is_deaf = true,
            "hear" => self.is_deaf = false,
            _ => self.configure(verb, number(0)),
        }
        Ok(())
    }

    fn configure(&mut self, verb: &str, number: u64) {
        let now = self.now();
        match verb {
            "psk" => {
                let preshared_key = Some(PresharedKey::new([number as u8; 32]));
                let update = PeerUpdate {
                    preshared_key,
                    ..PeerUpdate::default()
                };
                self.a
                    .configure_peer(private(B).public_key(), PeerChange::Update(update), now);
            }
            "key" => self.a.set_private_key(Some(private(A)), now),
            "mute" => self.a.set_private_key(None, now),
            "drop" => {
                self.a
                    .configure_peer(private(B).public_key(), PeerChange::Remove, now);
            }
            "add" => introduce(&mut self.a, B, None, now),
            "down" => self.a.set_down(),
            "up" => self.a.set_up(now),
            _ => return,
        }
        self.taken.clear();
    }

    // ── what b does ──

    fn send(&mut self, size: u64, sealed: Sealed) {
        let from = match sealed {
            Sealed::Own => B,
            Sealed::Foreign => C,
        };
        self.serial += 1;
        let packet = packet(from, self.serial, size as usize % 1400);
        self.sealed.insert(packet.clone(), sealed);
        self.seal(&packet, packet.len().next_multiple_of(16));
    }

    fn junk(&mut self, size: u64) {
        let size = size as usize % 1400;
        let bytes: Vec<u8> = (0..size)
            .map(|at| (at as u64 ^ size as u64) as u8)
            .collect();
        self.seal(&bytes, size);
    }

    /// Seals as the shell of a tunnel would; without a session, begins one.
    fn seal(&mut self, packet: &[u8], padded: usize) {
        let now = self.now();
        let Some(peer) = self.b.find_peer(&private(A).public_key()) else {
            return;
        };
        let size = padded + DATA_OVERHEAD;
        match self.b.send(peer, 1, size as u64, now) {
            Outbound::Seal(mut batch) => {
                let mut datagram = vec![0; size];
                datagram[16..16 + packet.len()].copy_from_slice(packet);
                if batch.seal(&mut datagram).is_ok() {
                    self.fly(datagram);
                }
            }
            Outbound::Queue => {
                if !packet.is_empty() {
                    self.b.queue(peer, packet);
                }
            }
            Outbound::Drop(_) => (),
        }
    }

    fn fly(&mut self, bytes: Vec<u8>) {
        self.genuine.insert(essence(&bytes));
        if self.pool.len() == POOL {
            self.pool.remove(0);
        }
        self.pool.push(Flying { bytes, seen: false });
    }

    // ── what happens on the way ──

    /// Counted from the newest.
    fn nth(&self, number: u64) -> Option<usize> {
        let length = self.pool.len() as u64;
        (length > 0).then(|| (length - 1 - number % length) as usize)
    }

    fn deliver(&mut self) -> Result<(), Broken> {
        for at in 0..self.pool.len() {
            if !std::mem::replace(&mut self.pool[at].seen, true) {
                let bytes = self.pool[at].bytes.clone();
                self.arrive(outer(B), &bytes)?;
            }
        }
        Ok(())
    }

    fn carry(&mut self, number: u64, source: SocketAddr) -> Result<(), Broken> {
        let Some(at) = self.nth(number) else {
            return Ok(());
        };
        self.pool[at].seen = true;
        let bytes = self.pool[at].bytes.clone();
        self.arrive(source, &bytes)
    }

    fn forge(&mut self, number: u64, at: u64, xor: u64, signed: bool) -> Result<(), Broken> {
        let Some(index) = self.nth(number) else {
            return Ok(());
        };
        let mut bytes = self.pool[index].bytes.clone();
        let length = bytes.len() as u64;
        bytes[(at % length) as usize] ^= (xor as u8).max(1);
        if signed {
            sign(&mut bytes, &private(A).public_key());
        }
        self.arrive(outer(9), &bytes)
    }

    fn cut(&mut self, number: u64, length: u64) -> Result<(), Broken> {
        let Some(index) = self.nth(number) else {
            return Ok(());
        };
        let mut bytes = self.pool[index].bytes.clone();
        bytes.resize(length as usize % 2000, 0);
        self.arrive(outer(9), &bytes)
    }

    fn splice(&mut self, head: u64, tail: u64, at: u64) -> Result<(), Broken> {
        let (Some(head), Some(tail)) = (self.nth(head), self.nth(tail)) else {
            return Ok(());
        };
        let (head, tail) = (&self.pool[head].bytes, &self.pool[tail].bytes);
        let at = at as usize % (head.len() + 1);
        let mut bytes = head[..at].to_vec();
        bytes.extend(tail.iter().skip(at));
        self.arrive(outer(9), &bytes)
    }

    fn flood(&mut self, number: u64) -> Result<(), Broken> {
        let number = number.min(self.flood_left);
        self.flood_left -= number;
        for port in 0..number {
            self.serial += 1;
            let mut bytes = vec![0; 148];
            bytes[0] = 1;
            // A sender, and an ephemeral key that now and then is none.
            bytes[4..12].copy_from_slice(&self.serial.to_le_bytes());
            bytes[12] = if self.serial.is_multiple_of(16) { 0 } else { 4 };
            bytes[8..12].fill(0);
            sign(&mut bytes, &private(A).public_key());
            self.arrive(from_port(port), &bytes)?;
        }
        Ok(())
    }

    fn wait(&mut self, milliseconds: u64) -> Result<(), Broken> {
        let end = self.elapsed + Duration::from_millis(milliseconds % (LONGEST_WAIT + 1));
        let start = self.now().instant - self.elapsed;
        for _ in 0..FIRINGS {
            let due = [self.a.poll_timeout(), self.b.poll_timeout()];
            let next = due.into_iter().flatten().min().map(|at| at - start);
            let Some(next) = next.filter(|next| *next <= end) else {
                self.elapsed = end;
                return Ok(());
            };
            self.elapsed = self.elapsed.max(next);
            let now = self.now();
            self.a.handle_timeout(now);
            self.b.handle_timeout(now);
            self.exchange()?;
        }
        Err(Broken(format!(
            "timers fired {FIRINGS} times in {milliseconds} ms"
        )))
    }

    /// What both have to say goes its way.
    fn exchange(&mut self) -> Result<(), Broken> {
        loop {
            let now = self.now();
            let (from_a, from_b) = (self.a.poll_transmit(), self.b.poll_transmit());
            if from_a.is_none() && from_b.is_none() {
                while self.a.poll_event().is_some() || self.b.poll_event().is_some() {}
                return Ok(());
            }
            if let Some(transmit) = from_b {
                self.fly(transmit.datagram);
            }
            if let Some(transmit) = from_a.filter(|_| !self.is_deaf) {
                let is_for_b = transmit.destination.remote == outer(B);
                if is_for_b {
                    receive_quietly(&mut self.b, &transmit.datagram, now);
                }
            }
        }
    }
}

mod arrival;

/// What an honest peer does with a datagram.
fn receive_quietly(tunnel: &mut Tunnel, datagram: &[u8], now: Now) {
    let source = Endpoint::from(outer(A));
    if let Ok(Message::Data { receiver, .. }) = Message::classify(datagram) {
        let Some(session) = tunnel.session(receiver, now) else {
            return;
        };
        if let Ok(opened) = session.open(&mut datagram.to_vec()) {
            tunnel.received(&session, source, &[opened], &mut Vec::new(), now);
        }
    } else {
        // Its refusals are no part of the story.
        let _: Result<_, Refusal> = tunnel.handle_handshake(source, datagram, now);
    }
}

fn introduce(tunnel: &mut Tunnel, number: u8, endpoint: Option<SocketAddr>, now: Now) {
    let update = PeerUpdate {
        endpoint,
        allowed_ips: vec![AllowedIpChange::Add(inner(number).into())],
        ..PeerUpdate::default()
    };
    tunnel.configure_peer(
        private(number).public_key(),
        PeerChange::Upsert(update),
        now,
    );
}

fn private(number: u8) -> PrivateKey {
    PrivateKey::new([number; 32])
}

fn inner(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn outer(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

fn from_port(number: u64) -> SocketAddr {
    let [high, low] = (number as u16).to_be_bytes();
    SocketAddr::from(([198, 51, high, low], 1 + (number >> 16) as u16 % 60_000))
}

/// An IPv4 packet to `a` that no other is like.
fn packet(from: u8, serial: u64, more: usize) -> Vec<u8> {
    let length = 28 + more;
    let mut packet = vec![0xaa; length];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 0, 0, from]);
    packet[16..20].copy_from_slice(&[10, 0, 0, A]);
    packet[20..28].copy_from_slice(&serial.to_be_bytes());
    packet
}
