//! A policy test as something to build: what is there at each step, and the packets to send.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    Family, Kind, Object, ObjectKey,
    policy::{Protocol, ServiceRef},
    resource::FieldError,
};
use serde_json::{Value, json};

use super::{
    PolicyTest, Source,
    probe::{Difference, Probe, Prober},
    report::{Entry, ProbeVerdict, ResourceError},
    state::State,
};
use crate::{
    Evaluator, Packet,
    cluster::{Backend, Cluster, Node, Pod, Service},
};

/// What is there at one step, and what is asked then.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The machines.
    pub nodes: Vec<Node>,
    /// The pods, those on their node's network among them.
    pub pods: Vec<Pod>,
    /// Machines beyond the mesh: name and addresses.
    pub outside: Vec<(String, Vec<IpAddr>)>,
    /// Every object, those of the topology (namespaces, service accounts, services) among them.
    pub objects: Vec<Object>,
    /// The packets to send.
    pub trials: Vec<Trial>,
    /// Objects that were refused.
    pub errors: Vec<ResourceError>,
}

/// One verdict to find out by sending.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the evaluator says of it.
    pub entry: Entry,
    /// The packets: one, or one for each endpoint of a service.
    pub packets: Vec<Packet>,
    /// Whether the probe says from which port it comes.
    pub has_source_port: bool,
    expected: Option<ProbeVerdict>,
}

impl Trial {
    /// Returns the entry with the verdict that was found.
    pub fn found(&self, verdict: ProbeVerdict) -> Entry {
        let wanted = self.expected.filter(|wanted| *wanted != verdict);
        let difference = match wanted {
            Some(wanted) => Some(Difference::Verdict(wanted.as_str())),
            // Who decides cannot be seen; where the verdict is right the evaluator's word stands.
            None => self
                .entry
                .difference
                .clone()
                .filter(Difference::is_about_who),
        };

        Entry {
            verdict,
            difference,
            ..self.entry.clone()
        }
    }
}

impl PolicyTest {
    /// Returns what is there before the steps and after each of them.
    ///
    /// Fails where [`run`](Self::run) does.
    pub fn stages(&self, files: &[Source]) -> Result<Vec<Stage>, FieldError> {
        let mut state = State::new(&self.topology)?;
        let errors = state.apply(&self.sources(files));
        let mut stages = vec![stage(&state, &self.probes, 0, errors)?];
        for (index, step) in self.steps.iter().enumerate() {
            let errors = step.take(&mut state, index)?;
            stages.push(stage(&state, &step.probes, index + 1, errors)?);
        }

        Ok(stages)
    }
}

fn stage(
    state: &State,
    probes: &[Probe],
    step: usize,
    errors: Vec<ResourceError>,
) -> Result<Stage, FieldError> {
    let cluster = state.cluster();
    let evaluator = Evaluator::new(&cluster);
    let mut trials = Vec::new();
    for (index, probe) in probes.iter().enumerate() {
        let prober = Prober {
            cluster: &cluster,
            evaluator: &evaluator,
            outside: state.outside(),
            path: format!("probes[{index}]"),
        };
        let entries = prober.ask(probe)?;
        let flows = prober.flows(probe)?;
        trials.extend(entries.into_iter().zip(flows).map(|(entry, flow)| Trial {
            entry: Entry {
                step,
                probe: index,
                ..entry
            },
            packets: flow.packets,
            has_source_port: probe.has_source_port(),
            expected: probe.expected(),
        }));
    }
    let outside = state.outside().iter();

    Ok(Stage {
        nodes: cluster.nodes.clone(),
        pods: cluster.pods.clone(),
        outside: outside
            .map(|outside| (outside.name.clone(), outside.addresses.clone()))
            .collect(),
        objects: objects(state, &cluster),
        trials,
        errors,
    })
}

/// Returns every object; those of the topology are written as Kubernetes has them.
fn objects(state: &State, cluster: &Cluster) -> Vec<Object> {
    let mut found: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    for namespace in state.namespaces() {
        let name = &namespace.name;
        let account = ObjectKey::namespaced(Kind::ServiceAccount, name, "default");
        let key = ObjectKey::cluster(Kind::Namespace, name);
        found.insert(account.clone(), bare(&account, &BTreeMap::new()));
        found.insert(key.clone(), bare(&key, &namespace.labels));
    }
    for account in state.accounts() {
        let key = ObjectKey::namespaced(Kind::ServiceAccount, &account.namespace, &account.name);
        found.insert(key.clone(), bare(&key, &account.labels));
    }
    for (name, service) in &cluster.services {
        if !state.has_service(name) {
            continue;
        }
        let key = ObjectKey::namespaced(Kind::Service, &name.namespace, &name.name);
        let mut object = bare(&key, &BTreeMap::new());
        object.body.insert("spec".into(), service_spec(service));
        found.insert(key, object);
        let slices = service.backends.iter().enumerate();
        found.extend(slices.map(|(index, backend)| slice(name, index, backend)));
    }
    found.extend(state.objects().map(|object| (object.key(), object.clone())));

    found.into_values().collect()
}

fn bare(key: &ObjectKey, labels: &BTreeMap<String, String>) -> Object {
    let mut object = Object::new(key, Value::Null);
    object.body.clear();
    object.metadata.labels.clone_from(labels);

    object
}

fn service_spec(service: &Service) -> Value {
    let mut ports: Vec<Value> = Vec::new();
    for backend in &service.backends {
        let port = json!({
            "name": port_name(backend.protocol, backend.service_port),
            "protocol": backend.protocol.to_string(),
            "port": backend.service_port,
        });
        if !ports.contains(&port) {
            ports.push(port);
        }
    }

    json!({"clusterIPs": service.addresses, "ports": ports})
}

/// Returns the slice of a backend: its fields stand beside `metadata`, as Kubernetes writes them.
fn slice(service: &ServiceRef, index: usize, backend: &Backend) -> (ObjectKey, Object) {
    let name = format!("{}-{index}", service.name);
    let key = ObjectKey::namespaced(Kind::EndpointSlice, &service.namespace, &name);
    let label = (
        "kubernetes.io/service-name".to_owned(),
        service.name.clone(),
    );
    let mut object = bare(&key, &BTreeMap::from([label]));
    let family = match Family::of(backend.address) {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let ports = json!([{
        "name": port_name(backend.protocol, backend.service_port),
        "protocol": backend.protocol.to_string(),
        "port": backend.port,
    }]);
    let endpoints = json!([{"addresses": [backend.address]}]);
    object.body.extend([
        ("addressType".to_owned(), json!(family)),
        ("endpoints".to_owned(), endpoints),
        ("ports".to_owned(), ports),
    ]);

    (key, object)
}

fn port_name(protocol: Protocol, port: u16) -> String {
    format!("{}-{port}", protocol.to_string().to_ascii_lowercase())
}
