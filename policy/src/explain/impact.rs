//! What a change of policy would do: the packets whose verdict differs.
//!
//! Nobody can try every packet. Tried are those that the rules speak of: for every endpoint that the changed policy
//! selects, and every rule that is asked of it in that direction, a packet that the rule means, from whom or to whom it
//! names; and for whoever else is there, one connection each.

use std::net::IpAddr;

use model::{
    Family, Kind, ObjectKey,
    policy::{Direction, Policy, PortMatch, Protocol, Rule, Side, StagedAction},
};
use serde::{Deserialize, Serialize};

use crate::{
    Evaluator, Header, Packet, Place, Verdict,
    cluster::{Cluster, Endpoint, Pod},
    packet::{IcmpHeader, Ports},
    scenario::{object_name, place},
};

/// Most endpoints that are tried, of those that a policy selects.
const ENDPOINTS_MAX: usize = 16;

/// Most others that are tried with each endpoint.
const PEERS_MAX: usize = 16;

/// Most addresses that are tried of those that one rule means.
const NAMED_MAX: usize = 3;

/// Most packets that are tried.
const PACKETS_MAX: usize = 600;

/// Most differences that are told one by one.
const SHIFTS_MAX: usize = 20;

/// The port that a packet comes from, and that it goes to where no rule names one.
const PORTS: (u16, u16) = (40_000, 80);

/// An address that nobody in a cluster has (RFC 5737, RFC 3849): a machine beyond the mesh.
const STRANGERS: [&str; 2] = ["203.0.113.254", "2001:db8:ffff::fe"];

/// What a staged policy would do if it were enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StagedEffect {
    /// The policy: `KIND [NAMESPACE/]NAME`.
    pub policy: String,
    /// What it stands for.
    pub action: StagedAction,
    /// How many packets were tried.
    pub tried: usize,
    /// How many of them would have another verdict.
    pub differ: usize,
    /// The first of those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shifts: Vec<Shift>,
}

/// A packet whose verdict would be another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shift {
    /// Who sends: `NAMESPACE/POD`, `node/NAME`, or an address.
    pub from: String,
    /// Who is to get it.
    pub to: String,
    /// The protocol.
    pub protocol: String,
    /// The receiver's port, where the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The verdict now.
    pub now: Verdict,
    /// The verdict if the policy were enforced.
    pub then: Verdict,
}

/// Returns the cluster in which one staged policy is enforced; `None` where it stands for nothing.
pub(super) fn enforced(cluster: &Cluster, staged: &Policy) -> Option<Cluster> {
    let live = live(&staged.key)?;
    let mut changed = cluster.clone();
    changed.policies.retain(|policy| policy.key != live);
    match staged.staged? {
        StagedAction::Set | StagedAction::Learn => changed.policies.push(Policy {
            key: live,
            staged: None,
            ..staged.clone()
        }),
        StagedAction::Delete => {}
        StagedAction::Ignore => return None,
    }

    Some(changed)
}

/// Returns the key of the policy that a staged one would become.
fn live(key: &ObjectKey) -> Option<ObjectKey> {
    let name = key.kind.as_str().strip_prefix("Staged")?;
    let kind = *Kind::ALL.iter().find(|kind| kind.as_str() == name)?;

    Some(ObjectKey {
        kind,
        ..key.clone()
    })
}

/// Returns what a staged policy would change for the endpoints that it selects, or that the policy selects which it
/// replaces.
pub(super) fn of_staged(cluster: &Cluster, staged: &Policy) -> Option<StagedEffect> {
    let changed = enforced(cluster, staged)?;
    let live = live(&staged.key);
    let replaced = cluster
        .policies
        .iter()
        .find(|policy| Some(&policy.key) == live.as_ref());
    let (before, after) = (Evaluator::new(cluster), Evaluator::new(&changed));
    let packets = packets(&before, cluster, &[Some(staged), replaced]);
    let mut effect = StagedEffect {
        policy: object_name(&staged.key),
        action: staged.staged?,
        tried: packets.len(),
        differ: 0,
        shifts: Vec::new(),
    };
    for packet in &packets {
        let (now, then) = (before.evaluate(packet), after.evaluate(packet));
        if now.verdict == then.verdict {
            continue;
        }
        effect.differ += 1;
        if effect.shifts.len() < SHIFTS_MAX {
            effect.shifts.push(shift(packet, now.verdict, then.verdict));
        }
    }

    Some(effect)
}

