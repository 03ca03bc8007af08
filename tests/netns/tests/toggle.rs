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

use std::time::Duration;

use lab::{End as _, Node};
use netns::{Mesh, Traffic};

/// The most datagrams that all streams of [`Traffic::between_two`] may lose in one switch.
const MOST_LOST: u64 = 10;

/// Whether pools translate what leaves them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NatOutgoing {
    Yes,
    No,
}

/// Reverse path filtering on the underlay devices of every host of a mesh: the kernel's `rp_filter`.
/// IPv6 has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathFilter {
    Off,
    Strict,
    Loose,
}

fn filter_paths(node: &Node, filter: PathFilter) {
    let script =
        "cd /proc/sys/net/ipv4/conf; for d in all default eth*; do echo $0 > $d/rp_filter; done";
    let value = match filter {
        PathFilter::Off => "0",
        PathFilter::Strict => "1",
        PathFilter::Loose => "2",
    };
    node.run("sh", &["-e", "-c", script, value]);
}

/// Traffic before, during and after switching on, and while switching off.
fn nothing_breaks(lab: &str, nat: NatOutgoing, filter: PathFilter) {
    let mesh = Mesh::translating(lab, nat == NatOutgoing::Yes);
    for node in &mesh.members() {
        filter_paths(node, filter);
    }
    let traffic = Traffic::everywhere(&mesh);
    let before = mesh.seen();
    traffic.forget();
    traffic.assert_unbroken();
    let plain = mesh.seen().since(&before).leaked();
    assert!(plain > 0, "nothing was plain while encryption was off");

    let on = mesh.enable();
    traffic.assert_unbroken();
    traffic.assert_nothing_lost();
    mesh.assert_no_plaintext();
    let gap = traffic.longest_gap();

    let off = mesh.disable();
    let before = mesh.seen();
    traffic.assert_unbroken();
    traffic.assert_nothing_lost();
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
    nothing_breaks("three-nodes", NatOutgoing::Yes, PathFilter::Off);
}

#[test]
fn on_one_lan_with_strict_paths_nothing_breaks() {
    nothing_breaks("three-nodes", NatOutgoing::No, PathFilter::Strict);
}

#[test]
fn on_one_lan_with_loose_paths_nothing_breaks() {
    nothing_breaks("three-nodes", NatOutgoing::Yes, PathFilter::Loose);
}

#[test]
fn over_a_router_nothing_breaks() {
    nothing_breaks("two-subnets", NatOutgoing::No, PathFilter::Off);
}

#[test]
fn over_a_router_with_strict_paths_nothing_breaks() {
    nothing_breaks("two-subnets", NatOutgoing::Yes, PathFilter::Strict);
}

#[test]
fn over_a_router_with_loose_paths_nothing_breaks() {
    nothing_breaks("two-subnets", NatOutgoing::No, PathFilter::Loose);
}

#[test]
fn in_both_families_nothing_breaks() {
    nothing_breaks("dual-stack", NatOutgoing::Yes, PathFilter::Off);
}

#[test]
fn in_both_families_with_strict_paths_nothing_breaks() {
    nothing_breaks("dual-stack", NatOutgoing::No, PathFilter::Strict);
}

#[test]
fn in_both_families_with_loose_paths_nothing_breaks() {
    nothing_breaks("dual-stack", NatOutgoing::Yes, PathFilter::Loose);
}

#[test]
fn without_ipv4_nothing_breaks() {
    nothing_breaks("ipv6-only", NatOutgoing::Yes, PathFilter::Off);
}

#[test]
fn without_ipv4_and_translation_nothing_breaks() {
    nothing_breaks("ipv6-only", NatOutgoing::No, PathFilter::Off);
}

// Two networks: answers to pods that asked a management address come back by the data network, which a
// strict filter drops without any mesh.

#[test]
fn with_a_network_for_management_nothing_breaks() {
    nothing_breaks("two-networks", NatOutgoing::Yes, PathFilter::Off);
}

#[test]
fn with_a_network_for_management_and_loose_paths_nothing_breaks() {
    nothing_breaks("two-networks", NatOutgoing::No, PathFilter::Loose);
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

/// Datagrams have nobody who sends them again, so they show every moment in which one node sends what
/// another does not take: 50 ms of it cost ten of each stream. A machine that does not let a program run
/// for long costs as much (the tunnel's queue overflows), but seldom.
#[test]
fn five_times_on_and_off_loses_hardly_a_datagram() {
    let mesh = Mesh::builtin("dual-stack");
    let traffic = Traffic::between_two_every(&mesh, Duration::from_millis(5));
    let mut lost = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        traffic.forget();
        mesh.enable();
        lost[0].push(traffic.lost());
        traffic.forget();
        mesh.disable();
        mesh.await_settled();
        lost[1].push(traffic.lost());
    }
    println!("lost by switching on and off: {lost:?}");
    for lost in lost {
        let holes = lost.iter().filter(|lost| **lost > MOST_LOST).count();
        assert!(holes <= 1, "datagrams lost in each switch: {lost:?}");
    }
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
