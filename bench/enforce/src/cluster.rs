//! The cluster that is measured: a hundred pods of one node under many policies, thousands of pods elsewhere.
//!
//! Each local pod is selected by a tenth of the active policies; the others select nothing here. A policy has 6 rules
//! for ingress and 5 for egress, each with a port of its own and a selector that is met by 125 to 5,000 pods.

use std::{collections::BTreeMap, net::Ipv4Addr};

use model::{
    InterfaceName, Kind, NodeName, Object, ObjectKey, PodName,
    resource::{ServiceAccount, WorkloadEndpoint},
};
use serde_json::{Value, json};

/// The namespace of the local pods.
pub(crate) const NAMESPACE: &str = "big";

/// Namespaces of the other pods.
const NAMESPACES: u32 = 100;

/// Other nodes.
const NODES: u32 = 100;

/// Rules of each policy.
const INGRESS: u32 = 6;
const EGRESS: u32 = 5;

/// The first pod's address, behind the nodes' blocks.
const LOCAL: u32 = u32::from_be_bytes([10, 244, 1, 2]);
const REMOTE: u32 = u32::from_be_bytes([10, 64, 4, 1]);

/// Keys of the other pods' labels, and how many values each has.
const PEERS: [(&str, u32); 5] = [
    ("remote", 1),
    ("half", 2),
    ("role", 5),
    ("team", 10),
    ("shard", 40),
];

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) local: u32,
    pub(crate) remote: u32,
    pub(crate) policies: u32,
    /// Policies that select local pods.
    pub(crate) active: u32,
}

/// Returns every object of it, in an order in which they can be made.
pub(crate) fn objects(size: Size, node: &NodeName) -> Vec<Object> {
    let team = |i: u32| BTreeMap::from([("team".to_owned(), (i % 10).to_string())]);
    let names = (0..NAMESPACES).map(|i| (format!("load-{i}"), team(i)));
    let namespaces = names
        .chain([(NAMESPACE.to_owned(), BTreeMap::new())])
        .map(|(name, labels)| namespace(&name, labels));
    let local = (0..size.local).map(|i| local_pod(i, node, local_labels(i)));
    let policies = (0..size.policies).map(|p| policy_of_size(p, size.active));
    let remote = (0..size.remote).map(|i| {
        let name = format!("pod-{i}");
        let place = format!("node-{}", 4 + i % NODES);
        pod(
            &format!("load-{}", i % NAMESPACES),
            &name,
            &place,
            REMOTE + (i % NODES) * 256 + i / NODES,
            remote_labels(i),
        )
    });

    namespaces
        .chain(local)
        .chain(policies)
        .chain(remote)
        .collect()
}

/// Returns a pod of the node.
pub(crate) fn local_pod(i: u32, node: &NodeName, labels: BTreeMap<String, String>) -> Object {
    pod(
        NAMESPACE,
        &format!("local-{i}"),
        node.as_str(),
        LOCAL + i,
        labels,
    )
}

/// Returns a pod that comes late, elsewhere.
pub(crate) fn late_pod(i: u32) -> Object {
    let address = u32::from_be_bytes([10, 99, 0, 1]) + i;

    pod(
        "load-0",
        &format!("late-{i}"),
        "node-2",
        address,
        remote_labels(i),
    )
}

/// Returns the labels of a local pod.
pub(crate) fn local_labels(i: u32) -> BTreeMap<String, String> {
    let values = [
        ("pod", i),
        ("f0", i % 10),
        ("f1", i / 11 % 10),
        ("f2", (i * 3 + i / 10) % 10),
        ("f3", (i * 7 + i / 7) % 10),
        ("f4", (i + i / 5) % 10),
    ];
    let values = values.map(|(key, value)| (key.to_owned(), value.to_string()));

    values
        .into_iter()
        .chain([("local".to_owned(), "yes".to_owned())])
        .collect()
}

fn remote_labels(i: u32) -> BTreeMap<String, String> {
    let values = [
        ("half", i % 2),
        ("role", i % 5),
        ("team", i / 5 % 10),
        ("shard", i % 40),
        ("app", i / 100 % 10),
    ];
    let values = values.map(|(key, value)| (key.to_owned(), value.to_string()));

    values
        .into_iter()
        .chain([("remote".to_owned(), "yes".to_owned())])
        .collect()
}

