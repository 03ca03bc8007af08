//! Somebody flushes every rule, again and again, on a kernel that knows no owners of tables.
//!
//! ```text
//! ┌─ n1 ───────────┐       ┌─ n2 ───────────────────────┐
//! │ default/a ─────│──────▶│ ✗ default/c                │   probes, connections and a stream, all denied
//! └────────────────┘       └──── ↑ nft flush ruleset ───┘
//! ```
//!
//! What gets through before the rules are back is counted here; what it opened must be cut. With owners nothing gets
//! through (`policy`, `what_somebody_flushes_keeps_denying`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::print_stdout,
    reason = "what passes while tables are flushed is a figure that people read"
)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{Echo, End, Family, Node, Pod, Service, spec::Protocol};
use netns::{Mesh, await_fact, await_settled, lan};
use serde_json::json;

const FLUSHES: usize = 100;

/// How soon the rules are back, half of the time; nothing of the machine's own is in the way then.
const SOON: Duration = Duration::from_secs(1);

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two probes, as far as the machine keeps it.
const PAUSE: Duration = Duration::from_micros(100);

/// How long one attempt to connect lasts: the kernel sends its packet once.
const ATTEMPT: Duration = Duration::from_millis(5);

/// How many attempts go on at once.
const AT_ONCE: usize = 8;

/// How long nothing must come of what was cut.
const SILENCE: Duration = Duration::from_millis(900);

/// Where probes are counted, and where connections are answered.
const PROBED: u16 = 4_000;
const ANSWERED: u16 = 80;

/// Flushes everything in one step. The empty tables that are there then belong to nobody, and an agent does not take
/// over what is not its own: so it lives as where no table can have an owner that lasts (Linux before 6.9). There it is
/// told of every change; here it may have to look for them, a few times a second.
const FLUSH: &str = "flush ruleset; add table inet meshd; add table netdev meshd";

fn share_tables(node: &Node) {
    node.kill(Service::Agent);
    node.run("nft", &[FLUSH]);
    node.restart(Service::Agent);
    await_settled(node, PATIENCE);
}

fn is_whole(node: &Node) -> Result<(), String> {
    let listing = node.run("nft", &["list", "ruleset"]);
    assert!(!listing.contains("flags owner"), "{listing}");
    if listing.contains("GlobalNetworkPolicy closed") && listing.contains("hook forward") {
        Ok(())
    } else {
        Err(listing)
    }
}

/// Denied packets of every kind, until it is told to stop.
#[derive(Default)]
struct Flood {
    stop: AtomicBool,
    sent: AtomicU64,
    passed: AtomicU64,
    attempts: AtomicU64,
    opened: Mutex<Vec<TcpStream>>,
}

impl Flood {
    fn counts(&self, to: &Pod) {
        to.netns()
            .run(|| {
                let socket = UdpSocket::bind((to.address(Family::V4), PROBED)).unwrap();
                socket.set_read_timeout(Some(ATTEMPT)).unwrap();
                let mut heard = [0; 16];
                while !self.stop.load(Relaxed) {
                    let came = socket.recv(&mut heard).is_ok();
                    self.passed.fetch_add(u64::from(came), Relaxed);
                }
            })
            .unwrap();
    }

    /// Nobody answers them, so that each is the first of its connection.
    fn probes(&self, from: &Pod, to: &Pod) {
        let to = SocketAddr::new(to.address(Family::V4), PROBED);
        from.netns()
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !self.stop.load(Relaxed) {
                    let sent = socket.send_to(b"denied", to).is_ok();
                    self.sent.fetch_add(u64::from(sent), Relaxed);
                    thread::park_timeout(PAUSE);
                }
            })
            .unwrap();
    }

    fn told(&self) -> String {
        let [passed, sent, attempts] =
            [&self.passed, &self.sent, &self.attempts].map(|count| count.load(Relaxed));
        let opened = self.opened.lock().unwrap().len();
        format!(
            "{passed} of {sent} denied probes passed, {opened} of {attempts} connections were opened"
        )
    }

    fn connects(&self, from: &Pod, to: &Pod) {
        let to = SocketAddr::new(to.address(Family::V6), ANSWERED);
        from.netns()
            .run(|| {
                while !self.stop.load(Relaxed) {
                    self.attempts.fetch_add(1, Relaxed);
                    if let Ok(stream) = TcpStream::connect_timeout(&to, ATTEMPT) {
                        self.opened.lock().unwrap().push(stream);
                    }
                }
            })
            .unwrap();
    }
}

