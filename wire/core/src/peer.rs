//! Peers: what is configured, what is known, what is under way.
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::cookie::Signer;
use crate::device::Device;
use crate::hash::Secret;
use crate::keypair::Keypairs;
use crate::noise::{Initiator, shared_secret};
use crate::timer::{Timer, Timers};
use crate::{Endpoint, Event, PresharedKey, PublicKey};

mod handshake;
mod timing;
mod traffic;

pub(crate) use traffic::Batch;

/// A peer of one tunnel; never reused for another peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// What to do with a peer.
pub enum PeerChange {
    /// Create it if it is not there, then update it.
    Upsert(PeerUpdate),
    /// Update it only if it is there (UAPI `update_only`).
    Update(PeerUpdate),
    /// Remove it, its sessions and its allowed IPs.
    Remove,
}

/// New values for a peer; what is `None` stays as it is.
#[derive(Default)]
pub struct PeerUpdate {
    /// [`PresharedKey::none`] takes it away. Holds from the next handshake on.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer is, until an authenticated packet says otherwise.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 turns it off.
    pub persistent_keepalive: Option<u16>,
    /// Forget all its allowed IPs before `allowed_ips`.
    pub replace_allowed_ips: bool,
    /// Applied in order. Host bits are ignored.
    pub allowed_ips: Vec<AllowedIpChange>,
}

/// One change to the allowed IPs of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIpChange {
    /// Give it to this peer, taking it from whoever has it.
    Add(IpNet),
    /// Take it from this peer, if it has it.
    Remove(IpNet),
}

/// What became of a [`PeerChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerOutcome {
    /// The peer is there as asked.
    Configured(PeerId),
    /// The peer is gone.
    Removed,
    /// There was no such peer to update or remove.
    Absent,
    /// It is our own key; nothing was done, as in the kernel.
    OwnKey,
    /// The tunnel has 2²⁰ peers already, the kernel's limit.
    TooMany,
}

/// A peer as `wg show` tells it.
pub struct PeerStatus<'a> {
    /// The peer.
    pub id: PeerId,
    /// Its key.
    pub public_key: PublicKey,
    /// [`PresharedKey::none`] if there is none.
    pub preshared_key: &'a PresharedKey,
    /// Where it is, if known.
    pub endpoint: Option<Endpoint>,
    /// Wall time since the Unix epoch.
    pub last_handshake: Option<Duration>,
    /// UDP payload bytes that came from it, authenticated and used.
    pub received_bytes: u64,
    /// UDP payload bytes sent to it.
    pub sent_bytes: u64,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Its allowed IPs, in order.
    pub allowed_ips: &'a BTreeSet<IpNet>,
}

/// Everything about one peer.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) public_key: PublicKey,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) preshared_key: PresharedKey,
    pub(crate) persistent_keepalive: u16,
    pub(crate) allowed_ips: BTreeSet<IpNet>,
    pub(crate) keypairs: Keypairs,
    pub(crate) timers: Timers,
    /// Its place in the schedule.
    pub(crate) scheduled: Option<Instant>,
    /// The shared secret of both static keys; `None` without a key of ours, or where it is zero.
    shared: Option<Secret>,
    signer: Signer,
    /// Our initiation that waits for its response.
    initiation: Option<Box<Pending>>,
    /// When we last sent an initiation or response.
    handshake_sent: Option<Instant>,
    /// Until when initiations are repeated.
    attempts_until: Option<Instant>,
    /// A packet asked for an initiation, and it waits for its turn (with the timer of greetings).
    prompted: bool,
    /// Whether this session has already asked for its successor because it nears its end.
    asked_in_last_minute: bool,
    /// Data came while the keepalive timer ran.
    another_keepalive: bool,
    /// The greatest timestamp of its initiations.
    seen_timestamp: Option<Timestamp>,
    /// The timestamp of our last initiation.
    sent_timestamp: Option<Timestamp>,
    /// When we last took an initiation.
    initiation_taken: Option<Instant>,
    /// Packets that wait for a session.
    queue: VecDeque<Vec<u8>>,
    last_handshake: Option<Duration>,
    received_bytes: u64,
    sent_bytes: u64,
}

/// An initiation that was sent.
struct Pending {
    state: Initiator,
    index: u32,
}

impl Peer {
    pub(crate) fn new(id: PeerId, public_key: PublicKey, device: &Device) -> Self {
        let mut peer = Self {
            id,
            public_key,
            endpoint: None,
            preshared_key: PresharedKey::none(),
            persistent_keepalive: 0,
            allowed_ips: BTreeSet::new(),
            keypairs: Keypairs::default(),
            timers: Timers::default(),
            scheduled: None,
            shared: None,
            signer: Signer::new(&public_key),
            initiation: None,
            handshake_sent: None,
            attempts_until: None,
            prompted: false,
            asked_in_last_minute: false,
            another_keepalive: false,
            seen_timestamp: None,
            sent_timestamp: None,
            initiation_taken: None,
            queue: VecDeque::new(),
            last_handshake: None,
            received_bytes: 0,
            sent_bytes: 0,
        };
        peer.agree(device);
        peer
    }

    pub(crate) fn status(&self) -> PeerStatus<'_> {
        PeerStatus {
            id: self.id,
            public_key: self.public_key,
            preshared_key: &self.preshared_key,
            endpoint: self.endpoint,
            last_handshake: self.last_handshake,
            received_bytes: self.received_bytes,
            sent_bytes: self.sent_bytes,
            persistent_keepalive: self.persistent_keepalive,
            allowed_ips: &self.allowed_ips,
        }
    }

    /// Our own key has changed: sessions made with the old one are not sent with any more.
    pub(crate) fn adopt_identity(&mut self, device: &mut Device) {
        self.agree(device);
        self.abort_initiation(device);
        self.keypairs.stop_sending();
        self.handshake_sent = None;
        self.attempts_until = None;
        self.timers.clear(Timer::Retransmit);
    }

    /// Ends everything that is under way; what is configured stays.
    pub(crate) fn stop(&mut self, device: &mut Device) {
        self.discard_queue(device);
        self.abort_initiation(device);
        device.release_indices(self.keypairs.clear());
        self.timers = Timers::default();
        self.handshake_sent = None;
        self.attempts_until = None;
        self.asked_in_last_minute = false;
        self.another_keepalive = false;
    }

    /// Forgets which of our addresses the peer used, so that the kernel chooses anew.
    pub(crate) fn forget_local(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.local = None;
        }
    }

    /// Follows the peer to where an authenticated packet came from.
    fn roam(&mut self, device: &mut Device, source: Endpoint) {
        if self.endpoint.map(|endpoint| endpoint.remote) != Some(source.remote) {
            device.tell(Event::EndpointChanged {
                peer: self.id,
                public_key: self.public_key,
                endpoint: source.remote,
            });
        }
        self.endpoint = Some(source);
    }

    fn agree(&mut self, device: &Device) {
        self.shared = device
            .identity
            .as_ref()
            .and_then(|identity| shared_secret(&identity.secret, &self.public_key).ok());
    }

    fn abort_initiation(&mut self, device: &mut Device) {
        if let Some(pending) = self.initiation.take() {
            device.release_index(pending.index);
        }
    }

    /// Indices of its sessions and of its initiation.
    #[cfg(test)]
    pub(crate) fn held_indices(&self) -> Vec<u32> {
        let pending = self.initiation.as_ref().map(|pending| pending.index);
        self.keypairs.indices().chain(pending).collect()
    }

    #[cfg(test)]
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queue.iter().map(Vec::len).sum()
    }
}
