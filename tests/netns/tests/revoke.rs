//! A policy that no longer allows a connection cuts it, from whichever end it is carried.
//!
//! ```text
//! ┌─ n1 ────────────┐       ┌─ n2 ────────────┐   ┌─ client ────┐
//! │ default/a ◀─────│═══════│── shop/s        │───│ no member   │   one LAN, both families
//! │        ◀── shop/t       │── kept/k        │   │ 192.0.2.4   │
//! └─────────────────┘       │ :30080 ─▶ shop/s│   └─────────────┘
//!                           └─────────────────┘
//! ```
//!
//! The servers stream: the clients ask once, and say nothing more unless a story has them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::print_stdout,
    reason = "how soon connections are cut is a figure that people read"
)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lab::{End, Family, Node, Service, spec::Protocol};
use netns::{Crowd, Download, Encryption, Mesh, Server, await_fact, lan, service, sprinkle};
use serde_json::{Value, json};

/// How soon a connection is cut at the latest: a machine that has nothing else to do takes less than a second.
const SOON: Duration = Duration::from_secs(10);

/// How long a cut connection may take until it goes on.
const PATIENCE: Duration = Duration::from_secs(30);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn mesh() -> Mesh {
    let topology = lan(&[("n1", "default/a"), ("n2", "shop/s")]).outside("client", &["lan"], &[]);
    let mesh = Mesh::of(topology.document());
    mesh.add_pod("n1", "shop/t");
    mesh.add_pod("n2", "kept/k");
    mesh.wait();
    mesh
}

/// Says what namespace `shop` takes; nobody else is asked.
fn rule_shop(mesh: &Mesh, action: &str) {
    apply_policy(
        mesh,
        "shop",
        json!({"types": ["Ingress"], "ingress": [{"action": action}]}),
    );
}

fn apply_policy(mesh: &Mesh, namespace: &str, spec: Value) {
    let policy = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "rule", "namespace": namespace},
        "spec": spec,
    });
    mesh.apply(&policy.to_string());
}

fn set_established_connections(mesh: &Mesh, value: &str) {
    let configuration = json!({
        "apiVersion": "meshd.dev/v1",
        "kind": "MeshConfiguration",
        "metadata": {"name": "default"},
        "spec": {"policy": {"establishedConnections": value}},
    });
    mesh.apply(&configuration.to_string());
}

/// Downloads of both protocols and families.
fn downloads(client: &dyn End, server: &dyn End) -> Vec<Download> {
    Download::each(client, &Server::all(server))
}

fn assert_all_flow(downloads: &[Download]) {
    for download in downloads {
        assert!(download.flows(PATIENCE), "{download} stands still");
    }
}

/// Asserts that each stops soon, and that nobody revives it: the servers try all the time, the clients now.
fn assert_all_stop(downloads: &mut [Download]) {
    for download in &*downloads {
        let taken = download.await_silence(PATIENCE);
        println!("{download} was cut after {taken:?}");
        assert!(taken < lab::patience(SOON), "{download}: {taken:?}");
    }
    Download::assert_all_dead(downloads);
}

/// How many connections to a pod the kernel lets pass, as `conntrack` lists them.
fn passing(node: &Node, pod: &dyn End) -> usize {
    let families = FAMILIES.map(|family| {
        let address = pod.address(family).to_string();
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let arguments = [
            "-L",
            "-f",
            family,
            "-p",
            "udp",
            "-d",
            &address,
            "-m",
            "0/0x40000",
        ];
        node.run("conntrack", &arguments)
    });

    families.iter().map(|listed| listed.lines().count()).sum()
}

/// What a node's agent counts under a name.
fn metric(node: &Node, name: &str) -> f64 {
    let page = node.run("curl", &["-s", "http://127.0.0.1:9091/metrics"]);
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(name));
    lines.next().unwrap().trim().parse().unwrap()
}

#[test]
fn a_stream_from_the_server_ends_when_the_server_s_policy_changes() {
    let mesh = mesh();
    let [a, s, t, k] = ["default/a", "shop/s", "shop/t", "kept/k"].map(|name| mesh.pod(name));
    let mut doomed = downloads(&a, &s);
    doomed.extend(downloads(&a, &t));
    let kept = downloads(&a, &k);
    assert_all_flow(&doomed);
    assert_all_flow(&kept);

    rule_shop(&mesh, "Deny");
    assert_all_stop(&mut doomed);

    assert_all_flow(&kept);
    for download in &kept {
        assert_eq!(download.breaks(), 0, "{download}");
    }
    assert!(metric(&mesh.node("n2"), "meshd_connections_revoked_total") >= 4.0);

    rule_shop(&mesh, "Allow");
    assert_all_flow(&doomed);
    assert!(metric(&mesh.node("n2"), "meshd_connections_restored_total") >= 4.0);
}

