//! Is the sniffer to be believed? Leaks are planted on the wire of a plain lab, and each is reported.
//!
//! ```text
//! ┌─ n1 ───────────────┐            ┌─ n2 ───────────────┐
//! │ 192.0.2.1          │── sniffer ─│ 192.0.2.2          │    one LAN, both families
//! │ default/a 10.65.0.2│            │ default/c 10.65.1.2│
//! └────────────────────┘            └────────────────────┘
//! ```
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use lab::{
    End, Family, Lab, Layer, LeakKind, Ping,
    forge::{self, ethernet, frame, gre, ip, later_fragment, udp, vlan, vxlan},
    spec::Protocol,
};

/// What must never cross the underlay: family × {pod, tunnel address, pod to node}, both ways.
fn forbidden() -> Vec<(LeakKind, Vec<u8>)> {
    let pairs = [
        (LeakKind::PodToPod, "10.65.0.2", "10.65.1.2"),
        (LeakKind::TunnelAddress, "10.65.0.1", "10.65.1.2"),
        (LeakKind::TunnelAddress, "10.65.0.1", "192.0.2.2"),
        (LeakKind::PodAndNode, "10.65.0.2", "192.0.2.2"),
        (LeakKind::PodToPod, "fd00:65::2", "fd00:65::102"),
        (LeakKind::TunnelAddress, "fd00:65::1", "fd00:65::102"),
        (LeakKind::TunnelAddress, "fd00:65::1", "2001:db8:1::2"),
        (LeakKind::PodAndNode, "fd00:65::2", "2001:db8:1::2"),
    ];
    let both = pairs
        .into_iter()
        .flat_map(|(kind, a, b)| [(kind, a, b), (kind, b, a)]);
    both.map(|(kind, a, b)| (kind, ip(a, b, 6, &[0; 20])))
        .collect()
}

/// Every way to carry a packet over the underlay in the clear.
fn disguises(packet: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let inside = if packet[0] >> 4 == 4 { 4 } else { 41 };
    let over4 = |protocol, payload: &[u8]| ip("192.0.2.1", "192.0.2.2", protocol, payload);
    let over6 = |protocol, payload: &[u8]| ip("2001:db8:1::1", "2001:db8:1::2", protocol, payload);
    vec![
        ("bare", frame(packet)),
        ("tagged", vlan(&frame(packet), 7)),
        ("later fragment", frame(&later_fragment(packet))),
        ("VXLAN over IPv4", frame(&over4(17, &vxlan(&frame(packet))))),
        ("VXLAN over IPv6", frame(&over6(17, &vxlan(&frame(packet))))),
        (
            "tagged in VXLAN",
            frame(&over4(17, &vxlan(&vlan(&frame(packet), 9)))),
        ),
        ("IP in IPv4", frame(&over4(inside, packet))),
        ("IP in IPv6", frame(&over6(inside, packet))),
        ("GRE", frame(&over4(47, &gre(packet)))),
        ("IP in IP in IPv6", frame(&over6(4, &over4(inside, packet)))),
    ]
}

/// Two nodes whose sniffers know which addresses are tunnels'.
fn watched() -> Lab {
    let lab = Lab::plain("dual-stack");
    lab.sniff();
    lab.set_territory(|territory| {
        territory
            .tunnels
            .extend(["10.65.0.1", "fd00:65::1"].map(|a| a.parse::<std::net::IpAddr>().unwrap()));
    });
    lab
}

#[test]
fn every_planted_leak_is_reported_every_time() {
    let lab = watched();
    let netns = lab.node("n1").netns();
    for (kind, packet) in forbidden() {
        for (disguise, frame) in disguises(&packet) {
            let before = lab.seen();
            forge::send(&netns, "eth0", &frame).unwrap();
            let seen = lab.seen().since(&before);
            assert_eq!(
                seen.leaks,
                [(kind, 1)].into(),
                "{disguise}: {}",
                lab::read_frame(&frame)
            );
        }
    }
    assert_eq!(lab.seen().lost, 0);
}

