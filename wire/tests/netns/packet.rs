//! What the wire shows of packets, and what the machine gets.

use std::time::Instant;

use crate::namespace::Namespace;
use crate::pair::{Outside, ours};
use crate::traffic::{bulk, echo};
use crate::wait::until;

/// The number of packets that the first counter in `namespace`'s table `tally` has seen.
pub(crate) fn counted(namespace: &Namespace) -> u64 {
    let text = namespace.exec("nft list table inet tally");
    let (_, rest) = text.split_once("counter packets ").expect("a counter");
    let number = rest.split(' ').next().expect("a number");
    number.parse().expect("a number")
}

#[test]
fn counters_count_every_byte_of_the_wire() {
    let (a, b) = ours(Outside::V4);
    a.await_handshake(&b);
    // The confirmation of the session has arrived when both know it.
    b.await_handshake(&a);
    let before = a.tunnel.transfer(&b.tunnel.public_key);
    // 28 bytes of IP and UDP header; padded to 16, but never beyond the MTU; 32 bytes around.
    echo(&a.namespace, &b.namespace, b.v4(), [0, 4, 5, 1392]);
    let sent = 4 * 32 + 32 + 32 + 48 + 1420;
    let after = a.tunnel.transfer(&b.tunnel.public_key);
    assert_eq!(after.1 - before.1, sent);
    assert_eq!(after.0 - before.0, sent);
    let other = b.tunnel.transfer(&a.tunnel.public_key);
    assert_eq!(
        (other.1, other.0),
        after,
        "what one sends the other receives"
    );
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    for (address, outside) in [
        ("192.0.2.77/24", Outside::V4),
        ("2001:db8::77/64", Outside::V6),
    ] {
        let (a, b) = ours(outside);
        b.namespace.ip(&format!("addr add {address} dev eth0"));
        until("the address is usable", || {
            !b.namespace.ip("addr show dev eth0").contains("tentative")
        });
        let endpoint = match outside {
            Outside::V4 => "192.0.2.77:51820",
            Outside::V6 => "[2001:db8::77]:51820",
        };
        a.tunnel
            .wg(&format!("peer {} endpoint {endpoint}", b.tunnel.public_key));
        echo(&a.namespace, &b.namespace, b.v4(), [100, 1000]);
        assert_eq!(
            a.tunnel
                .show_peer("endpoints", &b.tunnel.public_key)
                .as_deref(),
            Some(endpoint)
        );

        // When the address goes, the kernel chooses another, and the peer follows.
        b.namespace.ip(&format!("addr del {address} dev eth0"));
        echo(&b.namespace, &a.namespace, a.v4(), [100, 1000]);
        assert_eq!(
            a.tunnel
                .show_peer("endpoints", &b.tunnel.public_key)
                .as_deref(),
            Some(&*outside.endpoint(2))
        );
    }
}

#[test]
fn a_device_that_is_lost_lends_its_address_no_longer() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);

    // A second cable, which is the way when the first is pulled.
    a.namespace.ip(&format!(
        "link add eth1 type veth peer name eth1 netns {}",
        b.namespace.name
    ));
    for (end, number, other) in [(&a, 1, 2), (&b, 2, 1)] {
        let namespace = &end.namespace;
        namespace.exec("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0");
        namespace.ip(&format!("addr add 198.51.100.{number}/24 dev eth1"));
        namespace.ip("link set eth1 up");
        namespace.ip(&format!(
            "route add 192.0.2.{other}/32 via 198.51.100.{other} metric 500"
        ));
        namespace.ip(&format!("route add 192.0.2.{other}/32 dev eth0 metric 100"));
    }
    for end in [&a, &b] {
        end.namespace.ip("link set eth0 down");
    }
    echo(&b.namespace, &a.namespace, a.v4(), [100]);
    assert_eq!(
        a.tunnel
            .show_peer("endpoints", &b.tunnel.public_key)
            .as_deref(),
        Some("198.51.100.2:51820")
    );
}

#[test]
fn who_only_listens_says_after_ten_seconds_that_it_lives() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    // Nobody listens there, and the kernel shall not say so.
    b.namespace.nft(
        "table inet quiet { chain in { type filter hook input priority 0
           udp dport 9 drop
         }
         }",
    );
    let before = a.tunnel.transfer(&b.tunnel.public_key).0;
    a.namespace.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"no answer", (b.v4(), 9)).unwrap();
    });
    let begin = Instant::now();
    until("a keepalive", || {
        a.tunnel.transfer(&b.tunnel.public_key).0 > before
    });
    assert_eq!(a.tunnel.transfer(&b.tunnel.public_key).0, before + 32);
    let seconds = begin.elapsed().as_secs_f32();
    assert!((9.5..13.0).contains(&seconds), "{seconds}");
}

#[test]
fn congestion_on_the_way_is_told_inside() {
    let (a, b) = ours(Outside::V4);
    a.namespace.nft(
        "table inet way { chain out { type filter hook output priority 0;
           oifname eth0 ip ecn ect0 ip ecn set ce
         }
         }",
    );
    let name = &b.tunnel.name;
    b.namespace.nft(&format!(
        "table inet tally {{ chain in {{ type filter hook input priority 0;
           iifname {name} ip ecn ce counter
         }}
         }}"
    ));
    for end in [&a, &b] {
        end.namespace.exec("sysctl -qw net.ipv4.tcp_ecn=1");
    }
    bulk(&a.namespace, &b.namespace, b.v4(), 1 << 20);
    assert!(counted(&b.namespace) > 0);
}

#[test]
fn handshakes_are_marked_for_haste_and_data_is_not() {
    let (a, b) = ours(Outside::V6);
    a.namespace.nft(
        "table inet tally { chain out { type filter hook output priority 0;
           oifname eth0 udp length > 160 ip6 dscp != 0 counter
         }
         }",
    );
    b.namespace.nft(
        "table inet tally { chain out { type filter hook output priority 0;
           oifname eth0 udp length 100 ip6 dscp af41 counter
         }
         }",
    );
    a.tunnel.wg(&format!("peer {} remove", b.tunnel.public_key));
    a.add_peer(&b, Some(Outside::V6));
    echo(&a.namespace, &b.namespace, b.v6(), [1000]);
    assert_eq!(counted(&a.namespace), 0, "data");
    assert!(counted(&b.namespace) > 0, "a response of 92 bytes");
}

#[test]
fn a_packet_for_nobody_is_dropped() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    a.namespace
        .ip(&format!("route add 10.99.0.0/16 dev {}", a.tunnel.name));
    let before = a.tunnel.transfer(&b.tunnel.public_key);
    a.namespace.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"nobody", "10.99.0.1:9").unwrap();
    });
    assert_eq!(a.tunnel.transfer(&b.tunnel.public_key), before);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
}
