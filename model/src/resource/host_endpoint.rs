//! Calico's HostEndpoint.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::{FieldError, field, rule};
use crate::{
    Object,
    policy::{HostEndpoint, HostInterface, NamedPort},
};

/// The name that stands for every interface.
const ALL_INTERFACES: &str = "*";

/// The form in which a store keeps an endpoint's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    node: Option<String>,
    interface_name: Option<String>,
    #[serde(rename = "expectedIPs")]
    expected: Option<Vec<String>>,
    profiles: Option<Vec<String>>,
    ports: Option<Vec<StoredPort>>,
}

/// The form in which a store keeps a port's name.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct StoredPort {
    name: Option<String>,
    protocol: Option<Value>,
    port: Option<u64>,
}

impl StoredPort {
    pub(super) fn has_name(&self) -> bool {
        self.name.as_ref().is_some_and(|name| !name.is_empty())
    }
}

impl TryFrom<&Object> for HostEndpoint {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let node = stored.node.filter(|node| !node.is_empty());
        let node = field::required(node, "spec.node", "the name of a node")?;
        let expected_addresses = stored
            .expected
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(index, text)| field::address(text, &format!("spec.expectedIPs[{index}]")))
            .collect::<Result<Vec<_>, _>>()?;

        Ok(Self {
            name: object.metadata.name.clone(),
            labels: object.metadata.labels.clone(),
            node: field::node(&node, "spec.node")?,
            interface: interface(stored.interface_name.as_deref(), &expected_addresses)?,
            expected_addresses,
            profiles: stored.profiles.unwrap_or_default(),
            ports: named_ports(stored.ports.unwrap_or_default(), "spec.ports")?,
        })
    }
}

fn interface(name: Option<&str>, expected: &[IpAddr]) -> Result<HostInterface, FieldError> {
    let path = "spec.interfaceName";
    match name {
        Some(ALL_INTERFACES) => Ok(HostInterface::All),
        None | Some("") if expected.is_empty() => field::required(
            None,
            path,
            "an interface name or `*`, as spec.expectedIPs is empty",
        ),
        None | Some("") => Ok(HostInterface::ByAddress),
        Some(name) => name
            .parse()
            .map(HostInterface::Named)
            .map_err(|_| field::expected(path, "an interface name or `*`", name)),
    }
}

/// Reads ports that have names; the names of ports are letters, digits, `_`, `.` and `-`.
pub(super) fn named_ports(
    stored: Vec<StoredPort>,
    path: &str,
) -> Result<Vec<NamedPort>, FieldError> {
    let mut ports = Vec::new();
    for (index, port) in stored.into_iter().enumerate() {
        let at = |name: &str| format!("{path}[{index}].{name}");
        let name = port.name.filter(|name| !name.is_empty());
        let protocol = rule::protocol(port.protocol.as_ref(), &at("protocol"))?;
        let protocol = field::required(protocol, &at("protocol"), "TCP, UDP or SCTP")?;
        if !protocol.has_ports() {
            let found = protocol.to_string();
            return Err(field::expected(&at("protocol"), "TCP, UDP or SCTP", found));
        }
        let number = field::required(port.port, &at("port"), "a port")?;
        let number = u16::try_from(number).ok().filter(|number| *number > 0);
        let range = "a number from 1 to 65535";
        ports.push(NamedPort {
            name: field::required(name, &at("name"), "the port's name")?,
            protocol,
            port: number.ok_or_else(|| field::expected(&at("port"), range, port.port))?,
        });
    }

    Ok(ports)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey, policy::Protocol};

    #[test]
    fn a_host_endpoint_means_one_interface_all_of_them_or_the_one_with_an_address() {
        for (spec, interface) in [
            (
                json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.1"]}),
                HostInterface::Named("eth0".parse().unwrap()),
            ),
            (
                json!({"node": "n1", "interfaceName": "*"}),
                HostInterface::All,
            ),
            (
                json!({"node": "n1", "expectedIPs": ["192.0.2.1", "fd00::1"]}),
                HostInterface::ByAddress,
            ),
        ] {
            assert_eq!(read(spec).unwrap().interface, interface);
        }
        let endpoint = read(json!({
            "node": "n1", "interfaceName": "*", "profiles": ["a", "b"],
            "ports": [{"name": "ssh", "protocol": "tcp", "port": 22}],
        }))
        .unwrap();
        assert_eq!(endpoint.profiles, ["a", "b"]);
        let ssh = NamedPort {
            name: "ssh".into(),
            protocol: Protocol::TCP,
            port: 22,
        };
        assert_eq!(endpoint.ports, [ssh]);
    }

    fn read(spec: Value) -> Result<HostEndpoint, FieldError> {
        HostEndpoint::try_from(&Object::new(
            &ObjectKey::cluster(Kind::HostEndpoint, "h"),
            spec,
        ))
    }
}
