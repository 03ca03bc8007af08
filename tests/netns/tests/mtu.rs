//! How large a packet may be: over underlays of other sizes than Ethernet's, and over a black hole.
//!
//! ```text
//! ┌─ n1 ───────┐  1400 or 9000  ┌─ n2 ───────┐     small-mtu    n1 ── r1 ─(1300, silent)─ r2 ── n2
//! │ default/a  │────────────────│ default/b  │
//! └────────────┘  IPv4 or IPv6  └────────────┘     beyond       n1 ── r1 ─(1300, silent)─ r2 ── n2, server
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::atomic::{AtomicBool, Ordering};

use lab::{Document, End, Family, Node, Ping, Pod, Topology, spec::Protocol};
use netns::{Mesh, Traffic};
use serde_json::json;

const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// A TCP header with timestamps, in bytes.
const TCP: u32 = 20 + 12;

/// Enough bytes for many segments of any size.
const BULK: u64 = 1 << 20;

/// Bytes around a packet in WireGuard: outer IP, UDP 8, header 16, tag 16.
fn overhead(outside: Family) -> u32 {
    header(outside) + 8 + 16 + 16
}

fn header(family: Family) -> u32 {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// Two nodes on one network of this MTU and family.
fn on_one_network(mtu: u16, outside: Family) -> Document {
    let cidr = match outside {
        Family::V4 => "192.0.2.0/24",
        Family::V6 => "2001:db8:1::/64",
    };
    Topology::new()
        .network("lan", &[cidr])
        .with(|lan| lan.mtu = mtu)
        .server(&["lan"])
        .pool("10.65.0.0/16")
        .pool("fd00:65::/112")
        .node("n1", &["lan"])
        .pod("default/a")
        .node("n2", &["lan"])
        .pod("default/b")
        .document()
}

/// Two nodes whose networks carry 1500 bytes, and one between them that carries less and is silent.
fn over_a_hole(mtu: u16, cidrs: [&[&str]; 3], server: &str) -> Document {
    let mut document = Topology::new()
        .network("lan", cidrs[0])
        .network("middle", cidrs[1])
        .with(|middle| middle.mtu = mtu)
        .network("far", cidrs[2])
        .router("r1", &["lan", "middle"])
        .router("r2", &["middle", "far"])
        .server(&[server])
        .pool("10.65.0.0/16")
        .pool("fd00:65::/112")
        .node("n1", &["lan"])
        .pod("default/a")
        .node("n2", &["far"])
        .pod("default/b")
        .document();
    for router in &mut document.spec.routers {
        router.icmp = false;
    }
    document
}

const V4: [&[&str]; 3] = [&["192.0.2.0/24"], &["203.0.113.0/24"], &["198.51.100.0/24"]];
const V6: [&[&str]; 3] = [
    &["2001:db8:1::/64"],
    &["2001:db8:3::/64"],
    &["2001:db8:2::/64"],
];

/// The largest packet that reaches an address in one piece, as its sender learns it: the kernel refuses
/// what is larger than it knows the way to be, and whoever knows better tells it.
fn largest(from: &dyn End, to: &dyn End, family: Family) -> u32 {
    let passes = |length: u32| {
        let ping = Ping::whole(to.address(family), length as usize);
        ping.send(&from.netns()).is_ok()
    };
    let (mut least, mut most) = (1000, 10_000);
    assert!(passes(least), "{} is silent: {family:?}", to.label());
    while most - least > 1 {
        let middle = least.midpoint(most);
        if passes(middle) {
            least = middle;
        } else {
            most = middle;
        }
    }
    least
}

/// How many fragments a router has made so far, of both families, by its kernel's own count.
fn fragments(host: &dyn End) -> u64 {
    let snmp = host.run("cat", &["/proc/net/snmp"]);
    let mut rows = snmp.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let mut v4 = names.split(' ').zip(values.split(' '));
    let v4 = v4.find(|(name, _)| *name == "FragCreates").unwrap().1;
    let snmp6 = host.run("cat", &["/proc/net/snmp6"]);
    let mut v6 = snmp6.lines();
    let v6 = v6.find_map(|line| line.strip_prefix("Ip6FragCreates"));
    [v4, v6.unwrap()]
        .map(|count| count.trim().parse::<u64>().unwrap())
        .iter()
        .sum()
}

fn device_mtu(node: &Node) -> u32 {
    let mtu = node.run("cat", &["/sys/class/net/wireguard.cali/mtu"]);
    mtu.trim().parse().unwrap()
}

/// Transfers between pods, again and again until `done`.
fn carry_until(done: &AtomicBool, a: &Pod, b: &Pod, family: Family) -> usize {
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        a.carry(b, family, BULK);
        count += 1;
    }
    count
}

