//! Nodes change from the kernel's WireGuard to meshwire and back, and nobody notices.
//!
//! ```text
//! ┌─ n1 ──────────┐   ┌─ n2 ──────────┐   ┌─ n3 ──────────┐   ┌─ client ────┐
//! │ default/a     │───│ default/c     │───│ default/d     │───│ no member   │    one LAN, both families
//! │ :30080        │   │ :30080        │   │ TCP/80 UDP/80 │   │ 192.0.2.5   │
//! └───────────────┘   └───────────────┘   └───────────────┘   └─────────────┘
//!   client ─▶ n2:30080 ─▶ default/d
//! ```
//!
//! The device goes and comes with its name, key and port; what stood on it follows in the same pass. Meanwhile the
//! guard and the `unreachable` routes stand: the sniffer sees no plaintext, and a sender is told to try again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::print_stdout,
    reason = "the gaps of each change are figures that people read"
)]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use kernel::{Carrier, Need, await_carrier, carrier, choose, mixed, need};
use lab::{Echo, End, Family, spec::Protocol};
use netns::{
    Mesh, Traffic, lan,
    service::{self, Service},
};

/// Time between two records of a stream.
const PACE: Duration = Duration::from_millis(200);

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn mesh_with_a_client() -> Mesh {
    let topology = lan(&[
        ("n1", "default/a"),
        ("n2", "default/c"),
        ("n3", "default/d"),
    ]);
    Mesh::of(topology.outside("client", &["lan"], &[]).document())
}

/// A service on port 30080 of every node, whose endpoint is a pod.
fn offer(mesh: &Mesh, pod: &str) -> Echo {
    let pod = mesh.pod(pod);
    let services = [Family::V4, Family::V6].map(|family| {
        let cluster: IpAddr = match family {
            Family::V4 => "10.96.0.10".parse().unwrap(),
            Family::V6 => "fd00:96::10".parse().unwrap(),
        };
        Service {
            cluster: SocketAddr::new(cluster, 80),
            node_port: 30080,
            endpoint: SocketAddr::new(pod.address(family), 80),
            traffic: service::Traffic::Cluster,
        }
    });
    for node in mesh.members() {
        service::load(&node, &services);
    }
    let listens = ["TCP/80", "UDP/80"].map(|text| text.parse().unwrap());
    Echo::start(&pod.netns(), &pod.addresses(), &listens).unwrap()
}

/// Streams between pods and with a node, and through n2's port from a client outside: few and slow, so that the guest
/// of one CPU is not busy with them alone.
fn streams(mesh: &Mesh) -> Traffic {
    let mut traffic = Traffic::none(mesh);
    mesh.pace(PACE);
    let [a, c, d] = ["default/a", "default/c", "default/d"].map(|name| mesh.pod(name));
    traffic.add_pod_to_pod(&a, &c);
    traffic.add_pod_and_node(&d, &mesh.node("n1"));
    let n2 = mesh.node("n2");
    for protocol in PROTOCOLS {
        let to = SocketAddr::new(n2.address(Family::V4), 30080);
        // Between the client and n2 it is plain by nature; between n2 and n3 it is not.
        let stream = mesh.outside("client").stream_plain_to(protocol, to);
        traffic.add("client", "n2:30080", protocol, stream.unwrap());
    }
    traffic
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn nodes_change_their_implementation_and_no_connection_breaks() {
    need(&[Need::WireGuard]);
    let mesh = mesh_with_a_client();
    let _echo = offer(&mesh, "default/d");
    mesh.enable();
    let traffic = streams(&mesh);
    traffic.forget();
    traffic.assert_alive();

    for (backend, wanted) in [
        ("Userspace", Carrier::Meshwire),
        ("Kernel", Carrier::Kernel),
    ] {
        traffic.forget();
        choose(&mesh, backend);
        for node in mesh.members() {
            await_carrier(&node, wanted);
        }
        mesh.await_settled();
        traffic.assert_alive();
        mesh.assert_no_plaintext();
        println!(
            "all to {backend}: {} streams, longest gap {:?}",
            traffic.len(),
            traffic.longest_gap()
        );
    }
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn one_node_changes_and_the_devices_of_the_others_stay() {
    need(&[Need::WireGuard]);
    let mesh = mixed("dual-stack", &["n2"]);
    let mut traffic = Traffic::none(&mesh);
    mesh.pace(PACE);
    let [n1, n2, n3] = ["n1", "n2", "n3"].map(|name| mesh.node(name));
    let index = |node: &lab::Node| node.run("cat", &["/sys/class/net/wireguard.cali/ifindex"]);
    let before = [&n1, &n3].map(index);
    traffic.add_pod_to_pod(&n1.pod(), &n2.pod());
    traffic.add_pod_to_pod(&n2.pod(), &n3.pod());
    traffic.forget();

    choose(&mesh, "Kernel");
    await_carrier(&n2, Carrier::Kernel);
    mesh.await_settled();

    traffic.assert_alive();
    mesh.assert_no_plaintext();
    println!("one to Kernel: longest gap {:?}", traffic.longest_gap());
    assert_eq!([&n1, &n3].map(index), before);
    choose(&mesh, "Auto");
    mesh.await_settled();
    assert_eq!(
        carrier(&n2),
        Some(Carrier::Meshwire),
        "its own preference holds again"
    );
    traffic.assert_alive();
}
