//! One interface of a pod: Calico's WorkloadEndpoint.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::{
    FieldError, ServiceAccount, field,
    host_endpoint::{StoredPort, named_ports},
};
use crate::{
    Family, InterfaceName, Kind, NodeName, Object, ObjectKey, PodName, constant::WORKLOAD_PREFIX,
    policy::NamedPort, selector::SERVICE_ACCOUNT_LABEL,
};

/// How many hex digits of the hash a veth's name carries (it has 15 bytes in all).
const VETH_DIGITS: usize = 11;

/// The length from which on a service account's name is no label: Calico leaves it out.
const LABEL_VALUE_MAX: usize = 63;

/// The interface that every pod has.
const ENDPOINT: &str = "eth0";

/// A pod's interface and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadEndpoint {
    /// The object's name (Calico's `NODE-ORCHESTRATOR-POD-ENDPOINT`).
    pub name: String,
    /// The pod.
    pub pod: PodName,
    /// Its node.
    pub node: NodeName,
    /// The host end of its veth.
    pub interface: InterfaceName,
    /// Its addresses, /32 and /128.
    pub addresses: Vec<IpNet>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its profiles.
    pub profiles: Vec<String>,
    /// Its containers' ports that have names.
    #[serde(default)]
    pub ports: Vec<NamedPort>,
}

/// The form in which a store keeps an endpoint's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    node: Option<String>,
    pod: Option<String>,
    workload: Option<String>,
    interface_name: Option<String>,
    #[serde(rename = "ipNetworks")]
    networks: Option<Vec<String>>,
    profiles: Option<Vec<String>>,
    ports: Option<Vec<StoredPort>>,
}

impl WorkloadEndpoint {
    /// Returns the name of a pod's endpoint: `NODE-k8s-POD-eth0`, each `-` of node and pod doubled.
    pub fn object_name(node: &NodeName, pod: &PodName) -> String {
        let double = |text: &str| text.replace('-', "--");

        format!(
            "{}-k8s-{}-{ENDPOINT}",
            double(node.as_str()),
            double(&pod.name)
        )
    }

    /// Returns the name of the host end of a pod's veth: `cali` and 11 hex digits of SHA-1 over `NAMESPACE.POD`.
    pub fn host_interface(pod: &PodName) -> InterfaceName {
        let hash = hex::encode(Sha1::digest(format!("{}.{}", pod.namespace, pod.name)));
        let name = format!("{WORKLOAD_PREFIX}{}", &hash[..VETH_DIGITS]);

        name.parse()
            .expect("four letters and eleven hex digits name an interface")
    }

    /// Returns the object that a store keeps, with the labels that Calico implies written out.
    pub fn to_object(&self) -> Object {
        let key = ObjectKey::namespaced(Kind::WorkloadEndpoint, &self.pod.namespace, &self.name);
        let mut object = Object::new(
            &key,
            json!({
                "orchestrator": "k8s",
                "node": self.node,
                "pod": self.pod.name,
                "endpoint": ENDPOINT,
                "interfaceName": self.interface,
                "ipNetworks": self.addresses,
                "profiles": self.profiles,
            }),
        );
        let account = self.service_account();
        if let Some(Value::Object(spec)) = object.body.get_mut("spec") {
            spec.extend(account.map(|name| ("serviceAccountName".to_owned(), name.into())));
            let ports = self.ports.iter().map(|port| {
                json!({"name": port.name, "protocol": port.protocol.to_string(), "port": port.port})
            });
            let ports: Vec<Value> = ports.collect();
            spec.extend((!ports.is_empty()).then(|| ("ports".to_owned(), ports.into())));
        }
        object.metadata.labels = self.labels.clone();
        object.metadata.labels.extend([
            (
                "projectcalico.org/namespace".to_owned(),
                self.pod.namespace.clone(),
            ),
            (
                "projectcalico.org/orchestrator".to_owned(),
                "k8s".to_owned(),
            ),
        ]);
        let account = account.filter(|name| name.len() < LABEL_VALUE_MAX);
        object
            .metadata
            .labels
            .extend(account.map(|name| (SERVICE_ACCOUNT_LABEL.to_owned(), name.to_owned())));

        object
    }

