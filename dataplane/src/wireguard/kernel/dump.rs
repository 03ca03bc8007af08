//! What the kernel's WireGuard says of a device: parts, joined. Keys that are secret are passed over.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use ipnet::IpNet;
use wire::uapi::{Peer, Status};
use wire_core::PublicKey;

use super::request::{allowed_ip, device, peer};
use crate::netlink::{Attributes, Family, Received, address, u16_ne, u32_ne, u64_ne};

/// One message of a dump. Only the first tells of the device itself.
pub(super) struct Part(Status);

impl Part {
    pub(super) fn read(message: &Received<'_>) -> Option<Self> {
        let attributes = Family::attributes(message.payload);
        let peers = attributes.nest(device::PEERS);
        let peers: Option<Vec<_>> = peers.map(|(_, entry)| read_peer(entry)).collect();

        Some(Self(Status {
            public_key: attributes.find(device::PUBLIC_KEY).and_then(read_key),
            listen_port: attributes
                .find(device::LISTEN_PORT)
                .and_then(u16_ne)
                .unwrap_or_default(),
            fwmark: attributes
                .find(device::MARK)
                .and_then(u32_ne)
                .unwrap_or_default(),
            peers: peers?,
        }))
    }
}

/// Joins the parts of a dump. A peer that did not fit goes on in the next part, with its key and the
/// rest of its allowed IPs alone.
pub(super) fn join(parts: impl IntoIterator<Item = Part>) -> Status {
    let mut parts = parts.into_iter();
    let mut whole = parts.next().map(|part| part.0).unwrap_or_default();
    for part in parts {
        let mut peers = part.0.peers.into_iter().peekable();
        let continued = peers.next_if(|next| {
            let last = whole.peers.last();
            last.is_some_and(|last| last.public_key == next.public_key)
        });
        if let (Some(last), Some(rest)) = (whole.peers.last_mut(), continued) {
            last.allowed_ips.extend(rest.allowed_ips);
        }
        whole.peers.extend(peers);
    }

    whole
}

fn read_peer(entry: &[u8]) -> Option<Peer> {
    let attributes = Attributes::new(entry);
    let count = |kind| attributes.find(kind).and_then(u64_ne).unwrap_or_default();
    let allowed_ips = attributes.nest(peer::ALLOWED_IPS);
    let allowed_ips: Option<Vec<_>> = allowed_ips.map(|(_, net)| read_allowed_ip(net)).collect();

    Some(Peer {
        public_key: attributes.find(peer::PUBLIC_KEY).and_then(read_key)?,
        has_preshared_key: attributes
            .find(peer::PRESHARED_KEY)
            .is_some_and(|key| key.iter().any(|byte| *byte != 0)),
        endpoint: attributes.find(peer::ENDPOINT).and_then(read_endpoint),
        last_handshake: attributes.find(peer::LAST_HANDSHAKE).and_then(read_time),
        sent_bytes: count(peer::SENT),
        received_bytes: count(peer::RECEIVED),
        persistent_keepalive: attributes
            .find(peer::KEEPALIVE)
            .and_then(u16_ne)
            .unwrap_or_default(),
        allowed_ips: allowed_ips?,
    })
}

fn read_allowed_ip(entry: &[u8]) -> Option<IpNet> {
    let attributes = Attributes::new(entry);
    let network = attributes.find(allowed_ip::ADDRESS).and_then(address)?;
    let mask = attributes.find(allowed_ip::MASK)?.first()?;

    IpNet::new(network, *mask).ok()
}

fn read_key(bytes: &[u8]) -> Option<PublicKey> {
    bytes.try_into().ok().map(PublicKey)
}

/// Reads a `struct sockaddr_in` or `struct sockaddr_in6`; a family of zero is none.
fn read_endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match i32::from(u16_ne(bytes.get(..2)?)?) {
        libc::AF_INET => {
            let address = address(bytes.get(4..8)?)?;
            Some(SocketAddr::new(address, port))
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
            let IpAddr::V6(address) = address(bytes.get(8..24)?)? else {
                return None;
            };
            let scope = u32_ne(bytes.get(24..28)?)?;
            Some(v6(address, port, flow, scope))
        }
        _ => None,
    }
}

fn v6(address: Ipv6Addr, port: u16, flow: u32, scope: u32) -> SocketAddr {
    SocketAddr::V6(SocketAddrV6::new(address, port, flow, scope))
}

/// Reads a `struct __kernel_timespec`: seconds and nanoseconds, 64 bits each, since the Unix epoch.
fn read_time(bytes: &[u8]) -> Option<Duration> {
    let (seconds, nanoseconds) = (bytes.get(..8)?, bytes.get(8..16)?);
    let nanoseconds = u32::try_from(u64_ne(nanoseconds)?).ok()?;

    Some(Duration::new(
        u64_ne(seconds)?,
        nanoseconds.min(999_999_999),
    ))
}
