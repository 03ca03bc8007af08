//! kube-proxy itself beside policy and encryption, in each of its modes.
//!
//! ```text
//! ┌─ n1 ───────────┐   ┌─ n2 ───────────┐   ┌─ client ────┐
//! │ front/a        │═══│ back/c         │───│ no member   │    one LAN, both families
//! │ :30080 :30081  │   │ :30080 :30081  │   │             │
//! └────────────────┘   └────────────────┘   └─────────────┘
//!   far   10.96.0.1:80 :30080 ─▶ back/c:8080    externalTrafficPolicy: Cluster
//!   near  10.96.0.2:80 :30081 ─▶ front/a:8080   externalTrafficPolicy: Local
//! ```
//!
//! TCP, UDP and SCTP; every answer is an echo of the pod itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{net::SocketAddr, time::Duration};

use lab::{End, Family, Node, Outside, Pod, Probe, Receiver};
use netns::{
    Ask, Mesh, await_fact,
    kube_proxy::{KubeProxy, Mode, PORT, Service, TARGET},
    lan,
    service::Traffic,
};
use serde_json::{Value, json};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [(u8, &str); 3] = [(6, "TCP"), (17, "UDP"), (132, "SCTP")];

/// How long a connection may take until it is cut, or goes on.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing must come of what is cut.
const SILENCE: Duration = Duration::from_millis(700);

/// Who asks by which way, in the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// front/a asks the far service: through the tunnel.
    PodFar,
    /// n1 itself asks the far service: through the tunnel.
    HostFar,
    /// front/a asks the near service, which is itself.
    Hairpin,
    /// back/c asks the near service: through the tunnel.
    PodNear,
    /// The client asks n1's port, whose pod is on n2: masqueraded, through the tunnel.
    PortToRemote,
    /// The client asks n2's port, whose pod is there: masqueraded.
    PortToLocal,
    /// The client asks n1's port, whose pod is there and sees who asks.
    PortKept,
    /// The client asks n2's port, which has no pod there.
    PortNobody,
}

const WAYS: [Way; 8] = [
    Way::PodFar,
    Way::HostFar,
    Way::Hairpin,
    Way::PodNear,
    Way::PortToRemote,
    Way::PortToLocal,
    Way::PortKept,
    Way::PortNobody,
];

struct Town {
    _proxies: Vec<KubeProxy>,
    _receivers: Vec<Receiver>,
    mesh: Mesh,
    a: Pod,
    c: Pod,
    client: Outside,
    services: [Service; 2],
}

impl Town {
    fn new(mode: Mode) -> Self {
        let topology = lan(&[("n1", "front/a"), ("n2", "back/c")]).outside("client", &["lan"], &[]);
        let mesh = Mesh::of(topology.document());
        let [a, c] = ["front/a", "back/c"].map(|name| mesh.pod(name));
        let service = |name, number, node_port, traffic, pod: &Pod| Service {
            name,
            number,
            node_port,
            traffic,
            pods: vec![pod.clone()],
        };
        let services = [
            service("far", 1, 30080, Traffic::Cluster, &c),
            service("near", 2, 30081, Traffic::Local, &a),
        ];
        let receivers = [&a, &c].iter().flat_map(|pod| receivers(pod)).collect();
        let start = |node: Node| {
            // Whoever speaks to a service's address needs a route that would take him there.
            node.run("ip", &["route", "add", "10.96.0.0/24", "dev", "eth0"]);
            node.run("ip", &["route", "add", "fd00:96::/112", "dev", "eth0"]);
            KubeProxy::start(&node, mode, &services)
        };
        let proxies = mesh.members().into_iter().map(start).collect();
        mesh.enable();
        Self {
            client: mesh.outside("client"),
            mesh,
            a,
            c,
            services,
            _receivers: receivers,
            _proxies: proxies,
        }
    }

    fn ask(&self, way: Way, family: Family, protocol: u8, passes: bool) -> Ask {
        let [far, near] = &self.services;
        let port = |node: &str, service: &Service| {
            SocketAddr::new(self.mesh.node(node).address(family), service.node_port)
        };
        let n1 = self.mesh.node("n1");
        let (from, to): (&dyn End, SocketAddr) = match way {
            Way::PodFar => (&self.a, far.cluster(family)),
            Way::HostFar => (&n1, far.cluster(family)),
            Way::Hairpin => (&self.a, near.cluster(family)),
            Way::PodNear => (&self.c, near.cluster(family)),
            Way::PortToRemote => (&self.client, port("n1", far)),
            Way::PortToLocal => (&self.client, port("n2", far)),
            Way::PortKept => (&self.client, port("n1", near)),
            Way::PortNobody => (&self.client, port("n2", near)),
        };
        Ask::new(from, protocol, to, passes)
    }

