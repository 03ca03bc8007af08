//! Kubernetes' policies: single conversions, and a direct reading of Kubernetes' documentation as oracle.

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Kind, ObjectKey};

#[test]
fn an_entry_becomes_a_rule_for_each_protocol_and_peer() {
    let policy = policy(json!({
        "podSelector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]},
            {"key": "d", "operator": "NotIn", "values": ["z"]},
            {"key": "e", "operator": "Exists"},
            {"key": "f", "operator": "DoesNotExist"},
        ]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{}, {
            "from": [
                {"podSelector": {"matchLabels": {"a": "1"}}},
                {"namespaceSelector": {}},
                {"namespaceSelector": {"matchLabels": {"n": "1"}}, "podSelector": {}},
                {"ipBlock": {"cidr": "10.0.0.9/8", "except": ["10.1.0.0/16"]}},
            ],
            "ports": [
                {"port": 81, "endPort": 90},
                {"port": 80},
                {"port": 79, "endPort": 79},
                {"port": "web"},
                {"protocol": "UDP", "port": 53},
                {"protocol": "UDP"},
                {"protocol": "SCTP", "port": 65535},
            ],
        }],
    }));

    assert_eq!(
        policy.selector,
        selector(
            "projectcalico.org/namespace == 'shop' && projectcalico.org/orchestrator == 'k8s' \
             && (a == '1' && b == '2' && c in {'x','y'} && d not in {'z'} && has(e) && !has(f))"
        )
    );
    assert_eq!(
        (policy.tier.as_str(), policy.order),
        ("default", Some(1000.0))
    );
    let protocols: Vec<_> = policy.ingress.iter().map(|rule| rule.protocol).collect();
    let [tcp, udp, sctp] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(Some);
    assert_eq!(
        protocols,
        [&[None][..], &[tcp; 4], &[udp; 4], &[sctp; 4]].concat()
    );
    let indexes: Vec<_> = policy.ingress.iter().map(|rule| rule.index).collect();
    assert_eq!(indexes, [&[0][..], &[1; 12]].concat());
    assert_eq!(policy.ingress[0], Rule::new(Action::Allow));
    let ports = |rule: &Rule| rule.destination.ports.clone();
    let web = PortMatch::Named("web".into());
    assert_eq!(ports(&policy.ingress[1]), [web, PortMatch::Range(79, 90)]);
    assert_eq!(ports(&policy.ingress[5]), []);
    assert_eq!(ports(&policy.ingress[9]), [PortMatch::single(65535)]);
    let sources: Vec<_> = policy.ingress[1..5]
        .iter()
        .map(|rule| rule.source.selector.clone())
        .collect();
    let pods = "projectcalico.org/orchestrator == 'k8s'";
    assert_eq!(
        sources,
        [
            Some(selector(&format!(
                "projectcalico.org/namespace == 'shop' && {pods} && a == '1'"
            ))),
            Some(selector(&format!(
                "has(projectcalico.org/namespace) && {pods}"
            ))),
            Some(selector(&format!("pcns.n == '1' && {pods}"))),
            None,
        ]
    );
    let block = &policy.ingress[4].source;
    assert_eq!(block.nets, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(block.not_nets, ["10.1.0.0/16".parse().unwrap()]);
    assert!(policy.egress.is_empty() && policy.invalid.is_empty());
}

#[test]
fn a_policy_without_types_is_for_what_comes_in_whatever_its_rules() {
    for (types, ingress, egress) in [
        (json!(null), true, false),
        (json!([]), true, false),
        (json!(["Ingress"]), true, false),
        (json!(["Egress"]), false, true),
        (json!(["Egress", "Ingress"]), true, true),
    ] {
        let policy = policy(json!({"podSelector": {}, "policyTypes": types, "egress": [{}]}));
        assert_eq!(policy.types, Directions { ingress, egress }, "{types}");
    }
}

