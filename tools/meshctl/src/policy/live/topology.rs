//! A policy test's machines as a lab file.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use lab::{Document, spec};
use model::{
    Family, NodeName, Object,
    resource::{BlockAffinity, IpamBlock, block_affinity::AffinityState},
};
use policy::{
    Place,
    cluster::{Node, Pod, PodNetwork},
    scenario::Stage,
};
use serde_json::{Value, json};

/// Who has the addresses that a probe names and nobody else has.
const STRANGER: &str = "stranger";

/// Where a policy test says nothing of a machine's network.
const LAN: &str = "192.0.2.0/24";

/// Where it says nothing of IPv6 and packets of it are sent.
const LAN_V6: &str = "2001:db8:1ab::/64";

/// Addresses for tunnels, where no policy test has any (RFC 2544, RFC 5180).
const TUNNELS: [&str; 2] = ["198.18.255.0/24", "2001:2:0:ff::/112"];

/// A policy test's machines as a lab.
pub(super) struct Plan {
    pub(super) document: Document,
    /// Which machine beyond the mesh has an address.
    pub(super) outside: BTreeMap<IpAddr, String>,
}

/// The networks, by which subnets they have.
#[derive(Default)]
struct Networks {
    subnets: Vec<BTreeSet<IpNet>>,
}

impl Plan {
    /// Lays a policy test out.
    ///
    /// # Errors
    /// It says something that a lab cannot be.
    pub(super) fn of(name: &str, stages: &[Stage]) -> anyhow::Result<Self> {
        let first = stages.first().context("it has no state")?;
        if first.nodes.is_empty() {
            bail!("it has no node");
        }
        let mut networks = Networks::default();
        let mut attached = Vec::new();
        for node in &first.nodes {
            attached.push(attach(node, &mut networks)?);
        }
        let needs_v6 = networks.add_missing(stages);
        let outside = outside(first, stages);
        let nodes = first.nodes.iter().zip(&attached).enumerate();
        let nodes: Vec<Value> = nodes
            .map(|(index, (node, attachments))| {
                let own = needs_v6.then(|| second_address(index)).flatten();
                node_entry(node, attachments, own)
            })
            .collect();
        let names: Vec<String> = (0..networks.subnets.len()).map(network).collect();
        let hosts = outside.iter().map(|(name, addresses)| {
            json!({"name": name, "networks": [names[0]], "addresses": addresses})
        });
        let mut document = json!({
            "apiVersion": "meshd.dev/v1",
            "kind": "Lab",
            "metadata": {"name": name},
            "spec": {
                "networks": networks.entries()?,
                "server": {"networks": [names[0]]},
                "nodes": nodes,
                "outside": hosts.collect::<Vec<_>>(),
                "resources": pools(stages).into_iter().chain(blocks(stages)?).collect::<Vec<_>>(),
            },
        });
        if names.len() > 1 {
            document["spec"]["routers"] = json!([{"name": "router", "networks": names}]);
        }
        let document = serde_json::from_value(document).context("the lab file")?;
        let outside = outside.into_iter().flat_map(|(name, addresses)| {
            addresses
                .into_iter()
                .map(move |address| (address, name.clone()))
        });

        Ok(Self {
            document,
            outside: outside.collect(),
        })
    }
}

/// Returns the network and the addresses of each of a node's devices.
fn attach(node: &Node, networks: &mut Networks) -> anyhow::Result<Vec<(usize, Vec<IpAddr>)>> {
    let mut attached = Vec::new();
    for (index, interface) in node.interfaces.iter().enumerate() {
        let name = interface.name.as_str();
        if name != format!("eth{index}") {
            bail!(
                "interface {name} of node {}: a lab's are eth0, eth1, …",
                node.name
            );
        }
        let network = networks
            .of(&interface.addresses)
            .with_context(|| format!("interface {name} of node {}", node.name))?;
        attached.push((network, interface.addresses.clone()));
    }
    if attached.is_empty() {
        let lan: IpNet = LAN.parse().context("the default network")?;
        attached.push((networks.of(&[lan.addr()])?, Vec::new()));
    }

    Ok(attached)
}

