//! Policy on real nodes: what hosts, node ports and pods take, and what holds while tables are flushed.
//!
//! ```text
//! ┌─ n1 ───────────┐   ┌─ n2 ───────────┐   ┌─ client ────┐
//! │ default/a      │───│ default/c      │───│ no member   │    one LAN, both families
//! │ :30080 :30081  │   │                │   │ 192.0.2.4   │
//! └────────────────┘   └────────────────┘   └─────────────┘
//!   NodePort 30080 ─▶ default/c (remote)    NodePort 30081 ─▶ default/a (local)
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::print_stdout,
    reason = "what passes while tables are flushed is a figure that people read"
)]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lab::{Echo, End, Family, Probe, Service, poll_until, spec::Protocol};
use netns::{Mesh, await_fact, await_settled, lan, service};
use serde_json::{Value, json};

/// How long what is allowed may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long nothing must come of what is denied.
const SILENCE: Duration = Duration::from_millis(700);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const TCP: u8 = 6;
const UDP: u8 = 17;

fn mesh() -> Mesh {
    let topology =
        lan(&[("n1", "default/a"), ("n2", "default/c")]).outside("client", &["lan"], &[]);
    Mesh::of(topology.document())
}

fn apply(mesh: &Mesh, kind: &str, name: &str, spec: &Value) {
    apply_labelled(mesh, kind, name, &json!({}), spec);
}

fn apply_labelled(mesh: &Mesh, kind: &str, name: &str, labels: &Value, spec: &Value) {
    let object = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": kind,
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    });
    mesh.apply(&object.to_string());
}

/// Has a host endpoint stand for an interface of a node, without policy and without profile.
fn apply_host(mesh: &Mesh, node: &str, interface: &str) {
    let spec = json!({"node": node, "interfaceName": interface});
    apply_labelled(mesh, "HostEndpoint", node, &json!({"host": node}), &spec);
}

fn probe(from: &dyn End, to: IpAddr, protocol: u8, port: u16) -> Probe {
    let any: IpAddr = match to {
        IpAddr::V4(_) => "0.0.0.0".parse().unwrap(),
        IpAddr::V6(_) => "::".parse().unwrap(),
    };
    Probe {
        netns: from.netns(),
        from: SocketAddr::new(any, 0),
        to: SocketAddr::new(to, port),
        protocol,
    }
}

/// Whoever has no server on a TCP port refuses: an answer too.
fn assert_allowed(from: &dyn End, to: IpAddr, protocol: u8, port: u16) {
    let answered = probe(from, to, protocol, port).send(PATIENCE).unwrap();
    assert!(answered, "{} to {to}:{port}", from.label());
}

fn assert_denied(from: &dyn End, to: IpAddr, protocol: u8, port: u16) {
    let answered = probe(from, to, protocol, port).send(SILENCE).unwrap();
    assert!(!answered, "{} to {to}:{port}", from.label());
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => "127.0.0.1".parse().unwrap(),
        Family::V6 => "::1".parse().unwrap(),
    }
}

