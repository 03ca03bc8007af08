//! The plain state: every built-in topology carries every pod's packets before there is any mesh, and
//! the sniffer sees them.
//!
//! ```text
//! three-nodes, dual-stack, ipv6-only    n1 ─┬─ n2      two-subnets    n1 ─┬─ r1 ── n3
//!                                           └─ n3                     n2 ─┘
//! two-networks    n1 ═╤═ n2             small-mtu      n1 ── r1 ─(1300)─ r2 ── n2
//!                     ╘═ n3             behind-nat     n1 ── r1 (NAT) ─┬─ n2
//! lossy           n1 ~┬~ n2                                            └─ n3
//!                     └~ n3
//! ```

use std::time::Duration;

use lab::{End, Family, Lab, LeakKind, spec::Protocol};

fn every_pair_of_pods_speaks(name: &str) {
    let lab = Lab::plain(name);
    let pods = lab.pods();
    for from in &pods {
        for to in &pods {
            from.ping(to);
        }
        for node in lab.nodes() {
            from.ping(&node);
            node.ping(from);
        }
    }
}

#[test]
fn on_one_lan_every_pair_of_pods_speaks() {
    every_pair_of_pods_speaks("three-nodes");
}

#[test]
fn over_a_router_every_pair_of_pods_speaks() {
    every_pair_of_pods_speaks("two-subnets");
}

#[test]
fn in_both_families_every_pair_of_pods_speaks() {
    every_pair_of_pods_speaks("dual-stack");
}

#[test]
fn without_ipv4_every_pair_of_pods_speaks() {
    every_pair_of_pods_speaks("ipv6-only");
}

#[test]
fn with_a_network_for_management_every_pair_of_pods_speaks() {
    every_pair_of_pods_speaks("two-networks");
}

#[test]
fn over_two_routers_every_pair_of_pods_speaks() {
    every_pair_of_pods_speaks("small-mtu");
}

#[test]
fn on_a_bad_line_every_pair_of_pods_speaks() {
    every_pair_of_pods_speaks("lossy");
}

#[test]
fn behind_a_translator_a_node_asks_but_is_not_asked() {
    let lab = Lab::plain("behind-nat");
    let [home, open] = ["n1", "n2"].map(|name| lab.node(name));
    home.ping(&open);
    assert!(
        open.try_ping(home.address(Family::V4)).is_err(),
        "the translator lets strangers in"
    );
}

#[test]
fn the_sniffer_sees_plain_packets_of_every_kind_that_there_is() {
    let lab = Lab::plain("dual-stack");
    lab.sniff();
    let [a, c] = ["default/a", "default/c"].map(|name| lab.pod(name));
    let pings = 2;
    a.ping(&c);
    // Each family: one echo leaves n1, one answer leaves n2.
    assert_eq!(
        lab.seen().leaks.get(&LeakKind::PodToPod),
        Some(&(pings * 2))
    );
    a.ping(&c.node());
    c.node().ping(&a);
    assert_eq!(
        lab.seen().leaks.get(&LeakKind::PodAndNode),
        Some(&(pings * 4))
    );
    let before = lab.seen();
    lab.node("n1").ping(&lab.node("n3"));
    let since = lab.seen().since(&before);
    assert_eq!(since.leaked(), 0, "hosts may speak to hosts: {since:?}");
    assert!(since.other >= 4, "{since:?}");
    assert_eq!(lab.seen().lost, 0);
}

#[test]
fn the_sniffer_knows_a_stream_by_its_canary_even_from_addresses_that_say_nothing() {
    let lab = Lab::plain("three-nodes");
    lab.sniff();
    lab.set_territory(|territory| territory.pods.clear());
    let stream = lab.pod("default/a").connect(&lab.pod("default/c"));
    stream.assert_carries(20);
    drop(stream);
    let seen = lab.seen();
    assert!(seen.leaks[&LeakKind::Canary] > 10, "{seen:?}");
    assert_eq!(seen.leaks.len(), 1, "{seen:?}");
}

#[test]
fn what_pods_tell_the_world_beyond_is_no_leak() {
    let lab = Lab::plain("three-nodes");
    lab.sniff();
    let pod = lab.pod("default/a");
    pod.ping(&lab.outside("internet"));
    let stream = pod.stream_outside(&lab.outside("internet"), Protocol::Tcp, Family::V4);
    stream.assert_carries(20);
    let seen = lab.seen();
    assert_eq!(seen.leaked(), 0, "{seen:?}");
    assert!(seen.other > 10, "{seen:?}");
}

#[test]
fn streams_in_both_protocols_and_families_lose_nothing() {
    let lab = Lab::plain("two-subnets");
    let [a, d] = ["default/a", "default/d"].map(|name| lab.pod(name));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for family in [Family::V4, Family::V6] {
            let stream = a.stream(&d, protocol, family);
            stream.assert_alive();
            let report = stream.report();
            assert_eq!(
                (report.lost, report.reordered, report.wrong),
                (0, 0, 0),
                "{report:?}"
            );
        }
    }
}

#[test]
fn a_pulled_cable_is_a_gap_and_no_reset() {
    let lab = Lab::plain("three-nodes");
    let (a, c) = (lab.pod("default/a"), lab.pod("default/c"));
    let stream = a.connect(&c);
    stream.assert_no_gap(Duration::from_millis(500));
    a.node().unplug();
    let dead = !stream.is_alive(Duration::from_millis(300));
    a.node().plug();
    stream.assert_alive();
    assert!(dead, "bytes came through a pulled cable");
    assert!(stream.report().longest_gap > Duration::from_millis(250));
}

#[test]
fn a_node_that_changes_its_address_keeps_its_connections() {
    let lab = Lab::plain("two-subnets");
    let (a, d) = (lab.pod("default/a"), lab.pod("default/d"));
    let stream = a.connect(&d);
    a.node().change_address("192.0.2.77");
    stream.assert_alive();
    assert_eq!(a.node().address(Family::V4).to_string(), "192.0.2.77");
    d.ping(&a);
}

#[test]
fn pods_come_and_go() {
    let lab = Lab::plain("dual-stack");
    let fresh = lab.add_pod("n2", "other/fresh");
    let a = lab.pod("default/a");
    a.ping(&fresh);
    let address = fresh.address(Family::V6);
    lab.delete_pod(&fresh);
    assert!(a.try_ping(address).is_err(), "a pod that is gone answers");
}
