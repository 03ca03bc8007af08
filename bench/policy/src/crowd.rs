//! The clusters: many pods of one node with their policies, and one large set.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use model::{
    Kind, ObjectKey, PodName, Resource,
    policy::{
        Action, Directions, NetworkSet, Policy, PortMatch, Profile, Protocol, Rule, Side, Stage,
    },
    resource::{Namespace, WorkloadEndpoint},
};

/// The node that all pods are on.
pub(crate) const NODE: &str = "n1";

const NAMESPACE: &str = "crowd";

/// How many pods have the same policy.
pub(crate) const ALIKE: u32 = 10;

/// Rules of one policy: a packet that opens a connection meets them all.
const RULES: u32 = 11;

/// How many selectors there are that rules speak of: the groups' roles.
const ROLES: u32 = 20;

/// How many pods have the policy that is edited.
const WIDE: u32 = 1_000;

/// Returns pods, and a policy of eleven rules for each ten of them: three about the pods of a role, seven about a
/// network, each with a port of its own, and one that allows.
pub(crate) fn endpoints(count: u32) -> anyhow::Result<Vec<Resource>> {
    let mut resources = vec![namespace()];
    for index in 0..count {
        resources.push(pod(index)?);
    }
    for group in 0..count.div_ceil(ALIKE) {
        let mut rules = Vec::new();
        for rule in 1..RULES {
            let source = if rule <= 3 {
                let role = (group + rule) % ROLES;
                Side {
                    selector: Some(format!("role == '{role}'").parse()?),
                    ..Side::default()
                }
            } else {
                let net = u32::from(Ipv4Addr::new(172, 16, 0, 0)) + ((group * RULES + rule) << 4);
                Side {
                    nets: vec![IpNet::from(Ipv4Net::new(Ipv4Addr::from(net), 28)?)],
                    ..Side::default()
                }
            };
            rules.push(Rule {
                protocol: Some(Protocol::TCP),
                source,
                destination: Side {
                    ports: vec![PortMatch::single(u16::try_from(rule)?)],
                    ..Side::default()
                },
                ..Rule::new(Action::Deny)
            });
        }
        rules.push(Rule::new(Action::Allow));
        resources.push(policy(
            &format!("p{group}"),
            &format!("group == '{group}'"),
            rules,
        )?);
    }

    Ok(resources)
}

/// Returns a pod with a policy that speaks of one set of so many addresses.
pub(crate) fn addresses(count: u32) -> anyhow::Result<Vec<Resource>> {
    let base = u32::from(Ipv4Addr::new(20, 0, 0, 0));
    let nets = (0..count)
        .map(|index| IpNet::from(Ipv4Net::from(Ipv4Addr::from(base + 3 * index))))
        .collect();
    let set = NetworkSet {
        key: ObjectKey::cluster(Kind::GlobalNetworkSet, "feed"),
        labels: BTreeMap::from([("threat".into(), "feed".into())]),
        nets,
        invalid: BTreeMap::new(),
    };
    let rule = Rule {
        source: Side {
            selector: Some("threat == 'feed'".parse()?),
            ..Side::default()
        },
        ..Rule::new(Action::Deny)
    };

    Ok(vec![
        namespace(),
        pod(0)?,
        Resource::NetworkSet(Box::new(set)),
        policy("feed", "all()", vec![rule])?,
    ])
}

fn namespace() -> Resource {
    Resource::Namespace(Namespace {
        name: NAMESPACE.into(),
        labels: BTreeMap::new(),
    })
}

/// Returns a pod. Pods 0 and 1 are the two that packets are sent between: `caliA` and `caliB`.
pub(crate) fn pod(index: u32) -> anyhow::Result<Resource> {
    labelled(index, index, &[])
}

/// Returns a pod with the labels of another.
pub(crate) fn moved(index: u32, other: u32) -> anyhow::Result<Resource> {
    labelled(index, other, &[])
}

/// Returns a pod that [`special`] selects besides.
pub(crate) fn marked(index: u32) -> anyhow::Result<Resource> {
    labelled(index, index, &[("special", "yes")])
}

/// Returns a policy of few pods.
pub(crate) fn special() -> anyhow::Result<Resource> {
    policy(
        "special",
        "special == 'yes'",
        vec![Rule::new(Action::Allow)],
    )
}

/// Returns a policy of the first thousand pods, whose one rule is for this port.
pub(crate) fn wide(port: u32) -> anyhow::Result<Resource> {
    policy("wide", "wide == 'yes'", vec![port_rule(port)?])
}

/// Returns the same policy, of nobody.
pub(crate) fn narrow() -> anyhow::Result<Resource> {
    policy("wide", "wide == 'no'", vec![port_rule(0)?])
}

fn port_rule(port: u32) -> anyhow::Result<Rule> {
    Ok(Rule {
        protocol: Some(Protocol::TCP),
        destination: Side {
            ports: vec![PortMatch::single(u16::try_from(10_000 + port)?)],
            ..Side::default()
        },
        ..Rule::new(Action::Deny)
    })
}

fn labelled(index: u32, like: u32, more: &[(&str, &str)]) -> anyhow::Result<Resource> {
    let name = PodName {
        namespace: NAMESPACE.into(),
        name: format!("pod-{index}"),
    };
    let interface = match index {
        0 => "caliA".parse()?,
        1 => "caliB".parse()?,
        _ => WorkloadEndpoint::host_interface(&name),
    };
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 65, 0, 2)) + index);
    let is_wide = like < WIDE;
    let mut labels = BTreeMap::from([
        ("group".into(), (like / ALIKE).to_string()),
        ("role".into(), (like / ALIKE % ROLES).to_string()),
    ]);
    labels.extend(is_wide.then(|| ("wide".into(), "yes".into())));
    labels.extend(
        more.iter()
            .map(|(key, value)| ((*key).into(), (*value).into())),
    );

    Ok(Resource::WorkloadEndpoint(Box::new(WorkloadEndpoint {
        name: format!("{NODE}-k8s-pod--{index}-eth0"),
        pod: name,
        node: NODE.parse()?,
        interface,
        addresses: vec![IpNet::from(Ipv4Net::from(address))],
        labels,
        profiles: vec![Profile::default_allow().name],
        ports: Vec::new(),
    })))
}

fn policy(name: &str, selector: &str, ingress: Vec<Rule>) -> anyhow::Result<Resource> {
    Ok(Resource::Policy(Box::new(Policy {
        key: ObjectKey::cluster(Kind::GlobalNetworkPolicy, name),
        tier: "default".into(),
        order: Some(1.0),
        selector: selector.parse()?,
        types: Directions {
            ingress: true,
            egress: false,
        },
        ingress: ingress
            .into_iter()
            .enumerate()
            .map(|(index, rule)| Rule { index, ..rule })
            .collect(),
        egress: Vec::new(),
        stage: Stage::Normal,
        apply_on_forward: false,
        staged: None,
        invalid: BTreeMap::new(),
    })))
}
