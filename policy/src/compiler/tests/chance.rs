//! Random objects, few enough that everything meets everything.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    Family, Kind, ObjectKey, PodName, Resource, Selector,
    policy::{
        Action, Directions, HostEndpoint, HostInterface, NamedPort, NetworkSet, Policy, PortMatch,
        Profile, Protocol, Rule, ServiceRef, Side, Stage, StagedAction, Tier, TierAction,
    },
    resource::{
        EndpointSlice, Namespace, Service, ServiceAccount, WorkloadEndpoint,
        endpoint_slice::{Endpoint, EndpointPort},
        service::ServicePort,
    },
};

use crate::{
    cluster::Interface,
    compile::{Limits, Options},
};

const NAMESPACES: [&str; 3] = ["one", "two", "three"];

const SELECTORS: [&str; 24] = [
    "!has(env) || app == 'a'",
    "app == 'b' || pcns.team != 'red'",
    "all()",
    "app == 'a'",
    "app != 'a'",
    "app in {'a', 'b'}",
    "app not in {'a', 'b'}",
    "app in {}",
    "has(env)",
    "!has(env)",
    "env == 'x' && app == 'b'",
    "env == 'x' || app == 'c'",
    "!(env == 'x' && app == 'a')",
    "env starts with 'x' && has(app)",
    "env contains 'y'",
    "env ends with 'z' || projectcalico.org/namespace == 'two'",
    "set == 'near'",
    "has(set)",
    "projectcalico.org/namespace == 'one'",
    "projectcalico.org/namespace == 'one' && app == 'a'",
    "projectcalico.org/orchestrator == 'k8s' && pcns.team == 'red'",
    "pcns.team == 'red'",
    "pcns.team != 'red'",
    "pcsa.role == 'web' || projectcalico.org/serviceaccount == 'robot'",
];

const NETS: [&str; 16] = [
    "10.65.0.0/24",
    "10.65.0.0/25",
    "10.65.0.128/25",
    "10.65.0.2/32",
    "10.65.0.3/32",
    "10.65.1.0/24",
    "10.65.0.0/16",
    "192.0.2.1/24",
    "203.0.113.9/32",
    "0.0.0.0/0",
    "fd00:65::/64",
    "fd00:65::/65",
    "fd00:65:0:0:8000::/65",
    "fd00:65::2/128",
    "2001:db8::/32",
    "::/0",
];

const PORTS: [u16; 5] = [22, 80, 81, 8080, 40000];

