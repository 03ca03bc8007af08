//! Which of its own addresses an end sends from: the one it was asked at, as long as that is right.

use wireguard::traffic::echo;
use wireguard::{Make, stories};

use crate::topology::Cable;

stories! {
    an_address_that_goes_is_not_insisted_on;
    an_answer_comes_from_the_address_that_was_asked;
    an_address_of_another_device_may_be_asked;
    a_better_route_takes_over;
}

fn an_address_that_goes_is_not_insisted_on(a: Make, b: Make) {
    let lab = Cable::bare(a, b);
    lab.left.sysctl("net.ipv4.conf.eth0.promote_secondaries=1");
    lab.right.address("eth0", "192.0.2.2/24");
    lab.right.address("eth0", "2001:db8::2/64");
    for (first, second, length, to) in [
        ("192.0.2.1", "192.0.2.10", 24, "192.0.2.2:6002"),
        ("2001:db8::1", "2001:db8::10", 64, "[2001:db8::2]:6002"),
    ] {
        lab.left.address("eth0", &format!("{first}/{length}"));
        lab.a_goes_to(to);
        echo(&lab.left, &lab.right, "10.7.0.2", [100]);
        lab.left.address("eth0", &format!("{second}/{length}"));
        lab.left.ip(&format!("addr del {first}/{length} dev eth0"));
        echo(&lab.left, &lab.right, "10.7.0.2", [100]);
        let endpoint = lab.b.endpoint(&lab.a).unwrap();
        assert!(endpoint.contains(second), "{endpoint}");
    }
}

fn an_answer_comes_from_the_address_that_was_asked(a: Make, b: Make) {
    let lab = Cable::bare(a, b);
    for number in [1, 2] {
        lab.left.address("eth0", &format!("192.0.2.{number}/24"));
        lab.left.address("eth0", &format!("2001:db8::{number}/64"));
    }
    lab.right.address("eth0", "192.0.2.3/24");
    lab.right.address("eth0", "2001:db8::3/64");
    for asked in [
        "192.0.2.1:6001",
        "[2001:db8::1]:6001",
        "192.0.2.2:6001",
        "[2001:db8::2]:6001",
    ] {
        lab.b_goes_to(asked);
        echo(&lab.right, &lab.left, "10.7.0.1", [100]);
        // Had the answer come from another address, b would have followed it there.
        assert_eq!(lab.b.endpoint(&lab.a).as_deref(), Some(asked));
    }
}

fn an_address_of_another_device_may_be_asked(a: Make, b: Make) {
    let lab = Cable::new(a, b);
    lab.left.ip("link add other type bridge");
    lab.left.address("other", "10.50.0.1/24");
    lab.left.ip("link set other up");
    lab.right.ip("route add 10.50.0.0/24 dev eth0");
    lab.b_goes_to("10.50.0.1:6001");
    echo(&lab.right, &lab.left, "10.7.0.1", [100]);
    assert_eq!(lab.b.endpoint(&lab.a).as_deref(), Some("10.50.0.1:6001"));
}

fn a_better_route_takes_over(a: Make, b: Make) {
    let lab = Cable::bare(a, b);
    lab.left.cable("eth1", &lab.right, "eth1");
    lab.left.address("eth0", "192.0.2.1/24");
    lab.right.address("eth0", "192.0.2.2/24");
    lab.left.address("eth1", "192.0.2.3/24");
    for space in [&lab.left, &lab.right] {
        space.sysctl(
            "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0",
        );
    }
    for device in ["eth0", "eth1"] {
        lab.left.ip(&format!("route flush dev {device}"));
    }
    lab.left
        .ip("route add 192.0.2.0/24 dev eth0 src 192.0.2.1 metric 2");
    lab.a_goes_to("192.0.2.2:6002");
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    assert_eq!(lab.b.endpoint(&lab.a).as_deref(), Some("192.0.2.1:6001"));
    lab.left
        .ip("route add 192.0.2.0/24 dev eth1 src 192.0.2.3 metric 1");
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    let from = match a {
        Make::Kernel => "192.0.2.3:6001",
        // Not told of routes that get better: it leaves from where it was asked until that is gone.
        Make::Meshwire => "192.0.2.1:6001",
    };
    assert_eq!(lab.b.endpoint(&lab.a).as_deref(), Some(from));
}
