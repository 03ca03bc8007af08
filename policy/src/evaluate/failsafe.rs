//! Ports that no host policy closes.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    policy::{Direction, Protocol},
    settings::Settings,
};
use serde_json::Value;

use crate::packet::Header;

/// Felix's `failsafeInboundHostPorts`, unless somebody sets it.
const INBOUND: [(Protocol, u16); 9] = [
    (Protocol::TCP, 22),
    (Protocol::UDP, 68),
    (Protocol::TCP, 179),
    (Protocol::TCP, 2379),
    (Protocol::TCP, 2380),
    (Protocol::TCP, 5473),
    (Protocol::TCP, 6443),
    (Protocol::TCP, 6666),
    (Protocol::TCP, 6667),
];

/// Felix's `failsafeOutboundHostPorts`, unless somebody sets it.
const OUTBOUND: [(Protocol, u16); 9] = [
    (Protocol::UDP, 53),
    (Protocol::UDP, 67),
    (Protocol::TCP, 179),
    (Protocol::TCP, 2379),
    (Protocol::TCP, 2380),
    (Protocol::TCP, 5473),
    (Protocol::TCP, 6443),
    (Protocol::TCP, 6666),
    (Protocol::TCP, 6667),
];

/// A port that no host policy closes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failsafe {
    protocol: Protocol,
    port: u16,
    /// The other end; `None` is any.
    net: Option<IpNet>,
}

/// Which of a packet's ports a failsafe is about.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Returns whether a failsafe port lets a packet through a host's policy.
pub(super) fn lets_through(settings: &Settings, direction: Direction, header: &Header) -> bool {
    list(settings, direction)
        .iter()
        .any(|failsafe| failsafe.means(header, far_end(direction, header), End::Destination))
}

/// Returns whether a packet is the answer to what a failsafe port lets through: connections are not tracked yet where
/// this is asked.
pub(super) fn lets_answer_through(
    settings: &Settings,
    direction: Direction,
    header: &Header,
) -> bool {
    let question = match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };

    list(settings, question)
        .iter()
        .any(|failsafe| failsafe.means(header, far_end(direction, header), End::Source))
}

fn far_end(direction: Direction, header: &Header) -> IpAddr {
    match direction {
        Direction::Ingress => header.source,
        Direction::Egress => header.destination,
    }
}

impl Failsafe {
    fn means(&self, header: &Header, far_end: IpAddr, end: End) -> bool {
        let port = header.ports.map(|ports| match end {
            End::Source => ports.source,
            End::Destination => ports.destination,
        });

        self.protocol == header.protocol
            && port == Some(self.port)
            && self.net.is_none_or(|net| net.contains(&far_end))
    }
}

/// Returns the failsafes of a direction. Not set is the built-in list; set to nothing is none.
fn list(settings: &Settings, direction: Direction) -> Vec<Failsafe> {
    let (field, built_in) = match direction {
        Direction::Ingress => ("failsafeInboundHostPorts", INBOUND),
        Direction::Egress => ("failsafeOutboundHostPorts", OUTBOUND),
    };
    match settings.other.get(field).map(|setting| &setting.value) {
        Some(Value::Array(entries)) => entries.iter().filter_map(failsafe).collect(),
        Some(_) | None => built_in
            .into_iter()
            .map(|(protocol, port)| Failsafe {
                protocol,
                port,
                net: None,
            })
            .collect(),
    }
}

/// Reads one entry; without a protocol it is TCP. What cannot be read opens nothing.
fn failsafe(entry: &Value) -> Option<Failsafe> {
    let protocol = match entry.get("protocol") {
        None | Some(Value::Null) => Protocol::TCP,
        Some(value) => value.as_str()?.parse().ok()?,
    };
    let net = match entry.get("net") {
        None | Some(Value::Null) => None,
        Some(value) => Some(network(value.as_str()?)?),
    };

    Some(Failsafe {
        protocol,
        port: entry.get("port")?.as_u64()?.try_into().ok()?,
        net,
    })
}

/// Reads a network, or an address that stands alone.
fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
