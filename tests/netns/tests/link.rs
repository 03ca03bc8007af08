//! The lab's own links do what the file says: no more, no less, and the same every time.
//!
//! ```text
//! ┌─ a ───────┐           ┌─ b ───────┐      ┌─ a ──┐    ┌─ r1 ─┐  1400  ┌─ b ──┐
//! │ 192.0.2.1 │~~ lan ~~~~│ 192.0.2.2 │      │ .0.2 │────│      │────────│ .0.3 │
//! └───────────┘           └───────────┘      └──────┘    └──────┘        └──────┘
//! ```
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use lab::{
    End, Family, Lab, Node, Ping, Topology,
    spec::{Network, Protocol, TooBig},
};

const BOTH: [&str; 2] = ["192.0.2.0/24", "2001:db8:1::/64"];

/// Two nodes with a pod each on a LAN that is changed so.
fn two_nodes(change: impl FnOnce(&mut Network)) -> Lab {
    Topology::new()
        .plain()
        .network("lan", &BOTH)
        .with(change)
        .node("a", &["lan"])
        .pod("default/a")
        .node("b", &["lan"])
        .pod("default/b")
        .up()
}

/// The quickest of five answers: a busy machine only ever adds to what the link does.
fn quickest(from: &Node, ping: &Ping) -> Duration {
    (0..5)
        .map(|_| ping.send(&from.netns()).unwrap())
        .min()
        .unwrap()
}

#[test]
fn a_delay_is_met_in_each_direction() {
    let lab = two_nodes(|lan| lan.delay = "20ms".parse().unwrap());
    let [a, b] = ["a", "b"].map(|name| lab.node(name));
    a.ping(&b);
    for family in [Family::V4, Family::V6] {
        let took = quickest(&a, &Ping::new(b.address(family)));
        assert!((40..80).contains(&took.as_millis()), "{family:?}: {took:?}");
    }
}

#[test]
fn datagrams_are_lost_and_reordered_as_asked_and_streams_heal() {
    let lab = two_nodes(|lan| {
        lan.delay = "3ms".parse().unwrap();
        lan.loss = "5%".parse().unwrap();
        lan.reorder = "5%".parse().unwrap();
    });
    let (a, b) = (lab.pod("default/a"), lab.pod("default/b"));
    // Neighbours find each other first: what waits for them is lost as well, but by the hosts.
    a.ping(&b);
    let datagrams = a.stream(&b, Protocol::Udp, Family::V4);
    let stream = a.stream(&b, Protocol::Tcp, Family::V6);
    datagrams.assert_carries(1500);
    let report = datagrams.report();
    let share = report.lost as f64 / report.sent.saturating_sub(1000).max(1) as f64;
    assert!((0.03..0.25).contains(&share), "{share}: {report:?}");
    assert!(report.reordered > 50, "{report:?}");
    stream.assert_carries(100);
    stream.assert_alive();
}

#[test]
fn a_rate_is_kept() {
    let lab = two_nodes(|lan| lan.rate = Some("1mbit".parse().unwrap()));
    let [a, b] = ["a", "b"].map(|name| lab.node(name));
    a.ping(&b);
    // 1042 bytes at 1 Mbit/s take 8.3 ms, each way.
    let ping = Ping {
        size: 1000,
        ..Ping::new(b.address(Family::V4))
    };
    let took = quickest(&a, &ping);
    assert!((16..40).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_link_that_carries_less_than_it_says_tells_so_where_it_is_asked_to() {
    let lab = two_nodes(|lan| lan.path_mtu = Some(1400));
    let [a, b] = ["a", "b"].map(|name| lab.node(name));
    for family in [Family::V4, Family::V6] {
        let large = Ping {
            size: 1450,
            ..Ping::new(b.address(family))
        };
        // The first one is refused with the right size, after which the kernel cuts the packet itself.
        let first = large.send(&a.netns());
        let second = large.send(&a.netns());
        assert!(
            first.is_ok() || second.is_ok(),
            "{family:?}: {first:?} {second:?}"
        );
        let route = a.run("ip", &["route", "get", &b.address(family).to_string()]);
        assert!(route.contains("mtu 1400"), "{route}");
    }
}

#[test]
fn a_black_hole_swallows_what_is_too_big_and_nothing_else() {
    let lab = two_nodes(|lan| {
        lan.path_mtu = Some(1400);
        lan.too_big = TooBig::Drop;
    });
    let [a, b] = ["a", "b"].map(|name| lab.node(name));
    for family in [Family::V4, Family::V6] {
        let patience = Duration::from_millis(600);
        let ping = |size| {
            Ping {
                size,
                patience,
                ..Ping::new(b.address(family))
            }
            .send(&a.netns())
        };
        ping(1300).unwrap();
        assert!(ping(1450).is_err(), "{family:?}");
    }
}

/// Two pods on either side of a router whose far side carries 1400 bytes.
fn routed(icmp: bool) -> Lab {
    let mut document = Topology::new()
        .plain()
        .network("near", &["192.0.2.0/24"])
        .network("far", &["198.51.100.0/24"])
        .with(|far| far.mtu = 1400)
        .router("r1", &["near", "far"])
        .node("a", &["near"])
        .node("b", &["far"])
        .document();
    document.spec.routers[0].icmp = icmp;
    Lab::of(document)
}

#[test]
fn a_router_says_that_a_packet_is_too_big_unless_it_is_told_not_to() {
    for (icmp, expected) in [(true, true), (false, false)] {
        let lab = routed(icmp);
        let [a, b] = ["a", "b"].map(|name| lab.node(name));
        let patience = Duration::from_millis(600);
        let large = Ping {
            size: 1450,
            patience,
            ..Ping::new(b.address(Family::V4))
        };
        // The first tells the size, from which on the kernel cuts.
        let tries: Vec<_> = (0..3).map(|_| large.send(&a.netns())).collect();
        let came = tries.iter().any(Result::is_ok);
        assert_eq!(came, expected, "icmp: {icmp}: {tries:?}");
    }
}
