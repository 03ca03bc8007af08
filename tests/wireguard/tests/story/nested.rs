//! Tunnels in tunnels, tunnels through each other, and loops.

use std::time::Duration;

use wireguard::traffic::{echo, reaches, tcp};
use wireguard::{Device, Keys, Make, stories};

use crate::topology::{Apart, Cable, befriend};

stories! {
    a_tunnel_runs_in_a_tunnel;
    a_loop_of_tunnels_ends;
    a_peer_behind_another_peer_is_reached;
    a_peer_behind_itself_does_no_harm;
}

/// A second tunnel whose packets go through the first: `10.8.0.1` and `10.8.0.2`.
fn within(lab: &Apart, a: Make, b: Make) -> (Device, Device) {
    let inner_a = Device::new(a, &lab.left, 6005);
    let inner_b = Device::new(b, &lab.right, 6005);
    befriend(&inner_a, &inner_b, "10.8.0.2/32,fd08::2/128");
    befriend(&inner_b, &inner_a, "10.8.0.1/32,fd08::1/128");
    for device in [&inner_a, &inner_b] {
        device.ip(&format!("link set {} mtu 1340", device.name));
    }
    inner_a.wg(&format!(
        "peer {} endpoint [fd07::2]:6005",
        inner_b.keys.public
    ));
    inner_b.wg(&format!(
        "peer {} endpoint [fd07::1]:6005",
        inner_a.keys.public
    ));
    inner_a.up(&["10.8.0.1/24", "fd08::1/64"]);
    inner_b.up(&["10.8.0.2/24", "fd08::2/64"]);
    (inner_a, inner_b)
}

fn a_tunnel_runs_in_a_tunnel(a: Make, b: Make) {
    let lab = Apart::new(a, b);
    lab.meet("127.0.0.1");
    let (_inner_a, _inner_b) = within(&lab, a, b);
    assert!(lab.left.pings("-c 10 -i 0.01 -w 20 10.8.0.2"));
    echo(&lab.left, &lab.right, "10.8.0.2", [100, 1312, 1313, 4000]);
    echo(&lab.right, &lab.left, "fd08::1", [100, 1292, 1293, 4000]);
    tcp(&lab.left, &lab.right, "10.8.0.2", 4, 256 << 10);
}

fn a_loop_of_tunnels_ends(a: Make, b: Make) {
    let lab = Apart::new(a, b);
    lab.meet("127.0.0.1");
    let (mut inner_a, inner_b) = within(&lab, a, b);
    // The inner device now lives where the outer one sends from …
    inner_a.move_to(&lab.middle);
    inner_a.up(&["10.8.0.1/24"]);
    echo(&lab.middle, &lab.right, "10.8.0.2", [100]);
    // … and the outer one sends to what lies behind the inner one: each packet would carry itself.
    lab.a.wg(&format!(
        "peer {} endpoint 10.8.0.2:6009",
        lab.b.keys.public
    ));
    assert!(!reaches(
        &lab.middle,
        &lab.right,
        "10.8.0.2",
        Duration::from_secs(2)
    ));
    // It did no harm: with the loop undone all is as before.
    lab.meet("127.0.0.1");
    echo(&lab.middle, &lab.right, "10.8.0.2", [100, 1000]);
    drop(inner_b);
    echo(&lab.left, &lab.right, "10.7.0.2", [100, 1000]);
}

fn a_peer_behind_another_peer_is_reached(a: Make, b: Make) {
    let lab = Cable::new(a, b);
    // One device, two peers: the second is reached through the first.
    let second = Device::new(b, &lab.right, 6005);
    second.wg(&format!(
        "peer {} allowed-ips 10.9.0.1/32",
        lab.a.keys.public
    ));
    second.up(&["10.9.0.2/24"]);
    let peer = format!(
        "peer {} allowed-ips 10.9.0.2/32 endpoint 10.7.0.2:6005",
        second.keys.public
    );
    lab.a.wg(&peer);
    lab.a
        .ip(&format!("addr add 10.9.0.1/24 dev {}", lab.a.name));
    lab.right.sysctl("net.ipv4.conf.all.rp_filter=0");
    echo(&lab.left, &lab.right, "10.9.0.2", [100, 1000]);
    // Outside it is seen only as a packet of the first peer.
    assert_eq!(second.endpoint(&lab.a).as_deref(), Some("10.7.0.1:6001"));
}

fn a_peer_behind_itself_does_no_harm(a: Make, b: Make) {
    let lab = Cable::new(a, b);
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    let nobody = Keys::generate();
    lab.a.wg(&format!(
        "peer {} allowed-ips 10.9.0.2/32 endpoint 10.9.0.2:6005",
        nobody.public
    ));
    lab.a
        .ip(&format!("addr add 10.9.0.1/24 dev {}", lab.a.name));
    assert!(!lab.left.pings("-c 20 -i 0.01 10.9.0.2"));
    echo(&lab.left, &lab.right, "10.7.0.2", [100, 1000]);
    lab.a.wg(&format!("peer {} remove", nobody.public));
    echo(&lab.left, &lab.right, "fd07::2", [100, 1000]);
}