#[test]
fn a_named_host_endpoint_closes_what_is_the_host_s_own_but_for_failsafes() {
    let mesh = mesh();
    let (n1, client) = (mesh.node("n1"), mesh.outside("client"));
    let [a, c] = ["default/a", "default/c"].map(|name| mesh.pod(name));
    apply_host(&mesh, "n1", "eth0");
    mesh.wait();

    for family in FAMILIES {
        let (own, theirs) = (n1.address(family), client.address(family));
        assert_denied(&client, own, TCP, 8080);
        assert_denied(&n1, theirs, TCP, 8080);
        for port in [22, 179, 6443] {
            assert_allowed(&client, own, TCP, port);
        }
        for port in [179, 2379, 6443] {
            assert_allowed(&n1, theirs, TCP, port);
        }
        // What is forwarded, what stays on the host, and what the host says to its pods is none of it.
        assert_allowed(&c, a.address(family), TCP, 8080);
        assert_allowed(&a, c.address(family), TCP, 8080);
        assert_allowed(&n1, loopback(family), TCP, 8080);
        assert_allowed(&n1, a.address(family), TCP, 8080);
    }

    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "open",
        &json!({"selector": "host == 'n1'", "types": ["Ingress"],
            "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}}]}),
    );
    mesh.wait();
    assert_allowed(&client, n1.address(Family::V4), TCP, 8080);
    assert_denied(&client, n1.address(Family::V4), TCP, 8081);
}

#[test]
fn a_wildcard_host_endpoint_covers_loopback_and_what_is_forwarded_between_pods() {
    let mesh = mesh();
    let (n1, a) = (mesh.node("n1"), mesh.pod("default/a"));
    let b = mesh.add_pod("n1", "default/b");
    apply_host(&mesh, "n1", "*");
    mesh.wait();

    for family in FAMILIES {
        assert_denied(&n1, loopback(family), TCP, 8080);
        assert_allowed(&n1, loopback(family), TCP, 6443);
        assert_allowed(&a, b.address(family), TCP, 8080);
        assert_allowed(&n1, a.address(family), TCP, 8080);
    }

    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "forwarded",
        &json!({"selector": "host == 'n1'", "types": ["Ingress", "Egress"], "applyOnForward": true,
            "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [8080]}}, {"action": "Allow"}],
            "egress": [{"action": "Allow"}]}),
    );
    mesh.wait();
    for family in FAMILIES {
        assert_denied(&a, b.address(family), TCP, 8080);
        assert_allowed(&a, b.address(family), TCP, 8081);
        assert_allowed(&n1, a.address(family), TCP, 8080);
        assert_allowed(&n1, loopback(family), TCP, 8081);
    }
}

/// Every interface of every node is closed, and an agent and a tunnel service have to begin anew.
#[test]
fn no_host_policy_cuts_a_node_from_its_store_or_its_peers() {
    let mesh = mesh();
    mesh.enable();
    let [a, c] = ["default/a", "default/c"].map(|name| mesh.pod(name));
    for node in ["n1", "n2"] {
        apply_host(&mesh, node, "*");
    }
    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "nothing",
        &json!({"selector": "has(host)", "types": ["Ingress", "Egress"],
            "ingress": [{"action": "Deny"}], "egress": [{"action": "Deny"}]}),
    );
    mesh.wait();
    let n1 = mesh.node("n1");
    assert_denied(&n1, mesh.node("n2").address(Family::V4), TCP, 8080);

    for service in [Service::Agent, Service::Wire] {
        n1.kill(service);
    }
    for service in [Service::Wire, Service::Agent] {
        n1.restart(service);
    }
    await_settled(&n1, PATIENCE);
    // What is new in the store has come to both.
    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "late",
        &json!({"selector": "projectcalico.org/namespace == 'default'", "types": ["Ingress"],
            "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [8081]}}, {"action": "Allow"}]}),
    );
    mesh.wait();

    for family in FAMILIES {
        assert_allowed(&a, c.address(family), TCP, 8080);
        assert_allowed(&c, a.address(family), TCP, 8080);
        assert_denied(&a, c.address(family), TCP, 8081);
        assert_denied(&c, a.address(family), TCP, 8081);
    }
    mesh.assert_no_plaintext();
}

/// Two node ports of n1: one leads to a pod of n2, one to a pod of n1, which sees who asked.
fn load_services(mesh: &Mesh) -> Vec<Echo> {
    let pods = [
        ("default/c", 30080, service::Traffic::Cluster),
        ("default/a", 30081, service::Traffic::Local),
    ];
    let mut services = Vec::new();
    let mut echoes = Vec::new();
    for (number, (name, node_port, traffic)) in (80..).zip(pods) {
        let pod = mesh.pod(name);
        let listens = ["TCP/80", "UDP/80"].map(|text| text.parse().unwrap());
        echoes.push(Echo::start(&pod.netns(), &pod.addresses(), &listens).unwrap());
        services.extend(FAMILIES.map(|family| service::Service {
            cluster: match family {
                Family::V4 => SocketAddr::new("10.96.0.10".parse().unwrap(), number),
                Family::V6 => SocketAddr::new("fd00:96::10".parse().unwrap(), number),
            },
            node_port,
            endpoint: SocketAddr::new(pod.address(family), 80),
            traffic,
        }));
    }
    for node in mesh.members() {
        service::load(&node, &services);
    }

    echoes
}

