//! Source routes: a packet that is sent to the router, and by its own words on to somebody else. Policy is asked before
//! the router reads on; the router of these tests does what such words say, which kernels do only when told to.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use model::policy::{Action, Direction, Rule, Side};
use policy::{
    Cluster,
    compile::{EndpointToHost, Ruleset, Scene, compile},
};

use crate::{
    alone,
    namespace::Namespace,
    packet::{address, cluster, policy, wire},
    program, sys, through_kernel,
};

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the rules are called that stop them.
const COMMENT: &str = "sent on by its own words";

#[test]
fn a_pod_that_may_talk_to_its_node_reaches_nobody_behind_it() {
    alone(|| {
        let router = Router::new();

        router.hold(&rows());
        for way in Router::ways() {
            let before = router.stopped();
            router.send(way);
            router.wait_until(|| router.stopped() > before);
            assert_eq!(router.received(way), None, "{way:?}");
        }
    });
}

/// What the test above would see of policy that trusts the first destination.
#[test]
fn without_these_rules_it_would() {
    alone(|| {
        let router = Router::new();
        let mut rows = rows();
        for chain in rows.chains.values_mut() {
            let rules = chain.rules.iter();
            chain.rules = rules
                .filter(|rule| rule.comment != COMMENT)
                .cloned()
                .collect();
        }

        router.hold(&rows);
        for way in Router::ways() {
            router.send(way);
            router.wait_until(|| router.received(way).is_some());
        }
    });
}

/// How a packet says where else it wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Option(sys::SourceRoute),
    Header,
}

/// A router that follows source routes, pods, and somebody outside who listens.
struct Router {
    namespaces: Vec<Namespace>,
    listeners: Vec<UdpSocket>,
}

impl Router {
    fn new() -> Self {
        let cluster = one_pod();
        let namespaces = vec![Namespace::new(), Namespace::new()];
        wire(&cluster, &namespaces);
        follow_source_routes();
        let listeners = namespaces[1].run(|| {
            follow_source_routes();
            ["203.0.113.9", "2001:db8:f::9"].map(|own| {
                let socket = UdpSocket::bind(SocketAddr::new(address(own), 4000)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            })
        });

        Self {
            namespaces,
            listeners: listeners.into(),
        }
    }

    fn ways() -> [Way; 3] {
        use sys::SourceRoute::{Loose, Strict};

        [Way::Option(Loose), Way::Option(Strict), Way::Header]
    }

    fn hold(&self, rows: &Ruleset) {
        let mut target = dataplane::NftTarget::open(dataplane::Ownership::Shared).unwrap();
        dataplane::NftTarget::set_in_sync(&mut target, true);
        through_kernel(&mut target, rows);
        assert_eq!(self.stopped(), 0);
    }

    /// Sends a packet from the pod to the router, which is to send it on.
    fn send(&self, way: Way) {
        self.namespaces[0].run(move || {
            let (own, router, end) = match way {
                Way::Option(_) => ("10.65.0.2", "192.0.2.1", "203.0.113.9"),
                Way::Header => ("fd00:65::2", "2001:db8::1", "2001:db8:f::9"),
            };
            let socket = UdpSocket::bind(SocketAddr::new(address(own), 0)).unwrap();
            let by = match (way, address(router), address(end)) {
                (Way::Option(kind), IpAddr::V4(router), _) => {
                    sys::route_by_option(socket.as_raw_fd(), kind, router)
                }
                (Way::Header, IpAddr::V6(router), IpAddr::V6(end)) => {
                    sys::route_by_header(socket.as_raw_fd(), router, end)
                }
                other => panic!("{other:?}"),
            };
            by.unwrap();
            socket
                .send_to(b"on", SocketAddr::new(address(end), 4000))
                .unwrap();
        });
    }

    /// Returns who sent what came to the end of a way.
    fn received(&self, way: Way) -> Option<SocketAddr> {
        let listener = match way {
            Way::Option(_) => &self.listeners[0],
            Way::Header => &self.listeners[1],
        };

        listener.recv_from(&mut [0; 16]).ok().map(|(_, from)| from)
    }

    /// Returns how many packets the rules have stopped.
    fn stopped(&self) -> u64 {
        let chain = program("nft", "list chain inet meshd from_pod");
        let rules = chain.lines().filter(|line| line.contains(COMMENT));

        rules
            .filter_map(|rule| {
                let (_, count) = rule.split_once("packets ")?;
                count.split(' ').next()?.parse::<u64>().ok()
            })
            .sum()
    }

    fn wait_until(&self, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(
                Instant::now() < deadline,
                "{} stopped\n{}",
                self.stopped(),
                program("nft", "list ruleset")
            );
        }
    }
}

/// A pod that may talk to its node and to nobody else.
fn one_pod() -> Cluster {
    let mut cluster = cluster();
    cluster.pods.truncate(1);
    cluster.host_endpoints.clear();
    let mut only = policy("node", "app == 'a'", Vec::new());
    only.types.ingress = false;
    only.types.egress = true;
    only.egress = vec![Rule {
        destination: Side {
            nets: ["192.0.2.1/32", "2001:db8::1/128"]
                .map(|net| net.parse().unwrap())
                .into(),
            ..Side::default()
        },
        ..Rule::new(Action::Allow)
    }];
    assert!(only.types.contains(Direction::Egress));
    cluster.policies = vec![only];

    cluster
}

/// IPv6's header is read behind the input hook: a setting lets pods talk to their node there.
fn rows() -> Ruleset {
    let cluster = one_pod();
    let mut scene = Scene::of_node(&cluster, &cluster.nodes[0].name);
    scene.options.endpoint_to_host = EndpointToHost::Pass;

    compile(&scene).rows
}

/// Has the calling thread's namespace send packets on as they say, on every device. Connection tracking would take a
/// packet with a routing header for damaged: its checksum is that of its last destination.
fn follow_source_routes() {
    program("sysctl", "-qw net.netfilter.nf_conntrack_checksum=0");
    let devices = program("ls", "/proc/sys/net/ipv4/conf");
    for device in devices.lines() {
        for key in [
            format!("ipv4.conf.{device}.accept_source_route"),
            format!("ipv6.conf.{device}.seg6_enabled"),
        ] {
            program("sysctl", &format!("-qw net.{key}=1"));
        }
    }
}