impl Networks {
    /// Returns the network that has these addresses; one is made where none has any of them.
    fn of(&mut self, addresses: &[IpAddr]) -> anyhow::Result<usize> {
        let subnets: BTreeSet<IpNet> = addresses.iter().map(|address| subnet(*address)).collect();
        for family in Family::BOTH {
            let own = subnets.iter().filter(|net| Family::of_net(net) == family);
            if own.count() > 1 {
                bail!("it has {family} addresses of two networks");
            }
        }
        let mut known = { self.subnets.iter_mut().enumerate() }
            .filter(|(_, network)| !network.is_disjoint(&subnets));
        match (known.next(), known.next()) {
            (Some((index, network)), None) => {
                network.extend(subnets);
                Ok(index)
            }
            (None, _) => {
                self.subnets.push(subnets);
                Ok(self.subnets.len() - 1)
            }
            (Some(_), Some(_)) => bail!("it joins two networks"),
        }
    }

    /// Gives the first network IPv6 where that is sent and no node has it. Returns whether that was needed.
    fn add_missing(&mut self, stages: &[Stage]) -> bool {
        let packets = stages.iter().flat_map(|stage| &stage.trials);
        let mut packets = packets.flat_map(|trial| &trial.packets);
        let is_sent = packets.any(|packet| packet.header.family() == Family::V6);
        let has = self.subnets[0]
            .iter()
            .any(|net| Family::of_net(net) == Family::V6);
        if is_sent && !has {
            self.subnets[0].extend(LAN_V6.parse::<IpNet>());
        }

        is_sent && !has
    }

    fn entries(&self) -> anyhow::Result<Vec<Value>> {
        let subnets = self.subnets.iter().enumerate();

        subnets
            .map(|(index, subnets)| {
                for family in Family::BOTH {
                    if subnets
                        .iter()
                        .filter(|net| Family::of_net(net) == family)
                        .count()
                        > 1
                    {
                        bail!("{} has two networks of {family}", network(index));
                    }
                }
                Ok(json!({"name": network(index), "cidrs": subnets}))
            })
            .collect()
    }
}

fn network(index: usize) -> String {
    format!("lan{index}")
}

/// The network that an address is taken to be in.
fn subnet(address: IpAddr) -> IpNet {
    let length = match Family::of(address) {
        Family::V4 => 24,
        Family::V6 => 64,
    };

    IpNet::new(address, length).map_or_else(|_| IpNet::from(address), |net| net.trunc())
}

fn second_address(index: usize) -> Option<IpAddr> {
    let net: IpNet = LAN_V6.parse().ok()?;

    net.hosts().nth(index + 1)
}

fn node_entry(node: &Node, attached: &[(usize, Vec<IpAddr>)], second: Option<IpAddr>) -> Value {
    let networks = attached.iter().map(|(index, addresses)| {
        let extra = second.filter(|_| *index == 0 && !addresses.is_empty());
        let addresses: Vec<IpAddr> = addresses.iter().copied().chain(extra).collect();
        json!({"name": network(*index), "addresses": addresses})
    });

    json!({
        "name": node.name,
        "labels": node.labels,
        "networks": networks.collect::<Vec<_>>(),
    })
}

/// Returns the machines beyond the mesh; those that probes name by address alone are one.
fn outside(first: &Stage, stages: &[Stage]) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut found: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for (name, addresses) in &first.outside {
        found.entry(name.clone()).or_default().extend(addresses);
    }
    let pods = stages.iter().flat_map(|stage| &stage.pods);
    let of_pods: BTreeSet<IpAddr> = pods.flat_map(|pod| pod.addresses.clone()).collect();
    let trials = stages.iter().flat_map(|stage| &stage.trials);
    for packet in trials.flat_map(|trial| &trial.packets) {
        let ends = [
            (&packet.from, packet.header.source),
            (&packet.to, packet.header.destination),
        ];
        for (place, address) in ends {
            let is_known = found.values().any(|addresses| addresses.contains(&address));
            // A pod's address is nobody else's, also when the pod is gone.
            if *place == Place::Outside && !is_known && !of_pods.contains(&address) {
                found
                    .entry(STRANGER.to_owned())
                    .or_default()
                    .insert(address);
            }
        }
    }

    found
}

