//! A cluster and a packet as a policy test: what a failure prints, for people and for `meshctl policy test`.

use model::{
    Family,
    policy::{
        Direction, HostEndpoint, HostInterface, Icmp, NamedPort, NetworkSet, Policy, PortMatch,
        Profile, Protocol, Rule, ServiceRef, Side, Stage, Tier,
    },
    resource::FelixConfiguration,
};
use policy::{
    Verdict,
    cluster::{Cluster, Pod, PodNetwork, Service},
    packet::{Packet, Place},
};
use serde_json::{Map, Value, json};

const CALICO: &str = "projectcalico.org/v3";

/// Writes a policy test (YAML) that holds a cluster and one packet with what is to become of it.
///
/// Everything that a random cluster has can be written; what an API server would refuse (networks of both families in
/// one rule) is refused when the test is run, and named.
pub fn document(cluster: &Cluster, packet: &Packet, expected: Verdict) -> String {
    let document = json!({
        "apiVersion": "meshd.dev/v1",
        "kind": "PolicyTest",
        "metadata": {"name": "shrunk"},
        "topology": topology(cluster, packet),
        "resources": resources(cluster),
        "probes": [probe(packet, expected)],
    });

    serde_yaml_ng::to_string(&document).unwrap()
}

fn topology(cluster: &Cluster, packet: &Packet) -> Value {
    let nodes = cluster.nodes.iter().map(|node| {
        let interfaces: Map<String, Value> = node
            .interfaces
            .iter()
            .map(|interface| (interface.name.to_string(), json!(interface.addresses)))
            .collect();
        json!({"name": node.name, "interfaces": interfaces})
    });
    let ends = [
        (&packet.from, packet.header.source),
        (&packet.to, packet.header.destination),
    ];
    let beyond = ends
        .into_iter()
        .filter(|(place, _)| **place == Place::Outside)
        .map(|(_, address)| json!({"name": "beyond", "addresses": [address]}));

    json!({
        "nodes": nodes.collect::<Vec<_>>(),
        "pods": cluster.pods.iter().map(pod).collect::<Vec<_>>(),
        "outside": beyond.collect::<Vec<_>>(),
    })
}

fn pod(pod: &Pod) -> Value {
    json!({
        "namespace": pod.name.namespace,
        "name": pod.name.name,
        "node": pod.node,
        "serviceAccount": pod.service_account,
        "labels": pod.labels,
        "addresses": pod.addresses,
        "ports": pod.ports.iter().map(named).collect::<Vec<_>>(),
        "hostNetwork": pod.network == PodNetwork::Host,
    })
}

fn named(port: &NamedPort) -> Value {
    json!({"name": port.name, "protocol": protocol(port.protocol), "port": port.port})
}

fn resources(cluster: &Cluster) -> Vec<Value> {
    let tiers = cluster.tiers.iter().map(tier);
    let profiles = cluster.profiles.values().map(profile);
    let sets = cluster.sets.iter().map(set);
    let hosts = cluster.host_endpoints.iter().map(host);
    let settings = cluster.configurations.iter().map(configuration);
    let services = cluster
        .services
        .iter()
        .flat_map(|(name, service)| slices(name, service));
    let policies = cluster.policies.iter().map(policy);

    tiers
        .chain(profiles)
        .chain(sets)
        .chain(hosts)
        .chain(settings)
        .chain(services)
        .chain(policies)
        .collect()
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": CALICO, "kind": kind, "metadata": {"name": name}, "spec": without_null(spec)})
}

fn tier(tier: &Tier) -> Value {
    let action = format!("{:?}", tier.default_action);

    object(
        "Tier",
        &tier.name,
        json!({"order": tier.order, "defaultAction": action}),
    )
}

fn profile(profile: &Profile) -> Value {
    let rules = |direction| profile.rules(direction).iter().map(rule);

    object(
        "Profile",
        &profile.name,
        json!({
            "ingress": rules(Direction::Ingress).collect::<Vec<_>>(),
            "egress": rules(Direction::Egress).collect::<Vec<_>>(),
            "labelsToApply": profile.labels,
        }),
    )
}

