use std::net::IpAddr;

use model::{
    PodName,
    policy::Protocol,
    resource::{FelixConfiguration, WorkloadEndpoint},
};

use super::*;
use crate::{
    cluster::{Interface, Node},
    packet::{Place, Ports, Translation, Translator},
};

#[test]
fn a_packet_crosses_the_nodes_of_its_ends() {
    let cluster = cluster();
    for (from, to, way) in [
        ("10.65.0.1", "10.65.0.1", ""),
        ("10.65.0.1", "10.65.0.2", "n1: a/x > a/y"),
        ("10.65.0.1", "10.65.0.3", "n1: a/x > eth0, n2: eth0 > a/z"),
        ("10.65.0.1", "192.0.2.1", "n1: a/x > -"),
        ("10.65.0.1", "192.0.2.2", "n1: a/x > eth0, n2: eth0 > -"),
        ("10.65.0.1", "203.0.113.9", "n1: a/x > eth0"),
        ("192.0.2.1", "10.65.0.1", "n1: - > a/x"),
        ("192.0.2.1", "192.0.2.1", "n1: - > lo, n1: lo > -"),
        ("192.0.2.1", "198.51.100.1", "n1: - > lo, n1: lo > -"),
        ("198.51.100.1", "192.0.2.2", "n1: - > eth1, n2: eth0 > -"),
        ("203.0.113.9", "10.65.0.1", "n1: eth0 > a/x"),
        ("203.0.113.9", "198.51.100.1", "n1: eth1 > -"),
        ("203.0.113.9", "203.0.113.10", ""),
        ("2001:db8::9", "fd00:65::1", "n1: eth1 > a/x"),
    ] {
        assert_eq!(
            way_of(&cluster, &packet(&cluster, from, to)),
            way,
            "{from} to {to}"
        );
    }
}

#[test]
fn what_is_encrypted_crosses_the_tunnels_devices() {
    let mut cluster = cluster();
    let mut settings = FelixConfiguration {
        name: "default".into(),
        wireguard_enabled: Some(true),
        ..FelixConfiguration::default()
    };
    let mut ways = |settings: &FelixConfiguration, from: &str, to: &str| {
        cluster.configurations = vec![settings.clone()];
        way_of(&cluster, &packet(&cluster, from, to))
    };
    let tunnel = "n1: a/x > wireguard.cali, n2: wireguard.cali > a/z";
    let own = "n1: a/x > wg-v6.cali, n2: wg-v6.cali > a/z";
    let plain = "n1: a/x > eth0, n2: eth0 > a/z";

    assert_eq!(ways(&settings, "10.65.0.1", "10.65.0.3"), tunnel);
    assert_eq!(ways(&settings, "fd00:65::1", "fd00:65::3"), tunnel);
    assert_eq!(
        ways(&settings, "10.65.0.1", "192.0.2.2"),
        "n1: a/x > wireguard.cali, n2: wireguard.cali > -"
    );
    assert_eq!(
        ways(&settings, "192.0.2.1", "192.0.2.2"),
        "n1: - > eth0, n2: eth0 > -"
    );
    settings.wireguard_enabled_v6 = Some(true);
    assert_eq!(ways(&settings, "fd00:65::1", "fd00:65::3"), own);
    settings.wireguard_enabled_v6 = Some(false);
    assert_eq!(
        ways(&settings, "fd00:65::1", "fd00:65::3"),
        "n1: a/x > eth1, n2: eth0 > a/z"
    );
    settings.wireguard_enabled = None;
    settings.wireguard_enabled_v6 = Some(true);
    assert_eq!(ways(&settings, "10.65.0.1", "10.65.0.3"), own);
    settings.wireguard_enabled_v6 = None;
    assert_eq!(ways(&settings, "10.65.0.1", "10.65.0.3"), plain);
}

