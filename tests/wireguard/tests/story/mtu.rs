//! Sizes: padding, fragments.

use wireguard::traffic::{echo, tcp};
use wireguard::{Make, Space, stories};

use crate::topology::Cable;

stories! {
    padding_stays_within_the_device_s_mtu;
    a_packet_larger_than_the_way_arrives_in_fragments;
}

/// Drops datagrams outside that carry more than `mtu` bytes inside: 20 of IP, 8 of UDP and 32 of WireGuard come beside.
fn narrow(space: &Space, mtu: usize) {
    space.nft(&format!(
        "table inet narrow {{ chain in {{ type filter hook input priority 0
           iifname eth0 meta l4proto udp ip length > {} drop
         }}
         }}",
        mtu + 60
    ));
}

fn padding_stays_within_the_device_s_mtu(a: Make, b: Make) {
    let lab = Cable::new(a, b);
    assert!(lab.left.pings("-c 1 -w 20 10.7.0.2"));
    for device in [&lab.a, &lab.b] {
        device.ip(&format!("link set {} mtu 1299", device.name));
    }
    narrow(&lab.left, 1299);
    narrow(&lab.right, 1299);
    // The packets have 1,297 bytes: padded without end they would have 1,312.
    echo(&lab.left, &lab.right, "10.7.0.2", [1269]);
    assert!(lab.right.pings("-c 1 -w 10 -M do -s 1271 10.7.0.1"));
}

#[test]
#[ignore = "needs the kernel's WireGuard: make test-kernel"]
fn padding_stays_within_the_route_s_mtu() {
    let lab = Cable::new(Make::Kernel, Make::Kernel);
    for (device, other) in [(&lab.a, "10.7.0.2"), (&lab.b, "10.7.0.1")] {
        device.ip(&format!("link set {} mtu 1300", device.name));
        device.ip(&format!(
            "route add {other}/32 dev {} mtu 1299",
            device.name
        ));
    }
    narrow(&lab.left, 1299);
    narrow(&lab.right, 1299);
    echo(&lab.left, &lab.right, "10.7.0.2", [1269]);
}

fn a_packet_larger_than_the_way_arrives_in_fragments(a: Make, b: Make) {
    let lab = Cable::new(a, b);
    // Outside: what is larger than the cable carries is cut there.
    for (space, to) in [(&lab.left, "192.0.2.2"), (&lab.right, "192.0.2.1")] {
        space.ip("link set eth0 mtu 1300");
        assert!(!space.pings(&format!("-c 1 -M do -s 1400 {to}")));
    }
    echo(&lab.left, &lab.right, "10.7.0.2", [1300, 1392]);
    echo(&lab.right, &lab.left, "fd07::1", [1300, 1372]);
    // Inside: what is larger than the device carries is cut before.
    echo(&lab.left, &lab.right, "10.7.0.2", [1393, 4000, 20_000]);
    echo(&lab.right, &lab.left, "fd07::1", [1373, 4000, 20_000]);
    tcp(&lab.left, &lab.right, "10.7.0.2", 2, 256 << 10);
    // And over IPv6, where only its sender may cut.
    lab.a_goes_to("[2001:db8::2]:6002");
    echo(&lab.left, &lab.right, "10.7.0.2", [1300, 1392, 4000]);
    tcp(&lab.left, &lab.right, "fd07::2", 2, 256 << 10);
}