/// A stream of numbers that a seed determines (splitmix64).
pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below a bound.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);

        (bits ^ bits >> 31) % bound
    }

    pub(super) fn once_in(&mut self, times: u64) -> bool {
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

    fn namespace(&mut self) -> String {
        self.pick(&NAMESPACES).to_owned()
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        labels.insert("app".into(), self.pick(&["a", "b", "c"]).into());
        if self.once_in(2) {
            labels.insert("env".into(), self.pick(&["x", "xy", "yz"]).into());
        }

        labels
    }

    /// Returns settings.
    pub(super) fn options(&mut self) -> Options {
        let limits = Limits {
            elements: self.pick(&[2, 4, 1_000_000]),
            rules: self.pick(&[3, 20_000]),
            passing_tiers: self.pick(&[0, 10]),
        };

        Options {
            drops_invalid: self.once_in(2),
            tells_denied: self.once_in(2),
            limits,
            ..Options::default()
        }
    }

    /// Returns the node's own interfaces.
    pub(super) fn interfaces(&mut self) -> Vec<Interface> {
        let mut interfaces = vec![Interface {
            name: "eth0".parse().unwrap(),
            addresses: vec![address("192.0.2.1")],
        }];
        if self.once_in(2) {
            interfaces.push(Interface {
                name: "eth1".parse().unwrap(),
                addresses: vec![address("2001:db8::1")],
            });
        }

        interfaces
    }

    /// Returns families, or none.
    pub(super) fn families(&mut self) -> Vec<Family> {
        let mut families = Family::BOTH.to_vec();
        families.retain(|_| self.once_in(2));

        families
    }

    /// Returns an object.
    pub(super) fn resource(&mut self) -> Resource {
        match self.below(20) {
            0..=5 => Resource::WorkloadEndpoint(Box::new(self.pod())),
            6 => Resource::Namespace(Namespace {
                name: self.namespace(),
                labels: BTreeMap::from([("team".into(), self.pick(&["red", "blue"]).into())]),
            }),
            7 => Resource::ServiceAccount(ServiceAccount {
                namespace: self.namespace(),
                name: self.pick(&["default", "robot"]).into(),
                labels: BTreeMap::from([("role".into(), self.pick(&["web", "db"]).into())]),
            }),
            8 => Resource::Service(Box::new(self.service())),
            9 => Resource::EndpointSlice(Box::new(self.slice())),
            10 => Resource::Tier(Tier {
                name: self.pick(&["early", "strict", "default"]).into(),
                order: self.some(2, |chance| chance.below(3) as f64 * 900_000.0),
                default_action: self.pick(&[TierAction::Pass, TierAction::Deny]),
            }),
            11 | 12 => Resource::NetworkSet(Box::new(self.set())),
            13 | 14 => Resource::HostEndpoint(Box::new(self.host())),
            15 => Resource::Profile(Box::new(self.profile())),
            _ => Resource::Policy(Box::new(self.policy())),
        }
    }

    /// Changes one thing about an object.
    pub(super) fn edit(&mut self, resource: &mut Resource) {
        match (resource, self.resource()) {
            (Resource::Policy(policy), _) => {
                let other = self.policy();
                match self.below(8) {
                    0 => policy.tier = other.tier,
                    1 => policy.order = other.order,
                    2 => policy.selector = other.selector,
                    3 => policy.types = other.types,
                    4 => policy.ingress = other.ingress,
                    5 => policy.egress = other.egress,
                    6 => policy.stage = other.stage,
                    _ => policy.staged = other.staged,
                }
            }
            (Resource::WorkloadEndpoint(pod), _) => {
                let other = self.pod();
                match self.below(6) {
                    0 | 1 => pod.labels = other.labels,
                    2 => pod.addresses = other.addresses,
                    3 => pod.node = other.node,
                    4 => pod.interface = "cali-shared".parse().unwrap(),
                    _ => pod.ports = other.ports,
                }
            }
            (Resource::NetworkSet(set), _) => {
                set.nets.pop();
            }
            (old, new) => *old = new,
        }
    }

    fn pod(&mut self) -> WorkloadEndpoint {
        let number = self.below(8) + 2;
        let pod = PodName {
            namespace: self.namespace(),
            name: format!("p{number}"),
        };
        let node = self.pick(&["n1", "n1", "n2"]).parse().unwrap();
        let account = self.pick(&["default", "robot"]);
        let mut labels = self.labels();
        if self.once_in(3) {
            // As Calico stores it.
            labels.insert("projectcalico.org/namespace".into(), pod.namespace.clone());
            labels.insert("projectcalico.org/orchestrator".into(), "k8s".into());
        }
        let mut profiles = vec![
            format!("kns.{}", pod.namespace),
            format!("ksa.{}.{account}", pod.namespace),
        ];
        profiles.truncate(if self.once_in(8) { 1 } else { 2 });

        WorkloadEndpoint {
            name: self.pick(&["a", "b"]).to_owned() + &pod.name,
            interface: match self.once_in(6) {
                true => "cali-shared".parse().unwrap(),
                false => WorkloadEndpoint::host_interface(&pod),
            },
            pod,
            node,
            addresses: vec![
                format!("10.65.0.{}/32", self.pick(&[number, number, 2]))
                    .parse()
                    .unwrap(),
                format!("fd00:65::{number:x}/128").parse().unwrap(),
            ],
            labels,
            profiles,
            ports: self.list(2, |chance| NamedPort {
                name: chance.pick(&["http", "dns"]).into(),
                protocol: chance.pick(&[Protocol::TCP, Protocol::UDP, Protocol(47)]),
                port: chance.pick(&PORTS),
            }),
        }
    }

    fn service(&mut self) -> Service {
        Service {
            namespace: self.pick(&["one", "two"]).into(),
            name: "web".into(),
            labels: BTreeMap::new(),
            cluster_addresses: Vec::new(),
            external_addresses: Vec::new(),
            ports: self.list(2, |chance| ServicePort {
                name: chance.some(2, |_| "http".to_owned()),
                protocol: chance.pick(&[Protocol::TCP, Protocol::UDP]),
                port: 80,
                target: PortMatch::single(80),
                node_port: None,
            }),
        }
    }

    fn slice(&mut self) -> EndpointSlice {
        EndpointSlice {
            namespace: self.pick(&["one", "two"]).into(),
            name: self.pick(&["s1", "s2", "s3"]).into(),
            service: match self.once_in(6) {
                true => None,
                false => Some("web".into()),
            },
            ports: self.list(2, |chance| EndpointPort {
                name: chance.some(2, |_| "http".to_owned()),
                protocol: chance.pick(&[Protocol::TCP, Protocol::UDP]),
                port: chance.some(2, |chance| chance.pick(&PORTS)),
            }),
            endpoints: self.list(3, |chance| Endpoint {
                addresses: vec![chance.pick(&[
                    address("10.65.0.2"),
                    address("10.65.0.3"),
                    address("fd00:65::2"),
                ])],
                ready: !chance.once_in(4),
                node: None,
                pod: None,
            }),
        }
    }

    fn set(&mut self) -> NetworkSet {
        let name = self.pick(&["s1", "s2"]);
        let key = match self.once_in(2) {
            true => ObjectKey::cluster(Kind::GlobalNetworkSet, name),
            false => ObjectKey::namespaced(Kind::NetworkSet, self.namespace(), name),
        };

        NetworkSet {
            key,
            labels: BTreeMap::from([("set".into(), self.pick(&["near", "far"]).into())]),
            nets: self.list(4, |chance| chance.pick(&NETS).parse().unwrap()),
            invalid: BTreeMap::new(),
        }
    }

    fn host(&mut self) -> HostEndpoint {
        HostEndpoint {
            name: self.pick(&["h1", "h2", "h3"]).into(),
            labels: self.labels(),
            node: self.pick(&["n1", "n1", "n2"]).parse().unwrap(),
            interface: match self.below(3) {
                0 => HostInterface::All,
                1 => HostInterface::ByAddress,
                _ => HostInterface::Named("eth0".parse().unwrap()),
            },
            expected_addresses: self.list(2, |chance| {
                chance.pick(&[address("192.0.2.1"), address("2001:db8::1")])
            }),
            profiles: self.list(2, |chance| chance.profile_name()),
            ports: Vec::new(),
        }
    }

    fn profile_name(&mut self) -> String {
        self.pick(&[
            "kns.one",
            "ksa.one.default",
            "mine",
            "projectcalico-default-allow",
        ])
        .to_owned()
    }

    fn profile(&mut self) -> Profile {
        Profile {
            name: self.profile_name(),
            ingress: self.rules(2),
            egress: self.rules(2),
            labels: BTreeMap::from([
                ("pcns.team".into(), self.pick(&["red", "blue"]).into()),
                ("env".into(), self.pick(&["x", "yz"]).into()),
            ]),
            invalid: BTreeMap::new(),
        }
    }

    fn policy(&mut self) -> Policy {
        let stage = match self.below(6) {
            0 => Stage::Untracked,
            1 => Stage::PreDnat,
            _ => Stage::Normal,
        };

        Policy {
            key: ObjectKey::cluster(Kind::GlobalNetworkPolicy, format!("g{}", self.below(8))),
            tier: self
                .pick(&["default", "default", "early", "strict", "nowhere"])
                .into(),
            order: self.some(2, |chance| chance.below(3) as f64),
            selector: self.selector(),
            types: match self.below(3) {
                0 => Directions {
                    ingress: true,
                    egress: false,
                },
                1 => Directions {
                    ingress: false,
                    egress: true,
                },
                _ => Directions {
                    ingress: true,
                    egress: true,
                },
            },
            ingress: self.rules(3),
            egress: self.rules(3),
            stage,
            apply_on_forward: self.once_in(2),
            staged: self.some(8, |_| StagedAction::Set),
            invalid: BTreeMap::new(),
        }
    }

    fn rules(&mut self, most: u64) -> Vec<Rule> {
        let mut rules = self.list(most, Self::rule);
        for (index, rule) in rules.iter_mut().enumerate() {
            rule.index = index;
        }

        rules
    }

    fn rule(&mut self) -> Rule {
        let actions = [
            Action::Allow,
            Action::Allow,
            Action::Deny,
            Action::Pass,
            Action::Log,
        ];
        let mut rule = Rule::new(self.pick(&actions));
        rule.family = self.some(6, |chance| chance.pick(&Family::BOTH));
        rule.protocol = self.some(2, |chance| {
            chance.pick(&[Protocol::TCP, Protocol::UDP, Protocol::ICMP])
        });
        rule.source = self.side();
        rule.destination = self.side();

        rule
    }

    fn side(&mut self) -> Side {
        if self.once_in(3) {
            return Side::default();
        }
        if self.once_in(5) {
            return Side {
                service: Some(Box::new(ServiceRef {
                    namespace: self.pick(&["one", "two"]).into(),
                    name: "web".into(),
                })),
                ..Side::default()
            };
        }
        let selector = self.some(2, Self::selector);

        Side {
            nets: self
                .some(4, |chance| {
                    chance.list(3, |chance| chance.pick(&NETS).parse().unwrap())
                })
                .unwrap_or_default(),
            not_nets: Vec::new(),
            not_selector: match selector {
                Some(_) => None,
                None => self.some(4, Self::selector),
            },
            selector,
            ports: self.ports(),
            not_ports: self.ports(),
            service: None,
        }
    }

    fn ports(&mut self) -> Vec<PortMatch> {
        let port = |chance: &mut Self| match chance.once_in(2) {
            true => PortMatch::single(chance.pick(&PORTS)),
            false => PortMatch::Named(chance.pick(&["http", "dns"]).into()),
        };

        self.some(4, |chance| chance.list(3, port))
            .unwrap_or_default()
    }
}

/// Takes from whoever has addresses what is not of these families.
pub(super) fn keep_families(resource: &mut Resource, families: &[Family]) {
    let is_kept = |address: &IpAddr| families.contains(&Family::of(*address));
    match resource {
        Resource::WorkloadEndpoint(pod) => pod.addresses.retain(|net| is_kept(&net.addr())),
        Resource::NetworkSet(set) => set.nets.retain(|net| is_kept(&net.addr())),
        Resource::HostEndpoint(host) => host.expected_addresses.retain(is_kept),
        Resource::EndpointSlice(slice) => {
            slice.endpoints.iter_mut().for_each(|endpoint| {
                endpoint.addresses.retain(is_kept);
            });
        }
        Resource::Namespace(_)
        | Resource::ServiceAccount(_)
        | Resource::Profile(_)
        | Resource::Service(_)
        | Resource::Tier(_)
        | Resource::Policy(_)
        | Resource::Node(_)
        | Resource::FelixConfiguration(_)
        | Resource::IpPool(_)
        | Resource::IpamBlock(_)
        | Resource::BlockAffinity(_)
        | Resource::MeshConfiguration(_)
        | Resource::KeyClaim(_)
        | Resource::AddressClaim(_)
        | Resource::Opaque(_) => {}
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