    /// Asserts that these ways pass and all others do not.
    fn assert_open(&self, state: &str, open: &[Way]) {
        self.assert_where(state, |way, _| open.contains(&way));
    }

    /// Asserts that those ways pass by those protocols of which this is true, and no others.
    fn assert_where(&self, state: &str, passes: impl Fn(Way, &str) -> bool) {
        self.mesh.wait();
        let asks = WAYS.iter().flat_map(|way| {
            let passes = &passes;
            FAMILIES.iter().flat_map(move |family| {
                PROTOCOLS
                    .map(|(protocol, name)| self.ask(*way, *family, protocol, passes(*way, name)))
            })
        });
        Ask::all(state, &asks.collect::<Vec<_>>());
        self.mesh.assert_no_plaintext();
    }

    /// Has all pods of a namespace take (`Ingress`) or send (`Egress`) only this.
    fn allow(&self, namespace: &str, direction: &str, port: u16, of: &[&dyn End]) {
        let nets: Vec<String> = of
            .iter()
            .flat_map(|end| end.addresses())
            .map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }))
            .collect();
        let rules = FAMILIES.iter().flat_map(|family| {
            let of_family = |net: &&String| net.contains(':') == (*family == Family::V6);
            let nets: Vec<&String> = nets.iter().filter(of_family).collect();
            PROTOCOLS.map(|(_, protocol)| rule(direction, protocol, port, &nets))
        });
        let mut spec = json!({"types": [direction]});
        spec[direction.to_lowercase()] = rules.collect();
        self.mesh.apply(&policy(namespace, &spec).to_string());
    }

    /// Names a port of back/c, as its container would.
    fn name_port(&self, name: &str, protocol: &str, port: u16) {
        let path = [
            "get",
            "workloadendpoint",
            "n2-k8s-c-eth0",
            "-n",
            "back",
            "-o",
            "json",
        ];
        let mut endpoint: Value = serde_json::from_str(&self.mesh.meshctl(&path)).unwrap();
        endpoint["spec"]["ports"] = json!([{"name": name, "protocol": protocol, "port": port}]);
        self.mesh.apply(&endpoint.to_string());
    }

    fn allow_all(&self, namespace: &str) {
        let all = json!([{"action": "Allow"}]);
        let spec = json!({"types": ["Ingress", "Egress"], "ingress": all, "egress": all});
        self.mesh.apply(&policy(namespace, &spec).to_string());
    }
}

fn rule(direction: &str, protocol: &str, port: u16, nets: &[&String]) -> Value {
    let mut rule =
        json!({"action": "Allow", "protocol": protocol, "destination": {"ports": [port]}});
    if !nets.is_empty() {
        let side = if direction == "Ingress" {
            "source"
        } else {
            "destination"
        };
        rule[side]["nets"] = json!(nets);
    }
    rule
}

fn policy(namespace: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "rule", "namespace": namespace},
        "spec": spec,
    })
}

fn receivers(pod: &Pod) -> Vec<Receiver> {
    let addresses = pod.addresses();
    let sockets = addresses
        .iter()
        .map(|address| SocketAddr::new(*address, TARGET));
    let pairs = sockets.flat_map(|socket| PROTOCOLS.map(|(protocol, _)| (socket, protocol)));
    // One server of TCP takes both families.
    let pairs = pairs.filter(|(socket, protocol)| *protocol != 6 || socket.is_ipv4());
    pairs
        .map(|(socket, protocol)| Receiver::start(&pod.netns(), socket, protocol).unwrap())
        .collect()
}

/// All but the port that leads nowhere.
fn everything() -> Vec<Way> {
    WAYS.into_iter()
        .filter(|way| *way != Way::PortNobody)
        .collect()
}

