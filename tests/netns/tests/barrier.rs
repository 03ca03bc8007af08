//! Two barriers stand before the underlay, and each is enough alone. The agent is dead, its routes and
//! rules are pulled away, so that every packet wants to leave in the clear.
//!
//! ```text
//! ┌─ n1 ───────────────────────────────┐              ┌─ n2 ────────────┐
//! │ default/a ─▶ postrouting ─▶ eth0 ──┼── sniffer ───│ default/c       │   dual-stack
//! │ tunnel address ┘ inet       netdev │              │ 192.0.2.2       │   2001:db8:1::2
//! └────────────────────────────────────┘              └─────────────────┘
//! ```

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lab::{
    End, Family, LeakKind, Node, Ping, Plaintext, Service,
    forge::{self, frame, ip, udp, vxlan},
};
use netns::Mesh;

/// A packet that must not leave in the clear: what it would be called, who sends it from where, and to
/// whom.
struct Planted {
    kind: LeakKind,
    from: Box<dyn End>,
    source: Option<IpAddr>,
    to: IpAddr,
}

/// Every family × {pod to pod, tunnel address to pod and to node, pod to node, node to pod}.
fn planted(mesh: &Mesh) -> Vec<Planted> {
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let mut planted = Vec::new();
    for family in [Family::V4, Family::V6] {
        let (pod, node) = (n2.pod().address(family), n2.address(family));
        let (own, tunnel) = (Some(n1.address(family)), Some(tunnel_address(&n1, family)));
        let mut add = |kind, from: Box<dyn End>, source, to| {
            planted.push(Planted {
                kind,
                from,
                source,
                to,
            });
        };
        add(LeakKind::PodToPod, Box::new(n1.pod()), None, pod);
        add(LeakKind::PodAndNode, Box::new(n1.pod()), None, node);
        add(LeakKind::TunnelAddress, Box::new(n1.clone()), tunnel, pod);
        add(LeakKind::TunnelAddress, Box::new(n1.clone()), tunnel, node);
        add(LeakKind::PodAndNode, Box::new(n1.clone()), own, pod);
    }
    planted
}

/// The address of a node's tunnel device, as the kernel has it: its agent may be dead.
fn tunnel_address(node: &Node, family: Family) -> IpAddr {
    let version = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    let arguments = [
        version,
        "-o",
        "address",
        "show",
        "dev",
        "wireguard.cali",
        "scope",
        "global",
    ];
    let said = node.run("ip", &arguments);
    let words: Vec<&str> = said.split_whitespace().collect();
    let address = words.get(3).and_then(|net| net.split('/').next());
    match address.map(str::parse) {
        Some(Ok(address)) => address,
        Some(Err(_)) | None => panic!("no address of {family:?}: {said}"),
    }
}

impl Planted {
    /// Sends it as its host would; whether anybody answers is not asked.
    fn send(&self) {
        let ping = Ping {
            from: self.source,
            patience: Duration::from_millis(20),
            ..Ping::new(self.to)
        };
        if let Ok(time) = ping.send(&self.from.netns()) {
            panic!("{} answered after {time:?}: {}", self.to, self.describe());
        }
    }

    fn describe(&self) -> String {
        let source = self.source.map_or_else(String::new, |s| format!(" ({s})"));
        format!("{}{source} to {}", self.from.label(), self.to)
    }
}

/// A mesh in which n1's agent is dead and n1's kernel has forgotten every way into the tunnel.
fn pulled_away() -> Mesh {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    n1.kill(Service::Agent);
    let script = "
        for v in -4 -6; do
          ip $v rule | sed -n 's/^\\([0-9]*\\):.*lookup [12] .*/\\1/p' | while read priority; do
            ip $v rule del priority $priority
          done
        done
        ip rule; ip -6 rule";
    let rules = n1.run("sh", &["-e", "-c", script]);
    assert!(!rules.contains("lookup 1 "), "{rules}");
    mesh
}

