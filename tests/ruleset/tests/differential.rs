//! The rows that are compiled, against the evaluator.

use std::collections::BTreeMap;

use model::{constant::REVOKED_MARK, policy::Stage};
use policy::{Cause, Evaluator, Outcome, Verdict};
use ruleset::{Chance, Machines, told};

/// Clusters, and packets of each.
const CLUSTERS: u64 = 800;
const PACKETS: usize = 250;

#[test]
fn the_ruleset_says_what_the_evaluator_says() {
    let mut met: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 0..CLUSTERS {
        let mut chance = Chance::new(seed);
        let cluster = chance.cluster();
        let (evaluator, machines) = (Evaluator::new(&cluster), Machines::new(&cluster));
        for _ in 0..PACKETS {
            let Some(packet) = chance.packet(&cluster) else {
                continue;
            };
            let wanted = evaluator.evaluate(&packet);
            let (passes, trace) = machines.pass(&packet);
            assert_eq!(
                passes,
                wanted.verdict == Verdict::Allow,
                "seed {seed}\n{packet:?}\n{wanted:#?}\n{trace:#?}\n{}",
                told(&cluster),
            );
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

/// Untracked policy is asked of every packet; all other only of what opens a connection, or has been revoked.
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
            let allowed = machines.pass_new(&packet);

            assert!(
                machines.pass_established(&packet, !REVOKED_MARK),
                "seed {seed}\n{packet:?}"
            );
            assert_eq!(
                machines.pass_established(&packet, REVOKED_MARK),
                allowed,
                "seed {seed}\n{packet:?}"
            );
            *(if allowed { &mut stayed } else { &mut cut }) += 1;
        }
    }

    assert!(stayed > 1_000 && cut > 1_000, "{stayed} {cut}");
}

/// Whatever must have decided a packet's way, or it has not been compared.
const EVERYTHING: [&str; 25] = [
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
    "Forward Setting Deny",
    "PreDnat Rule Allow",
    "PreDnat Rule Deny",
    "PreDnat Failsafe Allow",
    "Untracked Rule Allow",
    "Untracked Rule Deny",
    "Untracked Failsafe Allow",
];

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
