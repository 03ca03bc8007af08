//! What is there at one step.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use model::{
    Kind, Object, ObjectKey, PodName, Resource,
    manifest::{self, Document, Fault, Position},
    policy::{NamedPort, Profile, ServiceRef},
    resource::{FieldError, Namespace, ServiceAccount},
};
use serde_json::Value;

use super::{
    Source, expected,
    report::ResourceError,
    service::{self, Checked},
    step::{Deletion, Relabel},
    topology::{NamespaceEntry, NodeEntry, PodEntry, Topology},
};
use crate::cluster::{
    Cluster, Interface, Node, Pod, PodNetwork,
    object::{self, Origin},
};

/// What is there at one step.
#[derive(Clone, Debug)]
pub(super) struct State {
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    namespaces: BTreeMap<String, Namespace>,
    accounts: Vec<ServiceAccount>,
    services: Vec<Checked>,
    outside: Vec<Outside>,
    objects: BTreeMap<ObjectKey, Object>,
}

/// A machine beyond the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Outside {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
}

impl State {
    pub(super) fn new(topology: &Topology) -> Result<Self, FieldError> {
        let nodes = topology.nodes.iter().enumerate();
        let services = topology.services.iter().enumerate();
        let mut state = Self {
            nodes: nodes
                .map(|(index, entry)| node(entry, &format!("topology.nodes[{index}]")))
                .collect::<Result<_, _>>()?,
            pods: Vec::new(),
            namespaces: BTreeMap::new(),
            accounts: topology
                .service_accounts
                .iter()
                .map(|entry| ServiceAccount {
                    namespace: entry.namespace.clone(),
                    name: entry.name.clone(),
                    labels: entry.labels.clone(),
                })
                .collect(),
            services: services
                .map(|(index, entry)| Checked::read(entry, &format!("topology.services[{index}]")))
                .collect::<Result<_, _>>()?,
            outside: topology
                .outside
                .iter()
                .map(|entry| Outside {
                    name: entry.name.clone(),
                    addresses: entry.addresses.clone(),
                })
                .collect(),
            objects: BTreeMap::new(),
        };
        once(
            state.nodes.iter().map(|node| node.name.as_str()),
            "topology.nodes",
        )?;
        once(
            state.outside.iter().map(|outside| outside.name.as_str()),
            "topology.outside",
        )?;
        for (index, entry) in topology.namespaces.iter().enumerate() {
            state.add_namespace(entry, &format!("topology.namespaces[{index}]"))?;
        }
        for (index, entry) in topology.pods.iter().enumerate() {
            state.add_pod(entry, &format!("topology.pods[{index}]"))?;
        }

        Ok(state)
    }

