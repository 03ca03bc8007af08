//! Members that are late, dead, new or of another make.

use model::{Family, NodeName, Phase, nft::Element, resource::mesh_configuration::EncryptionMode};
use sim::{Cluster, Dice, Fate, Layout, Packet};

/// Seeds of every story here.
const SEEDS: std::ops::Range<u64> = 100..112;

#[test]
fn a_member_that_does_not_move_is_named_and_not_waited_for() {
    for seed in SEEDS {
        let mut cluster = rested(seed);
        let [living, other, dead] = three(&cluster);
        cluster.kill(&dead);

        cluster.encrypt(true);
        let begin = cluster.now;
        rest(&mut cluster, seed);

        assert!(
            cluster.now - begin >= std::time::Duration::from_secs(30),
            "seed {seed}"
        );
        assert_eq!(cluster.phase(&living), Phase::Enforced, "seed {seed}");
        let status = cluster.world(&living).status(cluster.now);
        assert_eq!(
            status.conditions["Lagging"],
            dead.to_string(),
            "seed {seed}"
        );
        assert_fate(&cluster, &living, &other, &Fate::Encrypted, seed);
        assert_closed(&cluster, &living, &dead, seed);

        cluster.revive(&dead);
        rest(&mut cluster, seed);
        assert_eq!(cluster.phase(&dead), Phase::Enforced, "seed {seed}");
        assert_fate(&cluster, &living, &dead, &Fate::Encrypted, seed);
        assert_fate(&cluster, &dead, &other, &Fate::Encrypted, seed);
    }
}

#[test]
fn an_agent_that_is_dead_while_the_others_disable_leaks_nothing_and_comes_back() {
    for seed in SEEDS {
        let mut cluster = rested(seed);
        let [living, other, dead] = three(&cluster);
        cluster.encrypt(true);
        rest(&mut cluster, seed);

        cluster.kill(&dead);
        cluster.encrypt(false);
        rest(&mut cluster, seed);
        assert_eq!(cluster.phase(&living), Phase::Off, "seed {seed}");
        assert_fate(&cluster, &living, &other, &Fate::Plain, seed);
        assert_closed(&cluster, &dead, &living, seed);

        cluster.revive(&dead);
        rest(&mut cluster, seed);
        assert_fate(&cluster, &dead, &living, &Fate::Plain, seed);
        assert_fate(&cluster, &living, &dead, &Fate::Plain, seed);
    }
}

#[test]
fn a_node_that_joins_an_enforced_mesh_never_sends_plaintext() {
    for seed in SEEDS {
        let mut cluster = rested(seed);
        cluster.encrypt(true);
        rest(&mut cluster, seed);
        let members = cluster.members();

        let joiner = cluster.join(9);
        loop {
            for member in &members {
                for (from, to) in [(member, &joiner), (&joiner, member)] {
                    for packet in cluster.packets(from, to) {
                        let fate = cluster.send(from, &packet);
                        let leaks = knows(&cluster, from, &packet) && fate.was_plain();
                        assert!(!leaks, "seed {seed}: {from} to {to}: {packet:?}: {fate:?}");
                    }
                }
            }
            if cluster.step().is_none() && !cluster.sleep() {
                break;
            }
        }

        assert_eq!(cluster.phase(&joiner), Phase::Enforced, "seed {seed}");
        for member in &members {
            assert_fate(&cluster, member, &joiner, &Fate::Encrypted, seed);
            assert_fate(&cluster, &joiner, member, &Fate::Encrypted, seed);
        }
    }
}

#[test]
fn a_cluster_that_starts_with_encryption_on_never_sends_plaintext_once_it_is_enforced() {
    for seed in SEEDS {
        let mut cluster = Cluster::new(Layout::default(), seed);
        cluster.encrypt(true);
        while cluster.step().is_some() || cluster.sleep() {
            for (from, to) in pairs(&cluster) {
                for packet in cluster.packets(&from, &to) {
                    let fate = cluster.send(&from, &packet);
                    let is_enforced = cluster.phase(&from) == Phase::Enforced;
                    let leaks = is_enforced && knows(&cluster, &from, &packet) && fate.was_plain();
                    assert!(!leaks, "seed {seed}: {from} to {to}: {packet:?}: {fate:?}");
                }
            }
        }
        for (from, to) in pairs(&cluster) {
            assert_fate(&cluster, &from, &to, &Fate::Encrypted, seed);
        }
    }
}

#[test]
fn permissive_converges_like_strict_where_everybody_has_a_key() {
    for seed in SEEDS {
        let layout = Layout {
            mode: EncryptionMode::Permissive,
            ..Layout::default()
        };
        let mut cluster = Cluster::new(layout, seed);
        rest(&mut cluster, seed);
        cluster.encrypt(true);
        rest(&mut cluster, seed);

        for (from, to) in pairs(&cluster) {
            assert_fate(&cluster, &from, &to, &Fate::Encrypted, seed);
        }
    }
}

fn rested(seed: u64) -> Cluster {
    let mut dice = Dice::new(seed);
    let families = if dice.one_in(2) {
        vec![Family::V4]
    } else {
        Family::BOTH.to_vec()
    };
    let mut cluster = Cluster::new(
        Layout {
            families,
            ..Layout::default()
        },
        seed,
    );
    rest(&mut cluster, seed);

    cluster
}

fn rest(cluster: &mut Cluster, seed: u64) {
    for _ in 0..100_000 {
        if cluster.step().is_none() && !cluster.sleep() {
            return;
        }
    }
    panic!("seed {seed}: does not come to rest");
}

fn three(cluster: &Cluster) -> [NodeName; 3] {
    cluster.members().try_into().expect("three members")
}

fn assert_fate(cluster: &Cluster, from: &NodeName, to: &NodeName, wanted: &Fate, seed: u64) {
    let packets = cluster.packets(from, to);
    assert!(!packets.is_empty(), "seed {seed}: {from} to {to}");
    for packet in packets {
        let fate = cluster.send(from, &packet);
        assert_eq!(fate, *wanted, "seed {seed}: {from} to {to}: {packet:?}");
    }
}

/// Returns whether the sender's kernel can know that the packet must not leave: its guard is up,
/// and where the packet goes to is a pod's or has been granted to a member.
///
/// Before its first pass it has no pods, and the guard of the last boot stands.
fn knows(cluster: &Cluster, from: &NodeName, packet: &Packet) -> bool {
    let rows = &cluster.machine(from).rows;
    let is_up = rows.chains.keys().any(|key| key.name == "barrier");
    let is_known = rows.elements.iter().any(|(_, element)| match element {
        Element::Net(net) => net.contains(&packet.destination),
        Element::Address(address) => *address == packet.destination,
        Element::Interface(_)
        | Element::InterfaceAddress(..)
        | Element::Ports(..)
        | Element::AddressPort(..)
        | Element::InterfaceVerdict(..) => false,
    });

    is_up && is_known
}

/// Nothing of it leaves in plaintext.
fn assert_closed(cluster: &Cluster, from: &NodeName, to: &NodeName, seed: u64) {
    for packet in cluster.packets(from, to) {
        let fate = cluster.send(from, &packet);
        assert!(
            !fate.was_plain() && !fate.arrived(),
            "seed {seed}: {packet:?}: {fate:?}"
        );
    }
}

fn pairs(cluster: &Cluster) -> Vec<(NodeName, NodeName)> {
    let members = cluster.members();
    let pairs = members
        .iter()
        .flat_map(|a| members.iter().map(move |b| (a.clone(), b.clone())));

    pairs.filter(|(a, b)| a != b).collect()
}
