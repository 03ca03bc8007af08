//! Who answers for a service.

use std::collections::BTreeMap;

use model::{
    Object, PodName, Resource,
    policy::{PortMatch, Protocol, ServiceRef},
    resource::FieldError,
};
use serde_json::Value;

use super::{
    expected,
    topology::{ServiceEntry, ServicePortEntry},
};
use crate::cluster::{Backend, Cluster, Pod, Service, object};

/// A service of the topology, checked.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub(super) name: ServiceRef,
    addresses: Vec<std::net::IpAddr>,
    ports: Vec<Port>,
    endpoints: Vec<PodName>,
}

#[derive(Clone, Debug)]
struct Port {
    protocol: Protocol,
    port: u16,
    target: PortMatch,
}

impl Checked {
    pub(super) fn read(entry: &ServiceEntry, path: &str) -> Result<Self, FieldError> {
        let ports = entry.ports.iter().enumerate();
        let endpoints = entry.endpoints.iter().enumerate();

        Ok(Self {
            name: ServiceRef {
                namespace: entry.namespace.clone(),
                name: entry.name.clone(),
            },
            addresses: entry.cluster_ips.clone(),
            ports: ports
                .map(|(index, port)| read_port(port, &format!("{path}.ports[{index}]")))
                .collect::<Result<_, _>>()?,
            endpoints: endpoints
                .map(|(index, text)| {
                    PodName::parse(text).map_err(|_| {
                        expected(&format!("{path}.endpoints[{index}]"), "NAMESPACE/POD", text)
                    })
                })
                .collect::<Result<_, _>>()?,
        })
    }

    /// Returns the service as it is while these pods are there.
    pub(super) fn service(&self, cluster: &Cluster) -> Service {
        let mut backends = Vec::new();
        for pod in self.endpoints.iter().filter_map(|name| cluster.pod(name)) {
            for port in &self.ports {
                let Some(number) = target(&port.target, port.protocol, pod) else {
                    continue;
                };
                backends.extend(
                    cluster
                        .addresses_of(pod)
                        .into_iter()
                        .map(|address| Backend {
                            protocol: port.protocol,
                            service_port: port.port,
                            address,
                            port: number,
                        }),
                );
            }
        }

        Service {
            addresses: self.addresses.clone(),
            backends,
        }
    }
}

/// Returns the number of a service's target at a pod.
fn target(target: &PortMatch, protocol: Protocol, pod: &Pod) -> Option<u16> {
    match target {
        PortMatch::Range(port, _) => Some(*port),
        PortMatch::Named(name) => pod
            .ports
            .iter()
            .find(|named| named.name == *name && named.protocol == protocol)
            .map(|named| named.port),
    }
}

fn read_port(entry: &ServicePortEntry, path: &str) -> Result<Port, FieldError> {
    let target = match &entry.target_port {
        None | Some(Value::Null) => PortMatch::single(entry.port),
        Some(value) => {
            let text = plain(value);
            let port = text.parse();
            port.map_err(|_| expected(&format!("{path}.targetPort"), "a port or a name", &text))?
        }
    };

    Ok(Port {
        protocol: protocol(entry.protocol.as_ref(), &format!("{path}.protocol"))?,
        port: entry.port,
        target,
    })
}

/// Reads a protocol that has ports; TCP if nothing is said.
pub(super) fn protocol(value: Option<&Value>, path: &str) -> Result<Protocol, FieldError> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(Protocol::TCP);
    };
    let text = plain(value);

    text.parse()
        .ok()
        .filter(|protocol: &Protocol| protocol.has_ports())
        .ok_or_else(|| expected(path, "TCP, UDP or SCTP", &text))
}

/// Returns a text or a number as text.
pub(super) fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the services that Kubernetes' own objects describe: Service and EndpointSlice.
pub(super) fn of_objects<'a>(
    objects: impl Iterator<Item = &'a Object>,
) -> BTreeMap<ServiceRef, Service> {
    let mut services = Vec::new();
    let mut slices = Vec::new();
    for object in objects {
        match Resource::try_from(object) {
            Ok(Resource::Service(service)) => services.push(service),
            Ok(Resource::EndpointSlice(slice)) => slices.push(slice),
            Ok(_) | Err(_) => {}
        }
    }

    services
        .iter()
        .map(|service| {
            let name = ServiceRef {
                namespace: service.namespace.clone(),
                name: service.name.clone(),
            };
            let of_service = slices.iter().filter(|slice| {
                slice.namespace == service.namespace
                    && slice.service.as_deref() == Some(service.name.as_str())
            });
            let backends = of_service.flat_map(|slice| object::backends(service, slice));
            let found = Service {
                addresses: service.cluster_addresses.clone(),
                backends: backends.collect(),
            };

            (name, found)
        })
        .collect()
}