    pub(super) fn outside(&self) -> &[Outside] {
        &self.outside
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    pub(super) fn accounts(&self) -> &[ServiceAccount] {
        &self.accounts
    }

    /// Returns whether the topology has a service.
    pub(super) fn has_service(&self, name: &ServiceRef) -> bool {
        self.services.iter().any(|service| service.name == *name)
    }

    /// Stores objects as an apply does; returns what is wrong with those that were refused.
    pub(super) fn apply(&mut self, sources: &[Source]) -> Vec<ResourceError> {
        let mut errors = Vec::new();
        let mut documents = Vec::new();
        for (index, (value, place)) in flat(sources).into_iter().enumerate() {
            let value = match value {
                Ok(value) => value,
                Err(message) => {
                    errors.push(refusal(place, FieldError::new("", message)));
                    continue;
                }
            };
            let name = written_name(&value).unwrap_or(place);
            match manifest::object(value) {
                Ok(object) => documents.push(Document {
                    object,
                    position: Position {
                        file: name,
                        document: index + 1,
                        item: None,
                    },
                }),
                Err(error) => errors.push(refusal(name, error)),
            }
        }
        errors.extend(self.store(documents));

        errors
    }

    /// Stores the objects that do not contradict others.
    fn store(&mut self, documents: Vec<Document>) -> Vec<ResourceError> {
        let refused = manifest::validate_all(&documents, self.objects.values())
            .err()
            .unwrap_or_default();
        let places: BTreeSet<usize> = refused
            .iter()
            .map(|error| error.position.document)
            .collect();
        for Document { object, position } in documents {
            if !places.contains(&position.document) {
                self.objects.insert(object.key(), object);
            }
        }

        refused
            .into_iter()
            .map(|error| {
                let field = match error.error {
                    Fault::Field(field) => field,
                    Fault::Text(text) => FieldError::new("", text),
                };
                refusal(error.position.file, field)
            })
            .collect()
    }

    /// Removes an object; returns what is wrong if there is none, or more than one.
    pub(super) fn delete(&mut self, deletion: &Deletion) -> Option<ResourceError> {
        let found: Vec<ObjectKey> = self
            .objects
            .keys()
            .filter(|key| is_meant(key, deletion))
            .cloned()
            .collect();
        let message = match &found[..] {
            [key] => {
                self.objects.remove(key);
                return None;
            }
            [] => "there is no such object",
            [_, _, ..] => "there are several of that name: apiVersion tells which",
        };
        let name = match &deletion.namespace {
            Some(namespace) => format!("{} {namespace}/{}", deletion.kind, deletion.name),
            None => format!("{} {}", deletion.kind, deletion.name),
        };

        Some(refusal(name, FieldError::new("metadata.name", message)))
    }

    pub(super) fn add_namespace(
        &mut self,
        entry: &NamespaceEntry,
        path: &str,
    ) -> Result<(), FieldError> {
        if self.namespaces.contains_key(&entry.name) {
            return Err(expected(
                &format!("{path}.name"),
                "each namespace once",
                &entry.name,
            ));
        }
        let namespace = Namespace {
            name: entry.name.clone(),
            labels: entry.labels.clone(),
        };
        self.namespaces.insert(entry.name.clone(), namespace);

        Ok(())
    }

    /// Removes a namespace and everything in it.
    pub(super) fn delete_namespace(&mut self, name: &str, path: &str) -> Result<(), FieldError> {
        let key = ObjectKey::cluster(Kind::Namespace, name);
        let was_there =
            self.namespaces.remove(name).is_some() | self.objects.remove(&key).is_some();
        if !was_there {
            return Err(expected(path, "a namespace that is there", name));
        }
        self.pods.retain(|pod| pod.name.namespace != name);
        self.accounts.retain(|account| account.namespace != name);
        self.services
            .retain(|service| service.name.namespace != name);
        self.objects
            .retain(|key, _| key.namespace.as_deref() != Some(name));

        Ok(())
    }

    pub(super) fn add_pod(&mut self, entry: &PodEntry, path: &str) -> Result<(), FieldError> {
        let pod = self.pod(entry, path)?;
        if self.pods.iter().any(|other| other.name == pod.name) {
            return Err(expected(
                &format!("{path}.name"),
                "each pod once",
                &entry.name,
            ));
        }
        self.pods.push(pod);

        Ok(())
    }

    pub(super) fn delete_pod(&mut self, name: &str, path: &str) -> Result<(), FieldError> {
        let before = self.pods.len();
        self.pods.retain(|pod| pod.name.to_string() != name);
        if self.pods.len() == before {
            return Err(expected(path, "a pod that is there", name));
        }

        Ok(())
    }

    /// Puts labels in the place of all that a pod or a namespace had.
    pub(super) fn relabel(&mut self, relabel: &Relabel, path: &str) -> Result<(), FieldError> {
        match (&relabel.pod, &relabel.namespace) {
            (Some(name), None) => {
                let mut pods = self.pods.iter_mut();
                let pod = pods.find(|pod| pod.name.to_string() == *name);
                pod.ok_or_else(|| expected(path, "a pod that is there", name))?
                    .labels = relabel.labels.clone();
            }
            (None, Some(name)) => {
                let key = ObjectKey::cluster(Kind::Namespace, name);
                let written = self.namespaces.get_mut(name);
                let object = self.objects.get_mut(&key);
                if written.is_none() && object.is_none() {
                    return Err(expected(path, "a namespace that is there", name));
                }
                if let Some(written) = written {
                    written.labels.clone_from(&relabel.labels);
                }
                if let Some(object) = object {
                    object.metadata.labels = relabel.labels.clone();
                }
            }
            (Some(_), Some(_)) | (None, None) => {
                let message = "expected either a pod or a namespace";
                return Err(FieldError::new(path, message));
            }
        }

        Ok(())
    }

    /// Returns everything that a verdict depends on.
    pub(super) fn cluster(&self) -> Cluster {
        let mut cluster = Cluster {
            nodes: self.nodes.clone(),
            pods: self.pods.clone(),
            profiles: self.profiles(),
            ..Cluster::default()
        };
        for object in self.objects.values() {
            match Resource::try_from(object) {
                Ok(Resource::Tier(tier)) => cluster.tiers.push(tier),
                Ok(Resource::Policy(policy)) => cluster.policies.push(*policy),
                Ok(Resource::NetworkSet(set)) => cluster.sets.push(*set),
                Ok(Resource::HostEndpoint(host)) => cluster.host_endpoints.push(*host),
                Ok(Resource::FelixConfiguration(settings)) => {
                    cluster.configurations.push(*settings)
                }
                // Nothing else decides about a packet, or it is in the profiles and services already.
                Ok(_) | Err(_) => {}
            }
        }
        cluster.services = service::of_objects(self.objects.values());
        for service in &self.services {
            let found = service.service(&cluster);
            cluster.services.insert(service.name.clone(), found);
        }

        cluster
    }

    /// Returns the profiles: the built-in one, those that are objects, of namespaces, of service accounts. Of several
    /// of one name the last counts.
    fn profiles(&self) -> BTreeMap<String, Profile> {
        let mut namespaces = self.namespaces.clone();
        let mut accounts = self.accounts.clone();
        let mut profiles = vec![object::built_in()];
        for object in self.objects.values() {
            match Resource::try_from(object) {
                Ok(Resource::Namespace(written)) => {
                    namespaces.insert(written.name.clone(), written);
                }
                Ok(Resource::ServiceAccount(account)) => accounts.push(account),
                Ok(Resource::Profile(profile)) => profiles.push((Origin::Object, *profile)),
                Ok(_) | Err(_) => {}
            }
        }
        profiles.extend(namespaces.values().flat_map(object::of_namespace));
        profiles.sort_by(|a, b| a.0.cmp(&b.0));
        let profiles = profiles.into_iter().map(|(_, profile)| profile);
        let accounts = accounts.iter().map(ServiceAccount::profile);

        profiles
            .chain(accounts)
            .map(|profile| (profile.name.clone(), profile))
            .collect()
    }

    fn pod(&self, entry: &PodEntry, path: &str) -> Result<Pod, FieldError> {
        let text = format!("{}/{}", entry.namespace, entry.name);
        let node = match &entry.node {
            Some(name) => self.nodes.iter().find(|node| node.name.as_str() == name),
            None => self.nodes.first(),
        };
        let wanted = entry.node.as_deref().unwrap_or("");
        let node = node
            .ok_or_else(|| expected(&format!("{path}.node"), "a node of topology.nodes", wanted))?;
        let ports = entry.ports.iter().enumerate();
        let listens = entry.listens.iter().enumerate();
        for (index, listen) in listens {
            super::probe::port(listen, &format!("{path}.listens[{index}]"))?;
        }

        Ok(Pod {
            name: PodName::parse(&text)
                .map_err(|error| FieldError::new(format!("{path}.name"), error.to_string()))?,
            node: node.name.clone(),
            service_account: entry
                .service_account
                .clone()
                .unwrap_or_else(|| object::DEFAULT_ACCOUNT.to_owned()),
            labels: entry.labels.clone(),
            addresses: entry.addresses.clone(),
            ports: ports
                .map(|(index, port)| {
                    let path = format!("{path}.ports[{index}].protocol");
                    Ok(NamedPort {
                        name: port.name.clone(),
                        protocol: service::protocol(port.protocol.as_ref(), &path)?,
                        port: port.port,
                    })
                })
                .collect::<Result<_, FieldError>>()?,
            network: if entry.host_network {
                PodNetwork::Host
            } else {
                PodNetwork::Own
            },
        })
    }
}

fn node(entry: &NodeEntry, path: &str) -> Result<Node, FieldError> {
    let interfaces = entry.interfaces.iter();

    Ok(Node {
        name: entry
            .name
            .parse()
            .map_err(|_| expected(&format!("{path}.name"), "the name of a node", &entry.name))?,
        labels: entry.labels.clone(),
        interfaces: interfaces
            .map(|(name, addresses)| {
                Ok(Interface {
                    name: name.parse().map_err(|_| {
                        expected(&format!("{path}.interfaces"), "an interface name", name)
                    })?,
                    addresses: addresses.clone(),
                })
            })
            .collect::<Result<_, FieldError>>()?,
    })
}

fn once<'a>(names: impl Iterator<Item = &'a str>, path: &str) -> Result<(), FieldError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(expected(path, "each name once", name));
        }
    }

    Ok(())
}