#[test]
fn a_stream_from_the_server_ends_when_the_client_s_policy_changes() {
    let mesh = mesh();
    let [a, s, k] = ["default/a", "shop/s", "kept/k"].map(|name| mesh.pod(name));
    let (mut doomed, kept) = (downloads(&s, &a), downloads(&k, &a));
    assert_all_flow(&doomed);

    let rule = json!({"types": ["Egress"], "egress": [{"action": "Deny"}]});
    apply_policy(&mesh, "shop", rule);

    assert_all_stop(&mut doomed);
    assert_all_flow(&kept);
}

/// The policy speaks of the pod and its port; the client spoke to a node and another one.
#[test]
fn a_stream_through_a_service_is_judged_by_where_it_goes() {
    let mesh = mesh();
    let (n2, s) = (mesh.node("n2"), mesh.pod("shop/s"));
    let services = FAMILIES.map(|family| service::Service {
        cluster: match family {
            Family::V4 => "10.96.0.10:80".parse().unwrap(),
            Family::V6 => "[fd00:96::10]:80".parse().unwrap(),
        },
        node_port: 30080,
        endpoint: SocketAddr::new(s.address(family), 8080),
        traffic: service::Traffic::Local,
    });
    for node in mesh.members() {
        service::load(&node, &services);
    }
    let (outside, a) = (mesh.outside("client"), mesh.pod("default/a"));
    let mut doomed = Vec::new();
    let servers = PROTOCOLS.map(|protocol| {
        services.map(|service| (service, Server::start(&s, protocol, service.endpoint)))
    });
    for (service, server) in servers.iter().flatten() {
        let family = Family::of(&service.endpoint.ip());
        let node = SocketAddr::new(n2.address(family), service.node_port);
        doomed.push(Download::start(&outside, server, node));
        doomed.push(Download::start(&a, server, service.cluster));
    }
    assert_all_flow(&doomed);

    let rules = json!({
        "types": ["Ingress"],
        "ingress": [
            {"action": "Deny", "protocol": "TCP", "destination": {"ports": [8080]}},
            {"action": "Deny", "protocol": "UDP", "destination": {"ports": [8080]}},
            {"action": "Allow"},
        ],
    });
    apply_policy(&mesh, "shop", rules);

    assert_all_stop(&mut doomed);
}

#[test]
fn a_stream_from_the_host_itself_ends_when_its_pod_may_not_speak_to_it() {
    let mesh = mesh();
    mesh.set("defaultEndpointToHostAction", json!("Accept"));
    mesh.ask_for(Encryption::Off);
    mesh.wait();
    let (n1, t) = (mesh.node("n1"), mesh.pod("shop/t"));
    let mut doomed = downloads(&t, &n1);
    assert_all_flow(&doomed);

    let rule = json!({"types": ["Egress"], "egress": [{"action": "Deny"}]});
    apply_policy(&mesh, "shop", rule);

    assert_all_stop(&mut doomed);
}

/// While clients come, one every few milliseconds, the policy changes to and fro: who was let in by the old one at
/// the last moment is seen all the same.
#[test]
fn who_comes_while_policy_changes_is_not_forgotten() {
    const CLIENTS: usize = 2_000;
    let mesh = mesh();
    let [a, s, t] = ["default/a", "shop/s", "shop/t"].map(|name| mesh.pod(name));
    let servers = [&s, &t].map(|pod| {
        let address = SocketAddr::new(pod.address(Family::V4), 0);
        Server::start(pod, Protocol::Udp, address)
    });

    for _ in 0..3 {
        let crowds = servers
            .each_ref()
            .map(|server| Crowd::gather(&a, server, CLIENTS));
        for crowd in &crowds {
            await_fact("some are let in", PATIENCE, || match crowd.received() {
                0 => Err("nobody yet".to_owned()),
                _ => Ok(()),
            });
        }
        rule_shop(&mesh, "Deny");
        let asked = crowds.each_ref().map(Crowd::size);
        for (crowd, asked) in crowds.iter().zip(asked) {
            let taken = crowd.await_silence(PATIENCE);
            println!("{asked} had come; silence after {taken:?}");
            assert!(asked > 0 && asked < CLIENTS as u64, "nobody came meanwhile");
        }
        rule_shop(&mesh, "Allow");
    }
}

