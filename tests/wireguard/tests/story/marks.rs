//! What packets outside say of themselves, and what is said of those inside; and of packets that nobody takes.

use wireguard::traffic::{echo, tcp};
use wireguard::{Make, Space, stories};

use crate::topology::Cable;

stories! {
    congestion_on_the_way_is_told_inside;
    only_handshakes_ask_for_haste;
    who_sends_to_nobody_is_told_so;
}

/// Packets that the first counter of the table `tally` has seen.
fn counted(space: &Space) -> u64 {
    let text = space.exec("nft list table inet tally");
    let (_, rest) = text.split_once("counter packets ").expect("a counter");
    rest.split(' ')
        .next()
        .expect("a number")
        .parse()
        .expect("a number")
}

fn congestion_on_the_way_is_told_inside(a: Make, b: Make) {
    let lab = Cable::new(a, b);
    lab.left.nft(
        "table inet way { chain out { type filter hook output priority 0
           oifname eth0 ip ecn ect0 ip ecn set ce
         }
         }",
    );
    lab.right.nft(&format!(
        "table inet tally {{ chain in {{ type filter hook input priority 0
           iifname {} ip ecn ce counter
         }}
         }}",
        lab.b.name
    ));
    for space in [&lab.left, &lab.right] {
        space.sysctl("net.ipv4.tcp_ecn=1");
    }
    tcp(&lab.left, &lab.right, "10.7.0.2", 1, 256 << 10);
    assert!(counted(&lab.right) > 0);
}

fn only_handshakes_ask_for_haste(a: Make, b: Make) {
    let lab = Cable::bare(a, b);
    lab.left.address("eth0", "2001:db8::1/64");
    lab.right.address("eth0", "2001:db8::2/64");
    // 92 bytes of response and 8 of UDP; data of 1,000 bytes and more.
    lab.right.nft(
        "table inet tally { chain out { type filter hook output priority 0
           oifname eth0 udp length 100 ip6 dscp af41 counter
         }
         }",
    );
    lab.left.nft(
        "table inet tally { chain out { type filter hook output priority 0
           oifname eth0 udp length > 1000 ip6 dscp != 0 counter
         }
         }",
    );
    lab.a_goes_to("[2001:db8::2]:6002");
    // Whatever haste the packets inside ask for is theirs alone.
    assert!(lab.left.pings("-c 5 -i 0.1 -w 20 -s 1000 -Q 0xb8 10.7.0.2"));
    echo(&lab.left, &lab.right, "10.7.0.2", [1000]);
    assert_eq!(counted(&lab.left), 0, "data in haste");
    assert!(counted(&lab.right) > 0, "a response of 92 bytes");
}

fn who_sends_to_nobody_is_told_so(a: Make, b: Make) {
    let lab = Cable::new(a, b);
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
    let told = |to: &str| {
        let said = lab.left.attempt(&format!("ping -n -c 2 -i 0.3 -W 5 {to}"));
        said.expect_err("nobody can answer")
    };
    // No peer has the address …
    lab.left
        .ip(&format!("route add 10.99.0.0/16 dev {}", lab.a.name));
    lab.left
        .ip(&format!("-6 route add fd99::/16 dev {}", lab.a.name));
    let said = told("10.99.0.1");
    assert!(said.contains("Destination Host Unreachable"), "{said}");
    let said = told("fd99::1");
    assert!(
        said.contains("Address unreachable") || said.contains("Destination unreachable"),
        "{said}"
    );
    // … or nobody knows where the one is that has it.
    let nowhere = wireguard::Keys::generate().public;
    lab.a
        .wg(&format!("peer {nowhere} allowed-ips 10.99.0.0/16"));
    let said = told("10.99.0.2");
    assert!(said.contains("Destination Host Unreachable"), "{said}");
    echo(&lab.left, &lab.right, "10.7.0.2", [100]);
}
