//! The WireGuard protocol, without I/O.
//!
//! A [`Tunnel`] is all protocol state of one interface: its key, peers, sessions, timers and
//! allowed IPs. It reads no clock, opens no socket and asks nobody for randomness: time is an
//! argument ([`Now`]), randomness a seed.
//!
//! ```text
//!  TUN ──▶ route ──▶ send ──▶ SealBatch ──(outside the lock)──▶ UDP
//!  UDP ──▶ Message::classify ─┬─ data ──▶ session ──▶ ReceiveSession::open (outside the lock)
//!                             │                           └──▶ received ──▶ Verdict ──▶ TUN
//!                             └─ else ──▶ Doorkeeper::admit (outside the lock) ──▶ handle_entrant
//!  clock ─▶ handle_timeout            after every call: poll_transmit, poll_event, poll_timeout
//! ```
//!
//! The cryptography of data packets happens in [`SealBatch`] and [`ReceiveSession`], and what a stranger
//! can cost us in [`Doorkeeper`]. None of them refers to the tunnel: a caller that keeps the tunnel
//! behind a lock releases it first.
//!
//! Invariants: no counter seals twice ([`SealBatch`] is used up); nothing in a datagram is believed
//! before it is authentic; only a fresh authentic packet moves an endpoint; a packet is delivered
//! only if the longest allowed IP over all peers gives its source to the one who sent it; what is
//! kept per stranger is nothing, per proven source and per peer bounded.
//!
//! What it deliberately does not do: read packets beyond their source and length, compute inner
//! checksums, cut super-frames, choose sockets. The protocol is that of the WireGuard paper
//! (<https://www.wireguard.com/papers/wireguard.pdf>); where the paper leaves room, that of the Linux
//! kernel's module. It differs from the kernel's where that loses packets or time, never on the wire:
//!
//! * When both sides begin at once, each keeps its own initiation, and the first response that comes
//!   is used; who has the greater key rekeys later, so that they do not meet again.
//! * A session that the peer may still send with is kept until a newer one is confirmed.
//! * An initiation that is held back because the last one is less than 5 s old is made up for.
//! * Peers are greeted with a handshake when they are added, without waiting for a packet.
#![forbid(unsafe_code)]

mod aead;
mod allowed_ip;
mod clock;
mod cookie;
mod device;
mod doorkeeper;
mod event;
mod hash;
mod index;
mod key;
mod keypair;
mod limit;
mod limiter;
mod message;
mod noise;
mod packet;
mod peer;
mod replay;
mod roster;
mod session;
#[cfg(test)]
mod test_clock;
mod timer;
mod tunnel;

pub use aead::{Aead, AeadFactory, Forged, TooLong};
pub use clock::Now;
pub use doorkeeper::{Admission, Doorkeeper, Entrant};
pub use event::{Endpoint, Event, Local, Role, Transmit};
pub use index::LiveIndices;
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use message::{DATA_OVERHEAD, Malformed, Message, padded_length};
pub use packet::{BadPacket, Payload};
pub use peer::{AllowedIpChange, PeerChange, PeerId, PeerOutcome, PeerStatus, PeerUpdate};
pub use session::{OpenError, Opened, ReceiveSession, SealBatch, SealError};
pub use tunnel::{DropReason, HandshakeOutcome, Outbound, Refusal, Tunnel, Verdict};
