//! The cross-platform userspace protocol of WireGuard (<https://www.wireguard.com/xplatform/>), through which `wg`
//! and everybody else configures a device.
//!
//! ```text
//!   get=1⏎ ⏎                         →  key=value⏎ … errno=0⏎ ⏎
//!   set=1⏎ key=value⏎ … ⏎            →  errno=0⏎ ⏎
//! ```
//!
//! A request is parsed whole before any of it is applied: one bad line and nothing changes. An `errno` is negative, as
//! `wg` expects it. Keys are in hexadecimal and never reach a log.

use std::fmt::Write;

use wire_core::{
    AllowedIpChange, PeerChange, PeerStatus, PeerUpdate, PresharedKey, PrivateKey, PublicKey,
};
use zeroize::Zeroizing;

mod client;
mod request;
mod server;
mod status;

pub use client::{Client, ClientError};
pub use request::{Parser, Request};
pub use server::BindError;
pub(crate) use server::{Connection, Life, Listener};
pub use status::{Peer, Status};

/// Where UAPI sockets live; `wg` looks nowhere else.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// What went wrong, as an error number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("errno {0}")]
pub struct Errno(pub i32);

impl Errno {
    /// A value that its key cannot have, or an unknown key.
    pub const INVALID: Self = Self(libc::EINVAL);
    /// A line that is no `key=value`.
    pub const PROTOCOL: Self = Self(libc::EPROTO);
    /// More than we take in one request.
    pub const TOO_BIG: Self = Self(libc::E2BIG);
}

/// What `set=1` asks for; what is `None` stays as it is.
#[derive(Default)]
pub struct Configuration {
    /// The private key; `Some(None)` takes it away.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port; 0 chooses one.
    pub listen_port: Option<u16>,
    /// The mark on outer packets; 0 is none.
    pub fwmark: Option<u32>,
    /// Forget all peers first.
    pub replace_peers: bool,
    /// What becomes of which peer, in order.
    pub peers: Vec<(PublicKey, PeerChange)>,
}

impl Configuration {
    /// The request in the form in which it is sent.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        // Reserved beforehand, so that growing leaves no copy of a secret behind.
        let peers = self.peers.iter().map(|(_, change)| peer_size(change));
        let mut text = Zeroizing::new(String::with_capacity(512 + peers.sum::<usize>()));
        text.push_str("set=1\n");
        match &self.private_key {
            Some(Some(key)) => secret(&mut text, "private_key", key.expose()),
            Some(None) => secret(&mut text, "private_key", &[0; 32]),
            None => (),
        }
        if let Some(port) = self.listen_port {
            line(&mut text, "listen_port", port);
        }
        if let Some(mark) = self.fwmark {
            line(&mut text, "fwmark", mark);
        }
        if self.replace_peers {
            line(&mut text, "replace_peers", true);
        }
        for (key, change) in &self.peers {
            encode_peer(&mut text, key, change);
        }
        text.push('\n');
        text
    }
}

fn peer_size(change: &PeerChange) -> usize {
    match change {
        PeerChange::Upsert(update) | PeerChange::Update(update) => {
            512 + update.allowed_ips.len() * 64
        }
        PeerChange::Remove => 128,
    }
}

fn encode_peer(text: &mut String, key: &PublicKey, change: &PeerChange) {
    line(text, "public_key", hex::encode(key.as_bytes()));
    match change {
        PeerChange::Remove => line(text, "remove", true),
        PeerChange::Update(update) => {
            line(text, "update_only", true);
            encode_update(text, update);
        }
        PeerChange::Upsert(update) => encode_update(text, update),
    }
}

fn encode_update(text: &mut String, update: &PeerUpdate) {
    if let Some(key) = &update.preshared_key {
        secret(text, "preshared_key", key.expose());
    }
    if let Some(endpoint) = update.endpoint {
        line(text, "endpoint", endpoint);
    }
    if let Some(seconds) = update.persistent_keepalive {
        line(text, "persistent_keepalive_interval", seconds);
    }
    if update.replace_allowed_ips {
        line(text, "replace_allowed_ips", true);
    }
    for change in &update.allowed_ips {
        match change {
            AllowedIpChange::Add(network) => line(text, "allowed_ip", network),
            AllowedIpChange::Remove(network) => {
                line(text, "allowed_ip", format_args!("-{network}"))
            }
        }
    }
}

/// The answer to `get=1`, without its `errno`.
pub(crate) struct Answer {
    text: Zeroizing<String>,
}

impl Answer {
    /// Begins with the device, which will be followed by `peers` peers with `allowed_ips` allowed IPs in all.
    pub(crate) fn new(
        private_key: Option<&PrivateKey>,
        port: u16,
        mark: u32,
        (peers, allowed_ips): (usize, usize),
    ) -> Self {
        let capacity = 512 + peers * 768 + allowed_ips * 64;
        let mut text = Zeroizing::new(String::with_capacity(capacity));
        if let Some(key) = private_key {
            secret(&mut text, "private_key", key.expose());
        }
        if port != 0 {
            line(&mut text, "listen_port", port);
        }
        if mark != 0 {
            line(&mut text, "fwmark", mark);
        }
        Self { text }
    }

    /// Adds a peer.
    pub(crate) fn push(&mut self, peer: &PeerStatus<'_>) {
        let text = &mut self.text;
        line(text, "public_key", hex::encode(peer.public_key.as_bytes()));
        secret(text, "preshared_key", peer.preshared_key.expose());
        line(text, "protocol_version", 1);
        if let Some(endpoint) = peer.endpoint {
            line(text, "endpoint", endpoint.remote);
        }
        let handshake = peer.last_handshake.unwrap_or_default();
        line(text, "last_handshake_time_sec", handshake.as_secs());
        line(text, "last_handshake_time_nsec", handshake.subsec_nanos());
        line(text, "tx_bytes", peer.sent_bytes);
        line(text, "rx_bytes", peer.received_bytes);
        line(
            text,
            "persistent_keepalive_interval",
            peer.persistent_keepalive,
        );
        for network in peer.allowed_ips {
            line(text, "allowed_ip", network);
        }
    }

    /// The text so far.
    pub(crate) fn finish(self) -> Zeroizing<String> {
        self.text
    }
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing into a String cannot fail.
    let _: std::fmt::Result = writeln!(text, "{key}={value}");
}

fn secret(text: &mut String, key: &str, bytes: &[u8; 32]) {
    let mut digits = Zeroizing::new([0; 64]);
    hex::encode_to_slice(bytes, &mut digits[..]).expect("64 digits are 32 bytes");
    text.push_str(key);
    text.push('=');
    text.extend(digits.iter().map(|digit| char::from(*digit)));
    text.push('\n');
}

/// 64 digits of hexadecimal, in either case.
fn parse_key(text: &str) -> Result<Zeroizing<[u8; 32]>, Errno> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text, &mut bytes[..]).map_err(|_| Errno::INVALID)?;
    Ok(bytes)
}

fn parse_preshared_key(text: &str) -> Result<PresharedKey, Errno> {
    parse_key(text).map(|bytes| PresharedKey::new(*bytes))
}

fn parse_public_key(text: &str) -> Result<PublicKey, Errno> {
    parse_key(text).map(|bytes| PublicKey(*bytes))
}
