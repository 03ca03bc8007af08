//! Why a packet passes or not, and which way it goes.
//!
//! ```text
//! World ──inquire──▶ Inquiry (a copy) ─┬─ why ──▶ verdict, steps, changes; route, tunnel, peer, MTU
//!                                      └─ show ─▶ what applies to an endpoint
//! ```
//!
//! The answer may take longer than an event may, so the question takes a copy of what it is about and is answered
//! wherever there is time. The way is that of the plan: the kernel follows it once the plan is applied.

use std::{
    collections::BTreeMap,
    net::IpAddr,
};

use ipnet::IpNet;
use model::{
    Family, InterfaceName, NodeName, PodName, PublicKey,
    plan::{Peer, PodInterface, Route, RouteKey, RouteVia, RuleKey, Tunnel},
    resource::FieldError,
    status::PeerStatus,
};
pub use policy::{
    explain::{Explanation, View},
    scenario::Probe,
};
use policy::{Cluster, explain};
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

        fitting.min_by_key(|(key, _)| {
            (u8::MAX - key.destination.prefix_len(), key.metric)
        })
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
            let fitting = peer.allowed_ips.iter().filter(|net| net.contains(&destination));
            Some((fitting.map(IpNet::prefix_len).max()?, *key))
        });
        let (_, key) = prefixes.max_by_key(|(length, _)| *length)?;

        self.peers.iter().find(|peer| peer.key == Some(key)).cloned()
    }
}