/// Policy of the host itself, by the interface that leads to the client.
#[test]
fn a_stream_from_a_host_ends_when_its_endpoint_s_policy_changes() {
    let mesh = mesh();
    let (n1, n2, outside) = (mesh.node("n1"), mesh.node("n2"), mesh.outside("client"));
    let rule_n2 = |ingress: Vec<Value>| {
        let policy = json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "GlobalNetworkPolicy",
            "metadata": {"name": "guard"},
            "spec": {
                "selector": "role == 'guarded'",
                "types": ["Ingress", "Egress"],
                "ingress": ingress,
                "egress": [{"action": "Allow"}],
            },
        });
        mesh.apply(&policy.to_string());
    };
    rule_n2(vec![json!({"action": "Allow"})]);
    let endpoint = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "HostEndpoint",
        "metadata": {"name": "n2-eth0", "labels": {"role": "guarded"}},
        "spec": {"node": "n2", "interfaceName": "eth0"},
    });
    mesh.apply(&endpoint.to_string());
    mesh.wait();
    let (mut doomed, kept) = (downloads(&outside, &n2), downloads(&n1, &n2));
    assert_all_flow(&doomed);
    assert_all_flow(&kept);

    let denied = FAMILIES.map(|family| {
        let length = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let net = format!("{}/{length}", outside.address(family));
        json!({"action": "Deny", "source": {"nets": [net]}})
    });
    rule_n2([&denied[..], &[json!({"action": "Allow"})]].concat());

    assert_all_stop(&mut doomed);
    assert_all_flow(&kept);
}

#[test]
fn where_connections_are_to_be_kept_they_go_on() {
    let mesh = mesh();
    set_established_connections(&mesh, "Keep");
    mesh.wait();
    let [a, s] = ["default/a", "shop/s"].map(|name| mesh.pod(name));
    let mut kept = downloads(&a, &s);

    rule_shop(&mesh, "Deny");
    mesh.wait();
    for server in Server::all(&s) {
        let late = Download::attempt(&a, &server, server.address());
        assert!(late.is_none(), "what is new is denied");
    }
    assert_all_flow(&kept);

    set_established_connections(&mesh, "Recheck");
    assert_all_stop(&mut kept);
    set_established_connections(&mesh, "Keep");
    assert_all_flow(&kept);
}

/// An agent that died leaves its tables to whoever flushes them. Somebody else, kube-proxy say, has the kernel track
/// connections still.
#[test]
fn what_passed_while_the_tables_were_gone_is_cut() {
    let mesh = mesh();
    let n2 = mesh.node("n2");
    let [a, s] = ["default/a", "shop/s"].map(|name| mesh.pod(name));
    let tracks = "table inet other { chain forwarded { type filter hook forward priority 5; ct state new counter; }; }";
    n2.run("nft", &[tracks]);
    rule_shop(&mesh, "Deny");
    mesh.wait();
    n2.kill(Service::Agent);
    n2.run("nft", &["delete", "table", "inet", "meshd"]);
    let mut passed = downloads(&a, &s);
    assert_all_flow(&passed);

    n2.restart(Service::Agent);

    assert_all_stop(&mut passed);
}

/// A hundred thousand connections of a pod; what is told is a figure, what is asserted that they are cut.
#[test]
fn a_hundred_thousand_connections_are_no_obstacle() {
    const COUNT: u32 = 100_000;
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let [a, s, t] = ["default/a", "shop/s", "shop/t"].map(|name| mesh.pod(name));
    // They may stay for as long as the story takes, and none of them is a stream's.
    n1.run(
        "sysctl",
        &["-w", "net.netfilter.nf_conntrack_udp_timeout=600"],
    );
    sprinkle(&a, &t, COUNT);
    let mut doomed = downloads(&a, &t);
    doomed.extend(downloads(&a, &s));
    assert_all_flow(&doomed);
    let before = metric(&n1, "meshd_connections_revoked_total");
    assert!(passing(&n1, &t) >= COUNT as usize, "they are there");

    rule_shop(&mesh, "Deny");
    let changed = Instant::now();

    let longest = doomed
        .iter()
        .map(|download| download.await_silence(PATIENCE));
    let longest = longest.max().unwrap();
    await_fact("every connection is judged", PATIENCE, || {
        let revoked = metric(&n1, "meshd_connections_revoked_total") - before;
        if revoked >= f64::from(COUNT) {
            Ok(())
        } else {
            Err(format!("{revoked}"))
        }
    });
    let all = changed.elapsed();
    assert_eq!(passing(&n1, &t), 0, "none of them passes");
    let checked = metric(&n1, "meshd_connections_checked");
    let seconds = metric(&n1, "meshd_connection_recheck_seconds");
    println!(
        "{checked} connections in {seconds:.3} s, all cut {all:?} behind the change; the last stream was cut after {longest:?}"
    );
    assert!(checked >= f64::from(COUNT), "{checked}");
    Download::assert_all_dead(&mut doomed);
}