#[test]
fn nothing_is_reported_on_clean_traffic() {
    let lab = watched();
    let netns = lab.node("n1").netns();
    let data = |length: usize| [&[4, 0, 0, 0][..], &vec![0x5a; length - 4]].concat();
    let between = |payload: &[u8]| ip("192.0.2.1", "192.0.2.2", 17, &udp(51820, 51820, payload));
    let clean = [
        frame(&between(&data(32))),
        frame(&between(&data(1452))),
        frame(&ip(
            "2001:db8:1::1",
            "2001:db8:1::2",
            17,
            &udp(9, 51821, &data(96)),
        )),
        frame(&ip("192.0.2.1", "192.0.2.2", 6, &[0; 20])),
        frame(&ip("10.65.0.2", "203.0.113.9", 6, &[0; 20])),
        frame(&ip("203.0.113.9", "10.65.0.2", 6, &[0; 20])),
        frame(&ip(
            "192.0.2.1",
            "203.0.113.9",
            17,
            &vxlan(&frame(&ip("10.0.0.1", "10.0.0.2", 6, &[]))),
        )),
        ethernet(0x88cc, &[0; 40]),
    ];
    for frame in &clean {
        forge::send(&netns, "eth0", frame).unwrap();
    }
    lab.node("n1").ping(&lab.node("n2"));
    let seen = lab.seen();
    assert_eq!(
        (seen.leaked(), seen.wireguard, seen.lost),
        (0, 3, 0),
        "{seen:?}"
    );
}

#[test]
fn what_a_member_receives_is_not_its_leak() {
    let lab = watched();
    let stranger = lab.node("n3").netns();
    let before = lab.seen();
    let (_, packet) = forbidden().remove(0);
    forge::send(&stranger, "eth0", &frame(&packet)).unwrap();
    // Flooded by the bridge to all three, but sent by one.
    assert_eq!(lab.seen().since(&before).leaked(), 1);
}

#[test]
fn the_kernel_s_own_vxlan_is_seen_through() {
    let lab = watched();
    for (node, pod, own, peer) in [("n1", "10.65.1.2", 1, 2), ("n2", "10.65.0.2", 2, 1)] {
        let node = lab.node(node);
        let ip = |arguments: &str| node.run("ip", &arguments.split(' ').collect::<Vec<_>>());
        ip(&format!(
            "link add vx type vxlan id 7 local 192.0.2.{own} remote 192.0.2.{peer} dstport 4789"
        ));
        ip("link set vx up");
        ip(&format!("address add 172.31.0.{own}/24 dev vx"));
        ip(&format!("route replace {pod}/32 via 172.31.0.{peer}"));
    }
    let before = lab.seen();
    lab.pod("default/a")
        .stream(&lab.pod("default/c"), Protocol::Tcp, Family::V4)
        .assert_carries(20);
    let seen = lab.seen().since(&before);
    assert!(seen.leaked() >= 40, "{seen:?}");
    assert!(
        seen.samples
            .iter()
            .all(|(_, leak)| leak.layers.contains(&Layer::Vxlan)),
        "{seen:?}"
    );
}

#[test]
fn every_fragment_of_a_large_packet_is_seen() {
    let lab = watched();
    let [a, c] = ["default/a", "default/c"].map(|name| lab.pod(name));
    for family in [Family::V4, Family::V6] {
        let before = lab.seen();
        let ping = Ping {
            size: 4000,
            ..Ping::new(c.address(family))
        };
        ping.send(&a.netns()).unwrap();
        let seen = lab.seen().since(&before);
        // 4008 bytes over an MTU of 1500 are three fragments, and the answer's are three more.
        assert_eq!(
            seen.leaks,
            [(LeakKind::PodToPod, 6)].into(),
            "{family:?}: {seen:?}"
        );
        assert_eq!(seen.fragments, 6, "{family:?}: {seen:?}");
    }
}

#[test]
#[should_panic(expected = "plaintext left a node")]
fn a_lab_that_forbids_plaintext_fails_the_test_when_it_is_dropped() {
    let lab = watched();
    lab.plaintext(lab::Plaintext::Forbidden);
    let a = lab.pod("default/a");
    a.ping(&lab.pod("default/c"));
    drop(lab);
}