    /// Returns the pod's service account, which is one of its profiles.
    fn service_account(&self) -> Option<&str> {
        let prefix = ServiceAccount::profile_name(&self.pod.namespace, "");

        self.profiles
            .iter()
            .find_map(|profile| profile.strip_prefix(&prefix))
    }
}

impl TryFrom<&Object> for WorkloadEndpoint {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let node = field::required(stored.node, "spec.node", "the name of a node")?;
        let pod = stored.pod.filter(|pod| !pod.is_empty()).or(stored.workload);
        let pod = field::required(pod, "spec.pod", "the name of a pod")?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
        let interface = field::required(
            stored.interface_name,
            "spec.interfaceName",
            "an interface name",
        )?;
        let addresses = stored
            .networks
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(index, text)| host(text, &format!("spec.ipNetworks[{index}]")))
            .collect::<Result<_, _>>()?;

        Ok(Self {
            name: object.metadata.name.clone(),
            pod: PodName::parse(&format!("{namespace}/{pod}"))
                .map_err(|error| FieldError::new("spec.pod", error.to_string()))?,
            node: field::node(&node, "spec.node")?,
            interface: interface.parse().map_err(|_| {
                field::expected(
                    "spec.interfaceName",
                    "an interface name",
                    interface.as_str(),
                )
            })?,
            addresses,
            labels: object.metadata.labels.clone(),
            profiles: stored.profiles.unwrap_or_default(),
            ports: ports(stored.ports.unwrap_or_default())?,
        })
    }
}

/// Reads the ports that have names; others are ports of the host.
fn ports(stored: Vec<StoredPort>) -> Result<Vec<NamedPort>, FieldError> {
    let named = stored.into_iter().filter(StoredPort::has_name).collect();

    named_ports(named, "spec.ports")
}

/// Reads one address of an endpoint: a /32, a /128, or without a prefix length.
fn host(text: &str, path: &str) -> Result<IpNet, FieldError> {
    let net = field::interface(text, path)?;
    if net.prefix_len() != Family::of_net(&net).bits() {
        return Err(field::expected(path, "one address (/32 or /128)", text));
    }

    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Protocol;

    #[test]
    fn an_endpoint_survives_the_store() {
        let endpoint = endpoint();

        let read = WorkloadEndpoint::try_from(&endpoint.to_object()).unwrap();

        assert_eq!(read.labels["projectcalico.org/namespace"], "shop");
        assert_eq!(read.labels["projectcalico.org/serviceaccount"], "web");
        assert_eq!(
            WorkloadEndpoint {
                labels: endpoint.labels.clone(),
                ..read
            },
            endpoint
        );
    }

    #[test]
    fn names_are_those_of_calico() {
        let endpoint = endpoint();

        assert_eq!(endpoint.name, "n--1-k8s-web--0-eth0");
        // printf shop.web-0 | sha1sum
        assert_eq!(endpoint.interface.as_str(), "calia4fc3c48bd8");
    }

    #[test]
    fn an_endpoint_with_a_whole_network_is_refused() {
        let mut object = endpoint().to_object();
        object.body.insert(
            "spec".into(),
            json!({"node": "n1", "pod": "p", "interfaceName": "cali1", "ipNetworks": ["10.0.0.0/24"]}),
        );

        assert_eq!(
            WorkloadEndpoint::try_from(&object).unwrap_err().field,
            "spec.ipNetworks[0]"
        );
    }

    fn endpoint() -> WorkloadEndpoint {
        let node = "n-1".parse().unwrap();
        let pod = PodName::parse("shop/web-0").unwrap();
        WorkloadEndpoint {
            name: WorkloadEndpoint::object_name(&node, &pod),
            interface: WorkloadEndpoint::host_interface(&pod),
            pod,
            node,
            addresses: vec![
                "10.65.4.1/32".parse().unwrap(),
                "fd00:65::1/128".parse().unwrap(),
            ],
            labels: BTreeMap::from([("app".into(), "web".into())]),
            profiles: vec!["kns.shop".into(), "ksa.shop.web".into()],
            ports: vec![NamedPort {
                name: "http".into(),
                protocol: Protocol::TCP,
                port: 8080,
            }],
        }
    }
}
