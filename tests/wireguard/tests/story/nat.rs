//! Through a router that translates addresses, and by policy routing.
//!
//! ```text
//!  ┌─ left ────────────┐   ┌─ router ──────────────────┐   ┌─ right ───────────┐
//!  │ a 10.7.0.1        │   │ 192.168.1.1   203.0.113.1 │   │ b 10.7.0.2        │
//!  │ eth0 192.168.1.100│───│ inner   source NAT  outer │───│ eth0 203.0.113.100│
//!  └───────────────────┘   └───────────────────────────┘   └───────────────────┘
//! ```

use std::time::{Duration, Instant};

use wireguard::traffic::{echo, reaches};
use wireguard::{Device, Make, Space, stories, until};

use crate::topology::befriend;

stories! {
    a_keepalive_holds_a_translation_open;
    a_peer_is_followed_to_its_new_translation;
    bound_sockets_and_marked_packets_pass;
    a_default_route_through_the_tunnel_does_not_swallow_the_tunnel;
    who_sends_to_nobody_is_told_so_through_the_translation;
}

struct Translated {
    a: Device,
    b: Device,
    left: Space,
    router: Space,
    right: Space,
}

impl Translated {
    fn new(a: Make, b: Make) -> Self {
        let (left, router, right) = (Space::new(), Space::new(), Space::new());
        router.cable("inner", &left, "eth0");
        router.cable("outer", &right, "eth0");
        router.address("inner", "192.168.1.1/24");
        router.address("outer", "203.0.113.1/24");
        left.address("eth0", "192.168.1.100/24");
        left.ip("route add default via 192.168.1.1");
        right.address("eth0", "203.0.113.100/24");
        router.sysctl("net.ipv4.ip_forward=1");
        router.nft(
            "table ip nat { chain out { type nat hook postrouting priority srcnat
               ip saddr 192.168.1.0/24 ip daddr 203.0.113.0/24 snat to 203.0.113.1
             }
             }",
        );
        router.sysctl(
            "net.netfilter.nf_conntrack_udp_timeout=2 net.netfilter.nf_conntrack_udp_timeout_stream=2",
        );
        let a = Device::new(a, &left, 6001);
        let b = Device::new(b, &right, 6002);
        befriend(&a, &b, "10.7.0.2/32,fd07::2/128");
        befriend(&b, &a, "10.7.0.1/32,fd07::1/128");
        a.up(&["10.7.0.1/24", "fd07::1/64"]);
        b.up(&["10.7.0.2/24", "fd07::2/64"]);
        a.wg(&format!(
            "peer {} endpoint 203.0.113.100:6002",
            b.keys.public
        ));
        Self {
            a,
            b,
            left,
            router,
            right,
        }
    }

    fn translations(&self) -> usize {
        self.router
            .exec("conntrack -L -p udp")
            .lines()
            .filter(|line| line.contains("dport=6002"))
            .count()
    }
}

fn a_keepalive_holds_a_translation_open(a: Make, b: Make) {
    let lab = Translated::new(a, b);
    lab.a.wg(&format!(
        "peer {} persistent-keepalive 1",
        lab.b.keys.public
    ));
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    assert_eq!(lab.b.endpoint(&lab.a).as_deref(), Some("203.0.113.1:6001"));
    // Longer than the router remembers a flow that says nothing. Nobody but the keepalive speaks.
    let (begin, mut seen) = (Instant::now(), lab.b.transfer(&lab.a).0);
    let first = seen;
    until("keepalives for five seconds", || {
        seen = lab.b.transfer(&lab.a).0;
        begin.elapsed() > Duration::from_secs(5) && seen >= first + 4 * 32
    });
    assert!(lab.right.pings("-c 1 -W 5 10.7.0.1"), "the router forgot");

    // Without it, the router forgets, and only the one behind it can begin again.
    lab.a.wg(&format!(
        "peer {} persistent-keepalive 0",
        lab.b.keys.public
    ));
    until("the router forgets", || lab.translations() == 0);
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
}

