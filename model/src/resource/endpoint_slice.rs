//! Kubernetes' EndpointSlice: where the packets to a service end up.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FieldError, field, rule};
use crate::{NodeName, Object, PodName, policy::Protocol};

/// The label that names a slice's service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Some endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Its namespace, and its service's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service's name.
    pub service: Option<String>,
    /// The ports of each endpoint.
    pub ports: Vec<EndpointPort>,
    /// The endpoints; a slice of DNS names has none.
    pub endpoints: Vec<Endpoint>,
}

/// A port of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// The name, which the service's port shares.
    pub name: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The number; `None` is every port.
    pub port: Option<u16>,
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its addresses, which all mean the same.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes new connections; one that does not say so does.
    pub ready: bool,
    /// Its node.
    pub node: Option<NodeName>,
    /// The pod that it is.
    pub pod: Option<PodName>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredPort {
    name: Option<String>,
    protocol: Option<Value>,
    port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<StoredConditions>,
    node_name: Option<String>,
    target_ref: Option<StoredTarget>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredConditions {
    ready: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredTarget {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

impl TryFrom<&Object> for EndpointSlice {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let namespace = field::namespace(object)?;
        let list = |name: &str| object.body.get(name).cloned().unwrap_or_default();
        let ports: Option<Vec<StoredPort>> = field::member(&list("ports"), "ports")?;
        let endpoints: Option<Vec<StoredEndpoint>> =
            field::member(&list("endpoints"), "endpoints")?;
        let names = list("addressType").as_str() == Some("FQDN");
        let endpoints = endpoints.filter(|_| !names).unwrap_or_default();

        Ok(Self {
            service: object.metadata.labels.get(SERVICE_LABEL).cloned(),
            ports: ports
                .unwrap_or_default()
                .into_iter()
                .enumerate()
                .map(|(index, stored)| port(stored, &format!("ports[{index}]")))
                .collect::<Result<_, _>>()?,
            endpoints: endpoints
                .into_iter()
                .enumerate()
                .map(|(index, stored)| endpoint(stored, &format!("endpoints[{index}]"), &namespace))
                .collect::<Result<_, _>>()?,
            name: object.metadata.name.clone(),
            namespace,
        })
    }
}

fn port(stored: StoredPort, path: &str) -> Result<EndpointPort, FieldError> {
    let protocol = rule::protocol(stored.protocol.as_ref(), &format!("{path}.protocol"))?;

    Ok(EndpointPort {
        name: stored.name.filter(|name| !name.is_empty()),
        protocol: protocol.unwrap_or(Protocol::TCP),
        port: stored.port,
    })
}

fn endpoint(stored: StoredEndpoint, path: &str, namespace: &str) -> Result<Endpoint, FieldError> {
    let addresses = stored.addresses.unwrap_or_default();
    let addresses = addresses
        .iter()
        .enumerate()
        .map(|(index, text)| field::address(text, &format!("{path}.addresses[{index}]")));
    let ready = stored.conditions.and_then(|conditions| conditions.ready);
    let pod = stored
        .target_ref
        .filter(|target| target.kind.as_deref() == Some("Pod"))
        .and_then(|target| {
            Some((
                target.namespace.unwrap_or_else(|| namespace.to_owned()),
                target.name?,
            ))
        });
    let node = stored.node_name.filter(|node| !node.is_empty());

    Ok(Endpoint {
        addresses: addresses.collect::<Result<_, _>>()?,
        ready: ready.unwrap_or(true),
        node: node
            .map(|node| field::node(&node, &format!("{path}.nodeName")))
            .transpose()?,
        pod: pod
            .map(|(namespace, name)| PodName::parse(&format!("{namespace}/{name}")))
            .transpose()
            .map_err(|error| FieldError::new(format!("{path}.targetRef"), error.to_string()))?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn an_endpoint_that_does_not_say_otherwise_is_ready() {
        let slice = EndpointSlice::try_from(&slice(json!([
            {"addresses": ["10.65.0.2"]},
            {"addresses": ["10.65.0.3"], "conditions": {}},
            {"addresses": ["10.65.0.4"], "conditions": {"ready": null}},
            {"addresses": ["10.65.0.5"], "conditions": {"ready": true}, "nodeName": "n1",
             "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0"}},
            {"addresses": ["10.65.0.6"], "conditions": {"ready": false}, "targetRef": {"kind": "Node", "name": "n1"}},
        ])))
        .unwrap();

        let ready: Vec<_> = slice
            .endpoints
            .iter()
            .map(|endpoint| endpoint.ready)
            .collect();
        assert_eq!(ready, [true, true, true, true, false]);
        assert_eq!(slice.service.as_deref(), Some("web"));
        let pods: Vec<_> = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.pod.clone())
            .collect();
        assert_eq!(pods, [PodName::parse("shop/web-0").unwrap()]);
        assert_eq!(slice.endpoints[3].node, Some("n1".parse().unwrap()));
        let port = |name: Option<&str>, protocol, port| EndpointPort {
            name: name.map(str::to_owned),
            protocol,
            port,
        };
        assert_eq!(
            slice.ports,
            [
                port(Some("pg"), Protocol::TCP, Some(5432)),
                port(None, Protocol::UDP, None),
            ]
        );
    }

    #[test]
    fn names_are_no_addresses() {
        let mut object = slice(json!([{"addresses": ["example.org"]}]));
        assert_eq!(
            EndpointSlice::try_from(&object).unwrap_err().field,
            "endpoints[0].addresses[0]"
        );
        object.body.insert("addressType".into(), json!("FQDN"));
        assert_eq!(EndpointSlice::try_from(&object).unwrap().endpoints, []);
    }

    fn slice(endpoints: Value) -> Object {
        let key = ObjectKey::namespaced(Kind::EndpointSlice, "shop", "web-x");
        let mut object = Object::new(&key, Value::Null);
        object
            .metadata
            .labels
            .insert(SERVICE_LABEL.into(), "web".into());
        object.body.insert("addressType".into(), json!("IPv4"));
        object.body.insert("endpoints".into(), endpoints);
        let ports =
            json!([{"name": "pg", "port": 5432}, {"name": "", "protocol": "UDP", "port": null}]);
        object.body.insert("ports".into(), ports);

        object
    }
}
