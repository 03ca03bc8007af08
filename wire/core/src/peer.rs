//! Peers as the outside sees them.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::{Endpoint, PresharedKey, PublicKey};

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
    /// UDP payload bytes that came from it, authenticated.
    pub received_bytes: u64,
    /// UDP payload bytes sent to it.
    pub sent_bytes: u64,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Its allowed IPs, in order.
    pub allowed_ips: &'a BTreeSet<IpNet>,
}
