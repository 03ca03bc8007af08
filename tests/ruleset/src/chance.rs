//! Random clusters and packets, small enough that everything meets everything.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    Family, Kind, NodeName, Object, ObjectKey, PodName, Selector,
    policy::{
        Action, Direction, Directions, HostEndpoint, HostInterface, Icmp, NamedPort, NetworkSet,
        Policy, PortMatch, Profile, Protocol, Rule, ServiceRef, Side, Stage, StagedAction, Tier,
        TierAction,
    },
    resource::FelixConfiguration,
};

use serde_json::json;

use super::way::{UPLINK, address};
use policy::{
    cluster::{Backend, Cluster, Interface, Node, Pod, PodNetwork, Service},
    packet::{Header, IcmpHeader, Packet, Place, Ports, Translation, Translator},
};

/// A stream of numbers that a seed determines (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

const SELECTORS: [&str; 15] = [
    "all()",
    "app == 'a'",
    "app != 'a'",
    "app in {'a', 'b'}",
    "has(env)",
    "!has(env)",
    "env == 'x' && app == 'b'",
    "env == 'x' || app == 'c'",
    "set == 'near'",
    "has(set)",
    "projectcalico.org/namespace == 'one'",
    "pcns.team == 'red'",
    "app not in {'a', 'c'}",
    "projectcalico.org/namespace != 'one'",
    "!(pcns.team starts with 're') || set == 'far'",
];

/// Networks whose ends fall between the addresses that there are.
const NETS: [&str; 20] = [
    "10.65.0.0/24",
    "10.65.0.2/32",
    "10.65.0.4/31",
    "10.65.1.0/24",
    "10.65.1.4/30",
    "10.65.0.0/16",
    "192.0.2.0/24",
    "192.0.2.1/32",
    "203.0.113.9/32",
    "203.0.113.0/25",
    "203.0.113.128/25",
    "203.0.113.127/32",
    "0.0.0.0/0",
    "fd00:65::/64",
    "fd00:65::2/128",
    "fd00:65::4/127",
    "2001:db8::/32",
    "2001:db8::/127",
    "fd01::/127",
    "::/0",
];

/// Addresses beyond the mesh: at both ends of the networks above, and just outside.
const BEYOND: [&str; 10] = [
    "203.0.113.9",
    "203.0.113.0",
    "203.0.113.127",
    "203.0.113.128",
    "203.0.114.0",
    "2001:db8:ffff::9",
    "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
    "fd01::1",
    "fd01::2",
    "fd00:65:0:1::",
];

/// Both ends of all ports, failsafe ports of both directions, ports around the ends of ranges, and WireGuard's.
const PORTS: [u16; 13] = [
    0, 1, 22, 53, 79, 80, 81, 179, 180, 8080, 40000, 51820, 65535,
];

impl Chance {
    /// Begins a stream.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);

