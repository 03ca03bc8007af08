//! Why a packet passes or not, and which way it goes.
//!
//! ```text
//! World ──inquire──▶ Inquiry (a copy) ─┬─ why ──▶ verdict, steps, changes; route, tunnel, peer, MTU
//!                                      └─ show ─▶ what applies to an endpoint
//! ```
//!
//! The answer may take longer than an event may, so the question takes a copy of what it is about and is answered
//! wherever there is time. The way is that of the plan: the kernel follows it once the plan is applied.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use model::{
    Family, InterfaceName, NodeName, PodName, PublicKey,
    plan::{Peer, PodInterface, Route, RouteKey, RouteVia, RuleKey, Tunnel},
    resource::FieldError,
    status::PeerStatus,
};
use policy::{Cluster, explain};
pub use policy::{
    explain::{Explanation, View},
    scenario::Probe,
};
use serde::{Deserialize, Serialize};

use crate::World;

/// The kernel's `main` table (linux/rtnetlink.h), and the priority of the rule that leads to it.
const MAIN: (u32, u32) = (254, 32_766);

/// Everything that questions are answered from, as it was at one moment.
#[derive(Clone, Debug)]
pub struct Inquiry {
    node: NodeName,
    cluster: Cluster,
    routes: BTreeMap<RouteKey, Route>,
    rules: Vec<RuleKey>,
    tunnels: BTreeMap<InterfaceName, Tunnel>,
    pods: BTreeMap<PodName, PodInterface>,
    allowed: BTreeMap<(InterfaceName, PublicKey), Peer>,
    peers: Vec<PeerStatus>,
}

/// Why a packet passes or not, and which way it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// The node that answers.
    pub node: NodeName,
    /// What policy says.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// The way that it goes, as far as this node knows.
    pub way: Way,
}

/// The way that a packet goes from this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// Whose way it is.
    pub of: Leg,
    /// The route that the plan has for it; none where the machine's own routes decide, or neither end is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteTaken>,
    /// The largest packet, in bytes, that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The member that it goes to through a tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerStatus>,
}

/// Whose way a node can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Leg {
    /// The packet's: it begins on this node.
    Packet,
    /// Its answer's: it ends on this node.
    Answer,
    /// Nobody's: neither end is on this node.
    Nothing,
}

/// A route that a packet takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTaken {
    /// The priority of the rule that leads to the table.
    pub rule: u32,
    /// The table.
    pub table: u32,
    /// The destination.
    pub destination: IpNet,
    /// Where it leads.
    pub via: RouteVia,
    /// What the device is.
    pub device: Device,
}

/// What a route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Device {
    /// A WireGuard device: encrypted.
    Tunnel,
    /// A pod of this node.
    Pod,
    /// The underlay: not encrypted.
    Underlay,
    /// None: the packet ends here.
    None,
}

impl World {
    /// Takes a copy of everything that questions about packets are answered from. `peers` is what the caller knows of
    /// the peers: [`World::peers`], with what the devices count.
    pub fn inquire(&self, peers: Vec<PeerStatus>) -> Inquiry {
        Inquiry {
            node: self.facts.own.clone(),
            cluster: self.policy.compiler.cluster(),
            routes: self.plan.routes.rows().clone(),
            rules: self.plan.rules.rows().keys().cloned().collect(),
            tunnels: self.plan.tunnels.rows().clone(),
            pods: self.plan.pods.rows().clone(),
            allowed: self.plan.peers.rows().clone(),
            peers,
        }
    }
}

impl Inquiry {
    /// Says why the packets of a probe pass or not, and which way they go: one answer for each family that both ends
    /// have, and for each endpoint that a service may choose.
    ///
    /// # Errors
    /// The probe's ends are not there, or have no family in common; or it is about too many packets.
    pub fn why(&self, probe: &Probe) -> Result<Vec<Why>, FieldError> {
        let explanations = explain::why(&self.cluster, probe)?;
        let answers = explanations.into_iter().map(|explanation| Why {
            node: self.node.clone(),
            way: self.way(&explanation),
            explanation,
        });

        Ok(answers.collect())
    }

    /// Says what applies to an endpoint.
    ///
    /// # Errors
    /// There is no such endpoint.
    pub fn show(&self, endpoint: &str) -> Result<Vec<View>, FieldError> {
        explain::show(&self.cluster, endpoint)
    }

    fn way(&self, explanation: &Explanation) -> Way {
        let (source, destination) = (&explanation.source, &explanation.destination);
        if source.node.as_ref() == Some(&self.node) {
            return self.follow(Leg::Packet, source.address, destination.address);
        }
        if destination.node.as_ref() == Some(&self.node) {
            return self.follow(Leg::Answer, destination.address, source.address);
        }

        Way {
            of: Leg::Nothing,
            route: None,
            mtu: None,
            peer: None,
        }
    }

