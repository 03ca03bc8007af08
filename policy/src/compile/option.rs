//! A node's settings, as far as its ruleset depends on them.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{constant::VXLAN_PORT, policy::Protocol, settings::Settings};
use serde_json::Value;

/// A node's settings, as far as its ruleset depends on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What becomes of a pod's packet to its own node that the pod's egress policy allows
    /// (`defaultEndpointToHostAction`): `Accept` and `Return` leave it to whoever else filters there.
    pub endpoint_to_host: EndpointToHost,
    /// UDP ports on which tunnels listen: no host endpoint's policy keeps them shut.
    pub tunnel_ports: Vec<u16>,
    /// What a host endpoint always takes.
    pub failsafe_inbound: Vec<Failsafe>,
    /// What a host endpoint may always send.
    pub failsafe_outbound: Vec<Failsafe>,
    /// Whether packets that belong to no connection and open none are dropped (`disableConntrackInvalidCheck` is
    /// off).
    pub drops_invalid: bool,
    /// Overlays' packets that pods must not send.
    pub forbidden_overlays: Vec<Overlay>,
    /// Where denied packets and those of `Log` rules are told; `None` is nowhere.
    pub log: Option<LogGroups>,
    /// Bounds.
    pub limits: Limits,
}

/// What becomes of a pod's packet to its own node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointToHost {
    /// It is dropped.
    #[default]
    Drop,
    /// It passes.
    Pass,
}

/// A port of the host's own, or of others, that no host policy shuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failsafe {
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// Where the other end is; `None` is anywhere.
    pub net: Option<IpNet>,
}

/// An overlay's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlay {
    /// VXLAN to this UDP port.
    Vxlan(u16),
    /// IPIP.
    Ipip,
}

/// Groups of nfnetlink_log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogGroups {
    /// For what comes to an endpoint (Felix: 1).
    pub ingress: u16,
    /// For what an endpoint sends (Felix: 2).
    pub egress: u16,
}

/// Bounds: what exceeds them denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rules of the kernel that one policy or profile may become in one direction.
    pub rules: usize,
    /// Elements that one set may have.
    pub elements: usize,
    /// Tiers of one endpoint and direction in which a policy says `Pass`: each is a level of chains, of which the
    /// kernel allows 16 (`NFT_JUMP_STACK_SIZE` of net/netfilter/nf_tables.h), base chain, policy and verdict map
    /// included.
    pub passing_tiers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rules: 20_000,
            elements: 1_000_000,
            passing_tiers: 10,
        }
    }
}

/// Felix's defaults.
impl Default for Options {
    fn default() -> Self {
        let list = |ports: [(Protocol, u16); 9]| {
            ports
                .map(|(protocol, port)| Failsafe {
                    protocol,
                    port,
                    net: None,
                })
                .to_vec()
        };

        Self {
            endpoint_to_host: EndpointToHost::Drop,
            tunnel_ports: Vec::new(),
            failsafe_inbound: list(FAILSAFE_INBOUND),
            failsafe_outbound: list(FAILSAFE_OUTBOUND),
            drops_invalid: true,
            forbidden_overlays: vec![Overlay::Vxlan(VXLAN_PORT), Overlay::Ipip],
            log: None,
            limits: Limits::default(),
        }
    }
}

/// Felix's `failsafeInboundHostPorts`: SSH, DHCP, BGP, etcd (new and old), Typha, the Kubernetes API.
const FAILSAFE_INBOUND: [(Protocol, u16); 9] = [
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

/// Felix's `failsafeOutboundHostPorts`: DNS, DHCP, BGP, etcd (new and old), Typha, the Kubernetes API.
const FAILSAFE_OUTBOUND: [(Protocol, u16); 9] = [
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

impl Options {
    /// Reads a node's settings. What cannot be read has its default.
    pub fn of(settings: &Settings) -> Self {
        let default = Self::default();
        let field = |name: &str| settings.other.get(name).map(|setting| &setting.value);
        let is_set = |name: &str| field(name).and_then(Value::as_bool) == Some(true);
        let failsafes = |name: &str, built_in: Vec<Failsafe>| match field(name) {
            Some(Value::Array(entries)) => entries.iter().filter_map(failsafe).collect(),
            Some(_) | None => built_in,
        };
        let vxlan = field("vxlanPort").and_then(Value::as_u64);
        let vxlan = vxlan.and_then(|port| u16::try_from(port).ok());
        let overlays = [
            (
                Overlay::Vxlan(vxlan.unwrap_or(VXLAN_PORT)),
                "allowVXLANPacketsFromWorkloads",
            ),
            (Overlay::Ipip, "allowIPIPPacketsFromWorkloads"),
        ];
        let tunnels = [
            (
                &settings.wireguard_enabled,
                &settings.wireguard_listening_port,
            ),
            (
                &settings.wireguard_enabled_v6,
                &settings.wireguard_listening_port_v6,
            ),
        ];
        let action = field("defaultEndpointToHostAction").and_then(Value::as_str);
        let passes = |action: &str| {
            ["Accept", "Return"]
                .iter()
                .any(|pass| action.eq_ignore_ascii_case(pass))
        };

        Self {
            endpoint_to_host: match action.is_some_and(passes) {
                true => EndpointToHost::Pass,
                false => EndpointToHost::Drop,
            },
            tunnel_ports: tunnels
                .iter()
                .filter(|(enabled, _)| enabled.value == Some(true))
                .map(|(_, port)| port.value)
                .collect(),
            failsafe_inbound: failsafes("failsafeInboundHostPorts", default.failsafe_inbound),
            failsafe_outbound: failsafes("failsafeOutboundHostPorts", default.failsafe_outbound),
            drops_invalid: !is_set("disableConntrackInvalidCheck"),
            forbidden_overlays: overlays
                .into_iter()
                .filter(|(_, allowed)| !is_set(allowed))
                .map(|(overlay, _)| overlay)
                .collect(),
            log: None,
            limits: Limits::default(),
        }
    }
}

/// Reads an entry of a list of failsafe ports; without a protocol it is TCP's. What cannot be read opens nothing.
fn failsafe(entry: &Value) -> Option<Failsafe> {
    let text = |name: &str| match entry.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_str().map(Some),
    };
    let protocol = text("protocol")?
        .map_or(Ok(Protocol::TCP), str::parse)
        .ok()?;
    let net = match text("net")? {
        None => None,
        Some(net) => Some(
            net.parse::<IpNet>()
                .or_else(|_| net.parse::<IpAddr>().map(IpNet::from))
                .ok()?,
        ),
    };

    Some(Failsafe {
        protocol,
        port: entry.get("port")?.as_u64()?.try_into().ok()?,
        net,
    })
}
