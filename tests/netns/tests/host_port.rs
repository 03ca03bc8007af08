//! A host's ports and floating addresses that lead to a container, and its translated packets that leave.
//!
//! ```text
//! ┌─ n1 ───────────────────────┐   ┌─ n2 ────────────┐   ┌─ client ────┐
//! │ default/a                  │   │ default/c       │   │ no member   │    one LAN, both families, encrypted
//! │ web ◀── 8080 of n1         │───│                 │───│             │
//! └────────────────────────────┘   └─────────────────┘   └─────────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use lab::{Echo, End, Family, Node, Outside, Pod, Receiver};
use netns::{Ask, Container, Encryption, Mesh, lan};
use serde_json::{Value, json};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [u8; 2] = [6, 17];

/// The host's port, and the container's.
const PORT: u16 = 8080;
const TARGET: u16 = 9090;

struct Town {
    mesh: Mesh,
    n1: Node,
    n2: Node,
    a: Pod,
    c: Pod,
    client: Outside,
}

impl Town {
    fn new() -> Self {
        let topology =
            lan(&[("n1", "default/a"), ("n2", "default/c")]).outside("client", &["lan"], &[]);
        let mesh = Mesh::of(topology.document());
        mesh.enable();
        let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name));
        let [a, c] = ["default/a", "default/c"].map(|name| mesh.pod(name));
        Self {
            client: mesh.outside("client"),
            mesh,
            n1,
            n2,
            a,
            c,
        }
    }

    fn web(&self) -> Container {
        Container::new(&self.mesh, &self.n1, "web")
    }

    /// Everybody who may ask for the port: from elsewhere, from the mesh, from the host, and the container itself.
    fn askers<'a>(&'a self, web: &'a Container) -> [&'a dyn End; 6] {
        [&self.client, &self.n2, &self.c, &self.a, &self.n1, web]
    }
}

fn network(ports: &Value) -> Value {
    let mut network = Container::network();
    network["runtimeConfig"] = json!({ "portMappings": ports });
    network
}

fn both_protocols() -> Value {
    let mapping =
        |protocol| json!({"hostPort": PORT, "containerPort": TARGET, "protocol": protocol});
    json!([mapping("tcp"), mapping("UDP")])
}

fn echo(web: &Container) -> Echo {
    let listens = ["TCP/9090", "UDP/9090"].map(|text| text.parse().unwrap());
    Echo::start(&web.netns(), &web.addresses(), &listens).unwrap()
}

fn asks(from: &dyn End, addresses: impl IntoIterator<Item = IpAddr>, passes: bool) -> Vec<Ask> {
    let sockets = addresses
        .into_iter()
        .map(|address| SocketAddr::new(address, PORT));
    let each = sockets.flat_map(|socket| PROTOCOLS.map(|protocol| (socket, protocol)));
    each.map(|(socket, protocol)| Ask::new(from, protocol, socket, passes))
        .collect()
}

#[test]
fn a_hosts_port_leads_to_its_container_from_everywhere() {
    let town = Town::new();
    let mut web = town.web();
    web.add_to(&network(&both_protocols()));
    let _echo = echo(&web);
    let own = FAMILIES.map(|family| town.n1.address(family));

    let all: Vec<Ask> = town
        .askers(&web)
        .iter()
        .flat_map(|from| asks(*from, own, true))
        .collect();
    Ask::all("both families, both protocols", &all);
    Ask::all(
        "the host itself at its loopback",
        &asks(&town.n1, [Ipv4Addr::LOCALHOST.into()], true),
    );
    town.mesh.assert_no_plaintext();

    let mut other = Container::new(&town.mesh, &town.n1, "other");
    let (code, why) = other.refused(&network(&both_protocols()));
    assert!(code == 100 && why.contains("shop/web"), "{why}");
    let elsewhere = json!([{"hostPort": PORT, "containerPort": 1, "protocol": "sctp"}]);
    other.add_to(&network(&elsewhere));
    other.remove();

    web.remove();
    Ask::all(
        "the port is the host's again",
        &asks(&town.client, own, false),
    );
    let rules = town.n1.run("nft", &["list", "table", "inet", "meshd"]);
    assert!(!rules.contains("hostport"), "{rules}");
}

#[test]
fn a_port_of_one_address_leads_nowhere_from_another() {
    let town = Town::new();
    let mut web = town.web();
    let address = town.n1.address(Family::V4);
    let mapping = json!([{
        "hostPort": PORT, "containerPort": TARGET, "protocol": "tcp", "hostIP": address.to_string(),
    }]);
    web.add_to(&network(&mapping));
    let _echo = echo(&web);
    let ask = |to: IpAddr, passes| Ask::new(&town.client, 6, SocketAddr::new(to, PORT), passes);

    Ask::all(
        "one address alone",
        &[ask(address, true), ask(town.n1.address(Family::V6), false)],
    );
    web.remove();
}

#[test]
fn a_port_of_sctp_leads_there_too() {
    let town = Town::new();
    let mut web = town.web();
    let mapping = json!([{"hostPort": PORT, "containerPort": TARGET, "protocol": "sctp"}]);
    web.add_to(&network(&mapping));
    for family in FAMILIES {
        let target = SocketAddr::new(web.address(family), TARGET);
        let _receiver = Receiver::start(&web.netns(), target, 132).unwrap();
        let to = SocketAddr::new(town.n1.address(family), PORT);
        Ask::all("by SCTP", &[Ask::new(&town.client, 132, to, true)]);
    }
    web.remove();
}