    fn follow(&self, of: Leg, source: IpAddr, destination: IpAddr) -> Way {
        let Some((rule, key, route)) = self.lookup(source, destination) else {
            return Way {
                of,
                route: None,
                mtu: None,
                peer: None,
            };
        };
        let (device, mtu) = self.device(route);

        Way {
            of,
            mtu: route.mtu.or(mtu),
            peer: self.peer(route, destination),
            route: Some(RouteTaken {
                rule,
                table: key.table,
                destination: key.destination,
                via: route.via.clone(),
                device,
            }),
        }
    }

    /// Asks table after table in the order of the rules, as the kernel does (ip-rule(8)): the longest prefix, then the
    /// smallest metric; `throw` and no route at all go on.
    fn lookup(&self, source: IpAddr, destination: IpAddr) -> Option<(u32, &RouteKey, &Route)> {
        let family = Family::of(destination);
        let own = self.rules.iter().filter(|rule| rule.family == family);
        let own = own.filter(|rule| rule.source.is_none_or(|net| net.contains(&source)));
        let mut tables: Vec<(u32, u32)> = own.map(|rule| (rule.priority, rule.table)).collect();
        tables.push((MAIN.1, MAIN.0));
        tables.sort_unstable();

        tables.into_iter().find_map(|(priority, table)| {
            let (key, route) = self.in_table(table, destination)?;
            (route.via != RouteVia::Throw).then_some((priority, key, route))
        })
    }

    fn in_table(&self, table: u32, destination: IpAddr) -> Option<(&RouteKey, &Route)> {
        let routes = self.routes.iter();
        let fitting =
            routes.filter(|(key, _)| key.table == table && key.destination.contains(&destination));

        fitting.min_by_key(|(key, _)| (u8::MAX - key.destination.prefix_len(), key.metric))
    }

    fn device(&self, route: &Route) -> (Device, Option<u32>) {
        match &route.via {
            RouteVia::Device(name) => {
                if let Some(tunnel) = self.tunnels.get(name) {
                    return (Device::Tunnel, Some(tunnel.mtu));
                }
                let pod = self.pods.values().find(|pod| pod.host == *name);
                match pod {
                    Some(pod) => (Device::Pod, Some(pod.mtu)),
                    None => (Device::Underlay, None),
                }
            }
            RouteVia::Gateway(_) => (Device::Underlay, None),
            RouteVia::Unreachable | RouteVia::Blackhole | RouteVia::Throw => (Device::None, None),
        }
    }

