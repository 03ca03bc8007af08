//! Real packets of every protocol through nodes that hold a compiled ruleset, question and answer, against the
//! evaluator.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use model::{
    Family, NodeName, PodName,
    constant::TUNNEL_DEVICE,
    policy::{Protocol, Stage},
    resource::WorkloadEndpoint,
};
use policy::{
    Cluster, Evaluator, Header, Packet, Verdict,
    cluster::{Pod, PodNetwork},
};
use ruleset::{
    Chance, Hop, Machines, document,
    frame::{self, Part, Tag},
    shrink,
};

use crate::{
    machine::{Machine, TO_MEMBERS},
    number,
};

/// How many packets are sent at least, unless `MESHD_RULESET_PROBES` says so.
const PROBES: u64 = 50_000;

/// Of each cluster.
const PROBES_OF_CLUSTER: usize = 250;

/// The first seed, unless `MESHD_RULESET_SEED` says so.
const SEED: u64 = 2_000_000;

/// How long what is allowed may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn real_packets_fare_as_the_evaluator_says() {
    let (probes, seed) = (
        number("MESHD_RULESET_PROBES", PROBES),
        number("MESHD_RULESET_SEED", SEED),
    );
    let mut world = World::new();
    let mut count = Count::new();
    let mut seeds = seed..;
    while count
        .values()
        .map(|[allowed, denied]| allowed + denied)
        .sum::<u64>()
        < probes
    {
        let seed = seeds.next().unwrap();
        for (protocol, verdict) in world.compare(seed) {
            count.entry(protocol).or_default()[usize::from(verdict == Verdict::Deny)] += 1;
        }
    }

    for protocol in [
        Protocol::TCP,
        Protocol::UDP,
        Protocol::SCTP,
        Protocol::ICMP,
        Protocol::ICMPV6,
    ] {
        let [allowed, denied] = count[&protocol];
        assert!(
            allowed > probes / 200 && denied > probes / 200,
            "{protocol}: {allowed} allowed, {denied} denied"
        );
    }
}

/// Packets that were allowed and that were denied, by protocol.
type Count = BTreeMap<Protocol, [u64; 2]>;

/// Both nodes.
struct World {
    machines: BTreeMap<NodeName, Machine>,
    /// No two packets have the same number.
    next: u32,
}

/// A packet that has not been where it has not been allowed.
struct Probe {
    packet: Packet,
    wanted: Verdict,
}

impl World {
    /// Makes the nodes of all random clusters.
    fn new() -> Self {
        let cluster = Chance::new(0).cluster();
        let devices = |node: &NodeName| -> Vec<String> {
            let pods = cluster
                .pods
                .iter()
                .filter(|pod| pod.node == *node && is_own(pod));
            pods.flat_map(|pod| {
                ["one", "two"].map(|namespace| {
                    let name = PodName {
                        namespace: namespace.into(),
                        ..pod.name.clone()
                    };
                    WorkloadEndpoint::host_interface(&name).to_string()
                })
            })
            .collect()
        };
        let machines = cluster
            .nodes
            .iter()
            .map(|node| {
                let machine = Machine::new(node, &devices(&node.name));
                (node.name.clone(), machine)
            })
            .collect();

        Self { machines, next: 1 }
    }

    /// Sends the packets of one cluster; returns what has become of each.
    fn compare(&mut self, seed: u64) -> Vec<(Protocol, Verdict)> {
        let mut chance = Chance::new(seed);
        let cluster = chance.cluster();
        let probes = probes(&cluster, &mut chance);
        let machines = Machines::new(&cluster);
        self.prepare(&cluster, &machines, &probes);

        let mut found = Vec::new();
        for Probe { packet, wanted } in &probes {
            let passes = self.fares(&machines, packet, *wanted);
            if passes != (*wanted == Verdict::Allow) {
                let trace = machines.pass(packet).1;
                let smallest = shrink(&cluster, packet, |cluster| self.differs(cluster, packet));
                panic!(
                    "seed {seed}: it {} although the evaluator says {wanted:?}; the simulator {trace:#?}\n{}",
                    if passes { "passes" } else { "is lost" },
                    document(&smallest, packet, *wanted)
                );
            }
            found.push((packet.header.protocol, *wanted));
        }

        found
    }

    fn differs(&mut self, cluster: &Cluster, packet: &Packet) -> bool {
        let wanted = Evaluator::new(cluster).evaluate(packet).verdict;
        let machines = Machines::new(cluster);
        let probe = Probe {
            packet: packet.clone(),
            wanted,
        };
        self.prepare(cluster, &machines, &[probe]);

        // Whoever is allowed and not there at once does not come: the difference is known.
        self.fares(&machines, packet, Verdict::Deny) != (wanted == Verdict::Allow)
    }

    /// Gives every node its ruleset, its routes and its translations.
    fn prepare(&self, cluster: &Cluster, machines: &Machines<'_>, probes: &[Probe]) {
        let is_encrypted = cluster
            .configurations
            .iter()
            .any(|settings| settings.wireguard_enabled == Some(true));
        for (name, machine) in &self.machines {
            let routes = |family| routes(cluster, name, is_encrypted, family);
            machine.route(routes(Family::V4), routes(Family::V6));
            machine.nft(translations(probes));
            machine.load(&machines.rulesets()[name]);
        }
    }