#[test]
fn an_entry_that_cannot_be_read_lets_nothing_pass_and_is_named() {
    for (entry, field) in [
        (json!({"from": [{}]}), "from[0]"),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
            "from[0].ipBlock",
        ),
        (json!({"from": [{"ipBlock": {}}]}), "from[0].ipBlock.cidr"),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}),
            "from[0].ipBlock.cidr",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}),
            "from[0].ipBlock.except[0]",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}),
            "from[0].ipBlock.except[0]",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/64"]}}]}),
            "from[0].ipBlock.except[0]",
        ),
        (
            json!({"ports": [{"port": 80, "endPort": 79}]}),
            "ports[0].endPort",
        ),
        (
            json!({"ports": [{"port": "web", "endPort": 81}]}),
            "ports[0].endPort",
        ),
        (json!({"ports": [{"endPort": 81}]}), "ports[0].endPort"),
        (json!({"ports": [{"port": 0}]}), "ports[0].port"),
        (json!({"ports": [{"port": 65536}]}), "ports[0].port"),
        (json!({"ports": [{"port": "80:90"}]}), "ports[0].port"),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "ports[0].protocol",
        ),
        (
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}]}),
            "from[0].podSelector.matchExpressions[0].operator",
        ),
        (
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}),
            "from[0].podSelector.matchExpressions[0].values",
        ),
        (
            json!({"from": [{"podSelector": {"matchLabels": {"a": "x' || all() || a == 'x"}}}]}),
            "from[0].podSelector.matchLabels.a",
        ),
        (
            json!({"from": [{"namespaceSelector": {"matchLabels": {"a b": "x"}}}]}),
            "from[0].namespaceSelector.matchLabels.a b",
        ),
        (json!({"ports": {}}), "ports"),
    ] {
        let policy = policy(
            json!({"podSelector": {}, "ingress": [{"from": [], "ports": [{"port": 1}]}, entry]}),
        );
        let path = format!("spec.ingress[1].{field}");
        assert_eq!(
            policy.invalid.keys().collect::<Vec<_>>(),
            [&path],
            "{entry}"
        );
        assert_eq!(policy.ingress.len(), 1, "{entry}");
        assert!(policy.types.ingress);
    }
}

#[test]
fn a_staged_policy_is_the_policy_that_it_would_be() {
    let spec = json!({"podSelector": {}, "ingress": [{}], "stagedAction": "Learn"});
    let key = ObjectKey::namespaced(Kind::StagedKubernetesNetworkPolicy, "shop", "p");

    let staged = read(&Object::new(&key, spec.clone())).unwrap();

    let right = Policy {
        key,
        staged: Some(crate::policy::StagedAction::Learn),
        ..policy(spec)
    };
    assert_eq!(staged, right);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_converted_policy_allows_what_the_documentation_says(
        plan in documented(), packets in prop::collection::vec(packet(), 16),
    ) {
        let policy = policy(plan.json());
        prop_assert!(policy.invalid.is_empty(), "{:?}", policy.invalid);
        for packet in packets {
            let allowed = allowed(&policy, &packet);
            prop_assert_eq!(allowed, plan.allows(&packet), "{:?} of {}", packet, plan.json());
        }
    }
}

/// A policy as the documentation speaks of it, in namespace `shop`.
#[derive(Clone, Debug)]
struct Documented {
    /// Which labels the selected pods have; none select all pods.
    pods: Labels,
    types: Option<(bool, bool)>,
    ingress: Vec<Entry>,
    egress: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    peers: Vec<Peer>,
    ports: Vec<Port>,
}

#[derive(Clone, Debug)]
enum Peer {
    Pods(Labels),
    Namespaces(Labels),
    PodsIn(Labels, Labels),
    Block(&'static str, Option<&'static str>),
}