fn a_peer_is_followed_to_its_new_translation(a: Make, b: Make) {
    let lab = Translated::new(a, b);
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    for port in [40_001, 40_002] {
        // The router gives the flow another port, as one that was restarted does.
        lab.router.nft(&format!(
            "flush chain ip nat out
             add rule ip nat out meta l4proto udp ip daddr 203.0.113.0/24 snat to 203.0.113.1:{port}"
        ));
        lab.router.exec("conntrack -F");
        echo(&lab.left, &lab.right, "10.7.0.2", [100]);
        assert_eq!(lab.b.endpoint(&lab.a), Some(format!("203.0.113.1:{port}")));
        assert!(reaches(
            &lab.right,
            &lab.left,
            "10.7.0.1",
            Duration::from_secs(10)
        ));
    }
}

fn bound_sockets_and_marked_packets_pass(a: Make, b: Make) {
    let lab = Translated::new(a, b);
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    let bound = format!("-c 2 -i 0.1 -I {} 10.7.0.2", lab.a.name);
    assert!(lab.left.pings(&bound));
    // A mark set on the way out makes the kernel look for the route again.
    lab.left.nft(
        "table ip remark { chain out { type route hook output priority mangle
           meta mark set 1
         }
         }",
    );
    assert!(lab.left.pings("-c 2 -i 0.1 10.7.0.2"));
    assert!(lab.left.pings(&bound));
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
}

fn a_default_route_through_the_tunnel_does_not_swallow_the_tunnel(a: Make, b: Make) {
    let lab = Translated::new(a, b);
    let left = &lab.left;
    // An IPv6 way outside as well, which is nobody's business.
    left.address("eth0", "fc00::9/96");
    left.ip("-6 route add default via fc00::1");
    lab.b.up(&["198.51.100.7/32", "2001:db8:7::7/128"]);
    let everything = "allowed-ips 0.0.0.0/0,::/0";
    lab.a.wg(&format!(
        "fwmark 0xca6c peer {} {everything}",
        lab.b.keys.public
    ));
    for family in ["-4", "-6"] {
        left.ip(&format!(
            "{family} route add default dev {} table 51820",
            lab.a.name
        ));
        left.ip(&format!("{family} rule add not fwmark 0xca6c table 51820"));
        left.ip(&format!(
            "{family} rule add table main suppress_prefixlength 0"
        ));
    }
    left.sysctl("net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");
    let before = lab.b.transfer(&lab.a).0;
    echo(left, &lab.right, "198.51.100.7", [100, 1000]);
    echo(left, &lab.right, "2001:db8:7::7", [100, 1000]);
    assert!(left.pings("-c 100 -i 0.002 -w 20 198.51.100.7"));
    assert!(left.pings("-c 100 -i 0.002 -w 20 2001:db8:7::7"));
    // All of it went inside: none of it did beside.
    assert!(lab.b.transfer(&lab.a).0 - before > 200 * 128);
}

fn who_sends_to_nobody_is_told_so_through_the_translation(a: Make, b: Make) {
    let lab = Translated::new(a, b);
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    // The router sends through b's host, which translates what goes into the tunnel to its own address there.
    lab.right
        .sysctl("net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0");
    lab.right.nft(
        "table ip nat { chain out { type nat hook postrouting priority srcnat
           ip saddr 203.0.113.0/24 ip daddr 10.7.0.0/24 snat to 10.7.0.2
         }
         }",
    );
    lab.router.ip("route add 10.7.0.1 via 203.0.113.100");
    assert!(lab.router.pings("-c 1 -w 10 10.7.0.1"));
    lab.b.wg(&format!("peer {} remove", lab.a.keys.public));
    let said = lab.router.attempt("ping -n -c 1 -W 5 10.7.0.1");
    let said = said.expect_err("nobody can answer");
    assert!(said.contains("Destination Host Unreachable"), "{said}");
    assert!(
        said.contains("icmp_seq=1 Destination Host Unreachable"),
        "{said}"
    );
}
