//! The tunnel: everything that one WireGuard interface knows.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::{
    Endpoint, Event, Malformed, Now, Opened, PeerChange, PeerId, PeerOutcome, PeerStatus,
    PrivateKey, PublicKey, ReceiveSession, SealBatch, Transmit,
};

/// All protocol state of one WireGuard interface: key, peers, sessions, timers, allowed IPs.
///
/// After every call that takes `&mut self`, drain [`Tunnel::poll_transmit`] and
/// [`Tunnel::poll_event`], and call [`Tunnel::handle_timeout`] at [`Tunnel::poll_timeout`].
pub struct Tunnel {}

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

/// Why a handshake message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
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

#[expect(unused_variables, reason = "bodies follow")]
impl Tunnel {
    /// A tunnel without key and peers. All its randomness comes from `seed`: give it 32 bytes
    /// nobody else knows.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        todo!()
    }

    // ── configuration ──

    /// Sets or takes away our key. Sessions end, our own peer is removed, and every peer with an
    /// endpoint is greeted with a handshake.
    pub fn set_private_key(&mut self, key: Option<PrivateKey>, now: Now) {
        todo!()
    }

    /// Our private key, for `wg showconf`.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        todo!()
    }

    /// Our public key.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        todo!()
    }

    /// The interface's MTU, which padding never exceeds; 1420 until set.
    pub fn set_mtu(&mut self, mtu: usize) {
        todo!()
    }

    /// Creates, changes or removes a peer. A new peer with an endpoint is greeted with a
    /// handshake, paced to 50 a second over all peers.
    pub fn configure_peer(&mut self, key: PublicKey, change: PeerChange, now: Now) -> PeerOutcome {
        todo!()
    }

    /// Removes all peers (UAPI `replace_peers`).
    pub fn remove_peers(&mut self) {
        todo!()
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus<'_>> {
        todo!();
        #[expect(unreachable_code, reason = "bodies follow")]
        std::iter::empty()
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, id: PeerId) -> Option<PeerStatus<'_>> {
        todo!()
    }

    /// A peer by its key.
    #[must_use]
    pub fn find_peer(&self, key: &PublicKey) -> Option<PeerId> {
        todo!()
    }

    /// Answers initiations with cookies only. The tunnel also does so by itself while more than
    /// 512 handshake messages arrive within a second.
    pub fn set_under_load(&mut self, under_load: bool) {
        todo!()
    }

    // ── outbound ──

    /// The peer that owns the longest allowed IP matching `destination`.
    #[must_use]
    pub fn route(&self, destination: IpAddr) -> Option<PeerId> {
        todo!()
    }

    /// Asks for the right to send `packets` packets, `bytes` bytes of UDP payload in all, to a
    /// peer. Begins a handshake where one is due.
    pub fn send(&mut self, peer: PeerId, packets: u32, bytes: u64, now: Now) -> Outbound {
        todo!()
    }

    /// Keeps a packet (an IP packet, unpadded) until there is a session: 128 per peer as in the
    /// kernel, 64 MiB in all; the oldest gives way. Returns how many packets were dropped.
    pub fn queue(&mut self, peer: PeerId, packet: &[u8]) -> usize {
        todo!()
    }

    // ── inbound ──

    /// The session that a data message names, unless it has expired.
    #[must_use]
    pub fn session(&self, receiver: u32, now: Now) -> Option<Arc<ReceiveSession>> {
        todo!()
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
        todo!()
    }

    /// Takes an initiation, a response or a cookie reply.
    pub fn handle_handshake(
        &mut self,
        source: Endpoint,
        datagram: &[u8],
        now: Now,
    ) -> Result<HandshakeOutcome, Refusal> {
        todo!()
    }

    // ── time and output ──

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Now) {
        todo!()
    }

    /// When [`Tunnel::handle_timeout`] must be called next; exact.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        todo!()
    }

    /// The next fact to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }
}