    /// Sends a packet on its whole way, and an answer back; returns whether both got through.
    fn fares(&mut self, machines: &Machines<'_>, packet: &Packet, wanted: Verdict) -> bool {
        let number = self.next;
        self.next += 1;
        let legs = legs(machines.hops(packet));
        let there = legs.iter().all(|leg| {
            let tag = Tag {
                number,
                part: Part::Question,
            };
            self.crosses(leg, tag, wanted)
        });

        there
            && legs.iter().rev().all(|leg| {
                let back = Hop {
                    before: leg.header.reversed(),
                    header: leg.before.reversed(),
                    ..leg.back()
                };
                let tag = Tag {
                    number,
                    part: Part::Answer,
                };
                self.crosses(&back, tag, wanted)
            })
    }

    /// Lets a packet cross a node; returns whether it comes out.
    fn crosses(&self, leg: &Hop, tag: Tag, wanted: Verdict) -> bool {
        let machine = &self.machines[&leg.node];
        let bytes = frame::write(&leg.before, tag);
        machine.send(leg.iif.as_deref(), leg.before.destination, &bytes);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut has_come = false;
            for packet in machine.receive(leg.oif.as_deref()) {
                let Some(found) = frame::tag(&packet) else {
                    continue;
                };
                assert_eq!(found, tag, "a packet that was taken for lost: {leg:?}");
                if leg.oif.is_some() {
                    let header = &leg.header;
                    let ends = (header.source, header.destination, header.ports);
                    assert_eq!(frame::ends(&packet), ends, "{leg:?}");
                }
                has_come = true;
            }
            if has_come || wanted == Verdict::Deny || Instant::now() > deadline {
                return has_come;
            }
            std::thread::yield_now();
        }
    }
}

/// Returns what the kernel does in one go: what a node says to itself leaves and comes back without us.
fn legs(mut hops: Vec<Hop>) -> Vec<Hop> {
    if let [out, back] = &mut hops[..]
        && out.oif.as_deref() == Some("lo")
    {
        out.oif = None;
        out.header = back.header;
        hops.truncate(1);
    }

    hops
}

/// Returns random packets of a cluster of which no two could be of one connection.
fn probes(cluster: &Cluster, chance: &mut Chance) -> Vec<Probe> {
    let evaluator = Evaluator::new(cluster);
    let is_untracked = cluster
        .policies
        .iter()
        .any(|policy| policy.stage == Stage::Untracked);
    let mut taken = BTreeSet::new();
    let mut probes = Vec::new();
    while probes.len() < PROBES_OF_CLUSTER {
        let Some(packet) = chance.packet(cluster) else {
            continue;
        };
        // What is not tracked is not translated either: no such packet gets to where the evaluator is told it goes.
        let is_contradiction = packet.translation.is_some() && is_untracked;
        if is_contradiction || !frame::is_question(&packet.header) || is_port_zero(&packet) {
            continue;
        }
        let headers = [
            Some(packet.header),
            packet.translation.map(|sent| packet.header.before(&sent)),
        ];
        let tuples: Vec<_> = headers.into_iter().flatten().map(connection).collect();
        if packet.header.ports.is_some() && tuples.iter().any(|tuple| taken.contains(tuple)) {
            continue;
        }
        taken.extend(tuples);
        let wanted = evaluator.evaluate(&packet).verdict;
        probes.push(Probe { packet, wanted });
    }

    probes
}

/// A translation to or from port 0 is none to that port.
fn is_port_zero(packet: &Packet) -> bool {
    packet.translation.is_some_and(|sent| {
        let to = packet.header.ports.map(|ports| ports.destination);
        sent.port == 0 || to == Some(0)
    })
}

/// Returns what all packets of a connection have in common, whichever way they go.
fn connection(header: Header) -> (u8, BTreeSet<(IpAddr, u16)>) {
    let ports = header.ports.map(|ports| (ports.source, ports.destination));
    let (from, to) = ports.unwrap_or_default();

    (
        header.protocol.0,
        BTreeSet::from([(header.source, from), (header.destination, to)]),
    )
}

fn is_own(pod: &&Pod) -> bool {
    pod.network == PodNetwork::Own
}

/// Returns the commands of `ip` by which a node finds every pod, and its pods the other nodes.
fn routes(cluster: &Cluster, node: &NodeName, is_encrypted: bool, family: Family) -> String {
    let uplink = cluster.nodes[0].interfaces[0].name.as_str();
    let away = if is_encrypted { TUNNEL_DEVICE } else { uplink };
    let mut commands = String::new();
    for pod in cluster.pods.iter().filter(is_own) {
        let own = WorkloadEndpoint::host_interface(&pod.name);
        let device = if pod.node == *node {
            own.as_str()
        } else {
            away
        };
        for address in of_family(&pod.addresses, family) {
            commands += &format!("route replace {address} dev {device}\n");
        }
    }
    for other in cluster.nodes.iter().filter(|other| other.name != *node) {
        for address in of_family(&other.interfaces[0].addresses, family) {
            commands += &format!("route replace {address} dev {away} table {TO_MEMBERS}\n");
        }
    }

    commands
}

fn of_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = &IpAddr> {
    addresses
        .iter()
        .filter(move |address| Family::of(**address) == family)
}

/// Returns the commands of `nft` that translate what these packets are sent to.
fn translations(probes: &[Probe]) -> String {
    let mut commands =
        "flush map ip surroundings sent\nflush map ip6 surroundings sent\n".to_owned();
    for Probe { packet, .. } in probes {
        let (Some(sent), Some(ports)) = (packet.translation, packet.header.ports) else {
            continue;
        };
        let header = &packet.header;
        let table = match header.family() {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        commands += &format!(
            "add element {table} surroundings sent {{ {} . {} . {} . {} : {} . {} }}\n",
            header.source,
            header.protocol.0,
            ports.source,
            sent.port,
            header.destination,
            ports.destination
        );
    }

    commands
}
