//! Real connections through a router whose ruleset was compiled: what a simulator would take on trust.
//!
//! ```text
//! ┌ pod one/a ┐   ┌ router n1 ───────────────────────┐   ┌ outside ───────┐
//! │ 10.65.0.2 │───│ cali…                       eth0 │───│ 203.0.113.9    │
//! └───────────┘   │           192.0.2.1 2001:db8::1  │   │ 2001:db8:f::9  │
//! ┌ pod one/b ┐   │                                  │   └────────────────┘
//! │ 10.65.0.3 │───│ cali…                            │
//! └───────────┘   └──────────────────────────────────┘
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use model::{
    Kind, ObjectKey, PodName,
    policy::{
        Action, Directions, HostEndpoint, HostInterface, NamedPort, Policy, PortMatch, Profile,
        Protocol, Rule, Side, Stage,
    },
    resource::WorkloadEndpoint,
};
use policy::{
    Cluster, Evaluator, Header, Packet, Place, Verdict,
    cluster::{Interface, Node, Pod, PodNetwork},
    compile::{Scene, compile},
    packet::Ports,
};
use socket2::{Domain, Socket, Type};

use crate::{alone, namespace::Namespace, program, through_kernel};

/// Ports on which everybody listens.
const LISTENING: [u16; 4] = [22, 80, 81, 8080];

/// How long what is allowed may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn real_connections_come_about_where_the_evaluator_says_so() {
    alone(|| {
        let cluster = cluster();
        let places = places(&cluster);
        let namespaces: Vec<Namespace> = places.iter().skip(1).map(|_| Namespace::new()).collect();
        wire(&cluster, &namespaces);
        let scene = Scene::of_node(&cluster, &cluster.nodes[0].name);
        let mut target = dataplane::NftTarget::open(dataplane::Ownership::Shared).unwrap();
        dataplane::NftTarget::set_in_sync(&mut target, true);
        through_kernel(&mut target, &compile(&scene).rows);

        let run = |index: usize, work: Work| match index.checked_sub(1) {
            None => work(),
            Some(index) => namespaces[index].run(work),
        };
        let listeners: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(index, (_, addresses))| run(index, listen(addresses.clone())))
            .collect();
        let probes = probes(&cluster, &places);
        let sockets: Vec<Socket> = probes
            .iter()
            .flat_map(|probe| run(probe.from, connect(probe.source, probe.destination)))
            .collect();

        let is_through = |index: usize| sockets[index].peer_addr().is_ok();
        let deadline = Instant::now() + PATIENCE;
        for (index, probe) in probes.iter().enumerate().filter(|(_, probe)| probe.allowed) {
            while !is_through(index) {
                assert!(
                    Instant::now() < deadline,
                    "{probe:?}\n{}",
                    program("nft", "list ruleset")
                );
                thread::yield_now();
            }
        }
        // What is allowed has come about; what is not has had as long.
        for (index, probe) in probes
            .iter()
            .enumerate()
            .filter(|(_, probe)| !probe.allowed)
        {
            assert!(!is_through(index), "{probe:?}");
        }
        let allowed = probes.iter().filter(|probe| probe.allowed).count();
        let denied = probes.len() - allowed;
        assert!(
            allowed >= 25 && denied >= 25,
            "{allowed} allowed, {denied} denied"
        );
        drop(listeners);
    });
}

/// A connection to be tried.
#[derive(Debug)]
struct Probe {
    from: usize,
    source: SocketAddr,
    destination: SocketAddr,
    allowed: bool,
}