#[test]
fn policy_sees_the_container_behind_the_port() {
    let town = Town::new();
    let mut web = town.web();
    web.add_to(&network(&both_protocols()));
    let _echo = echo(&web);
    let own = FAMILIES.map(|family| town.n1.address(family));
    let policy = |ports: &Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "policyTypes": ["Ingress"],
                "ingress": ports,
            },
        })
        .to_string()
    };
    let port =
        |number: u16| json!([{"ports": [{"port": number}, {"port": number, "protocol": "UDP"}]}]);

    town.mesh.apply(&policy(&port(TARGET)));
    town.mesh.wait();
    Ask::all(
        "the container's port is open",
        &asks(&town.client, own, true),
    );
    town.mesh.apply(&policy(&port(PORT)));
    town.mesh.wait();
    Ask::all(
        "the host's is not what counts",
        &asks(&town.client, own, false),
    );
    web.remove();
}

#[test]
fn a_port_that_the_mesh_needs_leads_to_no_container() {
    let town = Town::new();
    let web = town.web();
    let tunnel = json!([{"hostPort": 51820, "containerPort": 1, "protocol": "udp"}]);

    let (code, why) = web.refused(&network(&tunnel));

    assert!(code == 100 && why.contains("the tunnel's"), "{why}");
    web.destroy();
}

#[test]
fn a_floating_address_leads_to_its_container_while_the_switch_is_on() {
    let town = Town::new();
    let said =
        json!({"cni.projectcalico.org/floatingIPs": r#"["198.51.100.7", "2001:db8:ff::7"]"#});
    let mut web = Container::annotated(&town.mesh, &town.n1, "web", &said);
    let (_, why) = web.refused(&Container::network());
    assert!(why.contains("feature_control.floating_ips"), "{why}");
    let mut network = Container::network();
    network["feature_control"] = json!({"floating_ips": true});
    web.add_to(&network);
    let listens = ["TCP/8080", "UDP/8080"].map(|text| text.parse().unwrap());
    let _echo = Echo::start(&web.netns(), &web.addresses(), &listens).unwrap();
    let floating = ["198.51.100.7", "2001:db8:ff::7"].map(|text| text.parse().unwrap());
    Ask::all("switched off", &asks(&town.a, floating, false));

    town.mesh.set("floatingIPs", json!("Enabled"));
    town.mesh.ask_for(Encryption::On);
    town.mesh.wait();

    for from in [&town.a as &dyn End, &town.n1, &web] {
        Ask::all("switched on", &asks(from, floating, true));
    }
    web.remove();
}

/// Who the client sees when the container speaks to it by UDP, and from which port.
fn seen(town: &Town, web: &Container, family: Family) -> SocketAddr {
    let to = town.client.address(family);
    let receiver = town
        .client
        .netns()
        .run(|| UdpSocket::bind((to, 0)))
        .unwrap()
        .unwrap();
    receiver
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    let target = receiver.local_addr().unwrap();
    let own = web.address(family);
    web.netns()
        .run(|| {
            let sender = UdpSocket::bind((own, 0)).unwrap();
            sender.send_to(b"who is it", target).unwrap();
        })
        .unwrap();
    receiver.recv_from(&mut [0; 16]).unwrap().1
}

#[test]
fn what_leaves_the_mesh_bears_the_address_and_ports_of_the_settings() {
    let town = Town::new();
    let mut web = town.web();
    web.add();
    let own = |family| town.n1.address(family);
    for family in FAMILIES {
        assert_eq!(seen(&town, &web, family).ip(), own(family));
    }

    let second = "192.0.2.201";
    let device = town.n1.run(
        "ip",
        &[
            "-o",
            "-4",
            "route",
            "get",
            &town.client.address(Family::V4).to_string(),
        ],
    );
    let device = device
        .split(" dev ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    town.n1.run(
        "ip",
        &["addr", "add", &format!("{second}/24"), "dev", device],
    );
    town.mesh.set("natOutgoingAddress", json!(second));
    town.mesh.set("natPortRange", json!("40000:40009"));
    town.mesh.ask_for(Encryption::On);
    town.mesh.wait();

    let (v4, v6) = (seen(&town, &web, Family::V4), seen(&town, &web, Family::V6));
    assert_eq!(v4.ip().to_string(), second);
    assert_eq!(v6.ip(), own(Family::V6));
    for heard in [v4, v6] {
        assert!((40000..=40009).contains(&heard.port()), "{heard}");
    }

    town.mesh
        .set("iptablesNATOutgoingInterfaceFilter", json!("nothere+"));
    town.mesh.ask_for(Encryption::On);
    town.mesh.wait();
    // Untranslated, the container's own address is what the client sees: the LAN knows no way back, but hears.
    assert_eq!(seen(&town, &web, Family::V4).ip(), web.address(Family::V4));
    web.remove();
}

#[test]
fn packets_to_members_and_pods_are_not_translated() {
    let town = Town::new();
    let mut web = town.web();
    web.add();
    for (to, family) in [(&town.c as &dyn End, Family::V4), (&town.n2, Family::V6)] {
        let (address, own) = (to.address(family), web.address(family));
        let receiver = to
            .netns()
            .run(|| UdpSocket::bind((address, 7)))
            .unwrap()
            .unwrap();
        receiver
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        web.netns()
            .run(|| {
                let sender = UdpSocket::bind((own, 0)).unwrap();
                sender.send_to(b"who is it", (address, 7)).unwrap();
            })
            .unwrap();
        assert_eq!(receiver.recv_from(&mut [0; 16]).unwrap().1.ip(), own);
    }
    web.remove();
}
