//! The rows that the kernel has, as `nft` lists them, against the evaluator. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod packet;
mod sys;

use std::{collections::BTreeMap, process::Command, thread};

use dataplane::{ChainRow, NftKey, NftRow, NftTarget, Ownership, Target};
use model::Change;
use policy::{Evaluator, Verdict, compile::Ruleset};
use ruleset::{Chance, Machines, listing, told};

/// Clusters, and packets of each. Their seeds go on behind those of the test without a kernel.
const CLUSTERS: std::ops::Range<u64> = 1_000_000..1_000_200;
const PACKETS: usize = 1_000;

#[test]
fn the_kernel_takes_the_ruleset_and_says_what_the_evaluator_says() {
    alone(|| {
        let mut target = NftTarget::open(Ownership::Shared).unwrap();
        target.set_in_sync(true);
        for seed in CLUSTERS {
            let mut chance = Chance::new(seed);
            let cluster = chance.cluster();
            let evaluator = Evaluator::new(&cluster);
            let machines = Machines::with(&cluster, |rows| through_kernel(&mut target, &rows));
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
            }
        }
    });
}

/// Makes the kernel hold these rows in the place of whatever it held, and returns what it has.
fn through_kernel(target: &mut NftTarget, rows: &Ruleset) -> Ruleset {
    let wanted = keyed(rows);
    let held = target.observe().unwrap();
    let sets: Vec<_> = wanted
        .iter()
        .filter(|(key, row)| held.get(*key) != Some(*row))
        .map(|(key, row)| Change::Set(key.clone(), row.clone()))
        .collect();
    let unsets: Vec<_> = held
        .into_keys()
        .filter(|key| !wanted.contains_key(key))
        .map(Change::Unset)
        .collect();

    assert_eq!(target.apply(&sets).unwrap(), []);
    assert_eq!(target.apply(&unsets).unwrap(), []);
    let held = target.observe().unwrap();
    assert_eq!(held.len(), wanted.len());
    for (key, row) in &wanted {
        assert_eq!(held.get(key), Some(row), "what was written is read back");
    }

    listing::read(&program("nft", "-n -j list table inet meshd"))
}

fn keyed(rows: &Ruleset) -> BTreeMap<NftKey, NftRow> {
    let sets = rows.sets.iter();
    let sets = sets.map(|(key, kind)| (NftKey::Set(key.clone()), NftRow::Set(*kind)));
    let elements = rows.elements.iter();
    let elements = elements.map(|(set, element)| {
        (
            NftKey::Element(set.clone(), element.clone()),
            NftRow::Element,
        )
    });
    let chains = rows.chains.iter().map(|(key, chain)| {
        let row = ChainRow::new(key.table, chain.clone());
        (NftKey::Chain(key.clone()), NftRow::Chain(row))
    });

    sets.chain(elements).chain(chains).collect()
}

/// Runs a test in a network namespace of its own, which goes with its thread.
fn alone(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        sys::leave_network().expect("tests of the kernel need root");
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program that must succeed, and returns what it says.
#[expect(
    clippy::disallowed_methods,
    reason = "the oracle of these tests are other programs"
)]
fn program(name: &str, arguments: &str) -> String {
    let output = Command::new(name)
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name} {arguments}: {errors}");

    String::from_utf8(output.stdout).unwrap()
}