/// Takes out those over which nothing comes back any more.
fn keep_alive(streams: &mut Vec<TcpStream>) {
    let asked = thread::scope(|scope| {
        let asked = streams
            .drain(..)
            .map(|stream| scope.spawn(move || (answers(&stream), stream)));
        let asked: Vec<_> = asked.collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect::<Vec<_>>()
    });
    streams.extend(
        asked
            .into_iter()
            .filter_map(|(answers, stream)| answers.then_some(stream)),
    );
}

fn answers(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let mut heard = [0; 5];
    stream.write_all(b"still").is_ok() && stream.read_exact(&mut heard).is_ok()
}

/// Ends the flood, also where the story ends early.
struct Ending<'a>(&'a Flood);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

#[test]
fn what_a_hundred_flushes_let_through_without_owners_is_counted_and_cut() {
    let mesh = Mesh::of(lan(&[("n1", "default/a"), ("n2", "default/c")]).document());
    let [a, c] = ["default/a", "default/c"].map(|name| mesh.pod(name));
    let n2 = mesh.node("n2");
    share_tables(&n2);
    let listens = ["TCP/80".parse().unwrap()];
    let _echo = Echo::start(&c.netns(), &c.addresses(), &listens).unwrap();
    let stream = a.stream(&c, Protocol::Udp, Family::V4);
    let closed = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "closed"},
        "spec": {
            "selector": "projectcalico.org/namespace == 'default'",
            "types": ["Ingress"],
            "ingress": [{"action": "Deny"}],
        },
    });
    mesh.apply(&closed.to_string());
    mesh.wait();

    let flood = Flood::default();
    let mut repairs: Vec<Duration> = thread::scope(|scope| {
        scope.spawn(|| flood.counts(&c));
        scope.spawn(|| flood.probes(&a, &c));
        for _ in 0..AT_ONCE {
            scope.spawn(|| flood.connects(&a, &c));
        }
        let _ending = Ending(&flood);
        let start = Instant::now();
        let repairs = (0..FLUSHES).map(|_| flush(&n2)).collect();
        println!(
            "{FLUSHES} flushes in {:?}: {}",
            start.elapsed(),
            flood.told()
        );
        // An agent that is held up for a while lets connections through in any case.
        n2.freeze(Service::Agent);
        n2.run("nft", &[FLUSH]);
        await_fact("connections are opened", PATIENCE, || {
            let is_open = !flood.opened.lock().unwrap().is_empty() && stream.is_alive(SILENCE);
            if is_open { Ok(()) } else { Err(flood.told()) }
        });
        n2.thaw(Service::Agent);
        await_fact("the rules are back", PATIENCE, || is_whole(&n2));
        repairs
    });

    repairs.sort();
    let (median, worst) = (repairs[FLUSHES / 2], repairs[FLUSHES - 1]);
    println!("the rules were back after {median:?} (median), {worst:?} (worst)");
    assert!(median < lab::patience(SOON), "{median:?}");
    let mut opened = flood.opened.into_inner().unwrap();

    await_fact("the stream is cut", PATIENCE, || {
        if stream.is_alive(SILENCE) {
            Err(format!("{:?}", stream.report()))
        } else {
            Ok(())
        }
    });
    await_fact("what was opened is cut", PATIENCE, || {
        let before = opened.len();
        keep_alive(&mut opened);
        if opened.is_empty() {
            Ok(())
        } else {
            Err(format!("{} of {before}", opened.len()))
        }
    });
    // What is cut is dead for good, though its end tries again and again.
    assert!(!stream.is_alive(SILENCE), "{:?}", stream.report());
}

/// Flushes everything; returns how long it took until the rules were back.
fn flush(node: &Node) -> Duration {
    node.run("nft", &[FLUSH]);
    let start = Instant::now();
    await_fact("the rules are back", PATIENCE, || is_whole(node));

    start.elapsed()
}
