//! Objects that the clusters are made of.

use std::collections::BTreeMap;

use model::{
    Kind, ObjectKey, PodName, Resource,
    policy::{Action, Directions, Policy, PortMatch, Protocol, Rule, Side, Stage},
    resource::{Namespace, WorkloadEndpoint},
};

/// Returns a pod's endpoint, its address being that of a number below 2^24.
pub(crate) fn pod(
    namespace: &str,
    name: &str,
    node: &str,
    number: u32,
    labels: impl IntoIterator<Item = (String, String)>,
) -> Resource {
    let pod = PodName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let node = node.parse().expect("the benchmarks' nodes have names");
    let [_, a, b, c] = number.to_be_bytes();
    let address = format!("10.{a}.{b}.{c}/32");

    Resource::WorkloadEndpoint(Box::new(WorkloadEndpoint {
        name: WorkloadEndpoint::object_name(&node, &pod),
        interface: WorkloadEndpoint::host_interface(&pod),
        node,
        addresses: vec![address.parse().expect("four numbers and 32 are a network")],
        labels: labels.into_iter().collect(),
        profiles: vec![
            format!("kns.{namespace}"),
            format!("ksa.{namespace}.default"),
        ],
        pod,
        ports: Vec::new(),
    }))
}

pub(crate) fn namespace(name: &str) -> Resource {
    Resource::Namespace(Namespace {
        name: name.to_owned(),
        labels: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
    })
}

/// Returns a policy that lets in TCP to a port from each of some selectors.
pub(crate) fn policy(name: &str, selector: &str, from: &[String], port: u16) -> Resource {
    let rules = from.iter().enumerate().map(|(index, from)| Rule {
        protocol: Some(Protocol::TCP),
        source: Side {
            selector: Some(from.parse().expect("the benchmarks' selectors can be read")),
            ..Side::default()
        },
        destination: Side {
            ports: vec![PortMatch::single(port)],
            ..Side::default()
        },
        index,
        ..Rule::new(Action::Allow)
    });

    Resource::Policy(Box::new(Policy {
        key: ObjectKey::cluster(Kind::GlobalNetworkPolicy, name),
        tier: "default".to_owned(),
        order: Some(100.0),
        selector: selector
            .parse()
            .expect("the benchmarks' selectors can be read"),
        types: Directions {
            ingress: true,
            egress: false,
        },
        ingress: rules.collect(),
        egress: Vec::new(),
        stage: Stage::Normal,
        apply_on_forward: false,
        staged: None,
        invalid: BTreeMap::new(),
    }))
}

/// Returns a label.
pub(crate) fn label(key: impl Into<String>, value: impl Into<String>) -> (String, String) {
    (key.into(), value.into())
}