        (bits ^ bits >> 31) % bound
    }

    /// Returns true once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = usize::try_from(self.below(from.len() as u64)).unwrap();
        from[index].clone()
    }

    fn some<T>(&mut self, one_in: u64, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.once_in(one_in).then(|| make(self))
    }

    fn list<T>(&mut self, most: u64, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }

    fn selector(&mut self) -> Selector {
        self.pick(&SELECTORS).parse().unwrap()
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        labels.insert("app".into(), self.pick(&["a", "b", "c"]).into());
        if self.once_in(2) {
            labels.insert("env".into(), self.pick(&["x", "y"]).into());
        }

        labels
    }

    /// Makes a cluster of two nodes and five pods, a few policies of every sort and whatever they speak of.
    pub fn cluster(&mut self) -> Cluster {
        let mut cluster = Cluster {
            nodes: ["n1", "n2"]
                .iter()
                .zip(1..)
                .map(|(name, n)| node(name, n))
                .collect(),
            tiers: self.tiers(),
            ..Cluster::default()
        };
        for index in 0..5 {
            let pod = self.pod(index);
            cluster.pods.push(pod);
        }
        if self.once_in(3) {
            let mut pod = self.host_pod();
            pod.name.name = "host".into();
            cluster.pods.push(pod);
        }
        for namespace in ["one", "two"] {
            if !self.once_in(8) {
                let profile = self.namespace(namespace);
                cluster.profiles.insert(profile.name.clone(), profile);
            }
        }
        cluster.sets = self.list(2, Self::set);
        for (index, set) in cluster.sets.iter_mut().enumerate() {
            set.key.name = format!("set{index}");
        }
        let backends: Vec<Backend> = cluster
            .pods
            .iter()
            .flat_map(|pod| self.backends(pod))
            .collect();
        let service = Service {
            addresses: Vec::new(),
            backends,
        };
        cluster.services.insert(service_ref(), service);
        cluster.host_endpoints = self.hosts();
        cluster.configurations = self.some(2, Self::configuration).into_iter().collect();
        for index in 0..self.below(8) {
            let policy = self.policy(index);
            cluster.policies.push(policy);
        }

        cluster
    }

    /// Takes the addresses of one family, or all, from whomever rules may ask for. Nodes keep theirs.
    pub fn narrow(&mut self, cluster: &mut Cluster) {
        let kept = self.pick(&[Some(Family::V4), Some(Family::V6), None]);
        let is_kept = |address: &IpAddr| Some(Family::of(*address)) == kept;
        for pod in &mut cluster.pods {
            pod.addresses.retain(is_kept);
        }
        for host in &mut cluster.host_endpoints {
            host.expected_addresses.retain(is_kept);
        }
        for set in &mut cluster.sets {
            set.nets.retain(|net| is_kept(&net.addr()));
        }
        for service in cluster.services.values_mut() {
            service.backends.retain(|backend| is_kept(&backend.address));
        }
    }

    fn configuration(&mut self) -> FelixConfiguration {
        let mut spec = json!({
            "defaultEndpointToHostAction": self.pick(&["Drop", "Accept", "Return"]),
            "wireguardEnabled": self.once_in(2),
            "disableConntrackInvalidCheck": self.once_in(4),
            "allowIPIPPacketsFromWorkloads": self.once_in(2),
        });
        if self.once_in(3) {
            spec["failsafeInboundHostPorts"] = json!([
                {"protocol": "TCP", "port": 80, "net": "203.0.113.0/25"},
                {"protocol": "UDP", "port": 8080},
            ]);
            spec["failsafeOutboundHostPorts"] = json!([]);
        }
        let key = ObjectKey::cluster(Kind::FelixConfiguration, "default");

        FelixConfiguration::try_from(&Object::new(&key, spec)).unwrap()
    }

    fn pod(&mut self, index: u16) -> Pod {
        let number = index + 2;

        Pod {
            name: PodName {
                namespace: self.pick(&["one", "two"]).into(),
                name: format!("p{index}"),
            },
            node: if index < 3 { "n1" } else { "n2" }.parse().unwrap(),
            service_account: "default".into(),
            labels: self.labels(),
            addresses: vec![
                address(&format!("10.65.{}.{number}", index % 2)),
                address(&format!("fd00:65::{number:x}")),
            ],
            ports: self.named_ports(),
            network: PodNetwork::Own,
        }
    }

    /// A pod on its node's network: its labels and ports are nobody's.
    fn host_pod(&mut self) -> Pod {
        Pod {
            addresses: Vec::new(),
            network: PodNetwork::Host,
            ..self.pod(0)
        }
    }

    fn named_ports(&mut self) -> Vec<NamedPort> {
        self.list(2, |chance| NamedPort {
            name: chance.pick(&["http", "dns"]).into(),
            protocol: chance.pick(&[Protocol::TCP, Protocol::UDP, Protocol::SCTP]),
            port: chance.pick(&PORTS),
        })
    }

    fn backends(&mut self, pod: &Pod) -> Vec<Backend> {
        if self.once_in(2) {
            return Vec::new();
        }
        let port = self.pick(&PORTS);

        pod.addresses
            .iter()
            .map(|address| Backend {
                protocol: Protocol::TCP,
                service_port: 80,
                address: *address,
                port,
            })
            .collect()
    }

    fn namespace(&mut self, name: &str) -> Profile {
        let deny = self.once_in(6);
        let rule = |action| vec![Rule::new(action)];
        let mut ingress = rule(if deny { Action::Pass } else { Action::Allow });
        if self.once_in(4) {
            ingress.insert(0, self.rule(Direction::Ingress, Stage::Normal));
        }

        Profile {
            name: format!("kns.{name}"),
            ingress,
            egress: rule(if deny { Action::Deny } else { Action::Allow }),
            labels: BTreeMap::from([("pcns.team".into(), self.pick(&["red", "blue"]).into())]),
            invalid: BTreeMap::new(),
        }
    }

    fn set(&mut self) -> NetworkSet {
        let key = match self.once_in(2) {
            true => ObjectKey::cluster(Kind::GlobalNetworkSet, "set"),
            false => ObjectKey::namespaced(Kind::NetworkSet, "one", "set"),
        };

        NetworkSet {
            key,
            labels: BTreeMap::from([("set".into(), self.pick(&["near", "far"]).into())]),
            nets: self.list(4, |chance| chance.pick(&NETS).parse().unwrap()),
            invalid: BTreeMap::new(),
        }
    }

    fn tiers(&mut self) -> Vec<Tier> {
        let mut tiers = Vec::new();
        for (name, action) in [("early", TierAction::Pass), ("strict", TierAction::Deny)] {
            let order = self.some(2, |chance| chance.below(3) as f64 * 900_000.0);
            tiers.push(Tier {
                name: name.into(),
                order,
                default_action: action,
            });
        }

        tiers
    }

    fn hosts(&mut self) -> Vec<HostEndpoint> {
        let mut hosts = Vec::new();
        for (name, interface) in [
            ("b", HostInterface::Named(UPLINK.parse().unwrap())),
            ("a", HostInterface::All),
            ("c", HostInterface::ByAddress),
        ] {
            if self.once_in(2) {
                continue;
            }
            hosts.push(HostEndpoint {
                name: name.into(),
                labels: self.labels(),
                node: "n1".parse().unwrap(),
                interface,
                expected_addresses: vec![address("192.0.2.1"), address("2001:db8::1")],
                profiles: self.list(1, |chance| {
                    format!("kns.{}", chance.pick(&["one", "two", "none"]))
                }),
                ports: self.named_ports(),
            });
        }

        hosts
    }

    fn policy(&mut self, index: u64) -> Policy {
        let stage = match self.below(5) {
            0 => Stage::Untracked,
            1 => Stage::PreDnat,
            _ => Stage::Normal,
        };
        let types = match (stage, self.below(3)) {
            (Stage::PreDnat, _) | (Stage::Untracked | Stage::Normal, 0) => Directions {
                ingress: true,
                egress: false,
            },
            (Stage::Untracked | Stage::Normal, 1) => Directions {
                ingress: false,
                egress: true,
            },
            (Stage::Untracked | Stage::Normal, _) => Directions {
                ingress: true,
                egress: true,
            },
        };
        let mut rules = |direction| {
            let mut rules = self.list(3, |chance| chance.rule(direction, stage));
            for (index, rule) in rules.iter_mut().enumerate() {
                rule.index = index;
            }
            rules
        };
        let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));

        Policy {
            key: ObjectKey::cluster(Kind::GlobalNetworkPolicy, format!("g{index}")),
            tier: self
                .pick(&["default", "default", "early", "strict", "nowhere"])
                .into(),
            order: self.some(2, |chance| chance.below(3) as f64),
            selector: self.selector(),
            types,
            ingress,
            egress,
            stage,
            apply_on_forward: stage != Stage::Normal || self.once_in(2),
            staged: self.some(10, |_| StagedAction::Set),
            invalid: BTreeMap::new(),
        }
    }

    fn rule(&mut self, direction: Direction, _: Stage) -> Rule {
        let actions = [
            Action::Allow,
            Action::Allow,
            Action::Allow,
            Action::Deny,
            Action::Deny,
            Action::Pass,
            Action::Log,
        ];
        let mut rule = Rule::new(self.pick(&actions));
        rule.family = self.some(6, |chance| chance.pick(&Family::BOTH));
        rule.http = self.once_in(20);
        match self.below(6) {
            0 => {}
            1 => rule.not_protocol = Some(self.protocol()),
            2 => {
                let icmp = self.pick(&[Protocol::ICMP, Protocol::ICMPV6]);
                rule.protocol = Some(icmp);
                rule.icmp = self.some(2, Self::icmp);
                rule.not_icmp = self.some(3, Self::icmp);
            }
            _ => rule.protocol = Some(self.protocol()),
        }
        let numbers = rule.protocol.is_some_and(Protocol::has_ports);
        rule.source = self.side(numbers);
        rule.destination = self.side(numbers);
        if self.once_in(6) {
            let side = match direction {
                Direction::Ingress => &mut rule.source,
                Direction::Egress => &mut rule.destination,
            };
            *side = Side {
                service: Some(Box::new(service_ref())),
                ..Side::default()
            };
        }

        rule
    }

    fn icmp(&mut self) -> Icmp {
        Icmp {
            kind: self.pick(&[8, 8, 13, 3, 128, 128, 139]),
            code: self.some(2, |chance| chance.pick(&[0, 1])),
        }
    }

    fn protocol(&mut self) -> Protocol {
        self.pick(&[
            Protocol::TCP,
            Protocol::TCP,
            Protocol::UDP,
            Protocol::SCTP,
            Protocol(47),
        ])
    }

    fn side(&mut self, numbers: bool) -> Side {
        if self.once_in(2) {
            return Side::default();
        }
        let selector = self.some(3, Self::selector);
        let mut nets = |one_in, most| {
            self.some(one_in, |chance| {
                chance.list(most, |chance| chance.pick(&NETS).parse().unwrap())
            })
            .unwrap_or_default()
        };
        let (nets, not_nets) = (nets(3, 3), nets(4, 2));

        Side {
            nets,
            not_nets,
            not_selector: match selector {
                Some(_) => None,
                None => self.some(4, Self::selector),
            },
            selector,
            ports: self.ports(numbers, 3),
            not_ports: self.ports(numbers, 4),
            service: None,
        }
    }

    fn ports(&mut self, numbers: bool, one_in: u64) -> Vec<PortMatch> {
        let port = |chance: &mut Self| match numbers && !chance.once_in(3) {
            true => {
                let first = chance.pick(&PORTS);
                let more = chance.pick(&[0, 0, 1, 100, u16::MAX]);
                PortMatch::Range(first, first.saturating_add(more))
            }
            false => PortMatch::Named(chance.pick(&["http", "dns"]).into()),
        };

        self.some(one_in, |chance| chance.list(3, port))
            .unwrap_or_default()
    }

    /// Makes a packet of the cluster; `None` where the two ends are of different families.
    pub fn packet(&mut self, cluster: &Cluster) -> Option<Packet> {
        let family = self.pick(&Family::BOTH);
        let ((from, source), (to, destination)) =
            (self.place(cluster, family), self.place(cluster, family));
        if from == Place::Outside && to == Place::Outside || from == to && source != destination {
            return None;
        }
        let protocol = match self.below(8) {
            0 => Protocol::SCTP,
            1 | 2 => match family {
                Family::V4 => Protocol::ICMP,
                Family::V6 => Protocol::ICMPV6,
            },
            3 => self.pick(&[Protocol(47), Protocol(4), Protocol::UDPLITE]),
            4 | 5 => Protocol::UDP,
            _ => Protocol::TCP,
        };
        let header = Header {
            source,
            destination,
            protocol,
            ports: protocol.has_ports().then(|| Ports {
                source: self.pick(&PORTS),
                destination: self.pick(&PORTS),
            }),
            icmp: protocol.family().map(|_| IcmpHeader {
                kind: match family {
                    Family::V4 => self.pick(&[8, 13, 3]),
                    Family::V6 => self.pick(&[128, 139, 3, 135]),
                },
                code: self.pick(&[0, 1]),
            }),
        };
        let translation = match (&from, &to) {
            (Place::Outside, Place::Pod(_) | Place::Node(_)) if header.ports.is_some() => self
                .some(3, |chance| Translation {
                    address: match family {
                        Family::V4 => address("192.0.2.1"),
                        Family::V6 => address("2001:db8::1"),
                    },
                    port: chance.pick(&PORTS),
                    at: Translator::Last,
                }),
            _ => None,
        };

        Some(Packet {
            from,
            to,
            header,
            translation,
        })
    }

    fn place(&mut self, cluster: &Cluster, family: Family) -> (Place, IpAddr) {
        let of = |addresses: &[IpAddr]| {
            let mut addresses = addresses.iter().copied();
            addresses.find(|address| Family::of(*address) == family)
        };
        match self.below(10) {
            0 | 1 => {
                let node = self.pick(&cluster.nodes);
                (
                    Place::Node(node.name.clone()),
                    of(&node.interfaces[0].addresses).unwrap(),
                )
            }
            2 | 3 => {
                let beyond: Vec<_> = BEYOND.iter().map(|text| address(text)).collect();
                let ours: Vec<_> = beyond
                    .into_iter()
                    .filter(|each| Family::of(*each) == family)
                    .collect();
                (Place::Outside, self.pick(&ours))
            }
            _ => {
                let pods: Vec<&Pod> = cluster
                    .pods
                    .iter()
                    .filter(|pod| pod.network == PodNetwork::Own)
                    .collect();
                let pod = self.pick(&pods);
                // It may send from what is not its own, and be sent to by who takes it for a way.
                let strange = match family {
                    Family::V4 => "10.65.0.99",
                    Family::V6 => "fd00:65::99",
                };
                let address = of(&pod.addresses).unwrap_or_else(|| address(strange));
                (Place::Pod(pod.name.clone()), address)
            }
        }
    }
}

fn node(name: &str, number: u16) -> Node {
    let name: NodeName = name.parse().unwrap();

    Node {
        name,
        labels: BTreeMap::new(),
        interfaces: vec![Interface {
            name: UPLINK.parse().unwrap(),
            addresses: vec![
                address(&format!("192.0.2.{number}")),
                address(&format!("2001:db8::{number}")),
            ],
        }],
    }
}

fn service_ref() -> ServiceRef {
    ServiceRef {
        namespace: "one".into(),
        name: "web".into(),
    }
}
