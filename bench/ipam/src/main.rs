//! What handing out addresses costs: `cargo run --release -p bench-ipam`.
//!
//! First the allocator alone, then the embedded store on disk beneath it (see [`disk`]). Alone, the store is in memory
//! and answers at once, so that what is left is the allocator's own work and the steps that it takes: reads, writes,
//! and those that were in vain because somebody else was faster. With several nodes every step of one is followed by a
//! step of the next: nobody finishes undisturbed.
#![expect(clippy::print_stdout, reason = "the table is the result")]

mod disk;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use cni_ipam::{
    Answer, Failure, Holder, Operation, Preference, Request, Rules, Turn, assign::Assigned,
    assign_addresses, memory::Memory, release_handle,
};
use jiff::Timestamp;
use model::{
    Family, NodeName,
    resource::{IpPool, ip_pool::AllowedUse},
};

/// Addresses that each run hands out.
const ADDRESSES: usize = 1024;

struct Figures {
    nodes: usize,
    assigned: usize,
    seconds: f64,
    reads: u64,
    writes: u64,
    vain: u64,
}

struct Worker {
    node: NodeName,
    operation: Operation<Result<Assigned, Failure>>,
}

fn main() {
    println!("nodes  addresses  assigned/s  reads/a  writes/a  in vain/a  released/s  writes/r");
    for nodes in [1, 8] {
        let (mut store, assigned) = assign(nodes);
        let released = release(&mut store, nodes, assigned.assigned);
        println!(
            "{:5}  {:9}  {:10.0}  {:7.2}  {:8.2}  {:9.2}  {:10.0}  {:8.2}",
            assigned.nodes,
            assigned.assigned,
            rate(&assigned),
            each(assigned.reads, &assigned),
            each(assigned.writes, &assigned),
            each(assigned.vain, &assigned),
            rate(&released),
            each(released.writes, &released),
        );
    }
    println!("\non disk");
    println!("nodes  addresses  assigned/s  reads/a  writes/a  in vain/a");
    for nodes in [1, 8] {
        let figures = disk::assign(nodes);
        println!(
            "{:5}  {:9}  {:10.0}  {:7.2}  {:8.2}  {:9.2}",
            figures.nodes,
            figures.assigned,
            rate(&figures),
            each(figures.reads, &figures),
            each(figures.writes, &figures),
            each(figures.vain, &figures),
        );
    }
}

/// Hands out addresses of one pool to pods of so many nodes, which take turns step by step.
fn assign(nodes: usize) -> (Memory, Figures) {
    let mut store = Memory::default();
    let mut begun = 0;
    let mut workers: Vec<Worker> = (0..nodes).map(|number| begin(number, &mut begun)).collect();
    let mut addresses = BTreeSet::new();
    let mut vain = 0;
    let began = Instant::now();
    while !workers.is_empty() {
        let mut going = Vec::new();
        for mut worker in workers {
            match worker.operation.poll_step() {
                Turn::Step(step) => {
                    let is_write = step.is_write();
                    let answer = store.perform(step);
                    let lost = [Answer::Conflict, Answer::AlreadyExists, Answer::NotFound];
                    vain += u64::from(is_write && lost.contains(&answer));
                    worker.operation.handle_answer(answer);
                    going.push(worker);
                }
                Turn::Done(outcome) => {
                    let assigned = outcome.expect("the store in memory refuses nothing");
                    assert!(assigned.missing.is_empty(), "{assigned:?}");
                    for address in assigned.addresses {
                        assert!(addresses.insert(address.addr()), "{address} twice");
                    }
                    if begun < ADDRESSES {
                        going.push(next(worker.node, &mut begun));
                    }
                }
            }
        }
        workers = going;
    }
    let figures = Figures {
        nodes,
        assigned: addresses.len(),
        seconds: began.elapsed().as_secs_f64(),
        reads: store.reads(),
        writes: store.writes(),
        vain,
    };

    (store, figures)
}

/// Gives everything back, pod by pod.
fn release(store: &mut Memory, nodes: usize, count: usize) -> Figures {
    let (reads, writes) = (store.reads(), store.writes());
    let began = Instant::now();
    for number in 0..count {
        let rules = Rules::of_node(node(0)).for_authority();
        let operation = release_handle(handle(number), rules, time());
        let released = operation
            .run(|step| store.perform(step))
            .expect("the store in memory refuses nothing");
        assert_eq!(released.freed.len(), 1, "{released:?}");
    }

    Figures {
        nodes,
        assigned: count,
        seconds: began.elapsed().as_secs_f64(),
        reads: store.reads() - reads,
        writes: store.writes() - writes,
        vain: 0,
    }
}

fn begin(number: usize, begun: &mut usize) -> Worker {
    next(node(number), begun)
}

fn next(node: NodeName, begun: &mut usize) -> Worker {
    let request = request(&node, *begun);
    *begun += 1;
    let rules = Rules::of_node(node.clone());
    let operation = assign_addresses(request, vec![pool()], rules, time());

    Worker { node, operation }
}

/// Returns what a pod of a node asks for.
fn request(node: &NodeName, number: usize) -> Request {
    Request {
        node: node.clone(),
        holder: Holder {
            handle: handle(number),
            attributes: BTreeMap::from([("node".to_owned(), node.to_string())]),
        },
        counts: BTreeMap::from([(Family::V4, 1)]),
        preference: Preference {
            purpose: AllowedUse::Workload,
            named: Vec::new(),
            node_labels: BTreeMap::new(),
            namespace_labels: BTreeMap::new(),
        },
        blocks_max: None,
    }
}

fn pool() -> IpPool {
    IpPool {
        name: "pods".to_owned(),
        cidr: "10.65.0.0/16".parse().expect("a network"),
        block_size: 26,
        nat_outgoing: false,
        disabled: false,
        allowed_uses: vec![AllowedUse::Workload],
        node_selector: "all()".to_owned(),
        namespace_selector: String::new(),
        automatic: true,
    }
}

fn handle(number: usize) -> String {
    format!("k8s-pod-network.{number:08x}")
}

fn node(number: usize) -> NodeName {
    format!("n{number}").parse().expect("the name of a node")
}

fn time() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn rate(figures: &Figures) -> f64 {
    figures.assigned as f64 / figures.seconds
}

fn each(number: u64, figures: &Figures) -> f64 {
    number as f64 / figures.assigned as f64
}
