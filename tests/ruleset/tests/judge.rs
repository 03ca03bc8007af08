//! Connections that are there, judged by the rows, against the evaluator asked about the packets that would open them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Family, InterfaceName, NodeName,
    constant::TUNNEL_DEVICE,
    policy::{Action, Rule, Stage},
    resource::WorkloadEndpoint,
};
use policy::{
    Cluster, Effect, Effects, Evaluator, Header, Judge, Packet, Place, Translation, Translator,
    Verdict,
    compile::{Ruleset, Scene, compile},
    judge::{Connection, Station},
};
use ruleset::Chance;

const CLUSTERS: u64 = 400;
const PACKETS: usize = 250;

/// The one interface of every node beside its pods' and its tunnel's.
const UPLINK: &str = "eth0";

/// A connection's way through one node.
struct Hop {
    node: NodeName,
    from: Spot,
    to: Spot,
    before: Header,
    header: Header,
}

#[derive(Clone)]
enum Spot {
    Host,
    Interface(InterfaceName),
}

#[test]
fn a_connection_is_judged_as_the_packet_that_opened_it() {
    let (mut allowed, mut denied) = (0, 0);
    for seed in 0..CLUSTERS {
        let mut chance = Chance::new(seed);
        let mut cluster = chance.cluster();
        // It is asked about answers too, and what it lets pass has no connection.
        cluster
            .policies
            .retain(|policy| policy.stage != Stage::Untracked);
        let (evaluator, judges) = (Evaluator::new(&cluster), judges(&cluster));
        for packet in packets(&mut chance, &cluster) {
            let found = hops(&cluster, &packet)
                .iter()
                .map(|hop| judges[&hop.node].judge(&hop.connection()))
                .max()
                .unwrap_or(Verdict::Allow);

            let wanted = evaluator.evaluate(&packet);
            assert_eq!(
                found, wanted.verdict,
                "seed {seed}\n{packet:?}\n{wanted:#?}"
            );
            *(match found {
                Verdict::Allow => &mut allowed,
                Verdict::Deny => &mut denied,
            }) += 1;
        }
    }

    assert!(allowed + denied > 50_000, "{allowed} {denied}");
    assert!(allowed > 10_000 && denied > 10_000, "{allowed} {denied}");
}

/// From cluster to cluster by differences, in the order in which a plan's tables tell them, as from nothing.
#[test]
fn a_judge_that_follows_changes_is_one_that_starts_anew() {
    let mut judge = Judge::new();
    let mut rows = Ruleset::default();
    let mut compared = 0;
    for seed in 0..60 {
        let mut chance = Chance::new(seed);
        let cluster = chance.cluster();
        let node = cluster.nodes[0].name.clone();
        let next = compile(&Scene::of_node(&cluster, &node)).rows;
        change(&mut judge, &rows, &next);
        rows = next;
        let mut fresh = Judge::new();
        change(&mut fresh, &Ruleset::default(), &rows);

        for packet in packets(&mut chance, &cluster) {
            for hop in hops(&cluster, &packet) {
                let connection = hop.connection();
                assert_eq!(judge.judge(&connection), fresh.judge(&connection), "{seed}");
                compared += 1;
            }
        }
    }

    assert!(compared > 5_000, "{compared}");
}