    /// Returns the member whose packets the tunnel takes: the one with the longest prefix.
    fn peer(&self, route: &Route, destination: IpAddr) -> Option<PeerStatus> {
        let RouteVia::Device(device) = &route.via else {
            return None;
        };
        let own = self.allowed.iter().filter(|((name, _), _)| name == device);
        let prefixes = own.filter_map(|((_, key), peer)| {
            let fitting = peer
                .allowed_ips
                .iter()
                .filter(|net| net.contains(&destination));
            Some((fitting.map(IpNet::prefix_len).max()?, *key))
        });
        let (_, key) = prefixes.max_by_key(|(length, _)| *length)?;

        self.peers
            .iter()
            .find(|peer| peer.key == Some(key))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use model::status::PeerState;
    use model::{Phase, constant::ROUTE_PROTOCOL, resource::mesh_configuration::Backend};
    use serde_json::json;

    use super::*;

    const TUNNEL: &str = "wireguard.cali";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn device(name: &str) -> RouteVia {
        RouteVia::Device(name.parse().unwrap())
    }

    /// Node n1 with a pod, and a tunnel to n2: the tables that the planner writes (see `route`).
    fn inquiry() -> Inquiry {
        let key: PublicKey = PublicKey::new([7; 32]).unwrap();
        let tunnel: InterfaceName = TUNNEL.parse().unwrap();
        let routes = [
            (1, "10.65.0.0/16", 4096, RouteVia::Unreachable, None),
            (1, "10.65.0.0/26", 0, RouteVia::Throw, None),
            (1, "10.65.1.0/26", 0, device(TUNNEL), Some(1420)),
            (2, "192.0.2.2/32", 0, device(TUNNEL), None),
            (254, "10.65.0.2/32", 0, device("cali0"), None),
            (
                254,
                "10.65.1.0/26",
                0,
                RouteVia::Gateway(address("192.0.2.2")),
                None,
            ),
        ];
        let rule = |priority, source: Option<&str>, table| RuleKey {
            family: Family::V4,
            priority,
            source: source.map(net),
            without_mark: None,
            table,
        };
        Inquiry {
            node: "n1".parse().unwrap(),
            cluster: cluster(),
            routes: routes
                .into_iter()
                .map(|(table, destination, metric, via, mtu)| {
                    let key = RouteKey {
                        table,
                        destination: net(destination),
                        metric,
                    };
                    let route = Route {
                        via,
                        source: None,
                        mtu,
                        protocol: ROUTE_PROTOCOL,
                    };
                    (key, route)
                })
                .collect(),
            rules: vec![rule(99, None, 1), rule(100, Some("10.65.0.0/26"), 2)],
            tunnels: BTreeMap::from([(
                tunnel.clone(),
                Tunnel {
                    key,
                    port: 51820,
                    mark: 1,
                    mtu: 1440,
                    backend: Backend::Auto,
                    threaded: false,
                },
            )]),
            pods: BTreeMap::from([(
                PodName::parse("shop/api").unwrap(),
                PodInterface {
                    host: "cali0".parse().unwrap(),
                    inside: "eth0".parse().unwrap(),
                    netns: "/run/netns/x".into(),
                    addresses: vec![net("10.65.0.2/32")],
                    mtu: 1400,
                    mac: None,
                    forwards: false,
                    limits: model::pod::Limits::default(),
                },
            )]),
            allowed: BTreeMap::from([(
                (tunnel, key),
                Peer {
                    endpoint: "192.0.2.2:51820".parse().unwrap(),
                    keepalive: 0,
                    allowed_ips: ["10.65.1.0/26", "192.0.2.2/32"].map(net).into(),
                },
            )]),
            peers: vec![peer(key)],
        }
    }

    fn peer(key: PublicKey) -> PeerStatus {
        PeerStatus {
            node: "n2".parse().unwrap(),
            state: PeerState::Encrypted,
            families: BTreeMap::new(),
            reason: None,
            phase: Phase::Enforced,
            key: Some(key),
            key_age_seconds: None,
            endpoint: None,
            handshake_age_seconds: Some(12),
            received_bytes: 0,
            sent_bytes: 0,
            allowed_ips: Vec::new(),
        }
    }

    fn cluster() -> Cluster {
        let document = json!({
            "apiVersion": "meshd.dev/v1", "kind": "PolicyTest",
            "topology": {
                "namespaces": [{"name": "shop"}],
                "nodes": [
                    {"name": "n1", "interfaces": {"eth0": ["192.0.2.1"]}},
                    {"name": "n2", "interfaces": {"eth0": ["192.0.2.2"]}},
                    {"name": "n3", "interfaces": {"eth0": ["192.0.2.3"]}},
                ],
                "pods": [
                    {"namespace": "shop", "name": "api", "addresses": ["10.65.0.2"]},
                    {"namespace": "shop", "name": "db", "node": "n2", "addresses": ["10.65.1.2"]},
                    {"namespace": "shop", "name": "lost", "node": "n3", "addresses": ["10.65.9.2"]},
                ],
            },
        });
        let test = policy::scenario::PolicyTest::parse(&document).unwrap();

        test.cluster(&[]).unwrap()
    }

    fn way(from: &str, to: &str) -> Way {
        let probe = json!({"from": from, "to": to, "port": 80});
        let mut answers = inquiry().why(&Probe::parse(&probe).unwrap()).unwrap();

        answers.remove(0).way
    }

    #[test]
    fn a_packet_to_another_node_s_pod_goes_through_the_tunnel_to_the_peer_that_has_it() {
        let way = way("shop/api", "shop/db");

        let route = way.route.unwrap();
        assert_eq!((way.of, way.mtu), (Leg::Packet, Some(1420)));
        assert_eq!(
            (route.rule, route.table, route.device),
            (99, 1, Device::Tunnel)
        );
        assert_eq!(way.peer.unwrap().node.as_str(), "n2");
    }

    #[test]
    fn a_throw_goes_on_to_the_next_table() {
        let way = way("shop/db", "shop/api");
        assert_eq!(way.of, Leg::Answer);

        let inquiry = inquiry();
        let (rule, key, _) = inquiry
            .lookup(address("192.0.2.1"), address("10.65.0.2"))
            .unwrap();
        assert_eq!((rule, key.table), (MAIN.1, MAIN.0));
    }

    #[test]
    fn a_pod_s_packet_to_a_member_s_address_takes_the_table_of_its_source() {
        let taken = way("shop/api", "node/n2").route.unwrap();
        assert_eq!((taken.rule, taken.table), (100, 2));

        let own = way("node/n1", "node/n2");
        assert_eq!((own.of, own.route), (Leg::Packet, None));
    }

    #[test]
    fn a_pod_without_a_route_is_unreachable_and_a_packet_of_others_has_no_way_here() {
        let lost = way("shop/api", "shop/lost").route.unwrap();
        assert_eq!(
            (lost.via, lost.device),
            (RouteVia::Unreachable, Device::None)
        );

        assert_eq!(way("shop/db", "shop/lost").of, Leg::Nothing);
    }
}
