//! The encrypted mesh, on every kind of underlay: what pods and hosts notice of it (nothing), and what
//! is on the wire (ciphertext).
//!
//! ```text
//! ┌─ n1 ─────────┐        ┌─ n2 ─────────┐        ┌─ n3 ─────────┐
//! │ agent, wire  │        │ agent, wire  │        │ agent, wire  │      server: meshd serve
//! │ pods a, b    │        │ pods c (d)   │        │ pods d/e (f) │
//! └──────┬───────┘        └──────┬───────┘        └──────┬───────┘
//!        └─────── sniffer ───────┴─ underlay of the lab ─┘
//! ```

use std::time::{Duration, Instant};

use lab::{
    End, Family, Lab, Service, Stream,
    forge::{self, frame, ip, udp},
    poll_until,
    spec::Protocol,
};

/// The longest a stream may be silent while encryption is switched, or an agent dies.
const SILENCE: Duration = Duration::from_millis(200);

/// Pings between all pods, and between pods and the hosts of other members, in every family.
fn everybody_speaks(lab: &Lab) {
    let pods = lab.pods();
    for from in &pods {
        for to in &pods {
            from.ping(to);
        }
        for node in lab.nodes() {
            from.ping(&node);
            node.ping(from);
        }
    }
}

/// Streams of every kind that a member has, to another node.
fn streams(lab: &Lab) -> Vec<Stream> {
    let nodes = lab.nodes();
    let (near, far) = (&nodes[0], &nodes[nodes.len() - 1]);
    let (pod, other) = (near.pod(), far.pod());
    let has = |family| {
        pod.addresses()
            .iter()
            .any(|address| Family::of(address) == family)
    };
    let mut streams = Vec::new();
    for family in [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| has(*family))
    {
        streams.push(pod.stream(&other, Protocol::Tcp, family));
        if near
            .addresses()
            .iter()
            .any(|address| Family::of(address) == family)
        {
            streams.push(pod.stream(far, Protocol::Tcp, family));
            streams.push(far.stream(&pod, Protocol::Tcp, family));
        }
    }
    streams
}

fn switching_is_not_noticed(name: &str, times: u32) {
    let lab = Lab::builtin(name);
    lab.sniff();
    let before = lab.seen();
    everybody_speaks(&lab);
    assert!(
        lab.seen().since(&before).leaked() > 0,
        "the sniffer is blind to plain packets"
    );
    let streams = streams(&lab);
    for _ in 0..times {
        lab.encrypt();
        everybody_speaks(&lab);
        for stream in &streams {
            stream.assert_carries(20);
        }
        let sealed = lab.seen();
        lab.decrypt();
        everybody_speaks(&lab);
        for stream in &streams {
            stream.assert_carries(20);
        }
        assert!(
            lab.seen().since(&sealed).leaked() > 0,
            "nothing is plain when it is off"
        );
    }
    for stream in &streams {
        stream.assert_no_gap(SILENCE);
    }
}

#[test]
fn on_one_lan_switching_is_not_noticed() {
    switching_is_not_noticed("three-nodes", 5);
}

#[test]
fn over_a_router_switching_is_not_noticed() {
    switching_is_not_noticed("two-subnets", 2);
}

#[test]
fn in_both_families_switching_is_not_noticed() {
    switching_is_not_noticed("dual-stack", 2);
}

#[test]
fn without_ipv4_switching_is_not_noticed() {
    switching_is_not_noticed("ipv6-only", 2);
}

#[test]
fn with_a_network_for_management_switching_is_not_noticed() {
    switching_is_not_noticed("two-networks", 2);
}

#[test]
fn an_agent_that_dies_and_comes_back_is_not_noticed() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let stream = a.connect(&b);
    let index = |node: &lab::Node| node.run("cat", &["/sys/class/net/wireguard.cali/ifindex"]);
    let handshakes = |node: &lab::Node| node.run("wg", &["show", "all", "latest-handshakes"]);
    let before = (index(&a), handshakes(&a));
    a.kill(Service::Agent);
    stream.assert_carries(100);
    a.restart(Service::Agent);
    lab.await_phase("Enforced");
    stream.assert_carries(100);
    assert_eq!(
        (index(&a), handshakes(&a)),
        before,
        "the tunnel was made anew"
    );
    stream.assert_no_gap(SILENCE);
}

#[test]
fn a_node_that_changes_its_address_keeps_its_connections() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let stream = a.connect(&b);
    a.change_address("192.0.2.77");
    stream.assert_carries(100);
    stream.assert_alive();
}

#[test]
fn a_pod_that_comes_is_reached_encrypted_and_one_that_goes_is_gone() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let fresh = lab.add_pod("b", "default/fresh");
    a.pod().ping(&fresh);
    a.pod().connect(&fresh).assert_carries(20);
    let address = fresh.address(Family::V4);
    lab.delete_pod(&fresh);
    assert!(
        b.pod().try_ping(address).is_err(),
        "a pod that is gone answers"
    );
}

#[test]
fn what_somebody_deletes_is_back_within_a_second() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let tables = |what: &str| a.run("sh", &["-c", what]);
    let breakages = [
        ("ip route flush table 1", "ip route show table 1 | sort"),
        ("ip rule del priority 99", "ip rule show priority 99"),
        ("nft delete table inet meshd", "nft list tables | sort"),
        ("nft delete table netdev meshd", "nft list tables | sort"),
        (
            "wg set wireguard.cali peer $(wg show wireguard.cali peers) remove",
            "wg show wireguard.cali allowed-ips",
        ),
        (
            "ip address flush dev wireguard.cali",
            "ip -o address show dev wireguard.cali | grep -v fe80",
        ),
    ];
    for (breakage, look) in breakages {
        let before = tables(look);
        tables(breakage);
        let repaired = poll_until(Instant::now() + Duration::from_secs(1), || {
            tables(look) == before
        });
        assert!(
            repaired,
            "{breakage}\nbefore:\n{before}\nnow:\n{}",
            tables(look)
        );
    }
    a.pod().ping(&b.pod());
}

#[test]
fn plaintext_that_a_stranger_sends_in_a_member_s_name_reaches_no_pod() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let pod = b.pod();
    let heard = |mark: &[u8]| {
        let (from, to) = (a.pod().address(Family::V4), pod.address(Family::V4));
        let forged = ip(&from.to_string(), &to.to_string(), 17, &udp(7, 7, mark));
        let netns = lab.site(|site| site.host_space(&"server".parse().unwrap()).unwrap());
        let before = received(&pod);
        forge::send(&netns, "eth0", &frame(&forged)).unwrap();
        a.ping(&b);
        received(&pod) - before
    };
    assert_eq!(heard(b"forged"), 0);
}

/// Packets that a pod's device has received, as the kernel counts them.
fn received(pod: &lab::Pod) -> u64 {
    let text = pod.run("cat", &["/proc/net/dev"]);
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"))
        .unwrap()
        .to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
