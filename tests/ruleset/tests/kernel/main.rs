//! The rows that the kernel has, as `nft` lists them, against the evaluator. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod detour;
mod history;
mod machine;
mod namespace;
mod neighbour;
mod packet;
mod probe;
mod recheck;
mod sys;

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    thread,
};

use dataplane::{ChainRow, NftKey, NftRow, NftTarget, Ownership, Target};
use model::Change;
use policy::{Cluster, Evaluator, Packet, Verdict, compile::Ruleset};
use ruleset::{Chance, Machines, document, listing, shrink};

/// Clusters are walked side by side, each in a network namespace of its own.
const THREADS: usize = 2;

/// Packets of each cluster.
const PACKETS_OF_CLUSTER: u64 = 1_000;

/// How many packets are compared at least, unless `MESHD_RULESET_PACKETS` says so.
const PACKETS: u64 = 1_000_000;

/// The first seed, unless `MESHD_RULESET_SEED` says so. It lies behind those of the test without a kernel.
const SEED: u64 = 1_000_000;

#[test]
fn the_kernel_takes_the_ruleset_and_says_what_the_evaluator_says() {
    let (packets, seed) = (
        number("MESHD_RULESET_PACKETS", PACKETS),
        number("MESHD_RULESET_SEED", SEED),
    );
    let clusters = packets.div_ceil(PACKETS_OF_CLUSTER);
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || {
                let seeds = (seed..seed + clusters).skip(thread).step_by(THREADS);
                sys::leave_network().expect("tests of the kernel need root");

                seeds.map(compare).sum::<u64>()
            })
        })
        .collect();
    let compared: u64 = threads
        .into_iter()
        .map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .sum();

    assert!(compared >= packets, "{compared} of {packets} packets");
}

/// Compares what is found about packets of one cluster; returns how many.
fn compare(seed: u64) -> u64 {
    let mut target = NftTarget::open(Ownership::Shared).unwrap();
    target.set_in_sync(true);
    let mut chance = Chance::new(seed);
    let mut cluster = chance.cluster();
    if chance.once_in(4) {
        chance.narrow(&mut cluster);
    }
    let evaluator = Evaluator::new(&cluster);
    let machines = Machines::with(&cluster, |rows| through_kernel(&mut target, &rows));
    let mut compared = 0;
    while compared < PACKETS_OF_CLUSTER {
        let Some(packet) = chance.packet(&cluster) else {
            continue;
        };
        let wanted = evaluator.evaluate(&packet);
        let (passes, trace) = machines.pass(&packet);
        if passes != (wanted.verdict == Verdict::Allow) {
            let smallest = shrink(&cluster, &packet, |cluster| {
                differs(cluster, &packet, &mut target)
            });
            panic!(
                "seed {seed}\n{wanted:#?}\n{trace:#?}\n{}",
                document(&smallest, &packet, wanted.verdict)
            );
        }
        compared += 1;
    }

    compared
}

fn differs(cluster: &Cluster, packet: &Packet, target: &mut NftTarget) -> bool {
    let wanted = Evaluator::new(cluster).evaluate(packet).verdict;
    let machines = Machines::with(cluster, |rows| through_kernel(target, &rows));

    machines.pass(packet).0 != (wanted == Verdict::Allow)
}

/// Returns a number that the environment sets, or the default.
fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
        Err(_) => default,
    }
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
        (NftKey::Chain(key.clone()), NftRow::Chain(Box::new(row)))
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
fn program(name: &str, arguments: &str) -> String {
    fed(name, arguments, "")
}

/// Runs a program that must succeed on this input, and returns what it says.
#[expect(
    clippy::disallowed_methods,
    reason = "the oracle of these tests are other programs"
)]
fn fed(name: &str, arguments: &str, input: &str) -> String {
    let mut child = Command::new(name)
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What reads no input may be gone by now, and says so by how it ends.
    let written = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name} {arguments}: {errors}");
    written.unwrap();

    String::from_utf8(output.stdout).unwrap()
}
