//! How probes name who sends and who is to get.

use std::net::IpAddr;

use model::{NodeName, PodName, policy::ServiceRef, resource::FieldError};

use super::{expected, state::Outside};
use crate::{
    cluster::{Cluster, PodNetwork},
    packet::Place,
};

/// What a text of a probe means.
const FORMS: &str = "NAMESPACE/POD, node/NAME, outside/NAME, service/NAMESPACE/NAME or an address";

/// One end of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// How the report names it.
    pub(crate) name: String,
    /// Who it is.
    pub(crate) who: Who,
}

/// Who an end of a probe is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Somebody with addresses.
    At(Place, Vec<IpAddr>),
    /// A service.
    Service(ServiceRef),
}

/// Returns everybody that a text means: one, or all pods of a namespace (`NAMESPACE/*`), or all (`*/*`).
pub(super) fn resolve(
    cluster: &Cluster,
    outside: &[Outside],
    text: &str,
    path: &str,
) -> Result<Vec<Subject>, FieldError> {
    if let Some(namespace) = text.strip_suffix("/*") {
        return pods(cluster, namespace, text, path);
    }
    let who = match text.split('/').collect::<Vec<_>>()[..] {
        ["node", name] => node(cluster, name),
        ["outside", name] => outside
            .iter()
            .find(|outside| outside.name == name)
            .map(|outside| Who::At(Place::Outside, outside.addresses.clone())),
        ["service", namespace, name] => service(cluster, namespace, name),
        [_, _] => PodName::parse(text)
            .ok()
            .and_then(|name| pod(cluster, &name)),
        [text] => match text.parse() {
            Ok(address) => Some(owner(cluster, address)),
            Err(_) => return Err(expected(path, FORMS, text)),
        },
        _ => return Err(expected(path, FORMS, text)),
    };

    match who {
        Some(who) => Ok(vec![Subject {
            name: text.to_owned(),
            who,
        }]),
        None => Err(expected(path, "somebody who is there", text)),
    }
}

fn pods(
    cluster: &Cluster,
    namespace: &str,
    text: &str,
    path: &str,
) -> Result<Vec<Subject>, FieldError> {
    let subjects: Vec<Subject> = cluster
        .pods
        .iter()
        .filter(|pod| namespace == "*" || pod.name.namespace == namespace)
        .filter_map(|found| {
            Some(Subject {
                name: found.name.to_string(),
                who: pod(cluster, &found.name)?,
            })
        })
        .collect();
    if subjects.is_empty() {
        return Err(expected(path, "a pattern that some pod matches", text));
    }

    Ok(subjects)
}

fn node(cluster: &Cluster, name: &str) -> Option<Who> {
    let name: NodeName = name.parse().ok()?;
    let node = cluster.node(&name)?;
    let addresses = node
        .interfaces
        .iter()
        .flat_map(|interface| interface.addresses.clone())
        .collect();

    Some(Who::At(Place::Node(name), addresses))
}

/// Returns a pod; one on its node's network is the node.
fn pod(cluster: &Cluster, name: &PodName) -> Option<Who> {
    let pod = cluster.pod(name)?;
    match pod.network {
        PodNetwork::Own => Some(Who::At(Place::Pod(name.clone()), pod.addresses.clone())),
        PodNetwork::Host => node(cluster, pod.node.as_str()),
    }
}

fn service(cluster: &Cluster, namespace: &str, name: &str) -> Option<Who> {
    let service = ServiceRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };

    cluster
        .services
        .contains_key(&service)
        .then_some(Who::Service(service))
}

/// Returns who has an address: a pod, a node, a service, or a machine beyond the mesh.
pub(super) fn owner(cluster: &Cluster, address: IpAddr) -> Who {
    let service = cluster
        .services
        .iter()
        .find(|(_, service)| service.addresses.contains(&address));
    match service {
        Some((name, _)) => Who::Service(name.clone()),
        None => Who::At(place(cluster, address), vec![address]),
    }
}

/// Returns where an address is.
pub(crate) fn place(cluster: &Cluster, address: IpAddr) -> Place {
    let pod = cluster
        .pods
        .iter()
        .find(|pod| pod.network == PodNetwork::Own && pod.addresses.contains(&address));
    if let Some(pod) = pod {
        return Place::Pod(pod.name.clone());
    }

    cluster
        .nodes
        .iter()
        .find(|node| node.has(address))
        .map_or(Place::Outside, |node| Place::Node(node.name.clone()))
}
