//! Kubernetes services, by kube-proxy's rules, while encryption is switched on and off.
//!
//! ```text
//! ┌─ n1 ──────────┐   ┌─ n2 ──────────┐   ┌─ n3 ──────────┐   ┌─ client ────┐
//! │ default/a     │───│ default/c     │───│ default/d     │───│ no member   │    one LAN, both families
//! │ :30080 :30081 │   │ :30080 :30081 │   │ TCP/80 UDP/80 │   │ 192.0.2.5   │
//! └───────────────┘   └───────────────┘   └───────────────┘   └─────────────┘
//!   ClusterIP 10.96.0.10:80 ─▶ default/d      NodePort 30080 ─▶ default/d (Cluster)
//!   NodePort 30081 on n2 ─▶ default/c (Local)
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{IpAddr, SocketAddr};

use lab::{Echo, End, Family, Lab, Stream, Topology, spec::Protocol};
use netns::{
    Mesh, Traffic, lan,
    service::{self, Service},
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn mesh_with_a_client() -> Mesh {
    let topology = lan(&[
        ("n1", "default/a"),
        ("n2", "default/c"),
        ("n3", "default/d"),
    ]);
    Mesh::of(topology.outside("client", &["lan"], &[]).document())
}

/// An echo server on port 80 of a pod, both protocols and families.
fn serve(mesh: &Mesh, pod: &str) -> Echo {
    let pod = mesh.pod(pod);
    let listens = ["TCP/80", "UDP/80"].map(|text| text.parse().unwrap());
    Echo::start(&pod.netns(), &pod.addresses(), &listens).unwrap()
}

fn cluster_address(family: Family) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => "10.96.0.10".parse().unwrap(),
        Family::V6 => "fd00:96::10".parse().unwrap(),
    };
    SocketAddr::new(address, 80)
}

/// Loads the services on every node.
fn load(mesh: &Mesh) {
    let pods = [("default/d", 30080, service::Traffic::Cluster)];
    let local = ("default/c", 30081, service::Traffic::Local);
    for node in mesh.members() {
        let mut services = Vec::new();
        for (number, (pod, node_port, traffic)) in pods.into_iter().chain([local]).enumerate() {
            for family in [Family::V4, Family::V6] {
                let mut cluster = cluster_address(family);
                cluster.set_port(80 + u16::try_from(number).unwrap());
                let endpoint = SocketAddr::new(mesh.pod(pod).address(family), 80);
                services.push(Service {
                    cluster,
                    node_port,
                    endpoint,
                    traffic,
                });
            }
        }
        service::load(&node, &services);
    }
}