#[test]
fn only_the_node_that_translates_sees_both_destinations() {
    let cluster = cluster();
    let mut packet = packet(&cluster, "10.65.0.1", "10.65.0.3");
    let seen = |packet: &Packet| -> Vec<[String; 2]> {
        let evaluator = Evaluator::new(&cluster);
        let crossings = evaluator.path(packet).into_iter();
        crossings
            .map(|crossing| {
                [crossing.before, crossing.header].map(|header| header.destination.to_string())
            })
            .collect()
    };
    let (service, pod) = ("10.96.0.1".to_owned(), "10.65.0.3".to_owned());
    let translation = |at| {
        Some(Translation {
            address: service.parse().unwrap(),
            port: 80,
            at,
        })
    };

    packet.translation = translation(Translator::First);
    assert_eq!(
        seen(&packet),
        [[service.clone(), pod.clone()], [pod.clone(), pod.clone()]]
    );
    packet.translation = translation(Translator::Last);
    assert_eq!(
        seen(&packet),
        [[service.clone(), service.clone()], [service.clone(), pod]]
    );
}

/// Returns a packet's way: `NODE: DEVICE > DEVICE` for each node, a pod's device by the pod's name.
fn way_of(cluster: &Cluster, packet: &Packet) -> String {
    let evaluator = Evaluator::new(cluster);
    let name = |device: &Option<crossing::Device>| match device {
        None => "-".to_owned(),
        Some(device) => match &device.pod {
            Some(pod) => {
                assert_eq!(device.name, WorkloadEndpoint::host_interface(pod));
                pod.to_string()
            }
            None => device.name.as_str().to_owned(),
        },
    };
    let crossings = evaluator.path(packet).into_iter();
    let crossings: Vec<String> = crossings
        .map(|crossing| {
            let (input, output) = (name(&crossing.input), name(&crossing.output));
            format!("{}: {input} > {output}", crossing.node.name.as_str())
        })
        .collect();

    crossings.join(", ")
}

fn packet(cluster: &Cluster, from: &str, to: &str) -> Packet {
    let place = |text: &str| {
        let address: IpAddr = text.parse().unwrap();
        let pod = cluster
            .pods
            .iter()
            .find(|pod| pod.addresses.contains(&address));
        let node = cluster.nodes.iter().find(|node| node.has(address));
        match (pod, node) {
            (Some(pod), _) => Place::Pod(pod.name.clone()),
            (None, Some(node)) => Place::Node(node.name.clone()),
            (None, None) => Place::Outside,
        }
    };

    Packet {
        from: place(from),
        to: place(to),
        header: Header {
            source: from.parse().unwrap(),
            destination: to.parse().unwrap(),
            protocol: Protocol::TCP,
            ports: Some(Ports {
                source: 40_000,
                destination: 8080,
            }),
            icmp: None,
        },
        translation: None,
    }
}

fn cluster() -> Cluster {
    let node = |name: &str, interfaces: &[(&str, &[&str])]| Node {
        name: name.parse().unwrap(),
        labels: Labels::new(),
        interfaces: interfaces
            .iter()
            .map(|(name, addresses)| Interface {
                name: name.parse().unwrap(),
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            })
            .collect(),
    };
    let pod = |name: &str, node: &str, number: u8| Pod {
        name: PodName::parse(name).unwrap(),
        node: node.parse().unwrap(),
        service_account: "default".into(),
        labels: Labels::new(),
        addresses: vec![
            format!("10.65.0.{number}").parse().unwrap(),
            format!("fd00:65::{number}").parse().unwrap(),
        ],
        ports: Vec::new(),
        network: PodNetwork::Own,
    };

    Cluster {
        nodes: vec![
            node(
                "n1",
                &[
                    ("eth0", &["192.0.2.1"]),
                    ("eth1", &["198.51.100.1", "2001:db8::1"]),
                ],
            ),
            node("n2", &[("eth0", &["192.0.2.2", "2001:db8::2"])]),
        ],
        pods: vec![
            pod("a/x", "n1", 1),
            pod("a/y", "n1", 2),
            pod("a/z", "n2", 3),
        ],
        ..Cluster::default()
    }
}
