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
//!                             └─ else ──▶ handle_handshake
//!  clock ─▶ handle_timeout            after every call: poll_transmit, poll_event, poll_timeout
//! ```
//!
//! The cryptography of data packets happens in [`SealBatch`] and [`ReceiveSession`], neither of
//! which refers to the tunnel: a caller that keeps the tunnel behind a lock releases it first.
//!
//! What it deliberately does not do: read packets, compute inner checksums, cut super-frames,
//! choose sockets. The protocol is that of the WireGuard paper (<https://www.wireguard.com/papers/wireguard.pdf>);
//! where the paper leaves room, that of the Linux kernel's module.
#![forbid(unsafe_code)]

mod aead;
mod allowed_ip;
mod clock;
mod cookie;
mod device;
mod event;
mod hash;
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
pub use event::{Endpoint, Event, Local, Role, Transmit};
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use message::{DATA_OVERHEAD, Malformed, Message, padded_length};
pub use packet::{BadPacket, Payload};
pub use peer::{AllowedIpChange, PeerChange, PeerId, PeerOutcome, PeerStatus, PeerUpdate};
pub use session::{OpenError, Opened, ReceiveSession, SealBatch, SealError};
pub use tunnel::{DropReason, HandshakeOutcome, Outbound, Refusal, Tunnel, Verdict};