/// A change that only widens is one after which nobody has to be judged: nobody that was allowed may be cut by it.
#[test]
fn what_is_said_to_cut_nothing_cuts_nothing() {
    let (mut widened, mut restored, mut cut) = (0, 0, 0);
    for seed in 0..500 {
        let mut chance = Chance::new(seed);
        let mut cluster = chance.cluster();
        if seed % 8 != 0 {
            cluster.host_endpoints.clear();
        }
        let node = cluster.nodes[0].name.clone();
        let mut rows = compile(&Scene::of_node(&cluster, &node)).rows;
        let (mut judge, mut effects) = (Judge::new(), Effects::new());
        change(&mut judge, &Ruleset::default(), &rows);
        weigh(&mut effects, &Ruleset::default(), &rows);
        for number in 0..12 {
            let before = cluster.clone();
            alter(&mut cluster, seed + number, number);
            let next = compile(&Scene::of_node(&cluster, &node)).rows;
            let effect = weigh(&mut effects, &rows, &next);
            let former = judge.clone();
            change(&mut judge, &rows, &next);
            rows = next;

            let mut verdicts = Vec::new();
            for packet in packets(&mut chance, &before).iter().take(60) {
                let hops = hops(&before, packet);
                verdicts.extend(hops.iter().filter(|hop| hop.node == node).map(|hop| {
                    let connection = hop.connection();
                    (former.judge(&connection), judge.judge(&connection))
                }));
            }
            let has = |pair: (Verdict, Verdict)| verdicts.contains(&pair);
            let cuts = has((Verdict::Allow, Verdict::Deny));
            assert!(effect == Effect::MayCut || !cuts, "{seed} {number}");
            widened += usize::from(effect == Effect::Widens);
            restored +=
                usize::from(effect == Effect::Widens && has((Verdict::Deny, Verdict::Allow)));
            cut += usize::from(cuts);
        }
    }

    assert!(
        widened > 500 && restored > 50 && cut > 200,
        "{widened} {restored} {cut}"
    );
}

/// Changes one thing of a cluster: a rule comes or goes, somewhere in the order, or a pod changes its labels or goes.
fn alter(cluster: &mut Cluster, seed: u64, number: u64) {
    let pick = |length: usize| usize::try_from(seed).unwrap() % length.max(1);
    let policies = cluster.policies.len();
    match number % 4 {
        0 | 1 if policies > 0 => {
            let policy = &mut cluster.policies[pick(policies)];
            let rules = if number % 8 < 4 {
                &mut policy.ingress
            } else {
                &mut policy.egress
            };
            if number.is_multiple_of(4) || rules.is_empty() {
                let mut rule = Rule::new(Action::Allow);
                rule.index = rules.len();
                rules.insert(pick(rules.len() + 1), rule);
            } else {
                rules.remove(pick(rules.len()));
            }
        }
        2 if !cluster.pods.is_empty() => {
            let count = cluster.pods.len();
            let labels = cluster.pods[pick(count)].labels.clone();
            cluster.pods[(pick(count) + 1) % count].labels = labels;
        }
        _ if cluster.pods.len() > 2 => {
            let count = cluster.pods.len();
            cluster.pods.remove(pick(count));
        }
        _ => {}
    }
}

/// Tells what a change can do.
fn weigh(effects: &mut Effects, before: &Ruleset, after: &Ruleset) -> Effect {
    let keys: BTreeSet<_> = before.chains.keys().chain(after.chains.keys()).collect();
    let chains = keys.into_iter();
    let chains = chains.filter(|key| before.chains.get(key) != after.chains.get(key));
    let elements = before.elements.symmetric_difference(&after.elements);

    effects.take_in(
        chains.map(|key| (key, after.chains.get(key))),
        elements.map(|row| (&row.0, &row.1, after.elements.contains(row))),
    )
}

/// Packets, some of which speak to a service, as their first node translates it.
fn packets(chance: &mut Chance, cluster: &Cluster) -> Vec<Packet> {
    let mut packets: Vec<_> = (0..PACKETS)
        .filter_map(|_| chance.packet(cluster))
        .collect();
    for packet in packets.iter_mut().step_by(3) {
        let is_ours = packet.from != Place::Outside && packet.from != packet.to;
        if is_ours && packet.header.ports.is_some() && packet.translation.is_none() {
            packet.translation = Some(Translation {
                address: match packet.header.family() {
                    Family::V4 => [10, 96, 0, 10].into(),
                    Family::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10].into(),
                },
                port: 443,
                at: Translator::First,
            });
        }
    }

    packets
}