fn set(set: &NetworkSet) -> Value {
    let mut object = object(
        set.key.kind.as_str(),
        &set.key.name,
        json!({"nets": set.nets}),
    );
    object["metadata"]["labels"] = json!(set.labels);
    if let Some(namespace) = &set.key.namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }

    object
}

fn host(host: &HostEndpoint) -> Value {
    let interface = match &host.interface {
        HostInterface::Named(name) => json!(name),
        HostInterface::All => json!("*"),
        HostInterface::ByAddress => Value::Null,
    };
    let mut object = object(
        "HostEndpoint",
        &host.name,
        json!({
            "node": host.node,
            "interfaceName": interface,
            "expectedIPs": host.expected_addresses,
            "profiles": host.profiles,
            "ports": host.ports.iter().map(named).collect::<Vec<_>>(),
        }),
    );
    object["metadata"]["labels"] = json!(host.labels);

    object
}

fn configuration(settings: &FelixConfiguration) -> Value {
    let mut spec = json!(settings.other);
    spec["wireguardEnabled"] = json!(settings.wireguard_enabled);

    object("FelixConfiguration", &settings.name, spec)
}

/// A service and a slice for each of its backends.
fn slices(name: &ServiceRef, service: &Service) -> Vec<Value> {
    let metadata =
        |suffix: String| json!({"namespace": name.namespace, "name": name.name.clone() + &suffix});
    let mut ports: Vec<Value> = Vec::new();
    for backend in &service.backends {
        let port = json!({"protocol": protocol(backend.protocol), "port": backend.service_port});
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(String::new()),
        "spec": {"ports": ports},
    })];
    for (index, backend) in service.backends.iter().enumerate() {
        let mut metadata = metadata(format!("-{index}"));
        metadata["labels"] = json!({"kubernetes.io/service-name": name.name});
        let family = Family::of(backend.address);
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
            "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
            "ports": [{"protocol": protocol(backend.protocol), "port": backend.port}],
            "endpoints": [{"addresses": [backend.address]}],
        }));
    }

    objects
}

fn policy(policy: &Policy) -> Value {
    let kind = match policy.staged {
        Some(_) => "StagedGlobalNetworkPolicy",
        None => "GlobalNetworkPolicy",
    };
    let types = [
        (policy.types.ingress, "Ingress"),
        (policy.types.egress, "Egress"),
    ];
    let types: Vec<&str> = types
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
        .collect();
    // A policy has no rules of a type that it is not of.
    let rules = |has: bool, direction| {
        let rules = policy.rules(direction).iter().filter(move |_| has);
        rules.map(rule).collect::<Vec<_>>()
    };

    object(
        kind,
        &policy.key.name,
        json!({
            "tier": policy.tier,
            "order": policy.order,
            "selector": policy.selector,
            "types": types,
            "doNotTrack": policy.stage == Stage::Untracked,
            "preDNAT": policy.stage == Stage::PreDnat,
            "applyOnForward": policy.apply_on_forward,
            "ingress": rules(policy.types.ingress, Direction::Ingress),
            "egress": rules(policy.types.egress, Direction::Egress),
        }),
    )
}

fn rule(rule: &Rule) -> Value {
    let icmp = |icmp: Icmp| without_null(json!({"type": icmp.kind, "code": icmp.code}));

    without_null(json!({
        "action": format!("{:?}", rule.action),
        "ipVersion": rule.family.map(number),
        "protocol": rule.protocol.map(protocol),
        "notProtocol": rule.not_protocol.map(protocol),
        "icmp": rule.icmp.map(icmp),
        "notICMP": rule.not_icmp.map(icmp),
        "source": side(&rule.source),
        "destination": side(&rule.destination),
        "http": rule.http.then(|| json!({"methods": ["GET"]})),
    }))
}