fn probes(cluster: &Cluster, places: &[(Place, Vec<IpAddr>)]) -> Vec<Probe> {
    let evaluator = Evaluator::new(cluster);
    let mut probes = Vec::new();
    for (from, (source_place, sources)) in places.iter().enumerate() {
        for (to, (place, addresses)) in places.iter().enumerate().filter(|(to, _)| *to != from) {
            assert_ne!(from, to);
            for (source, destination) in sources.iter().zip(addresses) {
                for port in LISTENING {
                    let header = Header {
                        source: *source,
                        destination: *destination,
                        protocol: Protocol::TCP,
                        ports: Some(Ports {
                            source: 0,
                            destination: port,
                        }),
                        icmp: None,
                    };
                    let packet = Packet {
                        from: source_place.clone(),
                        to: place.clone(),
                        header,
                        translation: None,
                    };
                    probes.push(Probe {
                        from,
                        source: SocketAddr::new(*source, 0),
                        destination: SocketAddr::new(*destination, port),
                        allowed: evaluator.evaluate(&packet).verdict == Verdict::Allow,
                    });
                }
            }
        }
    }

    probes
}

/// The router first; then the pods, then the world.
fn places(cluster: &Cluster) -> Vec<(Place, Vec<IpAddr>)> {
    let node = &cluster.nodes[0];
    let mut places = vec![(
        Place::Node(node.name.clone()),
        node.interfaces[0].addresses.clone(),
    )];
    let pods = cluster.pods.iter();
    places.extend(pods.map(|pod| (Place::Pod(pod.name.clone()), pod.addresses.clone())));
    places.push((
        Place::Outside,
        vec![address("203.0.113.9"), address("2001:db8:f::9")],
    ));

    places
}

pub(super) fn wire(cluster: &Cluster, namespaces: &[Namespace]) {
    program("ip", "link set lo up");
    for family in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        program("sysctl", &format!("-qw {family}"));
    }
    let (outside, pods) = namespaces.split_last().unwrap();
    for (pod, namespace) in cluster.pods.iter().zip(pods) {
        let host = WorkloadEndpoint::host_interface(&pod.name)
            .as_str()
            .to_owned();
        attach(namespace, &host, &pod.addresses);
        for address in &pod.addresses {
            program("ip", &format!("route add {address} dev {host}"));
        }
    }
    attach(
        outside,
        "eth0",
        &[address("203.0.113.9"), address("2001:db8:f::9")],
    );
    for address in &cluster.nodes[0].interfaces[0].addresses {
        let flag = if address.is_ipv6() { " nodad" } else { "" };
        program("ip", &format!("addr add {address} dev eth0{flag}"));
    }
    program("ip", "route add default dev eth0");
    program("ip", "-6 route add default dev eth0");
}

type Work = Box<dyn FnOnce() -> Vec<Socket> + Send>;

fn listen(addresses: Vec<IpAddr>) -> Work {
    Box::new(move || {
        let sockets = addresses
            .iter()
            .flat_map(|address| LISTENING.map(|port| SocketAddr::new(*address, port)));

        sockets
            .map(|address| {
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
                socket.bind(&address.into()).unwrap();
                socket.listen(128).unwrap();
                socket
            })
            .collect()
    })
}

