//! Two ends of one tunnel.

use std::net::IpAddr;

use crate::namespace::Namespace;
use crate::tunnel::{Make, Tunnel};
use crate::wait::until;

/// Which family carries the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outside {
    V4,
    V6,
}

impl Outside {
    /// The endpoint of host `number`.
    pub(crate) fn endpoint(self, number: u8) -> String {
        match self {
            Self::V4 => format!("192.0.2.{number}:51820"),
            Self::V6 => format!("[2001:db8::{number}]:51820"),
        }
    }
}

/// One end. The tunnel is dropped before its namespace.
pub(crate) struct End {
    pub(crate) tunnel: Tunnel,
    pub(crate) namespace: Namespace,
    pub(crate) make: Make,
    number: u8,
}

impl End {
    /// Starts a tunnel in `namespace`; `number` is the last byte of all its addresses.
    pub(crate) fn on(namespace: Namespace, make: Make, number: u8) -> Self {
        Self {
            tunnel: Tunnel::start(&namespace, make),
            namespace,
            make,
            number,
        }
    }

    /// Its inner addresses.
    pub(crate) fn v4(&self) -> IpAddr {
        IpAddr::from([10, 5, 0, self.number])
    }

    pub(crate) fn v6(&self) -> IpAddr {
        IpAddr::from([0xfd05, 0, 0, 0, 0, 0, 0, u16::from(self.number)])
    }

    fn allowed_ips(&self) -> String {
        format!("{}/32,{}/128", self.v4(), self.v6())
    }

    /// Makes `peer` a peer, whose endpoint is known only if `outside` is given.
    pub(crate) fn add_peer(&self, peer: &Self, outside: Option<Outside>) {
        let endpoint = outside.map_or_else(String::new, |o| {
            format!("endpoint {}", o.endpoint(peer.number))
        });
        self.tunnel.wg(&format!(
            "peer {} allowed-ips {} {endpoint}",
            peer.tunnel.public_key,
            peer.allowed_ips(),
        ));
    }

    /// Gives the interface its addresses and sets it up, with `mtu`.
    pub(crate) fn up(&self, mtu: u32) {
        let name = &self.tunnel.name;
        self.namespace
            .ip(&format!("addr add {}/24 dev {name}", self.v4()));
        self.namespace
            .ip(&format!("addr add {}/64 dev {name} nodad", self.v6()));
        self.namespace.ip(&format!("link set {name} mtu {mtu} up"));
    }

    /// Waits for a session with `peer`.
    pub(crate) fn await_handshake(&self, peer: &Self) {
        until("a handshake", || {
            self.tunnel.last_handshake(&peer.tunnel.public_key) > 0
        });
    }
}

/// `a` and `b`, joined by a cable, with running tunnels that do not know each other yet.
pub(crate) fn strangers(a: Make, b: Make) -> (End, End) {
    let (left, right) = (Namespace::new(), Namespace::new());
    left.ip(&format!(
        "link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}",
        right.name
    ));
    for (namespace, number) in [(&left, 1), (&right, 2)] {
        namespace.ip(&format!("addr add 192.0.2.{number}/24 dev eth0"));
        namespace.ip(&format!("addr add 2001:db8::{number}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
    }
    (End::on(left, a, 1), End::on(right, b, 2))
}

/// The same, with a tunnel that `a` initiates: only `a` knows the other's endpoint.
pub(crate) fn pair(a: Make, b: Make, outside: Outside) -> (End, End) {
    let (a, b) = strangers(a, b);
    b.add_peer(&a, None);
    b.up(1420);
    a.add_peer(&b, Some(outside));
    a.up(1420);
    (a, b)
}

/// The same between two of our own.
pub(crate) fn ours(outside: Outside) -> (End, End) {
    pair(Make::Meshwire, Make::Meshwire, outside)
}