#[test]
fn node_ports_to_a_local_and_to_a_remote_pod_stand_under_policy_and_encryption() {
    let mesh = mesh();
    let _echoes = load_services(&mesh);
    mesh.enable();
    let (n1, client) = (mesh.node("n1"), mesh.outside("client"));
    let ask = |port, allowed: bool| {
        for (family, protocol) in FAMILIES.iter().zip([TCP, UDP].iter().cycle()) {
            let to = n1.address(*family);
            if allowed {
                assert_allowed(&client, to, *protocol, port);
            } else {
                assert_denied(&client, to, *protocol, port);
            }
        }
    };
    ask(30080, true);
    ask(30081, true);

    // Behind the translation a pod's policy sees its own port; a local pod sees who asked.
    let clients: Vec<String> = client
        .addresses()
        .iter()
        .map(|address| ipnet(*address))
        .collect();
    let from = |action: &str, of: &str| {
        let nets = clients.iter().filter(|net| net.contains(of));
        json!({"action": action, "source": {"nets": nets.collect::<Vec<_>>()}, "destination": {"ports": [80]}})
    };
    let rules = |action: &str| {
        ["TCP", "UDP"]
            .iter()
            .flat_map(|protocol| [".", ":"].map(|of| (protocol, of)))
            .map(|(protocol, of)| {
                let mut rule = from(action, of);
                rule["protocol"] = json!(protocol);
                rule
            })
            .collect::<Vec<_>>()
    };
    let pods = |ingress: Vec<Value>| json!({"selector": "projectcalico.org/namespace == 'default'", "types": ["Ingress"], "ingress": ingress});
    apply(&mesh, "GlobalNetworkPolicy", "pods", &pods(rules("Allow")));
    mesh.wait();
    ask(30081, true);
    // Masqueraded by n1, it comes from n1 and not from the client.
    ask(30080, false);
    let mut open = rules("Deny");
    open.push(json!({"action": "Allow"}));
    apply(&mesh, "GlobalNetworkPolicy", "pods", &pods(open));
    mesh.wait();
    ask(30081, false);
    ask(30080, true);

    // Before the translation a host's policy sees the node port.
    apply_host(&mesh, "n1", "eth0");
    let deny = |protocol: &str| json!({"action": "Deny", "protocol": protocol, "destination": {"ports": [30080]}});
    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "ports",
        &json!({"selector": "host == 'n1'", "types": ["Ingress"], "preDNAT": true, "applyOnForward": true,
            "ingress": [deny("TCP"), deny("UDP")]}),
    );
    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "pods",
        &pods(vec![json!({"action": "Allow"})]),
    );
    mesh.wait();
    ask(30080, false);
    ask(30081, true);
    mesh.assert_no_plaintext();
}

fn ipnet(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    }
}

