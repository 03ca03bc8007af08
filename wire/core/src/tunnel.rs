//! The tunnel: everything that one WireGuard interface knows.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::aead::{AeadFactory, ring};
use crate::allowed_ip::AllowedIps;
use crate::device::{Device, Identity};
use crate::doorkeeper::Doorkeeper;
use crate::peer::Peer;
use crate::roster::Roster;
use crate::timer::Schedule;
use crate::{Endpoint, Event, Malformed, Now, Opened, PeerId, ReceiveSession, SealBatch, Transmit};

mod configuration;
#[cfg(test)]
mod consistency;
mod handshake;

/// All protocol state of one WireGuard interface: key, peers, sessions, timers, allowed IPs.
///
/// After every call that takes `&mut self`, drain [`Tunnel::poll_transmit`] and
/// [`Tunnel::poll_event`], and call [`Tunnel::handle_timeout`] at [`Tunnel::poll_timeout`], which
/// may be at once.
pub struct Tunnel {
    device: Device,
    roster: Roster,
    allowed: AllowedIps,
    schedule: Schedule,
    doorkeeper: Doorkeeper,
    link: Link,
}

/// Whether the interface is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    Down,
}

/// What to do with packets for a peer.
pub enum Outbound {
    /// Seal and send them.
    Seal(SealBatch),
    /// There is no session yet: hand each packet to [`Tunnel::queue`].
    Queue,
    /// Drop them.
    Drop(DropReason),
}

/// Why outgoing packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The interface is down.
    Down,
    /// The peer has been removed.
    NoPeer,
    /// Nobody knows where the peer is.
    NoEndpoint,
    /// The interface has no private key.
    NoPrivateKey,
}

/// What to do with an authentic packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Hand it to the machine.
    Deliver,
    /// Nothing to deliver.
    Keepalive,
    /// Its counter was seen before or is older than the window: a replay.
    Replayed,
    /// The longest allowed IP that matches its source is not this peer's.
    WrongSource,
    /// Authentic, but no IP packet.
    BadPacket,
    /// The session has ended meanwhile.
    SessionGone,
}

/// A handshake message that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeOutcome {
    /// An initiation; the response is waiting to be transmitted.
    Responded(PeerId),
    /// A response; the session can be used.
    Completed(PeerId),
    /// A cookie, to be used with the next initiation.
    CookieStored(PeerId),
    /// We are under load; a cookie reply is waiting to be transmitted.
    CookieSent,
}

impl HandshakeOutcome {
    /// Whether the message proved to be a peer's.
    #[must_use]
    pub const fn is_authentic(self) -> bool {
        match self {
            Self::Responded(_) | Self::Completed(_) => true,
            Self::CookieStored(_) | Self::CookieSent => false,
        }
    }
}

/// Why a handshake message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The interface is down.
    #[error("interface is down")]
    Down,
    /// It is no handshake message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is a data message.
    #[error("data message")]
    Data,
    /// We have no private key.
    #[error("no private key")]
    NoPrivateKey,
    /// `mac1` is wrong: the sender does not know our public key.
    #[error("mac1 is wrong")]
    Mac1,
    /// Under load, and this source has sent too many.
    #[error("rate limit of the source")]
    RateLimited,
    /// Under load, and the cookies of this second are spent.
    #[error("no cookies left")]
    NoCookie,
    /// A public key of low order.
    #[error("shared secret is zero")]
    ZeroSecret,
    /// Some part did not decrypt: a wrong key, a wrong PSK, or a forgery.
    #[error("authentication failed")]
    Forged,
    /// The initiator is not our peer.
    #[error("unknown peer")]
    UnknownPeer,
    /// The timestamp is not newer than the last one.
    #[error("replayed initiation")]
    Replayed,
    /// Initiations of this peer come faster than 50 a second.
    #[error("initiations too fast")]
    TooFast,
    /// We are waiting for no such answer.
    #[error("unknown index")]
    UnknownIndex,
}

