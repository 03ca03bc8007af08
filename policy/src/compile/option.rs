//! A node's settings, as far as its ruleset depends on them.

use model::{
    constant::VXLAN_PORT,
    policy::{Direction, Failsafe},
    settings::Settings,
};
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
    /// Whether denied packets are told to the groups of nfnetlink_log; those of `Log` rules always are.
    pub tells_denied: bool,
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

/// An overlay's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlay {
    /// VXLAN to this UDP port.
    Vxlan(u16),
    /// IPIP.
    Ipip,
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
        Self {
            endpoint_to_host: EndpointToHost::Drop,
            tunnel_ports: Vec::new(),
            failsafe_inbound: Failsafe::built_in(Direction::Ingress),
            failsafe_outbound: Failsafe::built_in(Direction::Egress),
            drops_invalid: true,
            forbidden_overlays: vec![Overlay::Vxlan(VXLAN_PORT), Overlay::Ipip],
            tells_denied: false,
            limits: Limits::default(),
        }
    }
}

impl Options {
    /// Reads a node's settings. What cannot be read has its default.
    pub fn of(settings: &Settings) -> Self {
        let field = |name: &str| settings.other.get(name).map(|setting| &setting.value);
        let is_set = |name: &str| field(name).and_then(Value::as_bool) == Some(true);
        let failsafes = |direction| Failsafe::listed(direction, field(Failsafe::field(direction)));
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
            failsafe_inbound: failsafes(Direction::Ingress),
            failsafe_outbound: failsafes(Direction::Egress),
            drops_invalid: !is_set("disableConntrackInvalidCheck"),
            forbidden_overlays: overlays
                .into_iter()
                .filter(|(_, allowed)| !is_set(allowed))
                .map(|(overlay, _)| overlay)
                .collect(),
            tells_denied: false,
            limits: Limits::default(),
        }
    }
}
