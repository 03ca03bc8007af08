//! How IPv6 finds a gateway: a pod that may do nothing at all still finds its own.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use model::policy::Direction;
use policy::compile::{Ruleset, Scene, compile};

use crate::{
    alone,
    namespace::Namespace,
    packet::{address, cluster, policy, wire},
    program, through_kernel,
};

/// How long the kernel may ask before it gives up, and longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the rules are called that let it ask.
const COMMENT: &str = "a pod finds its neighbours";

#[test]
fn a_pod_that_may_do_nothing_finds_its_gateway() {
    alone(|| {
        let pod = Pod::new(&rows());

        // The first question goes to a group of addresses, a later one to the gateway itself.
        assert_eq!(pod.asks_all(), "REACHABLE");
        assert_eq!(pod.asks_one(), "REACHABLE");
    });
}

/// What the test above would see of policy that is asked about these questions too.
#[test]
fn a_pod_under_policy_in_all_it_asks_would_not() {
    alone(|| {
        let mut rows = rows();
        for chain in rows.chains.values_mut() {
            let rules = chain.rules.iter();
            chain.rules = rules
                .filter(|rule| rule.comment != COMMENT)
                .cloned()
                .collect();
        }

        assert_eq!(Pod::new(&rows).asks_all(), "FAILED");
    });
}

/// A pod, behind a router that holds rows.
struct Pod {
    namespaces: Vec<Namespace>,
}

impl Pod {
    fn new(rows: &Ruleset) -> Self {
        let mut cluster = cluster();
        cluster.pods.truncate(1);
        let namespaces = vec![Namespace::new(), Namespace::new()];
        wire(&cluster, &namespaces);
        let mut target = dataplane::NftTarget::open(dataplane::Ownership::Shared).unwrap();
        dataplane::NftTarget::set_in_sync(&mut target, true);
        through_kernel(&mut target, rows);

        Self { namespaces }
    }

    /// Has it forget its gateway and send something; returns what becomes of the gateway.
    fn asks_all(&self) -> String {
        self.namespaces[0].run(|| {
            program("ip", "-6 neigh flush all");
            let socket = UdpSocket::bind(SocketAddr::new(address("fd00:65::2"), 0)).unwrap();
            let somewhere = SocketAddr::new(address("2001:db8:f::9"), 9);
            socket.send_to(b"?", somewhere).unwrap();

            outcome()
        })
    }

    /// Has it ask whether its gateway is still there.
    fn asks_one(&self) -> String {
        self.namespaces[0].run(|| {
            program("ip", "-6 neigh change fe80::1 dev inside nud probe");

            outcome()
        })
    }
}

/// Returns what the kernel finds out of the gateway.
fn outcome() -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = program("ip", "-6 neigh show fe80::1 dev inside");
        let state = found.split_whitespace().last().unwrap_or_default();
        if ["REACHABLE", "FAILED"].contains(&state) {
            return state.to_owned();
        }
        assert!(Instant::now() < deadline, "{found}");
    }
}

/// The rows of a node whose pod may send nothing.
fn rows() -> Ruleset {
    let mut cluster = cluster();
    cluster.pods.truncate(1);
    cluster.host_endpoints.clear();
    let mut nothing = policy("nothing", "app == 'a'", Vec::new());
    nothing.types.egress = true;
    assert!(nothing.types.contains(Direction::Egress));
    cluster.policies = vec![nothing];

    compile(&Scene::of_node(&cluster, &cluster.nodes[0].name)).rows
}