impl Tunnel {
    /// A tunnel that is up, without key and peers. All its randomness comes from `seed`: give it
    /// 32 bytes nobody else knows.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self::with_aead(seed, ring)
    }

    /// A tunnel whose data packets are sealed and opened by another implementation than ring.
    #[must_use]
    pub fn with_aead(seed: [u8; 32], aead: AeadFactory) -> Self {
        Self {
            device: Device::new(seed, aead),
            roster: Roster::default(),
            allowed: AllowedIps::default(),
            schedule: Schedule::default(),
            doorkeeper: Doorkeeper::new(seed),
            link: Link::Up,
        }
    }

    /// The peer that owns the longest allowed IP matching `destination`.
    #[must_use]
    pub fn route(&self, destination: IpAddr) -> Option<PeerId> {
        self.allowed.owner(destination)
    }

    /// Asks for the right to send `packets` packets, `bytes` bytes of UDP payload in all, to a
    /// peer. Begins a handshake where one is due.
    pub fn send(&mut self, peer: PeerId, packets: u32, bytes: u64, now: Now) -> Outbound {
        if self.link == Link::Down {
            return Outbound::Drop(DropReason::Down);
        }
        self.with_peer(peer, |peer, device| {
            peer.permit(packets, bytes, device, now)
        })
        .unwrap_or(Outbound::Drop(DropReason::NoPeer))
    }

    /// Keeps a packet (an IP packet, unpadded) until there is a session: 128 per peer as in the
    /// kernel, 64 MiB in all; the oldest of the peer gives way. Returns how many packets were
    /// dropped.
    pub fn queue(&mut self, peer: PeerId, packet: &[u8]) -> usize {
        if self.link == Link::Down {
            return 1;
        }
        self.with_peer(peer, |peer, device| peer.enqueue(packet, device))
            .unwrap_or(1)
    }

    /// The session that a data message names, unless it has expired.
    #[must_use]
    pub fn session(&self, receiver: u32, now: Now) -> Option<Arc<ReceiveSession>> {
        let peer = self.roster.get(self.device.holder(receiver)?)?;
        let keypair = peer.keypairs.find(receiver)?;
        (!keypair.expired(now.instant)).then(|| Arc::clone(&keypair.receive))
    }

    /// Which indices [`Tunnel::session`] may know, to be asked without the tunnel: so that messages for sessions
    /// that do not exist need no lock on it.
    #[must_use]
    pub fn live_indices(&self) -> Arc<crate::LiveIndices> {
        Arc::clone(&self.device.live)
    }

    /// Judges opened data messages that came in this order through one session from one source,
    /// and appends one verdict each.
    pub fn received(
        &mut self,
        session: &ReceiveSession,
        source: Endpoint,
        arrivals: &[Opened],
        verdicts: &mut Vec<Verdict>,
        now: Now,
    ) {
        let batch = crate::peer::Batch {
            session,
            source,
            arrivals,
        };
        let Self {
            roster,
            device,
            allowed,
            schedule,
            ..
        } = self;
        let Some(peer) = roster.get_mut(session.peer()) else {
            verdicts.extend(arrivals.iter().map(|_| Verdict::SessionGone));
            return;
        };
        peer.receive(&batch, allowed, verdicts, device, now);
        reschedule(schedule, peer);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(peer) = self.schedule.due(now.instant) {
            self.with_peer(peer, |peer, device| peer.handle_timeout(device, now));
        }
    }

    /// Does what is due at `now` for one peer; returns whether more is. For a caller that lets others have the
    /// tunnel in between: an initiation takes some 0.15 ms.
    pub fn handle_one_timeout(&mut self, now: Now) -> bool {
        let Some(peer) = self.schedule.due(now.instant) else {
            return false;
        };
        self.with_peer(peer, |peer, device| peer.handle_timeout(device, now));

        self.schedule.due(now.instant).is_some()
    }

    /// When [`Tunnel::handle_timeout`] must be called next; exact.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.schedule.next()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.device.poll_transmit()
    }

    /// The next fact to tell. At most 65,536 wait; older ones give way.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.device.poll_event()
    }

    /// Who we are.
    pub(crate) const fn identity(&self) -> Option<&Arc<Identity>> {
        self.device.identity.as_ref()
    }

    /// Acts on a peer and on what it shares with the others, then puts it at its place in the
    /// schedule.
    fn with_peer<R>(
        &mut self,
        id: PeerId,
        act: impl FnOnce(&mut Peer, &mut Device) -> R,
    ) -> Option<R> {
        let peer = self.roster.get_mut(id)?;
        let result = act(peer, &mut self.device);
        reschedule(&mut self.schedule, peer);
        Some(result)
    }
}

/// The refusal of a message whose length does not fit its type.
pub(crate) const fn wrong_length(datagram: &[u8]) -> Refusal {
    Refusal::Malformed(Malformed::WrongLength {
        length: datagram.len(),
    })
}

fn reschedule(schedule: &mut Schedule, peer: &mut Peer) {
    let next = peer.timers.earliest();
    schedule.reschedule(peer.id, peer.scheduled, next);
    peer.scheduled = next;
}