/// Removes a table whose owner is dead.
fn remove_table(node: &Node, table: &str) {
    node.run("nft", &["delete", "table", table, "meshd"]);
}

/// How many packets the drop rules of a table have counted.
fn dropped(node: &Node, table: &str) -> u64 {
    let rules = node.run("nft", &["list", "table", table, "meshd"]);
    let counts = rules.lines().filter(|line| line.contains(" drop"));
    let count = |line: &str| {
        let (_, rest) = line.split_once("counter packets ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    };
    counts.filter_map(count).sum()
}

/// Sends each planted packet and asserts that this table alone stopped it.
fn assert_each_is_dropped_by(mesh: &Mesh, table: &str) {
    let n1 = mesh.node("n1");
    for planted in planted(mesh) {
        let before = dropped(&n1, table);
        planted.send();
        let dropped = dropped(&n1, table);
        assert!(dropped > before, "{table} misses {}", planted.describe());
        mesh.assert_no_plaintext();
    }
}

#[test]
fn both_barriers_together_stop_every_packet() {
    assert_each_is_dropped_by(&pulled_away(), "inet");
}

#[test]
fn without_the_inet_barrier_the_one_on_the_devices_stops_every_packet() {
    let mesh = pulled_away();
    remove_table(&mesh.node("n1"), "inet");
    assert_each_is_dropped_by(&mesh, "netdev");
}

#[test]
fn without_the_barrier_on_the_devices_the_inet_one_stops_every_packet() {
    let mesh = pulled_away();
    remove_table(&mesh.node("n1"), "netdev");
    assert_each_is_dropped_by(&mesh, "inet");
}

#[test]
fn without_both_barriers_the_sniffer_reports_every_packet_and_the_peer_takes_none() {
    let mesh = pulled_away();
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    mesh.assert_no_plaintext();
    mesh.plaintext(Plaintext::Allowed);
    for table in ["inet", "netdev"] {
        remove_table(&n1, table);
    }
    for planted in planted(&mesh) {
        let (seen, refused) = (mesh.seen(), dropped(&n2, "netdev"));
        planted.send();
        let leaks = mesh.seen().since(&seen).leaks;
        assert_eq!(
            leaks.keys().copied().collect::<Vec<_>>(),
            [planted.kind],
            "{}: {leaks:?}",
            planted.describe()
        );
        let taken = dropped(&n2, "netdev");
        assert!(taken > refused, "n2 takes {}", planted.describe());
    }
}

#[test]
fn an_answer_of_the_host_to_a_remote_pod_does_not_leave_in_the_clear_when_its_way_is_lost() {
    let mesh = Mesh::enforced("dual-stack");
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let streams = [Family::V4, Family::V6].map(|family| {
        let stream = n2.pod().stream(&n1, lab::spec::Protocol::Tcp, family);
        stream.assert_carries(5);
        stream
    });
    n1.kill(Service::Agent);
    // The device barrier goes too: the inet one must hold alone.
    remove_table(&n1, "netdev");
    for version in ["-4", "-6"] {
        n1.run("ip", &[version, "rule", "del", "priority", "99"]);
    }
    let before = dropped(&n1, "inet");
    let silent = |stream: &lab::Stream| !stream.is_alive(Duration::from_millis(500));
    assert!(streams.iter().all(silent), "the answers found a way");
    assert!(dropped(&n1, "inet") > before, "the barrier saw nothing");
    mesh.assert_no_plaintext();
}

#[test]
fn a_device_that_nobody_has_seen_yet_is_closed() {
    let mesh = pulled_away();
    let n1 = mesh.node("n1");
    let lan = format!("{}.lan", mesh.name());
    let script = "
        ip link add new9 type veth peer name p-new9 netns $0
        ip link set new9 up
        ip -n $0 link set p-new9 master lan up
        ip address add 192.0.2.99/24 dev new9
        ip route replace 10.65.0.0/16 via 192.0.2.2 dev new9 metric 1 onlink
        for net in $(ip route show proto 80 | sed -n 's/ via .*//p'); do
          ip route replace $net via 192.0.2.2 dev new9 proto 80 onlink
        done";
    n1.run("sh", &["-e", "-c", script, &lan]);
    mesh.sniff_device(&n1, "new9");
    remove_table(&n1, "netdev");
    let ping = Ping {
        patience: Duration::from_millis(50),
        ..Ping::new(mesh.node("n2").pod().address(Family::V4))
    };
    let before = dropped(&n1, "inet");
    assert!(ping.send(&n1.pod().netns()).is_err());
    assert!(dropped(&n1, "inet") > before, "the barrier saw nothing");
    mesh.assert_no_plaintext();

    mesh.plaintext(Plaintext::Allowed);
    remove_table(&n1, "inet");
    assert!(ping.send(&n1.pod().netns()).is_err());
    let seen = mesh.seen();
    assert!(
        seen.leaks[&LeakKind::PodToPod] > 0,
        "it did not leave by the new device: {seen:?}"
    );
}

#[test]
fn what_passes_by_the_network_stack_is_stopped_on_the_device() {
    let mesh = Mesh::enforced("dual-stack");
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    for family in [Family::V4, Family::V6] {
        let [pod, own, far, peer] =
            [&n1.pod() as &dyn End, &n1, &n2.pod(), &n2].map(|end| end.address(family).to_string());
        let tunnel = tunnel_address(&n1, family).to_string();
        let bare = |source: &str, to: &str| ip(source, to, 17, &udp(5000, 5000, b"planted"));
        let packets = [
            bare(&pod, &far),
            bare(&tunnel, &far),
            bare(&tunnel, &peer),
            bare(&pod, &peer),
            bare(&own, &far),
            ip(&own, &peer, 17, &vxlan(&frame(&bare(&pod, &far)))),
            ip(
                &own,
                &peer,
                if family == Family::V4 { 4 } else { 41 },
                &bare(&pod, &far),
            ),
        ];
        for packet in packets {
            let before = dropped(&n1, "netdev");
            // The kernel may say that the device took it not, or say nothing.
            drop(forge::send(&n1.netns(), "eth0", &frame(&packet)));
            let words = lab::read_frame(&frame(&packet)).to_string();
            assert!(dropped(&n1, "netdev") > before, "not seen: {words}");
            mesh.assert_no_plaintext();
        }
    }
}

#[test]
fn plaintext_that_comes_in_reaches_no_pod() {
    let mesh = Mesh::enforced("dual-stack");
    let (n2, n3) = (mesh.node("n2"), mesh.node("n3"));
    // A stranger on the LAN forges packets as n1's pod would send them.
    let lan = format!("{}.lan", mesh.name());
    let program = ["-n", &lan, "link", "set", "lan", "up"];
    n3.run("ip", &program);
    for family in [Family::V4, Family::V6] {
        let [pod, own, to] = [
            &mesh.node("n1").pod() as &dyn End,
            &mesh.node("n1"),
            &n2.pod(),
        ]
        .map(|end| end.address(family).to_string());
        let mac = n2.run("cat", &["/sys/class/net/eth0/address"]);
        for source in [&pod, &own] {
            let packet = ip(source, &to, 17, &udp(5000, 5000, b"forged"));
            let mut forged = frame(&packet);
            for (byte, text) in forged.iter_mut().zip(mac.trim().split(':')) {
                *byte = u8::from_str_radix(text, 16).unwrap_or_default();
            }
            let before = dropped(&n2, "netdev");
            let space = lab::Netns::open(&lan).unwrap();
            forge::send(&space, "lan", &forged).unwrap();
            let deadline = Instant::now() + Duration::from_secs(1);
            let counted = lab::poll_until(deadline, || dropped(&n2, "netdev") > before);
            assert!(counted, "n2 takes a packet from {source} to {to}");
        }
    }
}