fn side(side: &Side) -> Option<Value> {
    let ports = |ports: &[PortMatch]| {
        let ports = ports.iter().map(|port| match port {
            PortMatch::Range(first, last) if first == last => json!(first),
            PortMatch::Range(..) | PortMatch::Named(_) => json!(port.to_string()),
        });
        ports.collect::<Vec<_>>()
    };
    let list = |list: Value| (list != json!([])).then_some(list);

    (*side != Side::default()).then(|| {
        without_null(json!({
            "nets": list(json!(side.nets)),
            "notNets": list(json!(side.not_nets)),
            "selector": side.selector,
            "notSelector": side.not_selector,
            "ports": list(json!(ports(&side.ports))),
            "notPorts": list(json!(ports(&side.not_ports))),
            "services": side.service,
        }))
    })
}

fn probe(packet: &Packet, expected: Verdict) -> Value {
    let header = &packet.header;
    // A probe of UDPLite has a port, although no rule can speak of it.
    let portless = (header.protocol == Protocol::UDPLITE).then_some(1);

    without_null(json!({
        "from": place(&packet.from),
        "to": place(&packet.to),
        "family": number(header.family()),
        "protocol": protocol(header.protocol),
        "port": header.ports.map(|ports| ports.destination).or(portless),
        "sourcePort": header.ports.map(|ports| ports.source),
        "icmp": header.icmp.map(|icmp| json!({"type": icmp.kind, "code": icmp.code})),
        "dnatFrom": packet.translation.map(|from| json!({"address": from.address, "port": from.port})),
        "expect": format!("{expected:?}"),
    }))
}

fn place(place: &Place) -> String {
    match place {
        Place::Pod(name) => name.to_string(),
        Place::Node(name) => format!("node/{name}"),
        Place::Outside => "outside/beyond".to_owned(),
    }
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// A protocol by its name, or by its number where it has none.
fn protocol(protocol: Protocol) -> Value {
    let text = protocol.to_string();

    text.parse::<u8>()
        .map_or_else(|_| json!(text), |number| json!(number))
}

/// Takes out the fields that say nothing.
fn without_null(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }

    value
}

#[cfg(test)]
mod tests {
    use policy::{Evaluator, scenario::PolicyTest, scenario::Report};

    use super::*;
    use crate::Chance;

    #[test]
    fn a_document_has_the_verdict_of_what_it_was_written_from() {
        let mut policies = 0;
        for seed in 0..80 {
            let mut chance = Chance::new(seed);
            let mut cluster = chance.cluster();
            let packets: Vec<Packet> = (0..8).filter_map(|_| chance.packet(&cluster)).collect();
            take_out_what_is_refused(&mut cluster, &packets[0]);
            let evaluator = Evaluator::new(&cluster);
            policies += cluster.policies.len();
            for packet in &packets {
                let verdict = evaluator.evaluate(packet).verdict;
                let text = document(&cluster, packet, verdict);

                let report = run(&text);

                assert_eq!(report.errors, [], "seed {seed}\n{text}");
                let [entry] = &report.verdicts[..] else {
                    panic!("one probe, one verdict: {report:#?}\n{text}");
                };
                assert_eq!(entry.difference, None, "seed {seed}\n{text}\n{entry:#?}");
            }
        }

        assert!(policies > 60, "{policies} policies");
    }

    /// Random clusters have more than people can apply.
    fn take_out_what_is_refused(cluster: &mut Cluster, packet: &Packet) {
        let errors = run(&document(cluster, packet, Verdict::Allow)).errors;
        let is_refused = |name: &str| {
            let mut errors = errors.iter();
            errors.any(|error| error.resource.ends_with(&format!(" {name}")))
        };
        cluster
            .policies
            .retain(|policy| !is_refused(&policy.key.name));
        cluster
            .profiles
            .retain(|_, profile| !is_refused(&profile.name));
        cluster
            .host_endpoints
            .retain(|host| !is_refused(&host.name));
        if errors
            .iter()
            .any(|error| error.resource.contains("one/web"))
        {
            cluster.services.clear();
        }
        for pod in &mut cluster.pods {
            pod.ports.retain(|port| port.port != 0);
        }
    }

    fn run(text: &str) -> Report {
        let value: Value = serde_yaml_ng::from_str(text).unwrap();
        let test = PolicyTest::parse(&value).unwrap();
        test.check().unwrap();

        test.run(&[]).unwrap()
    }
}