#[derive(Clone, Debug)]
enum Port {
    All(Option<&'static str>),
    One(Option<&'static str>, u16),
    To(Option<&'static str>, u16, u16),
    Named(Option<&'static str>, &'static str),
}

/// Required labels, as `matchLabels` or as expressions.
#[derive(Clone, Debug)]
enum Labels {
    Match(Vec<(&'static str, &'static str)>),
    Expression(&'static str, &'static str, Vec<&'static str>),
}

/// A pod, or an address outside.
#[derive(Clone, Debug)]
struct End {
    /// Namespace, its labels, and the pod's own.
    pod: Option<(&'static str, BTreeMap<String, String>)>,
    address: IpAddr,
}

#[derive(Clone, Debug)]
struct Packet {
    from: End,
    to: End,
    protocol: &'static str,
    port: u16,
}

/// The ports to which every pod gives names.
const NAMED: [(&str, &str, u16); 2] = [("web", "TCP", 80), ("dns", "UDP", 53)];

const NAMESPACES: [(&str, &[(&str, &str)]); 2] =
    [("shop", &[("team", "a")]), ("lab", &[("team", "b")])];

impl Labels {
    fn json(&self) -> Value {
        match self {
            Self::Match(pairs) => {
                json!({"matchLabels": pairs.iter().copied().collect::<BTreeMap<_, _>>()})
            }
            Self::Expression(key, operator, values) => {
                json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
            }
        }
    }

    fn select(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Match(pairs) => {
                let wanted: BTreeMap<_, _> = pairs.iter().copied().collect();
                wanted
                    .iter()
                    .all(|(key, value)| labels.get(*key).map(String::as_str) == Some(*value))
            }
            Self::Expression(key, operator, values) => {
                let found = labels.get(*key).map(String::as_str);
                match *operator {
                    "In" => found.is_some_and(|found| values.contains(&found)),
                    "NotIn" => found.is_none_or(|found| !values.contains(&found)),
                    "Exists" => found.is_some(),
                    _ => found.is_none(),
                }
            }
        }
    }
}

impl Documented {
    fn json(&self) -> Value {
        let types = self.types.map(|(ingress, egress)| {
            let names = [("Ingress", ingress), ("Egress", egress)];
            names
                .into_iter()
                .filter(|(_, is)| *is)
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        });
        let entries = |entries: &[Entry], peers: &str| -> Value {
            entries.iter().map(|entry| entry.json(peers)).collect()
        };
        json!({
            "podSelector": self.pods.json(), "policyTypes": types,
            "ingress": entries(&self.ingress, "from"), "egress": entries(&self.egress, "to"),
        })
    }

    /// Reads the documentation: a selected pod takes, of each direction in the types, only what an entry allows.
    fn allows(&self, packet: &Packet) -> bool {
        let (ingress, egress) = match self.types {
            None | Some((false, false)) => (true, false),
            Some(types) => types,
        };
        let selected = |end: &End| {
            end.pod
                .as_ref()
                .is_some_and(|(namespace, labels)| *namespace == "shop" && self.pods.select(labels))
        };
        let allowed =
            |entries: &[Entry], peer: &End| entries.iter().any(|entry| entry.allows(peer, packet));

        (!egress || !selected(&packet.from) || allowed(&self.egress, &packet.to))
            && (!ingress || !selected(&packet.to) || allowed(&self.ingress, &packet.from))
    }
}

impl Entry {
    fn json(&self, peers: &str) -> Value {
        let peer = |peer: &Peer| match peer {
            Peer::Pods(labels) => json!({"podSelector": labels.json()}),
            Peer::Namespaces(labels) => json!({"namespaceSelector": labels.json()}),
            Peer::PodsIn(namespaces, pods) => {
                json!({"namespaceSelector": namespaces.json(), "podSelector": pods.json()})
            }
            Peer::Block(cidr, except) => {
                json!({"ipBlock": {"cidr": cidr, "except": except.map(|net| vec![net])}})
            }
        };
        let port = |port: &Port| match port {
            Port::All(protocol) => json!({"protocol": protocol}),
            Port::One(protocol, port) => json!({"protocol": protocol, "port": port}),
            Port::To(protocol, port, end) => {
                json!({"protocol": protocol, "port": port, "endPort": end})
            }
            Port::Named(protocol, name) => json!({"protocol": protocol, "port": name}),
        };

        json!({
            peers: self.peers.iter().map(peer).collect::<Vec<_>>(),
            "ports": self.ports.iter().map(port).collect::<Vec<_>>(),
        })
    }

    fn allows(&self, other: &End, packet: &Packet) -> bool {
        let peer = self.peers.is_empty() || self.peers.iter().any(|peer| peer.means(other));
        let port = self.ports.is_empty() || self.ports.iter().any(|port| port.means(packet));

        peer && port
    }
}

impl Peer {
    fn means(&self, end: &End) -> bool {
        let team = |namespace: &str| {
            let (_, labels) = NAMESPACES
                .iter()
                .find(|(name, _)| *name == namespace)
                .unwrap();
            labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        match (self, &end.pod) {
            (Self::Block(cidr, except), _) => {
                let inside = |net: &str| net.parse::<IpNet>().unwrap().contains(&end.address);
                inside(cidr) && !except.is_some_and(inside)
            }
            (Self::Pods(pods), Some((namespace, labels))) => {
                *namespace == "shop" && pods.select(labels)
            }
            (Self::Namespaces(wanted), Some((namespace, _))) => wanted.select(&team(namespace)),
            (Self::PodsIn(wanted, pods), Some((namespace, labels))) => {
                wanted.select(&team(namespace)) && pods.select(labels)
            }
            (Self::Pods(_) | Self::Namespaces(_) | Self::PodsIn(..), None) => false,
        }
    }
}

impl Port {
    fn means(&self, packet: &Packet) -> bool {
        let is = |protocol: &Option<&str>| packet.protocol == protocol.unwrap_or("TCP");
        match self {
            Self::All(protocol) => is(protocol),
            Self::One(protocol, port) => is(protocol) && packet.port == *port,
            Self::To(protocol, first, last) => {
                is(protocol) && (*first..=*last).contains(&packet.port)
            }
            Self::Named(protocol, name) => {
                is(protocol)
                    && packet.to.pod.is_some()
                    && NAMED.contains(&(*name, packet.protocol, packet.port))
            }
        }
    }
}

/// Asks the converted policy, with labels as Calico has them.
fn allowed(policy: &Policy, packet: &Packet) -> bool {
    let asked = [
        (Direction::Egress, &packet.from),
        (Direction::Ingress, &packet.to),
    ];

    asked.into_iter().all(|(direction, own)| {
        let applies = policy.types.contains(direction)
            && own.pod.is_some()
            && policy.selector.matches(&calico_labels(own));
        !applies
            || policy
                .rules(direction)
                .iter()
                .any(|rule| matches(rule, packet))
    })
}

fn matches(rule: &Rule, packet: &Packet) -> bool {
    let side = |side: &Side, end: &End| {
        let selected =
            |selector: &Selector| end.pod.is_some() && selector.matches(&calico_labels(end));
        (side.nets.is_empty() || side.nets.iter().any(|net| net.contains(&end.address)))
            && !side.not_nets.iter().any(|net| net.contains(&end.address))
            && side.selector.as_ref().is_none_or(selected)
    };
    let port = |port: &PortMatch| match port {
        PortMatch::Range(first, last) => (*first..=*last).contains(&packet.port),
        PortMatch::Named(name) => {
            packet.to.pod.is_some()
                && NAMED.contains(&(name.as_str(), packet.protocol, packet.port))
        }
    };
    let ports = &rule.destination.ports;

    rule.protocol
        .is_none_or(|protocol| packet.protocol.parse() == Ok(protocol))
        && side(&rule.source, &packet.from)
        && side(&rule.destination, &packet.to)
        && (ports.is_empty() || ports.iter().any(port))
}

fn calico_labels(end: &End) -> BTreeMap<String, String> {
    let Some((namespace, own)) = &end.pod else {
        return BTreeMap::new();
    };
    let (_, labels) = NAMESPACES
        .iter()
        .find(|(name, _)| name == namespace)
        .unwrap();
    let inherited = labels
        .iter()
        .map(|(key, value)| (format!("pcns.{key}"), (*value).to_owned()));
    let implied = [
        ("projectcalico.org/namespace", *namespace),
        ("projectcalico.org/orchestrator", "k8s"),
    ];

    own.clone()
        .into_iter()
        .chain(inherited)
        .chain(implied.map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect()
}

fn documented() -> impl Strategy<Value = Documented> {
    let entries = || prop::collection::vec(entry(), 0..3);
    (
        labels_of("app"),
        prop::option::of((any::<bool>(), any::<bool>())),
        entries(),
        entries(),
    )
        .prop_map(|(pods, types, ingress, egress)| Documented {
            pods,
            types,
            ingress,
            egress,
        })
}

fn entry() -> impl Strategy<Value = Entry> {
    let peer = prop_oneof![
        labels_of("app").prop_map(Peer::Pods),
        labels_of("team").prop_map(Peer::Namespaces),
        (labels_of("team"), labels_of("app")).prop_map(|(a, b)| Peer::PodsIn(a, b)),
        prop::sample::select(vec![
            ("10.0.0.0/8", None),
            ("10.0.0.0/8", Some("10.0.1.0/24")),
            ("0.0.0.0/0", Some("10.0.0.0/8")),
            ("fd00::/8", None),
        ])
        .prop_map(|(net, except)| Peer::Block(net, except)),
    ];
    let protocol = || prop::sample::select(vec![None, Some("TCP"), Some("UDP"), Some("SCTP")]);
    let port = prop_oneof![
        protocol().prop_map(Port::All),
        (protocol(), 78u16..84).prop_map(|(protocol, port)| Port::One(protocol, port)),
        (protocol(), 78u16..84, 0u16..4).prop_map(|(protocol, port, more)| Port::To(
            protocol,
            port,
            port + more
        )),
        (protocol(), prop::sample::select(vec!["web", "dns"]))
            .prop_map(|(protocol, name)| Port::Named(protocol, name)),
    ];
    (
        prop::collection::vec(peer, 0..3),
        prop::collection::vec(port, 0..4),
    )
        .prop_map(|(peers, ports)| Entry { peers, ports })
}

fn labels_of(key: &'static str) -> impl Strategy<Value = Labels> {
    let value = || prop::sample::select(vec!["a", "b"]);
    prop_oneof![
        Just(Labels::Match(Vec::new())),
        value().prop_map(move |value| Labels::Match(vec![(key, value)])),
        (prop::sample::select(vec!["In", "NotIn"]), value())
            .prop_map(move |(operator, value)| Labels::Expression(key, operator, vec![value])),
        prop::sample::select(vec!["Exists", "DoesNotExist"])
            .prop_map(move |operator| Labels::Expression(key, operator, Vec::new())),
    ]
}

fn packet() -> impl Strategy<Value = Packet> {
    (
        end(),
        end(),
        prop::sample::select(vec!["TCP", "TCP", "UDP", "SCTP"]),
        prop_oneof![9 => 78u16..88, 1 => Just(53)],
    )
        .prop_map(|(from, to, protocol, port)| Packet {
            from,
            to,
            protocol,
            port,
        })
}

fn end() -> impl Strategy<Value = End> {
    let pod = (
        prop::sample::select(vec!["shop", "lab"]),
        prop::option::of(prop::sample::select(vec!["a", "b"])),
    )
        .prop_map(|(namespace, app)| {
            let labels = app.map(|app| ("app".to_owned(), app.to_owned()));
            (namespace, labels.into_iter().collect())
        });
    let address = prop::sample::select(vec!["10.0.0.1", "10.0.1.1", "192.0.2.1", "fd00::1"]);
    (prop::option::weighted(0.8, pod), address).prop_map(|(pod, address)| End {
        pod,
        address: address.parse().unwrap(),
    })
}

fn policy(spec: Value) -> Policy {
    let key = ObjectKey::namespaced(Kind::KubernetesNetworkPolicy, "shop", "p");

    read(&Object::new(&key, spec)).unwrap()
}

fn selector(text: &str) -> Selector {
    text.parse().unwrap()
}