/// Streams and transfers, while encryption is switched on and off, over an underlay of one MTU.
fn packets_are_as_large_as_the_underlay_allows(mtu: u16, outside: Family) {
    let inner = u32::from(mtu) - overhead(outside);
    let mesh = Mesh::of(on_one_network(mtu, outside));
    let [a, b] = ["default/a", "default/b"].map(|pod| mesh.pod(pod));
    let mut traffic = Traffic::none(&mesh);
    // Without encryption only the underlay's own family has a way.
    for (from, to) in [(&a, &b), (&b, &a)] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let stream = from.stream(to, protocol, outside);
            traffic.add(&from.label(), &to.label(), protocol, stream);
        }
    }
    traffic.forget();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let carrying = scope.spawn(|| carry_until(&done, &a, &b, outside));
        traffic.assert_unbroken();
        mesh.enable();
        traffic.assert_unbroken();
        done.store(true, Ordering::Relaxed);
        assert!(carrying.join().is_ok_and(|transfers| transfers > 0));
    });
    let before = mesh.seen();
    for node in mesh.members() {
        assert_eq!(device_mtu(&node), inner, "{}", node.name());
    }
    for family in BOTH {
        assert_eq!(largest(&a, &b, family), inner, "{family:?}");
        assert_eq!(largest(&b.node(), &a, family), inner, "{family:?}");
        let segment = a.carry(&b, family, BULK).segment;
        assert_eq!(segment, inner - header(family) - TCP, "{family:?}");
        // A pod may send more: it cuts it itself, inside.
        let large = Ping {
            size: 3 * usize::from(mtu),
            ..Ping::new(b.address(family))
        };
        large.send(&a.netns()).unwrap();
    }
    assert_eq!(largest(&a, &b.node(), outside), inner);
    let seen = mesh.seen().since(&before);
    assert_eq!((seen.fragments, seen.lost), (0, 0), "{seen:?}");
    mesh.disable();
    traffic.assert_unbroken();
    a.carry(&b, outside, BULK);
}

#[test]
fn over_1400_bytes_of_ipv4_packets_are_as_large_as_it_allows() {
    packets_are_as_large_as_the_underlay_allows(1400, Family::V4);
}

#[test]
fn over_1400_bytes_of_ipv6_packets_are_as_large_as_it_allows() {
    packets_are_as_large_as_the_underlay_allows(1400, Family::V6);
}

#[test]
fn over_jumbo_frames_of_ipv4_packets_are_as_large_as_they_allow() {
    packets_are_as_large_as_the_underlay_allows(9000, Family::V4);
}

#[test]
fn over_jumbo_frames_of_ipv6_packets_are_as_large_as_they_allow() {
    packets_are_as_large_as_the_underlay_allows(9000, Family::V6);
}

#[test]
fn nodes_join_a_server_beyond_a_black_hole_and_stay() {
    for cidrs in [V4, V6] {
        let mesh = Mesh::of(over_a_hole(1300, cidrs, "far"));
        mesh.enable();
        mesh.node("n1").ping(&mesh.node("n2"));
    }
}

#[test]
fn over_a_black_hole_everything_passes_once_the_mtu_is_set() {
    let mesh = Mesh::builtin("small-mtu");
    mesh.set("wireguardMTU", json!(1240));
    mesh.enable();
    let [a, b] = ["default/a", "default/b"].map(|pod| mesh.pod(pod));
    let before = fragments(&mesh.outside("r1"));
    // The device keeps what IPv6 needs; the routes of IPv4 carry what was asked for, less the padding.
    assert_eq!(largest(&a, &b, Family::V4), 1232);
    assert_eq!(a.carry(&b, Family::V4, BULK).segment, 1232 - 20 - TCP);
    assert_eq!(
        fragments(&mesh.outside("r1")),
        before,
        "the path is too narrow"
    );
    // IPv6 needs 1280 bytes inside: IPv4 outside lets the router cut them.
    assert_eq!(a.carry(&b, Family::V6, BULK).segment, 1280 - 40 - TCP);
}

#[test]
fn over_a_black_hole_of_ipv6_everything_passes_once_the_mtu_is_set() {
    let mesh = Mesh::of(over_a_hole(1360, V6, "middle"));
    mesh.set("wireguardMTU", json!(1280));
    mesh.enable();
    let [a, b] = ["default/a", "default/b"].map(|pod| mesh.pod(pod));
    for family in BOTH {
        assert_eq!(largest(&a, &b, family), 1280, "{family:?}");
        assert_eq!(
            a.carry(&b, family, BULK).segment,
            1280 - header(family) - TCP
        );
    }
}
