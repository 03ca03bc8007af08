//! ```text
//! ┌ n1 ┐  ┌ n2 ┐  ┌ n3 ┐   one underlay; every pair sends pod to pod, pod to node, node to pod
//! └─┬──┘  └─┬──┘  └─┬──┘   at every moment at which any kernel changed
//! ──┴───────┴───────┴──
//! ```

use model::{Family, Phase};
use sim::{Cluster, Dice, Fate, Layout};

/// What may be lost, and why.
#[derive(Clone, Copy, PartialEq)]
enum Tolerated {
    /// Nothing at all.
    Nothing,
    /// Encrypted packets to a node whose agent restarted while others left: it does not remember
    /// whom it had as a peer. It never means plaintext.
    ForgottenPeers,
}

/// Seeds of every story here; each is another order of everything.
const SEEDS: std::ops::Range<u64> = 0..40;

#[test]
fn enabling_and_disabling_lose_no_packet_and_leak_none() {
    for seed in SEEDS {
        let mut cluster = plain_cluster(layout(seed), seed);

        cluster.encrypt(true);
        run(&mut cluster, seed, usize::MAX, Tolerated::Nothing);
        assert_everybody(&cluster, Phase::Enforced, seed);
        assert_all(&cluster, &Fate::Encrypted, seed);

        cluster.encrypt(false);
        run(&mut cluster, seed, usize::MAX, Tolerated::Nothing);
        assert_everybody(&cluster, Phase::Off, seed);
        assert_all(&cluster, &Fate::Plain, seed);
        assert_nothing_left(&cluster, seed);
    }
}

#[test]
fn any_sequence_of_toggles_converges_and_no_pair_ever_disagrees() {
    for seed in SEEDS {
        let mut dice = Dice::new(seed);
        let mut cluster = plain_cluster(layout(seed), seed);
        let mut is_wanted = false;
        for _ in 0..6 {
            is_wanted = !is_wanted;
            cluster.encrypt(is_wanted);
            run(&mut cluster, seed, dice.roll(400), Tolerated::Nothing);
        }
        cluster.encrypt(true);
        run(&mut cluster, seed, usize::MAX, Tolerated::Nothing);
        assert_everybody(&cluster, Phase::Enforced, seed);
        assert_all(&cluster, &Fate::Encrypted, seed);
    }
}

#[test]
fn agents_that_restart_at_any_moment_open_nothing() {
    for seed in SEEDS {
        let mut dice = Dice::new(seed);
        let mut cluster = plain_cluster(layout(seed), seed);
        let members = cluster.members();
        for is_wanted in [true, false, true] {
            cluster.encrypt(is_wanted);
            for _ in 0..3 {
                run(
                    &mut cluster,
                    seed,
                    dice.roll(150),
                    Tolerated::ForgottenPeers,
                );
                cluster.restart(&members[dice.roll(members.len())]);
            }
        }
        run(&mut cluster, seed, usize::MAX, Tolerated::ForgottenPeers);
        assert_everybody(&cluster, Phase::Enforced, seed);
    }
}

#[test]
fn a_switch_that_flickers_while_agents_restart_leaks_nothing() {
    for seed in SEEDS {
        let mut dice = Dice::new(seed);
        let mut cluster = plain_cluster(layout(seed), seed);
        let members = cluster.members();
        let mut is_wanted = false;
        for _ in 0..24 {
            if dice.one_in(4) {
                cluster.restart(&members[dice.roll(members.len())]);
            } else {
                is_wanted = !is_wanted;
                cluster.encrypt(is_wanted);
            }
            let steps = [20, 80, 300][dice.roll(3)];
            run(
                &mut cluster,
                seed,
                dice.roll(steps),
                Tolerated::ForgottenPeers,
            );
        }
        cluster.encrypt(false);
        run(&mut cluster, seed, usize::MAX, Tolerated::ForgottenPeers);
        assert_everybody(&cluster, Phase::Off, seed);
        assert_all(&cluster, &Fate::Plain, seed);
    }
}