fn policy_sees_what_is_behind_services(mode: Mode) {
    let town = Town::new(mode);
    let near = [Way::Hairpin, Way::PodNear, Way::PortKept];
    let far = [
        Way::PodFar,
        Way::HostFar,
        Way::PortToRemote,
        Way::PortToLocal,
    ];
    town.assert_open("without policy", &everything());

    town.allow("back", "Ingress", 80, &[]);
    town.assert_open("the far pod takes the service's port", &near);
    town.allow("back", "Ingress", TARGET, &[]);
    let but_near_pod = [&far[..], &near].concat();
    town.assert_open("the far pod takes its own port", &but_near_pod);
    town.allow("back", "Ingress", TARGET, &[&town.a]);
    town.assert_open(
        "the far pod takes the near one",
        &[&near[..], &[Way::PodFar]].concat(),
    );
    town.allow("back", "Ingress", TARGET, &[&town.client]);
    let kept = [&near[..], &[Way::PortToLocal]].concat();
    town.assert_open(
        "the far pod takes the client, which other nodes masquerade",
        &kept,
    );
    town.allow_all("back");

    town.allow("front", "Egress", 80, &[]);
    let from_elsewhere = [
        Way::HostFar,
        Way::PodNear,
        Way::PortToRemote,
        Way::PortToLocal,
        Way::PortKept,
    ];
    town.assert_open("the near pod sends to the service's port", &from_elsewhere);
    town.allow("front", "Egress", TARGET, &[&town.c]);
    let far_pod = [&from_elsewhere[..], &[Way::PodFar]].concat();
    town.assert_open("the near pod sends to the far one", &far_pod);
    town.allow("front", "Ingress", TARGET, &[&town.client]);
    let client = [&far[..], &[Way::PortKept]].concat();
    town.assert_open("the near pod takes the client", &client);
    town.allow("front", "Ingress", TARGET, &[&town.c]);
    town.assert_open(
        "the near pod takes the far one",
        &[&far[..], &[Way::PodNear]].concat(),
    );
}

#[test]
fn policy_sees_what_is_behind_services_of_kube_proxy_s_nftables_mode() {
    policy_sees_what_is_behind_services(Mode::Nftables);
}

#[test]
fn policy_sees_what_is_behind_services_of_kube_proxy_s_iptables_mode() {
    policy_sees_what_is_behind_services(Mode::Iptables);
}

#[test]
fn policy_sees_what_is_behind_services_of_kube_proxy_s_legacy_iptables_mode() {
    policy_sees_what_is_behind_services(Mode::LegacyIptables);
}

#[test]
fn a_port_of_sctp_that_has_a_name_is_told_from_others_behind_a_service() {
    let town = Town::new(Mode::Nftables);
    let far = [
        Way::PodFar,
        Way::HostFar,
        Way::PortToRemote,
        Way::PortToLocal,
    ];
    let but_far = |way, _: &str| way != Way::PortNobody && !far.contains(&way);
    let signal =
        json!([{"action": "Allow", "protocol": "SCTP", "destination": {"ports": ["signal"]}}]);
    let spec = json!({"types": ["Ingress"], "ingress": signal});
    town.mesh.apply(&policy("back", &spec).to_string());
    town.assert_where("nothing has the name", but_far);

    town.name_port("signal", "SCTP", TARGET);
    let with_sctp =
        |way, protocol: &str| way != Way::PortNobody && (protocol == "SCTP" || !far.contains(&way));
    town.assert_where("the port of SCTP has it", with_sctp);
    town.name_port("signal", "TCP", TARGET);
    town.assert_where("the port of TCP has it", but_far);
    town.name_port("signal", "SCTP", PORT);
    town.assert_where("the service's port has it", but_far);
}

/// An association that goes on after the policy changed, whichever end's it was.
#[test]
fn an_association_of_sctp_through_a_service_is_cut_when_policy_changes() {
    let town = Town::new(Mode::Nftables);
    let associations = FAMILIES.map(|family| Probe {
        netns: town.a.netns(),
        from: SocketAddr::new(town.a.address(family), 5_000),
        to: town.services[0].cluster(family),
        protocol: 132,
    });
    let assert_all = |state: &str, pass: bool| {
        await_fact(state, PATIENCE, || {
            let passes = associations.iter().map(|one| one.send(SILENCE).unwrap());
            let passes: Vec<bool> = passes.collect();
            if passes == [pass; 2] {
                Ok(())
            } else {
                Err(format!("{passes:?}"))
            }
        });
    };
    assert_all("they pass", true);
    for (namespace, direction) in [("back", "Ingress"), ("front", "Egress")] {
        town.allow(namespace, direction, PORT, &[]);
        assert_all(&format!("{direction} of {namespace} cuts them"), false);
        town.allow(namespace, direction, TARGET, &[]);
        assert_all(&format!("{direction} of {namespace} lets them go on"), true);
    }
}