/// Returns pools that have every pod's address, with blocks of one, so that each pod gets its own wherever it runs.
fn pools(stages: &[Stage]) -> Vec<Value> {
    let pods = stages.iter().flat_map(|stage| &stage.pods);
    let pods = pods.filter(|pod: &&Pod| pod.network == PodNetwork::Own);
    let nodes = stages.iter().flat_map(|stage| &stage.nodes);
    let taken: Vec<IpAddr> = nodes
        .flat_map(|node| &node.interfaces)
        .flat_map(|interface| interface.addresses.iter().copied())
        .collect();
    let nets: BTreeSet<IpNet> = pods
        .flat_map(|pod| &pod.addresses)
        .map(|address| pool(*address, &taken))
        .collect();

    let tunnels = TUNNELS.iter().enumerate().map(|(index, net)| {
        json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "IPPool",
            "metadata": {"name": format!("tunnels-{index}")},
            "spec": {"cidr": net, "natOutgoing": false, "allowedUses": ["Tunnel"]},
        })
    });

    nets.into_iter()
        .enumerate()
        .map(|(index, net)| {
            json!({
                "apiVersion": "projectcalico.org/v3",
                "kind": "IPPool",
                "metadata": {"name": format!("pods-{index}")},
                "spec": {
                    "cidr": net,
                    "blockSize": Family::of_net(&net).bits(),
                    "natOutgoing": false,
                    "allowedUses": ["Workload"],
                },
            })
        })
        .chain(tunnels)
        .collect()
}

/// Returns a block for each address, its first holder's before anybody asks for any.
fn blocks(stages: &[Stage]) -> anyhow::Result<Vec<Value>> {
    let mut held = BTreeMap::new();
    for stage in stages {
        for (cidr, node) in holders(stage)? {
            held.entry(cidr).or_insert(node);
        }
    }
    let objects = held.iter().flat_map(|(cidr, node)| block(*cidr, node));

    objects
        .map(|object| Ok(serde_json::to_value(object)?))
        .collect()
}

/// Returns which node has each pod's address.
///
/// # Errors
/// Pods of two nodes have the same.
pub(super) fn holders(stage: &Stage) -> anyhow::Result<BTreeMap<IpNet, NodeName>> {
    let mut held: BTreeMap<IpNet, NodeName> = BTreeMap::new();
    let own = stage
        .pods
        .iter()
        .filter(|pod| pod.network == PodNetwork::Own);
    for pod in own {
        for address in &pod.addresses {
            let former = held.insert(IpNet::from(*address), pod.node.clone());
            if former.is_some_and(|former| former != pod.node) {
                bail!("{address} is of pods on two nodes");
            }
        }
    }

    Ok(held)
}

/// Returns the objects by which a node holds a block.
pub(super) fn block(cidr: IpNet, node: &NodeName) -> [Object; 2] {
    let affinity = BlockAffinity {
        state: AffinityState::Confirmed,
        ..BlockAffinity::pending(node.clone(), cidr)
    };
    let block = IpamBlock {
        cidr,
        affinity: Some(node.clone()),
        deleted: false,
        allocations: BTreeMap::new(),
        unallocated: vec![0],
        attributes: Vec::new(),
        sequence_number: 1,
        sequence_number_for_allocation: BTreeMap::new(),
        affinity_claim_time: None,
    };

    [affinity.to_object(), block.to_object()]
}