/// Returns a policy of Kubernetes' kind; `port` is that of its first rule.
pub(crate) fn policy(
    name: &str,
    namespace: &str,
    selector: (&str, &str),
    p: u32,
    port: Option<u32>,
) -> Object {
    let rule = |r: u32, direction: &str| {
        let (key, value) = peer(p, r);
        let port = port.filter(|_| r == 0).unwrap_or(rule_port(p, r));
        json!({
            "ports": [{"protocol": "TCP", "port": port}],
            direction: [{"namespaceSelector": {}, "podSelector": {"matchLabels": {key: value}}}],
        })
    };
    let ingress: Vec<Value> = (0..INGRESS).map(|r| rule(r, "from")).collect();
    let egress: Vec<Value> = (INGRESS..INGRESS + EGRESS).map(|r| rule(r, "to")).collect();
    let (key, value) = selector;

    Object::new(
        &ObjectKey::namespaced(Kind::KubernetesNetworkPolicy, namespace, name),
        json!({
            "podSelector": {"matchLabels": {key: value}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress, "egress": egress,
        }),
    )
}

/// Of every ten policies seven are Kubernetes', three Calico's. Neighbours in order have different selectors.
fn policy_of_size(p: u32, active: u32) -> Object {
    let is_active = p < active;
    let app = (p % 10).to_string();
    let (key, value) = match is_active {
        true => (format!("f{}", p % 5), (p / 5 % 10).to_string()),
        false => ("app".to_owned(), app),
    };
    if p / 50 % 10 < 7 {
        let namespace = match is_active {
            true => NAMESPACE.to_owned(),
            false => format!("load-{}", p % NAMESPACES),
        };
        return policy(&format!("k-{p:04}"), &namespace, (&key, &value), p, None);
    }
    let only_remote = if is_active { "" } else { " && remote == 'yes'" };

    global_policy(p, &format!("{key} == '{value}'{only_remote}"))
}

fn global_policy(p: u32, selector: &str) -> Object {
    let peer = |r: u32| {
        let (key, value) = peer(p, r);
        format!("{key} == '{value}'")
    };
    let ingress = (0..INGRESS).map(|r| {
        json!({
            "action": "Allow", "protocol": "TCP", "source": {"selector": peer(r)},
            "destination": {"ports": [rule_port(p, r)]},
        })
    });
    let egress = (INGRESS..INGRESS + EGRESS).map(|r| {
        json!({
            "action": "Allow", "protocol": "TCP",
            "destination": {"selector": peer(r), "ports": [rule_port(p, r)]},
        })
    });

    Object::new(
        &ObjectKey::cluster(Kind::GlobalNetworkPolicy, format!("g-{p:04}")),
        json!({
            "tier": "default", "order": 2000, "selector": selector, "types": ["Ingress", "Egress"],
            "ingress": ingress.collect::<Vec<_>>(), "egress": egress.collect::<Vec<_>>(),
        }),
    )
}

const fn rule_port(p: u32, r: u32) -> u32 {
    1024 + (p * 11 + r) % 50_000
}

fn peer(p: u32, r: u32) -> (&'static str, String) {
    let count: u32 = PEERS.iter().map(|(_, values)| values).sum();
    let mut index = (p * 7 + r * 5) % count;
    for (key, values) in PEERS {
        if index < values {
            let value = if key == "remote" {
                "yes".to_owned()
            } else {
                index.to_string()
            };
            return (key, value);
        }
        index -= values;
    }

    unreachable!("the index is below the sum")
}

fn pod(
    namespace: &str,
    name: &str,
    node: &str,
    address: u32,
    labels: BTreeMap<String, String>,
) -> Object {
    let pod = PodName::parse(&format!("{namespace}/{name}")).expect("a pod's name");
    let node: NodeName = node.parse().expect("a node's name");
    let interface: InterfaceName = WorkloadEndpoint::host_interface(&pod);
    let address = Ipv4Addr::from(address);

    WorkloadEndpoint {
        name: WorkloadEndpoint::object_name(&node, &pod),
        profiles: vec![
            format!("kns.{namespace}"),
            ServiceAccount::profile_name(namespace, "default"),
        ],
        pod,
        node,
        interface,
        addresses: vec![format!("{address}/32").parse().expect("an address")],
        labels,
        ports: Vec::new(),
    }
    .to_object()
}

fn namespace(name: &str, labels: BTreeMap<String, String>) -> Object {
    let mut object = Object::new(&ObjectKey::cluster(Kind::Namespace, name), json!({}));
    object.metadata.labels = labels;

    object
}
