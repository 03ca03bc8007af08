//! A node loses its power and boots, and a process of the host sends to remote pods from the first
//! moment: before there is a guard, a network or an agent.
//!
//! ```text
//! ┌─ n1 ────────────────────────┐          ┌─ n2 ─┐
//! │ process ─▶ default route ───┼── lan ───│ p2   │
//! └─────────────────────────────┘    r1    └──────┘
//! ```

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use chaos::{Sender, await_whole, topology};
use lab::{Boot, End as _, LeakKind, Node, Plaintext, Service, poll_until};
use netns::{Mesh, await_summary};

/// How long the process sends before the services start.
const ALONE: Duration = Duration::from_millis(700);

/// How soon after its last fault a mesh is whole: handshake packets that were lost are sent again after five
/// seconds.
const WHOLE: Duration = Duration::from_secs(8);

/// How long a program may take to do its work again.
const PATIENCE: Duration = Duration::from_secs(30);

/// An encrypted mesh of two nodes, and the addresses of n2's pod.
fn mesh() -> (Mesh, Node, Vec<IpAddr>) {
    let mesh = Mesh::of(topology(2));
    mesh.enable();
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    (mesh, n1, n2.pod().addresses())
}

/// Lets n1 boot with a process that sends; returns the process once it has sent for a while alone.
fn boot(mesh: &Mesh, n1: &Node, boot: Boot, targets: Vec<IpAddr>) -> Sender {
    let mut sender = None;
    mesh.reboot(n1, boot, |node| {
        sender = Some(Sender::start(&node.netns(), targets));
    });
    let sender = sender.expect("the lab calls it once");
    let before = sender.tried();
    let start = Instant::now();
    let long_enough = || start.elapsed() >= ALONE && sender.tried() > before + 100;
    assert!(
        poll_until(start + PATIENCE, long_enough),
        "it sends nothing"
    );
    sender
}

#[test]
fn a_machine_that_boots_lets_nothing_out_before_its_agent_runs() {
    let (mesh, n1, targets) = mesh();
    let sender = boot(&mesh, &n1, Boot::Guarded, targets);
    mesh.assert_no_plaintext();

    n1.restart(Service::Wire);
    n1.restart(Service::Agent);
    let started = Instant::now();
    mesh.add_pod("n1", "default/p1");
    await_summary(&n1, "Enforced", PATIENCE);
    let whole = await_whole(&mesh, &mesh.members(), started, PATIENCE);
    assert!(whole.is_ok(), "{whole:?}");
    assert!(sender.tried() > 0);
} // The mesh asserts that no plaintext left any node, from Enforced to the end.

#[test]
fn a_machine_that_boots_while_a_peer_is_out_of_reach_finds_it_once_it_is_back() {
    let mesh = Mesh::of(topology(3));
    mesh.enable();
    let n1 = mesh.node("n1");
    mesh.part("lan", &["n2"], &["n1", "n3", "server"]);
    mesh.reboot(&n1, Boot::Guarded, |_| {});
    n1.restart(Service::Wire);
    n1.restart(Service::Agent);
    mesh.add_pod("n1", "default/p1");
    await_summary(&n1, "Enforced", PATIENCE);
    let (n3, pod) = (mesh.node("n3"), n1.pod());
    pod.ping(&n3.pod());

    mesh.part("lan", &[], &[]);

    let whole = await_whole(&mesh, &mesh.members(), Instant::now(), PATIENCE);
    assert!(
        whole.as_ref().is_ok_and(|taken| *taken < WHOLE),
        "{whole:?}"
    );
}

#[test]
fn a_machine_without_its_guard_lets_out_what_the_process_sends() {
    let (mesh, n1, targets) = mesh();
    mesh.plaintext(Plaintext::Allowed);
    let before = mesh.seen();
    drop(boot(&mesh, &n1, Boot::Bare, targets));
    let leaks = mesh.seen().since(&before).leaks;
    // The host's own address and a pod's: in either family.
    assert!(leaks[&LeakKind::PodAndNode] > 10, "{leaks:?}");
}
