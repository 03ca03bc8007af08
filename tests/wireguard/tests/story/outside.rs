//! Devices whose packets leave from another namespace than the one they are in.

use std::net::UdpSocket;
use std::time::{Duration, SystemTime};

use wireguard::traffic::{echo, reaches, tcp};
use wireguard::{Device, Keys, Make, Space, attempt, stories, until};

use crate::topology::Apart;

stories! {
    what_one_end_sends_the_other_counts;
    either_family_carries_either_family;
    who_moves_is_followed;
    a_source_that_belongs_to_another_is_dropped;
    a_new_private_key_is_used_at_once;
    a_namespace_that_goes_takes_its_tunnels_along;
}

fn what_one_end_sends_the_other_counts(a: Make, b: Make) {
    let lab = Apart::new(a, b);
    let before = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    lab.meet("127.0.0.1");
    assert!(lab.right.pings("-c 1 -w 10 10.7.0.1"));
    // Where both began at once, a message may have come that nobody needed: what counts is what comes from here on.
    let counts = || {
        let (received, sent) = lab.a.transfer(&lab.b);
        (received, sent, lab.b.transfer(&lab.a))
    };
    let mut last = counts();
    until(
        "ten echoes are counted by both, and nothing but them",
        || {
            // An echo of 84 bytes, padded to 96, with 32 around.
            assert!(lab.right.pings("-c 10 -i 0.01 -w 10 10.7.0.1"));
            let (received, sent, other) = std::mem::replace(&mut last, counts());
            let grown = (last.0 - received, last.1 - sent);
            grown == (1280, 1280) && (last.2.1 - other.1, last.2.0 - other.0) == grown
        },
    );
    for (one, other) in [(&lab.a, &lab.b), (&lab.b, &lab.a)] {
        let at = one.handshake(other);
        assert!(
            (before..before + 60).contains(&at),
            "{at} is not just after {before}"
        );
    }
}

fn either_family_carries_either_family(a: Make, b: Make) {
    let lab = Apart::new(a, b);
    let usual = 1420;
    // The loopback device, over which they talk, has an MTU of 65,536; this is the largest that the kernel's own
    // story tries.
    let huge = 34_816 - 1500 + usual;
    for outside in ["127.0.0.1", "[::1]"] {
        lab.meet(outside);
        for mtu in [usual, huge] {
            for device in [&lab.a, &lab.b] {
                device.ip(&format!("link set {} mtu {mtu}", device.name));
            }
            everything_passes(&lab.left, &lab.right, "10.7.0.1", "10.7.0.2");
            everything_passes(&lab.left, &lab.right, "fd07::1", "fd07::2");
        }
    }
    for streams in [4, 5, 50] {
        tcp(&lab.left, &lab.right, "10.7.0.2", streams, 16 << 10);
    }
}

fn everything_passes(left: &Space, right: &Space, a: &str, b: &str) {
    assert!(
        right.pings(&format!("-c 10 -i 0.01 -w 20 {a}")),
        "{a} is not reached"
    );
    assert!(
        left.pings(&format!("-c 10 -i 0.01 -w 20 {b}")),
        "{b} is not reached"
    );
    echo(
        left,
        right,
        b,
        [0, 1, 15, 16, 17, 1300, 1372, 1392, 1393, 5000, 30_000],
    );
    echo(right, left, a, [100, 60_000]);
    tcp(left, right, b, 1, 256 << 10);
}

fn who_moves_is_followed(a: Make, b: Make) {
    let lab = Apart::new(a, b);
    lab.meet("127.0.0.1");
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);

    // The address and the port that the other knew are gone.
    lab.middle.ip("addr del 127.0.0.1/8 dev lo");
    lab.middle.ip("addr add 127.45.67.89/8 dev lo");
    lab.a.wg(&format!(
        "listen-port 7001 peer {} endpoint 127.0.0.1:6002",
        lab.b.keys.public
    ));
    lab.middle.ip("addr add 127.0.0.1/32 dev lo");
    lab.a.wg(&format!(
        "peer {} endpoint 127.0.0.1:6002",
        lab.b.keys.public
    ));
    echo(&lab.left, &lab.right, "fd07::2", [100]);
    let port =
        |endpoint: Option<String>| endpoint.and_then(|e| e.rsplit(':').next().map(str::to_owned));
    assert_eq!(port(lab.b.endpoint(&lab.a)).as_deref(), Some("7001"));
    assert!(lab.b.endpoint(&lab.a).unwrap().starts_with("127."));

    // To the other family.
    lab.a.wg(&format!(
        "listen-port 7002 peer {} endpoint [::1]:6002",
        lab.b.keys.public
    ));
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    assert_eq!(lab.b.endpoint(&lab.a).as_deref(), Some("[::1]:7002"));
}

