//! What a tunnel hands out: datagrams to transmit and facts worth telling.
use std::net::{IpAddr, SocketAddr};

use crate::{PeerId, PublicKey};

/// Where a peer is reached, and from which of our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's UDP address.
    pub remote: SocketAddr,
    /// Our address and device that the peer last used; `None` lets the kernel choose.
    pub local: Option<Local>,
}

/// One of our own addresses, as told by `IP_PKTINFO` or `IPV6_PKTINFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The address the datagram was sent to.
    pub address: IpAddr,
    /// Index of the device it came in on; 0 if unknown.
    pub interface: u32,
}

impl From<SocketAddr> for Endpoint {
    fn from(remote: SocketAddr) -> Self {
        Self {
            remote,
            local: None,
        }
    }
}

/// A complete datagram to be sent as it is: a handshake message, a cookie reply, a keepalive or a
/// packet that had waited for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The peer it is for; `None` for a cookie reply to somebody not yet authenticated.
    pub peer: Option<PeerId>,
    /// Where to send it.
    pub destination: Endpoint,
    /// The UDP payload.
    pub datagram: Vec<u8>,
}

/// Who began a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We sent the initiation.
    Initiator,
    /// The peer sent it.
    Responder,
}

/// Something that happened to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session is in use: for the initiator when the response has come, for the responder when
    /// the first data packet has.
    HandshakeCompleted {
        /// The peer.
        peer: PeerId,
        /// Its key.
        public_key: PublicKey,
        /// Our part in it.
        role: Role,
    },
    /// No answer for `REKEY_ATTEMPT_TIME` (90 s); waiting packets were dropped, no more attempts
    /// until somebody sends to the peer again.
    HandshakeAbandoned {
        /// The peer.
        peer: PeerId,
        /// Its key.
        public_key: PublicKey,
    },
    /// An authenticated packet came from a new address.
    EndpointChanged {
        /// The peer.
        peer: PeerId,
        /// Its key.
        public_key: PublicKey,
        /// Where it is now.
        endpoint: SocketAddr,
    },
    /// All session keys of the peer were erased after 3 × `REJECT_AFTER_TIME` without a handshake.
    SessionExpired {
        /// The peer.
        peer: PeerId,
        /// Its key.
        public_key: PublicKey,
    },
}