fn connect(source: SocketAddr, destination: SocketAddr) -> Work {
    Box::new(move || {
        let socket = Socket::new(Domain::for_address(source), Type::STREAM, None).unwrap();
        socket.bind(&source.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        // It is under way, or refused at once; which of them, the other end tells.
        drop(socket.connect(&destination.into()));

        vec![socket]
    })
}

/// Connects it to the calling thread's namespace by a device of this name; everything else is behind that.
pub(super) fn attach(namespace: &Namespace, device: &str, addresses: &[IpAddr]) {
    let thread = &namespace.thread;
    program(
        "ip",
        &format!("link add {device} type veth peer name inside netns {thread}"),
    );
    program("ip", &format!("link set {device} up"));
    program("sysctl", &format!("-qw net.ipv4.conf.{device}.proxy_arp=1"));
    program("ip", &format!("addr add fe80::1/64 dev {device} nodad"));
    let addresses = addresses.to_vec();
    namespace.run(move || {
        program("ip", "link set inside up");
        for address in addresses {
            let flag = if address.is_ipv6() { " nodad" } else { "" };
            program("ip", &format!("addr add {address} dev inside{flag}"));
        }
        program("ip", "route add default dev inside");
        program("ip", "-6 route add default via fe80::1 dev inside");
    });
}

pub(super) fn cluster() -> Cluster {
    let node: model::NodeName = "n1".parse().unwrap();
    let allow_all = |name: &str| Profile {
        name: name.into(),
        ingress: vec![Rule::new(Action::Allow)],
        egress: vec![Rule::new(Action::Allow)],
        labels: BTreeMap::new(),
        invalid: BTreeMap::new(),
    };
    let pod = |name: &str, number: u8| Pod {
        name: PodName {
            namespace: "one".into(),
            name: name.into(),
        },
        node: node.clone(),
        service_account: "default".into(),
        labels: BTreeMap::from([("app".into(), name.into())]),
        addresses: vec![
            address(&format!("10.65.0.{number}")),
            address(&format!("fd00:65::{number}")),
        ],
        ports: vec![NamedPort {
            name: "http".into(),
            protocol: Protocol::TCP,
            port: 8080,
        }],
        network: PodNetwork::Own,
    };

    Cluster {
        nodes: vec![Node {
            name: node.clone(),
            labels: BTreeMap::new(),
            interfaces: vec![Interface {
                name: "eth0".parse().unwrap(),
                addresses: vec![address("192.0.2.1"), address("2001:db8::1")],
            }],
        }],
        pods: vec![pod("a", 2), pod("b", 3), pod("c", 4)],
        profiles: BTreeMap::from([("kns.one".into(), allow_all("kns.one"))]),
        policies: policies(),
        host_endpoints: vec![HostEndpoint {
            name: "uplink".into(),
            labels: BTreeMap::from([("host".into(), "yes".into())]),
            node,
            interface: HostInterface::Named("eth0".parse().unwrap()),
            expected_addresses: Vec::new(),
            profiles: vec!["kns.one".into()],
            ports: Vec::new(),
        }],
        ..Cluster::default()
    }
}

/// Pod a takes a named port from b, and 80 to 81 but not 81 from whoever is no endpoint; b says Pass and goes on to
/// its profile; the host takes 80 and on, what IPv6 finds neighbours by, and forwards nothing to 22.
fn policies() -> Vec<Policy> {
    let tcp = |action: Action, ports: Vec<PortMatch>| Rule {
        protocol: Some(Protocol::TCP),
        destination: Side {
            ports,
            ..Side::default()
        },
        ..Rule::new(action)
    };
    let mut named = tcp(Action::Allow, vec![PortMatch::Named("http".into())]);
    named.source.selector = Some("app == 'b'".parse().unwrap());
    let mut strangers = tcp(Action::Allow, vec![PortMatch::Range(80, 81)]);
    strangers.source.not_selector = Some("all()".parse().unwrap());
    strangers.destination.not_ports = vec![PortMatch::single(81)];

    let neighbours = Rule {
        protocol: Some(Protocol::ICMPV6),
        ..Rule::new(Action::Allow)
    };

    vec![
        policy("a", "app == 'a'", vec![named, strangers]),
        policy(
            "b",
            "app == 'b'",
            vec![
                tcp(Action::Deny, vec![PortMatch::single(81)]),
                Rule::new(Action::Pass),
            ],
        ),
        Policy {
            apply_on_forward: true,
            ..policy(
                "host",
                "has(host)",
                vec![
                    tcp(Action::Deny, vec![PortMatch::single(22)]),
                    tcp(Action::Allow, vec![PortMatch::Range(80, 8080)]),
                    neighbours,
                ],
            )
        },
    ]
}

pub(super) fn policy(name: &str, selector: &str, ingress: Vec<Rule>) -> Policy {
    Policy {
        key: ObjectKey::cluster(Kind::GlobalNetworkPolicy, name),
        tier: "default".into(),
        order: Some(1.0),
        selector: selector.parse().unwrap(),
        types: Directions {
            ingress: true,
            egress: false,
        },
        ingress,
        egress: Vec::new(),
        stage: Stage::Normal,
        apply_on_forward: false,
        staged: None,
        invalid: BTreeMap::new(),
    }
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