#[test]
fn untracked_policy_needs_both_ways_and_leaves_no_connection() {
    let mesh = mesh();
    let (n1, client) = (mesh.node("n1"), mesh.outside("client"));
    let listens = ["UDP/12211".parse().unwrap()];
    let _echo = Echo::start(&n1.netns(), &n1.addresses(), &listens).unwrap();
    apply_host(&mesh, "n1", "eth0");
    let untracked = |types: &[&str]| {
        json!({"selector": "host == 'n1'", "types": types, "doNotTrack": true, "applyOnForward": true,
            "ingress": [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [12211]}}],
            "egress": if types.len() > 1 { json!([{"action": "Allow", "protocol": "UDP", "source": {"ports": [12211]}}]) } else { json!([]) }})
    };
    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "cache",
        &untracked(&["Ingress"]),
    );
    mesh.wait();
    for family in FAMILIES {
        assert_denied(&client, n1.address(family), UDP, 12211);
    }

    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "cache",
        &untracked(&["Ingress", "Egress"]),
    );
    mesh.wait();
    n1.run("conntrack", &["-F"]);
    for family in FAMILIES {
        assert_allowed(&client, n1.address(family), UDP, 12211);
        assert_denied(&client, n1.address(family), UDP, 12212);
    }
    let known = n1.run(
        "sh",
        &[
            "-c",
            "conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null",
        ],
    );
    assert!(!known.contains("port=12211"), "{known}");
}

/// The runtime has its answer only when the pod's policy is in the kernel.
#[test]
fn a_new_pod_is_under_its_policy_from_its_first_packet() {
    let mesh = mesh();
    let a = mesh.pod("default/a");
    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "shop",
        &json!({"selector": "projectcalico.org/namespace == 'shop'", "types": ["Ingress", "Egress"],
            "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}],
            "egress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]}),
    );
    mesh.wait();

    for number in 0..8 {
        let node = if number % 2 == 0 { "n1" } else { "n2" };
        let pod = mesh.add_pod(node, &format!("shop/p{number}"));
        for family in FAMILIES {
            let (own, other) = (pod.address(family), a.address(family));
            let probes = [
                probe(&pod, other, TCP, 81),
                probe(&a, own, TCP, 81),
                probe(&mesh.pod("default/c"), own, TCP, 81),
            ];
            for answered in Probe::send_all(&probes, SILENCE) {
                assert!(!answered.unwrap(), "{} is open", pod.name());
            }
            assert_allowed(&pod, other, TCP, 80);
            assert_allowed(&a, own, TCP, 80);
        }
    }
}

/// While an agent lives its tables are its own: whoever flushes everything takes his own away. What passes all the
/// same would be told here.
#[test]
fn what_somebody_flushes_keeps_denying() {
    const FLUSHES: u64 = 20;
    let mesh = mesh();
    let [a, c] = ["default/a", "default/c"].map(|name| mesh.pod(name));
    let n2 = mesh.node("n2");
    let denied = a.stream(&c, Protocol::Udp, Family::V4);
    apply(
        &mesh,
        "GlobalNetworkPolicy",
        "closed",
        &json!({"selector": "projectcalico.org/namespace == 'default'", "types": ["Ingress"],
            "ingress": [{"action": "Deny"}]}),
    );
    mesh.wait();
    await_silence(&denied);
    let before = denied.report();

    for _ in 0..FLUSHES {
        n2.run("nft", &["add table inet theirs; flush ruleset"]);
        assert_denied(&a, c.address(Family::V6), TCP, 80);
        let listing = n2.run("nft", &["list", "ruleset"]);
        assert!(listing.contains("GlobalNetworkPolicy closed"), "{listing}");
        assert!(!listing.contains("theirs"), "{listing}");
    }

    let after = denied.report();
    let (passed, sent) = (after.echoed - before.echoed, after.sent - before.sent);
    println!("{FLUSHES} flushes: {passed} of {sent} denied datagrams passed");
    assert!(sent > 1_000, "{sent}");
    assert_eq!(passed, 0);
}

/// Waits until nothing comes back any more.
fn await_silence(stream: &lab::Stream) {
    let mut last = stream.report().echoed;
    let silent = await_fact("what is denied stops", PATIENCE, || {
        // Nothing of a hundred later datagrams.
        let sent = stream.report().sent;
        let goes_on = poll_until(std::time::Instant::now() + PATIENCE, || {
            stream.report().sent > sent + 100
        });
        let found = stream.report().echoed;
        let is_silent = goes_on && found == std::mem::replace(&mut last, found);

        is_silent.then_some(()).ok_or(format!("{found} came back"))
    });
    assert!(silent < PATIENCE);
}