fn judges(cluster: &Cluster) -> BTreeMap<NodeName, Judge> {
    let nodes = cluster.nodes.iter();

    nodes
        .map(|node| {
            let mut judge = Judge::new();
            let rows = compile(&Scene::of_node(cluster, &node.name)).rows;
            change(&mut judge, &Ruleset::default(), &rows);

            (node.name.clone(), judge)
        })
        .collect()
}

fn change(judge: &mut Judge, before: &Ruleset, after: &Ruleset) {
    for (set, element) in before.elements.symmetric_difference(&after.elements) {
        let is_there = after.elements.contains(&(set.clone(), element.clone()));
        judge.set_element(set, element, is_there);
    }
    for key in before.chains.keys().chain(after.chains.keys()) {
        if before.chains.get(key) != after.chains.get(key) {
            judge.set_chain(key, after.chains.get(key));
        }
    }
}

impl Hop {
    fn connection(&self) -> Connection<'_> {
        Connection {
            from: self.from.station(),
            to: self.to.station(),
            before: self.before,
            header: self.header,
            translated: self.before != self.header,
        }
    }
}

impl Spot {
    fn station(&self) -> Station<'_> {
        match self {
            Self::Host => Station::Host,
            Self::Interface(name) => Station::Interface(name),
        }
    }
}

/// Returns a packet's way; what a host says to itself is one hop.
fn hops(cluster: &Cluster, packet: &Packet) -> Vec<Hop> {
    let hop = |node: &NodeName, from: Spot, to: Spot| Hop {
        node: node.clone(),
        from,
        to,
        before: packet.header,
        header: packet.header,
    };
    let nodes = [&packet.from, &packet.to].map(|place| node(cluster, place));
    let [from, to] = [&packet.from, &packet.to].map(spot);
    let outside = || Spot::Interface(UPLINK.parse().unwrap());
    let mut hops = match nodes {
        [Some(a), Some(b)] if a == b => {
            let inside_a_pod = packet.from == packet.to && matches!(packet.from, Place::Pod(_));
            if inside_a_pod && packet.translation.is_none() {
                return Vec::new();
            }
            vec![hop(&a, from, to)]
        }
        [Some(a), Some(b)] => {
            let between = || match is_tunnelled(cluster, packet) {
                true => Spot::Interface(TUNNEL_DEVICE.parse().unwrap()),
                false => outside(),
            };
            vec![hop(&a, from, between()), hop(&b, between(), to)]
        }
        [Some(a), None] => vec![hop(&a, from, outside())],
        [None, Some(b)] => vec![hop(&b, outside(), to)],
        [None, None] => Vec::new(),
    };
    let last = hops.len().saturating_sub(1);
    if let Some(translation) = &packet.translation {
        let before = packet.header.before(translation);
        match translation.at {
            Translator::First => hops[0].before = before,
            Translator::Last => {
                for earlier in &mut hops[..last] {
                    (earlier.before, earlier.header) = (before, before);
                }
                hops[last].before = before;
            }
        }
    }

    hops
}

fn node(cluster: &Cluster, place: &Place) -> Option<NodeName> {
    match place {
        Place::Pod(name) => cluster.pod(name).map(|pod| pod.node.clone()),
        Place::Node(name) => Some(name.clone()),
        Place::Outside => None,
    }
}

fn spot(place: &Place) -> Spot {
    match place {
        Place::Pod(name) => Spot::Interface(WorkloadEndpoint::host_interface(name)),
        Place::Node(_) | Place::Outside => Spot::Host,
    }
}

fn is_tunnelled(cluster: &Cluster, packet: &Packet) -> bool {
    let has_pod = [&packet.from, &packet.to]
        .iter()
        .any(|end| matches!(end, Place::Pod(_)));

    let mut settings = cluster.configurations.iter();
    has_pod && settings.any(|settings| settings.wireguard_enabled == Some(true))
}
