//! A pod with `hostNetwork: true` is its node: no pod's policy is about it, and hosts' policy is.
//!
//! ```text
//! ┌─ n1 ────────────────────┐   ┌─ n2 ────────────┐   ┌─ client ────┐
//! │ default/a               │   │ shop/c          │───│ no member   │    one LAN, both families
//! │ exporter (hostNetwork)  │───│                 │   │             │
//! └─────────────────────────┘   └─────────────────┘   └─────────────┘
//!   namespace monitoring, of which the exporter would be: everything denied
//! ```
//!
//! Like Calico, the mesh knows no endpoint of such a pod: what stands for it here is a program of the node's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;

use lab::{Echo, End, Family, Node, Outside, Pod};
use netns::{Ask, Encryption, Mesh, lan, tunnel_addresses};
use serde_json::{Value, json};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [u8; 2] = [6, 17];

/// Where the exporter listens, and the pods.
const PORT: u16 = 9100;

struct Town {
    mesh: Mesh,
    n1: Node,
    n2: Node,
    a: Pod,
    c: Pod,
    client: Outside,
    _echoes: Vec<Echo>,
}

impl Town {
    fn new() -> Self {
        let topology =
            lan(&[("n1", "default/a"), ("n2", "shop/c")]).outside("client", &["lan"], &[]);
        let mesh = Mesh::of(topology.document());
        let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name));
        let [a, c] = ["default/a", "shop/c"].map(|name| mesh.pod(name));
        let listens = ["TCP/9100", "UDP/9100"].map(|text| text.parse().unwrap());
        let echo = |end: &dyn End| Echo::start(&end.netns(), &end.addresses(), &listens).unwrap();
        let echoes = vec![echo(&n1), echo(&a), echo(&c)];
        mesh.enable();
        deny_namespace(&mesh, "monitoring");
        mesh.wait();
        Self {
            client: mesh.outside("client"),
            mesh,
            n1,
            n2,
            a,
            c,
            _echoes: echoes,
        }
    }

    /// Who reaches the exporter (of client, n2, the pod of n2, the pod of n1), and whom it reaches (the pods of n1
    /// and n2).
    fn assert(&self, state: &str, reached_by: [bool; 4], reaches: [bool; 2]) {
        self.mesh.wait();
        let from: [&dyn End; 4] = [&self.client, &self.n2, &self.c, &self.a];
        let to: [&dyn End; 2] = [&self.a, &self.c];
        let comes = from
            .iter()
            .zip(reached_by)
            .map(|(from, passes)| asks(*from, &self.n1, passes));
        let goes = to
            .iter()
            .zip(reaches)
            .map(|(to, passes)| asks(&self.n1, *to, passes));
        Ask::all(state, &comes.chain(goes).flatten().collect::<Vec<_>>());
        self.mesh.assert_no_plaintext();
    }

    /// Has a setting of Felix stand.
    fn set(&self, field: &str, value: &Value) {
        self.mesh.set(field, value.clone());
        self.mesh.ask_for(Encryption::On);
    }
}

fn asks(from: &dyn End, to: &dyn End, passes: bool) -> Vec<Ask> {
    let sockets = FAMILIES.map(|family| SocketAddr::new(to.address(family), PORT));
    let each = sockets
        .iter()
        .flat_map(|socket| PROTOCOLS.map(|protocol| (*socket, protocol)));
    each.map(|(socket, protocol)| Ask::new(from, protocol, socket, passes))
        .collect()
}

fn deny_namespace(mesh: &Mesh, name: &str) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "nothing", "namespace": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    });
    mesh.apply(&namespace.to_string());
    mesh.apply(&policy.to_string());
}

fn calico(kind: &str, metadata: &Value, spec: &Value) -> String {
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
        .to_string()
}

fn nets<'a>(addresses: impl IntoIterator<Item = &'a std::net::IpAddr>) -> [Vec<String>; 2] {
    let nets = addresses.into_iter().map(|address| match address {
        std::net::IpAddr::V4(_) => format!("{address}/32"),
        std::net::IpAddr::V6(_) => format!("{address}/128"),
    });
    let (v6, v4) = nets.partition(|net| net.contains(':'));
    [v4, v6]
}

#[test]
fn a_pod_of_the_host_s_network_is_under_no_pod_s_policy() {
    let town = Town::new();
    // Calico's default: a pod does not reach its own node, whatever runs there.
    town.assert("by default", [true, true, true, false], [true, true]);

    town.set("defaultEndpointToHostAction", &json!("Accept"));
    town.assert("pods may speak to their node", [true; 4], [true, true]);
    let closed = json!({"selector": "all()", "types": ["Egress"], "egress": [{"action": "Deny"}]});
    town.mesh.apply(&calico(
        "NetworkPolicy",
        &json!({"name": "rule", "namespace": "default"}),
        &closed,
    ));
    town.assert("the pod may not", [true, true, true, false], [true, true]);
}

#[test]
fn a_pod_of_the_host_s_network_is_its_node_to_those_it_speaks_to() {
    let town = Town::new();
    town.set("defaultEndpointToHostAction", &json!("Accept"));
    // A namespace is a namespace of pods: the exporter is in none. Its own node's pods take it all the same.
    let monitored = json!([{"action": "Allow", "source": {"namespaceSelector": "kubernetes.io/metadata.name == 'monitoring'"}}]);
    let pods = |ingress: &Value| {
        let spec = json!({"selector": "all()", "types": ["Ingress"], "ingress": ingress});
        for namespace in ["default", "shop"] {
            let metadata = json!({"name": "rule", "namespace": namespace});
            town.mesh.apply(&calico("NetworkPolicy", &metadata, &spec));
        }
    };
    pods(&monitored);
    town.assert("pods take its namespace", [true; 4], [true, false]);

    let tunnels = tunnel_addresses(&town.n1);
    let addresses = town.n1.addresses();
    let rules = nets(tunnels.iter().chain(&addresses))
        .map(|nets| json!({"action": "Allow", "source": {"nets": nets}}));
    pods(&json!(rules));
    town.assert("pods take its node", [true; 4], [true, true]);
}

#[test]
fn a_pod_of_the_host_s_network_is_under_its_node_s_policy() {
    let town = Town::new();
    let metadata = json!({"name": "n1", "labels": {"host": "n1"}});
    let endpoint = json!({"node": "n1", "interfaceName": "eth0"});
    town.mesh
        .apply(&calico("HostEndpoint", &metadata, &endpoint));
    // The tunnel is another interface: what comes by it is decrypted already, and of members alone.
    town.assert(
        "the host is closed",
        [false, false, true, false],
        [true, true],
    );

    let clients = nets(&town.client.addresses());
    let rule = |(nets, protocol): (&Vec<String>, &str)| json!({"action": "Allow", "protocol": protocol, "source": {"nets": nets}, "destination": {"ports": [PORT]}});
    let rules = clients
        .iter()
        .flat_map(|nets| ["TCP", "UDP"].map(|protocol| rule((nets, protocol))));
    let spec = json!({"selector": "host == 'n1'", "types": ["Ingress"], "ingress": rules.collect::<Vec<_>>()});
    town.mesh.apply(&calico(
        "GlobalNetworkPolicy",
        &json!({"name": "exporter"}),
        &spec,
    ));
    town.assert("the client may", [true, false, true, false], [true, true]);
}