fn pool(address: IpAddr, taken: &[IpAddr]) -> IpNet {
    let length = match Family::of(address) {
        Family::V4 => 24,
        Family::V6 => 112,
    };
    let alone = IpNet::from(address);
    let wide = IpNet::new(address, length).map_or(alone, |net| net.trunc());

    if taken.iter().any(|taken| wide.contains(taken)) {
        alone
    } else {
        wide
    }
}

/// Returns a pod as a lab starts it.
///
/// # Errors
/// A name in it cannot be one of a lab's.
pub(super) fn pod(pod: &Pod) -> anyhow::Result<spec::Pod> {
    let ports = pod.ports.iter().map(
        |port| json!({"name": port.name, "port": port.port, "protocol": port.protocol.to_string()}),
    );
    let value = json!({
        "namespace": pod.name.namespace,
        "name": pod.name.name,
        "labels": pod.labels,
        "serviceAccount": pod.service_account,
        "addresses": pod.addresses,
        "ports": ports.collect::<Vec<_>>(),
    });

    serde_json::from_value(value).with_context(|| format!("pod {}", pod.name))
}

#[cfg(test)]
mod tests {
    use policy::scenario::PolicyTest;

    use super::*;

    fn plan(topology: &Value, probes: &Value) -> anyhow::Result<Plan> {
        let test = PolicyTest::parse(&json!({
            "apiVersion": "meshd.dev/v1", "kind": "PolicyTest", "topology": topology, "probes": probes,
        }))?;

        Plan::of("test", &test.stages(&[])?)
    }

    #[test]
    fn every_machine_is_where_the_test_says_and_every_block_is_its_pods_node_s() {
        let topology = json!({
            "namespaces": [{"name": "a"}],
            "nodes": [
                {"name": "n1", "interfaces": {"eth0": ["192.0.2.1", "2001:db8::1"], "eth1": ["198.51.100.1"]}},
                {"name": "n2", "interfaces": {"eth0": ["192.0.2.2"]}},
            ],
            "pods": [{"namespace": "a", "name": "x", "node": "n2", "addresses": ["10.65.0.2"]}],
            "outside": [{"name": "internet", "addresses": ["203.0.113.9"]}],
        });
        let probes = json!([{"from": "192.0.2.77", "to": "a/x", "port": 80, "expect": "Allow"}]);

        let plan = plan(&topology, &probes).unwrap();

        let spec = &plan.document.spec;
        let cidrs: Vec<_> = spec.networks.iter().map(|network| &network.cidrs).collect();
        assert_eq!(cidrs.len(), 2);
        assert_eq!(cidrs[0].len(), 2);
        assert_eq!(spec.routers[0].networks.len(), 2);
        let addresses =
            |node: usize, device: usize| spec.nodes[node].networks[device].addresses.clone();
        assert_eq!(addresses(0, 1), ["198.51.100.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses(1, 0), ["192.0.2.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            plan.outside[&"192.0.2.77".parse::<IpAddr>().unwrap()],
            STRANGER
        );
        let block = spec
            .resources
            .iter()
            .find(|object| object["kind"] == "IPAMBlock")
            .unwrap();
        assert_eq!(block["spec"]["cidr"], "10.65.0.2/32");
        assert_eq!(block["spec"]["affinity"], "host:n2");
    }

    #[test]
    fn what_no_lab_can_be_is_refused_by_name() {
        let pod = |name, node| json!({"namespace": "a", "name": name, "node": node, "addresses": ["10.65.0.2"]});
        let node =
            |name, device: &str, address| json!({"name": name, "interfaces": {device: [address]}});
        let two = json!([
            node("n1", "eth0", "192.0.2.1"),
            node("n2", "eth0", "192.0.2.2")
        ]);
        let cases = [
            (json!({}), "no node"),
            (json!({"nodes": [node("n1", "ens5", "192.0.2.1")]}), "ens5"),
            (
                json!({"nodes": two, "pods": [pod("x", "n1"), pod("y", "n2")]}),
                "two nodes",
            ),
        ];
        for (topology, expected) in cases {
            let error = plan(&topology, &json!([])).map(drop).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
