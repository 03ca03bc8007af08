//! Ports that no host policy shuts.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Direction, Protocol};
use crate::constant::SERVER_PORT;

/// Felix's `failsafeInboundHostPorts`, unless somebody sets it (SSH, DHCP, BGP, etcd new and old, Typha, the
/// Kubernetes API), and the port of `meshd serve`.
const INBOUND: [(Protocol, u16); 10] = [
    (Protocol::TCP, 22),
    (Protocol::UDP, 68),
    (Protocol::TCP, 179),
    (Protocol::TCP, 2379),
    (Protocol::TCP, 2380),
    (Protocol::TCP, 5473),
    (Protocol::TCP, 6443),
    (Protocol::TCP, 6666),
    (Protocol::TCP, 6667),
    (Protocol::TCP, SERVER_PORT),
];

/// Felix's `failsafeOutboundHostPorts`, unless somebody sets it (DNS and DHCP instead of SSH and DHCP), and the port of
/// `meshd serve`.
const OUTBOUND: [(Protocol, u16); 10] = [
    (Protocol::UDP, 53),
    (Protocol::UDP, 67),
    (Protocol::TCP, 179),
    (Protocol::TCP, 2379),
    (Protocol::TCP, 2380),
    (Protocol::TCP, 5473),
    (Protocol::TCP, 6443),
    (Protocol::TCP, 6666),
    (Protocol::TCP, 6667),
    (Protocol::TCP, SERVER_PORT),
];

/// A port of the host's own, or of others, that no host policy shuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Failsafe {
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// Where the other end is; `None` is anywhere.
    pub net: Option<IpNet>,
}

impl Failsafe {
    /// Returns the field of FelixConfiguration that lists them.
    pub const fn field(direction: Direction) -> &'static str {
        match direction {
            Direction::Ingress => "failsafeInboundHostPorts",
            Direction::Egress => "failsafeOutboundHostPorts",
        }
    }

    /// Returns those that hold where nobody lists any.
    pub fn built_in(direction: Direction) -> Vec<Self> {
        let ports = match direction {
            Direction::Ingress => INBOUND,
            Direction::Egress => OUTBOUND,
        };
        let failsafe = |(protocol, port)| Self {
            protocol,
            port,
            net: None,
        };

        ports.map(failsafe).into()
    }

    /// Reads a list. Nothing listed, or what is no list, is the built-in one; an empty list is none, and an entry that
    /// cannot be read opens nothing.
    pub fn listed(direction: Direction, value: Option<&Value>) -> Vec<Self> {
        match value {
            Some(Value::Array(entries)) => entries.iter().filter_map(Self::read).collect(),
            Some(_) | None => Self::built_in(direction),
        }
    }

    /// Reads one entry; without a protocol it is TCP.
    fn read(entry: &Value) -> Option<Self> {
        let text = |name: &str| match entry.get(name) {
            None | Some(Value::Null) => Some(None),
            Some(value) => value.as_str().map(Some),
        };
        let protocol = text("protocol")?.map_or(Ok(Protocol::TCP), str::parse);
        let net = match text("net")? {
            None => None,
            Some(net) => Some(network(net)?),
        };

        Some(Self {
            protocol: protocol.ok()?,
            port: entry.get("port")?.as_u64()?.try_into().ok()?,
            net,
        })
    }
}

/// Reads a network, or an address that stands alone.
fn network(text: &str) -> Option<IpNet> {
    let net = text.parse().ok();

    net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_listed_is_the_built_in_list_and_an_empty_list_is_none() {
        let listed = |value: Option<Value>| Failsafe::listed(Direction::Egress, value.as_ref());
        let built_in = Failsafe::built_in(Direction::Egress);

        assert_eq!(listed(None), built_in);
        assert_eq!(listed(Some(json!("all"))), built_in);
        assert_eq!(listed(Some(json!([]))), []);
    }

    #[test]
    fn an_entry_without_a_protocol_is_tcp_and_one_that_cannot_be_read_opens_nothing() {
        let value = json!([
            {"port": 22},
            {"port": 53, "protocol": "udp", "net": "10.0.0.0/8"},
            {"port": 54, "protocol": "UDP", "net": "2001:db8::1"},
            {"port": 70000},
            {"port": 55, "protocol": "nonsense"},
            {"port": 56, "net": "10.0.0.0/33"},
            {"protocol": "tcp"},
        ]);

        let listed = Failsafe::listed(Direction::Ingress, Some(&value));

        let failsafe = |protocol, port, net: Option<&str>| Failsafe {
            protocol,
            port,
            net: net.map(|net| net.parse().unwrap()),
        };
        assert_eq!(
            listed,
            [
                failsafe(Protocol::TCP, 22, None),
                failsafe(Protocol::UDP, 53, Some("10.0.0.0/8")),
                failsafe(Protocol::UDP, 54, Some("2001:db8::1/128")),
            ]
        );
    }
}
