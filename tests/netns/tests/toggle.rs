//! Encryption is switched on and off under traffic, and nobody notices but the sniffer.
//!
//! ```text
//! every pod ⇄ every pod, every pod ⇄ every remote node      TCP and UDP, IPv4 and IPv6
//!
//! three-nodes, dual-stack, ipv6-only    n1 ─┬─ n2      two-subnets    n1 ─┬─ r1 ── n3
//!                                           └─ n3                     n2 ─┘
//! two-networks    n1 ═╤═ n2                            lossy          n1 ~┬~ n2
//!                     ╘═ n3                                               └~ n3
//! ```

#![expect(
    clippy::print_stdout,
    reason = "the times of each switch are figures that people read"
)]

use lab::{End as _, Node};
use netns::{Mesh, Traffic};

/// Whether pools translate what leaves them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NatOutgoing {
    Yes,
    No,
}

/// Sets reverse path filtering on every underlay device of a node.
fn filter_paths(node: &Node, value: &str) {
    let script =
        "cd /proc/sys/net/ipv4/conf; for d in all default eth*; do echo $0 > $d/rp_filter; done";
    node.run("sh", &["-e", "-c", script, value]);
}

/// Traffic before, during and after switching on, and while switching off. Reverse path filtering differs
/// from host to host, and from one half of the tests to the other.
fn nothing_breaks(lab: &str, nat: NatOutgoing) {
    let mesh = Mesh::translating(lab, nat == NatOutgoing::Yes);
    let values = match (lab, nat) {
        // Two networks: answers to pods that asked a management address come back by the data network,
        // which a strict filter drops without any mesh.
        ("two-networks", NatOutgoing::Yes) => ["0", "2", "0"],
        ("two-networks", NatOutgoing::No) => ["2", "0", "2"],
        (_, NatOutgoing::Yes) => ["0", "1", "2"],
        (_, NatOutgoing::No) => ["1", "2", "0"],
    };
    for (node, value) in mesh.members().iter().zip(values) {
        filter_paths(node, value);
    }
    let traffic = Traffic::everywhere(&mesh);
    let before = mesh.seen();
    traffic.forget();
    traffic.assert_unbroken();
    let plain = mesh.seen().since(&before).leaked();
    assert!(plain > 0, "nothing was plain while encryption was off");

    let on = mesh.enable();
    traffic.assert_unbroken();
    mesh.assert_no_plaintext();
    let gap = traffic.longest_gap();

    let off = mesh.disable();
    let before = mesh.seen();
    traffic.assert_unbroken();
    let plain = mesh.seen().since(&before).leaked();
    assert!(plain > 0, "nothing is plain although encryption is off");
    println!(
        "{lab}: {} streams, on after {on:?} (gap {gap:?}), off after {off:?} (gap {:?})",
        traffic.len(),
        traffic.longest_gap()
    );
}

#[test]
fn on_one_lan_nothing_breaks() {
    nothing_breaks("three-nodes", NatOutgoing::Yes);
}

#[test]
fn on_one_lan_without_translation_nothing_breaks() {
    nothing_breaks("three-nodes", NatOutgoing::No);
}

#[test]
fn over_a_router_nothing_breaks() {
    nothing_breaks("two-subnets", NatOutgoing::Yes);
}

#[test]
fn over_a_router_without_translation_nothing_breaks() {
    nothing_breaks("two-subnets", NatOutgoing::No);
}

#[test]
fn in_both_families_nothing_breaks() {
    nothing_breaks("dual-stack", NatOutgoing::Yes);
}

#[test]
fn in_both_families_without_translation_nothing_breaks() {
    nothing_breaks("dual-stack", NatOutgoing::No);
}

#[test]
fn without_ipv4_nothing_breaks() {
    nothing_breaks("ipv6-only", NatOutgoing::Yes);
}

#[test]
fn without_ipv4_and_translation_nothing_breaks() {
    nothing_breaks("ipv6-only", NatOutgoing::No);
}

#[test]
fn with_a_network_for_management_nothing_breaks() {
    nothing_breaks("two-networks", NatOutgoing::Yes);
}

#[test]
fn with_a_network_for_management_without_translation_nothing_breaks() {
    nothing_breaks("two-networks", NatOutgoing::No);
}

#[test]
fn on_a_bad_line_no_connection_breaks() {
    let mesh = Mesh::builtin("lossy");
    let traffic = Traffic::between_two(&mesh);
    mesh.enable();
    traffic.assert_alive();
    mesh.assert_no_plaintext();
    mesh.disable();
    traffic.assert_alive();
}

#[test]
fn a_node_behind_a_translator_is_reached_once_it_is_encrypted() {
    let mesh = Mesh::builtin("behind-nat");
    mesh.enable();
    let [home, open] = ["n1", "n2"].map(|name| mesh.node(name));
    let mut traffic = Traffic::none(&mesh);
    traffic.add_pod_to_pod(&home.pod(), &open.pod());
    traffic.add_pod_to_pod(&open.pod(), &home.pod());
    traffic.add_pod_and_node(&home.pod(), &open);
    traffic.add_pod_and_node(&open.pod(), &home);
    traffic.assert_unbroken();
}

#[test]
fn five_times_on_and_off_breaks_nothing() {
    let mesh = Mesh::builtin("dual-stack");
    let traffic = Traffic::between_two(&mesh);
    for _ in 0..5 {
        let before = mesh.seen();
        traffic.assert_unbroken();
        assert!(mesh.seen().since(&before).leaked() > 0);
        mesh.enable();
        traffic.assert_unbroken();
        mesh.disable();
        mesh.await_settled();
    }
    traffic.assert_unbroken();
}