fn layout(seed: u64) -> Layout {
    let families = match seed % 3 {
        0 => vec![Family::V4],
        1 => vec![Family::V6],
        _ => Family::BOTH.to_vec(),
    };

    Layout {
        nodes: 2 + (seed % 3) as usize,
        families,
        ..Layout::default()
    }
}

/// A cluster whose pods reach each other in plaintext.
fn plain_cluster(layout: Layout, seed: u64) -> Cluster {
    let mut cluster = Cluster::new(layout, seed);
    while cluster.step().is_some() || cluster.sleep() {}
    assert_all(&cluster, &Fate::Plain, seed);

    cluster
}

/// Runs for so many steps, or until nothing is left to do; every packet arrives at every moment.
fn run(cluster: &mut Cluster, seed: u64, steps: usize, tolerated: Tolerated) {
    for _ in 0..steps.min(200_000) {
        match cluster.step() {
            Some(true) => assert_arrives(cluster, seed, tolerated),
            Some(false) => {}
            None if steps == usize::MAX && cluster.sleep() => {}
            None => return,
        }
    }
    assert!(steps != usize::MAX, "seed {seed}: does not come to rest");
}

/// The standing assertions.
fn assert_arrives(cluster: &Cluster, seed: u64, tolerated: Tolerated) {
    for (from, to) in pairs(cluster) {
        for packet in cluster.packets(&from, &to) {
            let fate = cluster.send(&from, &packet);
            let (mine, other) = (cluster.phase(&from), cluster.phase(&to));
            let story = format!("seed {seed}: {from} ({mine:?}) to {to} ({other:?}): {packet:?}");
            let is_tolerated =
                tolerated == Tolerated::ForgottenPeers && matches!(fate, Fate::EncryptedRefused(_));
            assert!(
                fate.arrived() || is_tolerated,
                "{}\n{story}: {fate:?}",
                cluster.story()
            );
            assert!(
                mine < Phase::Sending || !fate.was_plain(),
                "{story}: {fate:?} though sending"
            );
        }
    }
}

fn assert_all(cluster: &Cluster, wanted: &Fate, seed: u64) {
    for (from, to) in pairs(cluster) {
        let packets = cluster.packets(&from, &to);
        assert!(
            !packets.is_empty(),
            "seed {seed}: no packets from {from} to {to}"
        );
        for packet in packets {
            let fate = cluster.send(&from, &packet);
            assert_eq!(fate, *wanted, "seed {seed}: {from} to {to}: {packet:?}");
        }
    }
}

fn assert_everybody(cluster: &Cluster, phase: Phase, seed: u64) {
    for name in cluster.members() {
        let status = cluster.world(&name).status(cluster.now);
        assert_eq!(
            cluster.phase(&name),
            phase,
            "seed {seed}: {name}: {status:#?}"
        );
        assert_eq!(status.encryption.phase, phase);
        assert!(status.converged, "seed {seed}: {name}: {status:#?}");
    }
}

fn assert_nothing_left(cluster: &Cluster, seed: u64) {
    for name in cluster.members() {
        let rows = &cluster.machine(&name).rows;
        assert!(
            rows.tunnels.is_empty() && rows.peers.is_empty(),
            "seed {seed}: {name}"
        );
        assert!(
            rows.rules.is_empty(),
            "seed {seed}: {name}: {:?}",
            rows.rules
        );
        assert!(
            !rows.chains.keys().any(|key| key.name == "barrier"),
            "seed {seed}: {name}"
        );
    }
}

fn pairs(cluster: &Cluster) -> Vec<(model::NodeName, model::NodeName)> {
    let members = cluster.members();
    let pairs = members
        .iter()
        .flat_map(|a| members.iter().map(move |b| (a.clone(), b.clone())));

    pairs.filter(|(a, b)| a != b).collect()
}