fn a_source_that_belongs_to_another_is_dropped(a: Make, b: Make) {
    let lab = Apart::new(a, b);
    lab.meet("[::1]");
    lab.a.wg(&format!(
        "peer {} allowed-ips 10.7.0.0/24",
        lab.b.keys.public
    ));
    assert!(reaches(
        &lab.right,
        &lab.left,
        "10.7.0.1",
        Duration::from_secs(20)
    ));

    let stranger = Keys::generate();
    lab.a
        .wg(&format!("peer {} allowed-ips 10.7.0.2/32", stranger.public));
    lab.b.wg("listen-port 7003");
    assert!(!reaches(
        &lab.right,
        &lab.left,
        "10.7.0.1",
        Duration::from_secs(1)
    ));
    // What it sent was authentic: it is known where it is now.
    assert_eq!(lab.a.endpoint(&lab.b).as_deref(), Some("[::1]:7003"));
    assert!(lab.b.handshake(&lab.a) > 0);

    lab.a.wg(&format!("peer {} remove", stranger.public));
    assert!(reaches(
        &lab.right,
        &lab.left,
        "10.7.0.1",
        Duration::from_secs(20)
    ));
}

fn a_new_private_key_is_used_at_once(a: Make, b: Make) {
    let mut lab = Apart::new(a, b);
    lab.meet("127.0.0.1");
    let secret = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
    lab.a.wg_with(
        &format!("peer {} preshared-key /dev/stdin", lab.b.keys.public),
        secret,
    );
    lab.b.wg_with(
        &format!("peer {} preshared-key /dev/stdin", lab.a.keys.public),
        secret,
    );
    assert!(lab.left.pings("-c 1 -w 20 10.7.0.2"));

    let (old, new) = (lab.a.keys.clone(), Keys::generate());
    lab.a.set_keys(&new);
    lab.b.wg_with(
        &format!(
            "peer {} preshared-key /dev/stdin allowed-ips 10.7.0.1/32 peer {} remove",
            new.public, old.public
        ),
        secret,
    );
    // One packet, and it has to wait for the handshake only; sent again where the handshake met no peer yet.
    assert!(lab.left.pings("-c 8 -i 0.2 -w 8 10.7.0.2"));
    assert_eq!(lab.b.of_peer("endpoints", &old.public), None);
    assert!(lab.a.handshake(&lab.b) > 0);
}

fn a_namespace_that_goes_takes_its_tunnels_along(a: Make, b: Make) {
    // Devices that hold each other's namespace: born in one, living in the other.
    let (left, right) = (Space::new(), Space::new());
    left.cable("eth0", &right, "eth0");
    left.address("eth0", "2001:db8::1/64");
    right.address("eth0", "2001:db8::2/64");
    let mut in_right = Device::new(a, &left, 6001);
    let mut in_left = Device::new(b, &right, 6002);
    in_right.move_to(&right);
    in_left.move_to(&left);
    wireguard_of(&in_right, &in_left, "[2001:db8::2]:6002");
    wireguard_of(&in_left, &in_right, "[2001:db8::1]:6001");
    in_right.up(&["10.7.0.1/24"]);
    in_left.up(&["10.7.0.2/24"]);
    echo(&right, &left, "10.7.0.2", [100]);
    let names = [in_right.name.clone(), in_left.name.clone()];
    drop((left, right));
    // A device of user space is gone when its process sees it go.
    drop((in_right, in_left));
    until("nothing of them is left", || {
        names.iter().all(|name| {
            attempt(&format!("ip link show {name}"), "").is_err()
                && !std::path::Path::new(&format!("/var/run/wireguard/{name}.sock")).exists()
        })
    });
    // Nor does anybody hold their port.
    let (space, free) = (Space::new(), |port| UdpSocket::bind(("::", port)).is_ok());
    assert!(space.inside(|| free(6001) && free(6002)));
}

fn wireguard_of(device: &Device, peer: &Device, endpoint: &str) {
    device.wg(&format!(
        "peer {} endpoint {endpoint} allowed-ips 10.7.0.0/24",
        peer.keys.public
    ));
}