/// Returns every object with where it stands; lists are taken apart.
fn flat(sources: &[Source]) -> Vec<(Result<Value, String>, String)> {
    let mut found = Vec::new();
    for source in sources {
        let items = source
            .value
            .as_ref()
            .ok()
            .filter(|value| {
                let kind = value.get("kind").and_then(Value::as_str);
                kind.is_some_and(|kind| kind.ends_with("List"))
            })
            .and_then(|value| value.get("items"))
            .and_then(Value::as_array);
        match items {
            Some(items) => found.extend(items.iter().enumerate().map(|(index, item)| {
                let place = format!("{}.items[{index}]", source.position);
                (Ok(item.clone()), place)
            })),
            None => found.push((source.value.clone(), source.position.clone())),
        }
    }

    found
}

/// Returns the kind and name that a value gives itself.
fn written_name(value: &Value) -> Option<String> {
    let kind = value.get("kind")?.as_str()?;
    let metadata = value.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    let namespace = metadata.get("namespace").and_then(Value::as_str);
    let text = match namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    };

    Some(text.chars().take(256).collect())
}

fn refusal(resource: String, error: FieldError) -> ResourceError {
    ResourceError {
        resource,
        field: error.field,
        message: error.message,
    }
}

fn is_meant(key: &ObjectKey, deletion: &Deletion) -> bool {
    let kind = key.kind;
    let named = kind.manifest_name() == deletion.kind || kind.as_str() == deletion.kind;
    let version = deletion
        .api_version
        .as_deref()
        .is_none_or(|version| Kind::from_manifest(version, kind.manifest_name()) == Ok(kind));
    let namespace = deletion.namespace.as_deref().or(match kind.scope() {
        model::kind::Scope::Namespaced => Some("default"),
        model::kind::Scope::Cluster => None,
    });

    named && version && key.name == deletion.name && key.namespace.as_deref() == namespace
}