fn shift(packet: &Packet, now: Verdict, then: Verdict) -> Shift {
    let name = |place: &Place, address: IpAddr| match place {
        Place::Pod(pod) => pod.to_string(),
        Place::Node(node) => format!("node/{node}"),
        Place::Outside => address.to_string(),
    };

    Shift {
        from: name(&packet.from, packet.header.source),
        to: name(&packet.to, packet.header.destination),
        protocol: packet.header.protocol.to_string(),
        port: packet.header.ports.map(|ports| ports.destination),
        now,
        then,
    }
}

/// Returns the packets that are tried about some policies.
fn packets(
    evaluator: &Evaluator<'_>,
    cluster: &Cluster,
    policies: &[Option<&Policy>],
) -> Vec<Packet> {
    let mut packets = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let applies = |endpoint: &Endpoint| {
            policies.iter().flatten().any(|policy| {
                policy.types.contains(direction) && policy.selector.matches(&endpoint.labels)
            })
        };
        for (place, endpoint) in subjects(evaluator, applies) {
            let rules = asked_rules(cluster, &endpoint, direction);
            for family in Family::BOTH {
                let trial = Trial {
                    evaluator,
                    cluster,
                    place: &place,
                    direction,
                    family,
                };
                trial.add(&endpoint, &rules, &mut packets);
            }
        }
    }
    let mut tried = Vec::new();
    for packet in packets {
        if !tried.contains(&packet) && tried.len() < PACKETS_MAX {
            tried.push(packet);
        }
    }

    tried
}

/// Returns endpoints to try, those with other labels before those with the same.
fn subjects(
    evaluator: &Evaluator<'_>,
    applies: impl Fn(&Endpoint) -> bool,
) -> Vec<(Place, Endpoint)> {
    let pods = evaluator
        .workloads()
        .map(|(pod, endpoint)| (Place::Pod(pod.name.clone()), endpoint));
    let hosts = evaluator
        .hosts()
        .map(|(host, endpoint)| (Place::Node(host.node.clone()), endpoint));
    let mut chosen: Vec<(Place, Endpoint)> = Vec::new();
    let mut alike = Vec::new();
    for (place, endpoint) in pods.chain(hosts).filter(|(_, endpoint)| applies(endpoint)) {
        let is_new = chosen
            .iter()
            .all(|(_, other)| other.labels != endpoint.labels);
        if is_new {
            chosen.push((place, endpoint.clone()));
        } else if alike.len() < ENDPOINTS_MAX {
            alike.push((place, endpoint.clone()));
        }
        if chosen.len() >= ENDPOINTS_MAX {
            break;
        }
    }
    chosen.extend(alike);
    chosen.truncate(ENDPOINTS_MAX);

    chosen
}

/// Returns every rule of every policy, staged or not, that concerns an endpoint.
fn asked_rules<'a>(
    cluster: &'a Cluster,
    endpoint: &Endpoint,
    direction: Direction,
) -> Vec<&'a Rule> {
    let policies = cluster.policies.iter();
    let concerning = policies.filter(|policy| policy.selector.matches(&endpoint.labels));

    concerning
        .flat_map(|policy| policy.rules(direction))
        .take(PACKETS_MAX)
        .collect()
}

/// An endpoint, a direction and a family to try.
struct Trial<'a> {
    evaluator: &'a Evaluator<'a>,
    cluster: &'a Cluster,
    place: &'a Place,
    direction: Direction,
    family: Family,
}