fn started(stream: Result<Stream, lab::StreamError>, what: &str) -> Stream {
    stream.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Before, during and after: nothing breaks. What was masqueraded before our chain stood there would be
/// the one exception; it stands from the agent's start.
fn nothing_breaks(mesh: &Mesh, traffic: &Traffic) {
    traffic.forget();
    traffic.assert_unbroken();
    mesh.enable();
    traffic.assert_unbroken();
    mesh.assert_no_plaintext();
    mesh.disable();
    traffic.assert_unbroken();
}

#[test]
fn a_pod_reaches_a_remote_pod_by_another_node_s_port() {
    let mesh = mesh_with_a_client();
    let _echo = serve(&mesh, "default/d");
    load(&mesh);
    let mut traffic = Traffic::none(&mesh);
    for family in [Family::V4, Family::V6] {
        for protocol in PROTOCOLS {
            let to = SocketAddr::new(mesh.node("n2").address(family), 30080);
            let stream = started(mesh.pod("default/a").stream_to(protocol, to), "NodePort");
            traffic.add("default/a", "n2:30080", protocol, stream);
        }
    }
    nothing_breaks(&mesh, &traffic);
}

#[test]
fn a_client_from_outside_reaches_a_remote_pod_by_a_node_s_port() {
    let mesh = mesh_with_a_client();
    let _echo = serve(&mesh, "default/d");
    load(&mesh);
    let mut traffic = Traffic::none(&mesh);
    for family in [Family::V4, Family::V6] {
        for protocol in PROTOCOLS {
            let to = SocketAddr::new(mesh.node("n2").address(family), 30080);
            // Between the client and n2 it is plain by nature; between n2 and n3 it is not.
            let stream = mesh.outside("client").stream_plain_to(protocol, to);
            traffic.add("client", "n2:30080", protocol, started(stream, "NodePort"));
        }
    }
    nothing_breaks(&mesh, &traffic);
}

#[test]
fn a_pod_and_a_host_reach_a_remote_pod_by_its_service_s_address() {
    let mesh = mesh_with_a_client();
    let _echo = serve(&mesh, "default/d");
    load(&mesh);
    let mut traffic = Traffic::none(&mesh);
    for family in [Family::V4, Family::V6] {
        for protocol in PROTOCOLS {
            let to = cluster_address(family);
            let stream = started(mesh.pod("default/a").stream_to(protocol, to), "ClusterIP");
            traffic.add("default/a", "ClusterIP", protocol, stream);
        }
    }
    nothing_breaks(&mesh, &traffic);
}

#[test]
fn a_member_s_host_reaches_a_pod_that_keeps_the_client_s_address() {
    let mesh = mesh_with_a_client();
    let _echo = serve(&mesh, "default/c");
    load(&mesh);
    let mut traffic = Traffic::none(&mesh);
    for family in [Family::V4, Family::V6] {
        for protocol in PROTOCOLS {
            let to = SocketAddr::new(mesh.node("n2").address(family), 30081);
            // Host to host stays outside until host encryption is asked for.
            let stream = mesh.node("n1").stream_plain_to(protocol, to);
            traffic.add("n1", "n2:30081", protocol, started(stream, "NodePort"));
        }
    }
    nothing_breaks(&mesh, &traffic);
}

/// ```text
/// default/a ─ n1 ═╤═ one ═╤═ far (203.0.113.5)       the way to `far` moves from eth0 to eth1
///                 ╘═ two ═╛
/// ```
fn resets_when_the_way_changes(rule: &str) -> u32 {
    let lab = Topology::new()
        .plain()
        .network("one", &["192.0.2.0/24"])
        .network("two", &["198.51.100.0/24"])
        .node("n1", &["one", "two"])
        .pod("default/a")
        .node("far", &["one", "two"])
        .up();
    let (n1, far) = (lab.node("n1"), lab.node("far"));
    far.run("ip", &["address", "add", "203.0.113.5/32", "dev", "lo"]);
    route_to_far(&lab, "192.0.2.2", "eth0");
    let nat = format!(
        "table ip test {{
           chain post {{
             type nat hook postrouting priority 100
             ip saddr {} ip daddr 203.0.113.5 {rule}
           }}
         }}",
        n1.pod().address(Family::V4)
    );
    n1.run("nft", &[&nat]);
    let target: IpAddr = "203.0.113.5".parse().unwrap();
    let stream = n1.pod().stream_at(&far, Protocol::Tcp, target);
    stream.assert_carries(20);
    route_to_far(&lab, "198.51.100.2", "eth1");
    stream.assert_carries(20);
    stream.report().resets
}

fn route_to_far(lab: &Lab, via: &str, device: &str) {
    let arguments = [
        "route",
        "replace",
        "203.0.113.5/32",
        "via",
        via,
        "dev",
        device,
    ];
    lab.node("n1").run("ip", &arguments);
}

#[test]
fn the_kernel_resets_a_masqueraded_connection_whose_way_changes() {
    assert_eq!(resets_when_the_way_changes("masquerade"), 1);
}

#[test]
fn the_kernel_does_not_reset_a_connection_that_is_translated_to_an_address() {
    assert_eq!(resets_when_the_way_changes("snat to 192.0.2.1"), 0);
}
