//! Kubernetes' Service.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FieldError, field, rule};
use crate::{
    Object,
    policy::{PortMatch, Protocol},
};

/// A service: addresses under which its endpoints are reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses inside the cluster; a headless service has none.
    pub cluster_addresses: Vec<IpAddr>,
    /// Its addresses for the world outside: `externalIPs`, and the load balancer's.
    pub external_addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name, which the ports of EndpointSlices share; one port alone may have none.
    pub name: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port at the service's own addresses.
    pub port: u16,
    /// The port at the endpoints, by number or by the name that they give it.
    pub target: PortMatch,
    /// The port at every node's addresses.
    pub node_port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    #[serde(rename = "clusterIP")]
    first_address: Option<String>,
    #[serde(rename = "clusterIPs")]
    addresses: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external: Option<Vec<String>>,
    ports: Option<Vec<StoredPort>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredPort {
    name: Option<String>,
    protocol: Option<Value>,
    port: Option<u16>,
    target_port: Option<Value>,
    node_port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredStatus {
    load_balancer: Option<StoredBalancer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredBalancer {
    ingress: Option<Vec<StoredIngress>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredIngress {
    ip: Option<String>,
}

impl TryFrom<&Object> for Service {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        // Other controllers write the status; what cannot be read in it adds no address and spoils no service.
        let status: StoredStatus = field::part(object, "status").unwrap_or_default();
        let cluster = match stored.addresses {
            Some(addresses) if !addresses.is_empty() => addresses,
            Some(_) | None => stored.first_address.into_iter().collect(),
        };
        let balancer = status.load_balancer.and_then(|status| status.ingress);
        let balancer: Vec<_> = balancer
            .unwrap_or_default()
            .into_iter()
            .filter_map(|entry| entry.ip)
            .collect();
        let mut external = addresses(stored.external.unwrap_or_default(), "spec.externalIPs")?;
        external.extend(addresses(balancer, "status.loadBalancer.ingress")?);
        let ports = stored.ports.unwrap_or_default().into_iter().enumerate();

        Ok(Self {
            namespace: field::namespace(object)?,
            name: object.metadata.name.clone(),
            labels: object.metadata.labels.clone(),
            cluster_addresses: addresses(cluster, "spec.clusterIPs")?,
            external_addresses: external,
            ports: ports
                .map(|(index, stored)| port(&stored, &format!("spec.ports[{index}]")))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn port(stored: &StoredPort, path: &str) -> Result<ServicePort, FieldError> {
    let at = |name: &str| format!("{path}.{name}");
    let port = field::required(stored.port, &at("port"), "a port")?;
    let target = match &stored.target_port {
        None | Some(Value::Null) => PortMatch::single(port),
        // Kubernetes writes 0 for a target that follows the port.
        Some(Value::Number(number)) if number.as_u64() == Some(0) => PortMatch::single(port),
        Some(target) => rule::port(target, &at("targetPort"))?,
    };

    Ok(ServicePort {
        name: stored.name.clone().filter(|name| !name.is_empty()),
        protocol: rule::protocol(stored.protocol.as_ref(), &at("protocol"))?
            .unwrap_or(Protocol::TCP),
        port,
        target,
        node_port: stored.node_port.filter(|port| *port > 0),
    })
}

/// Reads addresses; `None` and nothing mean that there is none.
fn addresses(texts: Vec<String>, path: &str) -> Result<Vec<IpAddr>, FieldError> {
    texts
        .iter()
        .enumerate()
        .filter(|(_, text)| !matches!(text.as_str(), "None" | ""))
        .map(|(index, text)| field::address(text, &format!("{path}[{index}]")))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn every_address_and_port_of_a_service_is_read() {
        let mut object = object(json!({
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "externalIPs": ["203.0.113.1"],
            "ports": [
                {"port": 80},
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353, "nodePort": 30053},
                {"name": "web", "port": 443, "targetPort": "https", "nodePort": 0},
            ],
        }));
        let status =
            json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.2"}, {"hostname": "x"}]}});
        object.body.insert("status".into(), status);

        let service = Service::try_from(&object).unwrap();

        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(
            service.cluster_addresses,
            addresses(&["10.96.0.7", "fd00:96::7"])
        );
        assert_eq!(
            service.external_addresses,
            addresses(&["203.0.113.1", "203.0.113.2"])
        );
        let port = |name: Option<&str>, protocol, port, target, node_port| ServicePort {
            name: name.map(str::to_owned),
            protocol,
            port,
            target,
            node_port,
        };
        assert_eq!(
            service.ports,
            [
                port(None, Protocol::TCP, 80, PortMatch::single(80), None),
                port(
                    Some("dns"),
                    Protocol::UDP,
                    53,
                    PortMatch::single(5353),
                    Some(30053)
                ),
                port(
                    Some("web"),
                    Protocol::TCP,
                    443,
                    PortMatch::Named("https".into()),
                    None
                ),
            ]
        );
    }

    #[test]
    fn a_headless_service_has_no_address_and_a_bad_one_names_its_field() {
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"clusterIP": ""}),
        ] {
            let service = Service::try_from(&object(spec)).unwrap();
            assert_eq!(service.cluster_addresses, Vec::<IpAddr>::new());
        }
        for (spec, field) in [
            (
                json!({"clusterIPs": ["10.96.0.7", "x"]}),
                "spec.clusterIPs[1]",
            ),
            (json!({"ports": [{}]}), "spec.ports[0].port"),
            (
                json!({"ports": [{"port": 80, "protocol": "x"}]}),
                "spec.ports[0].protocol",
            ),
            (
                json!({"ports": [{"port": 80, "targetPort": 65536}]}),
                "spec.ports[0].targetPort",
            ),
        ] {
            assert_eq!(Service::try_from(&object(spec)).unwrap_err().field, field);
        }
    }

    fn object(spec: Value) -> Object {
        Object::new(&ObjectKey::namespaced(Kind::Service, "shop", "web"), spec)
    }
}