impl Trial<'_> {
    fn add(&self, endpoint: &Endpoint, rules: &[&Rule], packets: &mut Vec<Packet>) {
        let Some(own) = self.own_address(endpoint) else {
            return;
        };
        for rule in rules {
            let family = rule.family.is_none_or(|family| family == self.family);
            if !family || packets.len() >= 2 * PACKETS_MAX {
                continue;
            }
            let (far, near) = match self.direction {
                Direction::Ingress => (&rule.source, &rule.destination),
                Direction::Egress => (&rule.destination, &rule.source),
            };
            let port = self.port(rule, near, far);
            for peer in self.named(far, own) {
                packets.extend(self.packet(own, peer, rule.protocol, port, rule));
            }
        }
        let bare = Rule::new(model::policy::Action::Pass);
        for peer in self.others(own) {
            let port = PORTS.1;
            packets.extend(self.packet(own, peer, Some(Protocol::TCP), port, &bare));
        }
    }

    fn own_address(&self, endpoint: &Endpoint) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| Family::of(**address) == self.family;
        let known = endpoint.addresses.iter().find(of_family).copied();
        match self.place {
            Place::Node(name) => self
                .cluster
                .node(name)
                .and_then(|node| node.address(self.family))
                .or(known),
            Place::Pod(_) | Place::Outside => known,
        }
    }

    /// Returns addresses that a rule's far side names: of endpoints and of its networks, else of anybody.
    fn named(&self, side: &Side, own: IpAddr) -> Vec<IpAddr> {
        let is_family = |address: &IpAddr| Family::of(*address) == self.family;
        let mut found: Vec<IpAddr> = Vec::new();
        if let Some(selector) = &side.selector {
            let selected = self
                .evaluator
                .workloads()
                .filter(|(_, endpoint)| selector.matches(&endpoint.labels));
            let addresses = selected.flat_map(|(pod, _)| pod.addresses.iter().copied());
            found.extend(addresses.filter(is_family).take(NAMED_MAX));
        }
        let nets = side
            .nets
            .iter()
            .filter(|net| Family::of_net(net) == self.family);
        found.extend(nets.take(NAMED_MAX).map(inside));
        if found.is_empty() {
            found.extend(self.others(own).into_iter().take(NAMED_MAX));
            found.extend(self.stranger());
        }

        found
    }

    /// Returns everybody else, some of each namespace first, and a stranger.
    fn others(&self, own: IpAddr) -> Vec<IpAddr> {
        let of_family = |pod: &&Pod| {
            pod.addresses
                .iter()
                .copied()
                .find(|address| Family::of(*address) == self.family && *address != own)
        };
        let mut seen = std::collections::BTreeSet::new();
        let pods = self.evaluator.workloads().map(|(pod, _)| pod);
        let (new, known): (Vec<&Pod>, Vec<&Pod>) =
            pods.partition(|pod: &&Pod| seen.insert(pod.name.namespace.clone()));
        let pods = new.iter().chain(&known);
        let nodes = self
            .cluster
            .nodes
            .iter()
            .filter_map(|node| node.address(self.family))
            .filter(|address| *address != own);

        pods.filter_map(of_family)
            .take(PEERS_MAX)
            .chain(nodes.take(2))
            .chain(self.stranger())
            .collect()
    }

    fn stranger(&self) -> Option<IpAddr> {
        let addresses = STRANGERS.iter().filter_map(|text| text.parse().ok());

        { addresses }.find(|address: &IpAddr| Family::of(*address) == self.family)
    }

    fn port(&self, rule: &Rule, near: &Side, far: &Side) -> u16 {
        let side = match self.direction {
            Direction::Ingress => near,
            Direction::Egress => far,
        };
        let protocol = rule.protocol.unwrap_or(Protocol::TCP);
        let port = side.ports.first().and_then(|port| match port {
            PortMatch::Range(first, _) => Some(*first),
            PortMatch::Named(name) => self.evaluator.named_port(name, protocol),
        });

        port.unwrap_or(PORTS.1)
    }

    fn packet(
        &self,
        own: IpAddr,
        peer: IpAddr,
        protocol: Option<Protocol>,
        port: u16,
        rule: &Rule,
    ) -> Option<Packet> {
        if own == peer {
            return None;
        }
        let far = place(self.cluster, peer);
        let (from, to, source, destination) = match self.direction {
            Direction::Ingress => (far, self.place.clone(), peer, own),
            Direction::Egress => (self.place.clone(), far, own, peer),
        };
        let protocol = protocol.unwrap_or(Protocol::TCP);
        let echo = match protocol {
            Protocol::ICMP => Some(8),
            Protocol::ICMPV6 => Some(128),
            _ => None,
        };

        Some(Packet {
            from,
            to,
            header: Header {
                source,
                destination,
                protocol,
                ports: protocol.has_ports().then_some(Ports {
                    source: PORTS.0,
                    destination: port,
                }),
                icmp: echo.map(|kind| match rule.icmp {
                    Some(icmp) => IcmpHeader {
                        kind: icmp.kind,
                        code: icmp.code.unwrap_or_default(),
                    },
                    None => IcmpHeader { kind, code: 0 },
                }),
            },
            translation: None,
        })
    }
}

/// Returns an address inside a network, no boundary of it where it has another.
fn inside(net: &ipnet::IpNet) -> IpAddr {
    net.hosts().next().unwrap_or_else(|| net.addr())
}
