//! The rows that are compiled, against the evaluator.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::{constant::REVOKED_MARK, policy::Stage, resource::FelixConfiguration};
use policy::{
    Cause, Cluster, Evaluator, Outcome, Packet, Place, Verdict,
    packet::{Translation, Translator},
};
use ruleset::{Chance, Machines, document, shrink};

/// Clusters, and packets of each.
const CLUSTERS: u64 = 800;
const PACKETS: usize = 250;

#[test]
fn the_ruleset_says_what_the_evaluator_says() {
    let mut met: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 0..CLUSTERS {
        let mut chance = Chance::new(seed);
        let mut cluster = chance.cluster();
        if chance.once_in(4) {
            chance.narrow(&mut cluster);
        }
        let (evaluator, machines) = (Evaluator::new(&cluster), Machines::new(&cluster));
        for _ in 0..PACKETS {
            let Some(mut packet) = chance.packet(&cluster) else {
                continue;
            };
            if chance.once_in(2) {
                sent_to_a_service(&mut packet);
            }
            let wanted = evaluator.evaluate(&packet);
            let (passes, trace) = machines.pass(&packet);
            if passes != (wanted.verdict == Verdict::Allow) {
                let smallest = shrink(&cluster, &packet, |cluster| differs(cluster, &packet));
                panic!(
                    "seed {seed}\n{wanted:#?}\n{trace:#?}\n{}",
                    document(&smallest, &packet, wanted.verdict)
                );
            }
            for what in decided(&wanted) {
                *met.entry(what).or_default() += 1;
            }
        }
    }

    for what in EVERYTHING {
        let count = met.get(what).copied().unwrap_or_default();
        assert!(count >= 5, "{what} has decided {count} times: {met:#?}");
    }
}

/// Untracked policy is asked of every packet; all other only of what opens a connection. What is revoked is stopped
/// both ways wherever a pod is at one of its ends, whether or not policy would allow its packets by themselves.
#[test]
fn what_is_established_passes_until_it_is_revoked() {
    let (mut stayed, mut cut) = (0, 0);
    for seed in 0..100 {
        let mut chance = Chance::new(seed);
        let mut cluster = chance.cluster();
        cluster
            .policies
            .retain(|policy| policy.stage != Stage::Untracked);
        let machines = Machines::new(&cluster);
        for packet in (0..PACKETS).filter_map(|_| chance.packet(&cluster)) {
            let passes = |mark| {
                [
                    machines.pass_established(&packet, mark),
                    machines.answer_established(&packet, mark),
                ]
            };

            assert_eq!(passes(!REVOKED_MARK), [true; 2], "seed {seed}\n{packet:?}");
            stayed += 1;
            let has_pod = [&packet.from, &packet.to]
                .iter()
                .any(|end| matches!(end, Place::Pod(_)));
            let goes_somewhere = packet.from != packet.to || packet.translation.is_some();
            if has_pod && goes_somewhere {
                assert_eq!(passes(REVOKED_MARK), [false; 2], "seed {seed}\n{packet:?}");
                cut += 1;
            }
        }
    }

    assert!(stayed > 1_000 && cut > 1_000, "{stayed} {cut}");
}

/// A pod neither gets nor sends what is of no connection, unless a setting says so.
#[test]
fn what_is_of_no_connection_comes_to_no_pod_and_from_none() {
    let mut strays = [0, 0];
    for seed in 0..200 {
        let mut chance = Chance::new(seed);
        let mut cluster = chance.cluster();
        cluster
            .policies
            .retain(|policy| policy.stage != Stage::Untracked);
        let is_set = |settings: &FelixConfiguration| {
            settings.other.get("disableConntrackInvalidCheck") == Some(&true.into())
        };
        if cluster.configurations.iter().any(is_set) {
            continue;
        }
        let machines = Machines::new(&cluster);
        let packets = (0..50).filter_map(|_| chance.packet(&cluster));
        // What IPv6 finds neighbours by belongs to no connection, and never to one.
        for packet in packets.filter(|packet| packet.header.icmp.is_none()) {
            let hops = machines.hops(&packet);
            let is_pod = |place: &Place| matches!(place, Place::Pod(_));
            // What a host says to its own pods nobody is asked about.
            let comes = is_pod(&packet.to) && hops.last().is_some_and(|hop| hop.iif.is_some());
            let leaves = is_pod(&packet.from) && !hops.is_empty();
            if comes || leaves {
                assert!(!machines.pass_stray(&packet), "seed {seed}\n{packet:?}");
                strays[usize::from(leaves)] += 1;
            }
        }
    }

    assert!(strays.iter().all(|count| *count > 500), "{strays:?}");
}

/// Makes a pod's packet one that was sent to a service, which its own node has translated.
fn sent_to_a_service(packet: &mut Packet) {
    let is_pods = matches!(packet.from, Place::Pod(_));
    if !is_pods || packet.header.ports.is_none() || packet.translation.is_some() {
        return;
    }
    let address = match packet.header.destination {
        IpAddr::V4(_) => Ipv4Addr::new(10, 96, 0, 10).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10).into(),
    };

    packet.translation = Some(Translation {
        address,
        port: 80,
        at: Translator::First,
    });
}

/// Whatever must have decided a packet's way, or it has not been compared.
const EVERYTHING: [&str; 24] = [
    "Egress Rule Allow",
    "Egress Rule Deny",
    "Egress Profile Allow",
    "Egress Profile Deny",
    "Egress TierDefault Deny",
    "Egress Nobody Deny",
    "Egress Failsafe Allow",
    "Egress Setting Deny",
    "Ingress Rule Allow",
    "Ingress Rule Deny",
    "Ingress Profile Allow",
    "Ingress TierDefault Deny",
    "Ingress Nobody Deny",
    "Ingress Failsafe Allow",
    "Ingress Setting Deny",
    "Forward Rule Allow",
    "Forward Rule Deny",
    "Forward TierDefault Deny",
    "PreDnat Rule Allow",
    "PreDnat Rule Deny",
    "PreDnat Failsafe Allow",
    "Untracked Rule Allow",
    "Untracked Rule Deny",
    "Untracked Failsafe Allow",
];

fn differs(cluster: &Cluster, packet: &Packet) -> bool {
    let wanted = Evaluator::new(cluster).evaluate(packet).verdict;

    Machines::new(cluster).pass(packet).0 != (wanted == Verdict::Allow)
}

fn decided(outcome: &Outcome) -> impl Iterator<Item = String> {
    outcome.decisions.iter().map(|decision| {
        let cause = match &decision.cause {
            Cause::Rule(_) => "Rule",
            Cause::Profile(_) => "Profile",
            Cause::TierDefault(_) => "TierDefault",
            Cause::Failsafe => "Failsafe",
            Cause::Setting(_) => "Setting",
            Cause::Nobody => "Nobody",
        };

        format!("{:?} {cause} {:?}", decision.point, decision.verdict)
    })
}
