//! Prints what the brain costs: the start of a World, one node's change, one block's change, memory.
//!
//! ```text
//! cargo run --release -p bench-world
//! ```

#![expect(clippy::print_stdout, reason = "the figures are the product")]

use std::{fs, hint::black_box, time::Instant};

use meshd_core::World;
use model::{Event, Moment, Resource};
use sim::Big;

/// How many changes of each kind are timed.
const CHANGES: u32 = 2000;

fn main() {
    println!("nodes  blocks  start ms  RSS MiB  node µs p50/p99   rows  block µs p50/p99  rows");
    for nodes in [10, 100, 1000, 4000] {
        row(Big { nodes, blocks: 10 });
    }
}

fn row(mesh: Big) {
    let before = resident_kib();
    let begin = Instant::now();
    let mut world = mesh.start();
    let start = begin.elapsed();
    let memory = resident_kib().saturating_sub(before);
    drain(&mut world);

    let number = |n: u32| 1 + n % (mesh.nodes - 1);
    let node = changes(&mut world, |n| {
        let changed = mesh.node(number(n), 2 + u64::from(n / (mesh.nodes - 1)));
        Event::Applied(Resource::Node(Box::new(changed)))
    });
    let block = changes(&mut world, |n| {
        let block = number(n) * mesh.blocks;
        let moved = 1 + (number(n) + n / (mesh.nodes - 1)) % (mesh.nodes - 1);
        Event::Applied(mesh.block(block, Some(moved)))
    });
    println!(
        "{:5}  {:6}  {:8.1}  {:7.1}  {:7.1}/{:7.1}  {:5}  {:8.1}/{:7.1}  {:4}",
        mesh.nodes,
        mesh.nodes * mesh.blocks,
        start.as_secs_f64() * 1e3,
        memory as f64 / 1024.0,
        node.p50,
        node.p99,
        node.rows,
        block.p50,
        block.p99,
        block.rows,
    );
    black_box(&world);
}

/// Times in microseconds, and rows computed for the costliest change.
struct Figures {
    p50: f64,
    p99: f64,
    rows: u64,
}

fn changes(world: &mut World, change: impl Fn(u32) -> Event) -> Figures {
    let mut times = Vec::new();
    let mut rows = 0;
    for n in 0..CHANGES {
        let event = change(n);
        let effort = world.effort();
        let begin = Instant::now();
        world.apply(event, Moment::START);
        drain(world);
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        rows = rows.max(world.effort() - effort);
    }
    times.sort_by(f64::total_cmp);

    Figures {
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        rows,
    }
}

/// Takes the changes as the dataplane would.
fn drain(world: &mut World) {
    let plan = world.plan();
    black_box((
        plan.nft_elements.drain_changes(),
        plan.peers.drain_changes(),
        plan.routes.drain_changes(),
    ));
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));

    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
