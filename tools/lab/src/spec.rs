//! The lab file (`kind: Lab`): its types, and the strict reader.
//!
//! ```text
//! text ──▶ YAML documents ──▶ Document (shape, scalars) ──▶ checks across fields ──▶ Document
//! ```
//!
//! Unknown fields, wrong scalars and references to nothing are refused with the file, the number of
//! the document in it, and the path of the field.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::Path};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};

use check::Wrong;
pub use value::{Label, Listen, PodName, Protocol, Rate, Share, Span};

mod check;
mod value;

/// The largest lab file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The most networks, hosts and pods in one lab.
const MAX_OBJECTS: usize = 1000;

/// A whole lab file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// Always `meshd.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Lab`.
    pub kind: Kind,
    /// The lab's name.
    pub metadata: Metadata,
    /// What it consists of.
    pub spec: Spec,
}

/// The version of the lab file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// The first one.
    #[serde(rename = "meshd.dev/v1")]
    V1,
}

/// The kind of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A lab.
    Lab,
}

/// Who the lab is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// First part of the name of every namespace of the lab.
    pub name: Label,
}

/// What a lab consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The underlay's LANs.
    pub networks: Vec<Network>,
    /// What forwards between them.
    #[serde(default)]
    pub routers: Vec<Router>,
    /// The embedded server's host; absent: the lab starts no store.
    #[serde(default)]
    pub server: Option<Server>,
    /// The members.
    pub nodes: Vec<Node>,
    /// Hosts that are no members.
    #[serde(default)]
    pub outside: Vec<Outside>,
    /// Resources applied once the store is up and before the nodes join.
    #[serde(default)]
    pub resources: Vec<serde_json::Value>,
    /// Whether the mesh runs; false: namespaces, links and plain routes only.
    #[serde(default = "yes")]
    pub mesh: bool,
    /// Who makes the pods of a mesh.
    #[serde(default, skip_serializing_if = "Runtime::is_lab")]
    pub runtime: Runtime,
}

/// Who makes the pods of a mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// The lab itself: network namespaces, for which the node's agent is asked.
    #[default]
    Lab,
    /// A containerd on every node: containers, which the CNI plugin connects.
    Containerd,
}

impl Runtime {
    fn is_lab(&self) -> bool {
        match self {
            Self::Lab => true,
            Self::Containerd => false,
        }
    }
}

impl std::str::FromStr for Runtime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lab" => Ok(Self::Lab),
            "containerd" => Ok(Self::Containerd),
            other => Err(format!("{other:.40}: expected lab or containerd")),
        }
    }
}

fn yes() -> bool {
    true
}

fn is_yes(answer: &bool) -> bool {
    *answer
}

/// One LAN of the underlay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// Its name.
    pub name: Label,
    /// Its subnets: one or two, at most one per family.
    pub cidrs: Vec<IpNet>,
    /// MTU of every device on it, in bytes.
    #[serde(default = "ethernet_mtu")]
    pub mtu: u16,
    /// One-way delay of every frame.
    #[serde(default)]
    pub delay: Span,
    /// Up to so much more delay, uniformly; frames keep their order.
    #[serde(default)]
    pub jitter: Span,
    /// Share of frames that are lost.
    #[serde(default)]
    pub loss: Share,
    /// Share of frames that overtake the delay (and so the frames before them).
    #[serde(default)]
    pub reorder: Share,
    /// Bits per second into the network, for each device on it.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Largest IP packet that passes, in bytes, where it is less than what the devices believe.
    #[serde(default)]
    pub path_mtu: Option<u16>,
    /// What happens to a packet larger than `pathMtu`.
    #[serde(default)]
    pub too_big: TooBig,
    /// Seed of the link's random numbers: the same seed, the same losses.
    #[serde(default)]
    pub seed: u64,
}

fn ethernet_mtu() -> u16 {
    1500
}

impl Network {
    /// Whether frames pass a user-space link of the lab's own.
    pub fn is_impaired(&self) -> bool {
        self.delay != Span::default()
            || self.jitter != Span::default()
            || self.loss != Share::default()
            || self.reorder != Share::default()
            || self.rate.is_some()
            || self.path_mtu.is_some()
    }
}

/// What happens to a packet that is larger than a link carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TooBig {
    /// The sender is told by ICMP.
    #[default]
    Answer,
    /// It disappears: a black hole.
    Drop,
}

/// A host's place on a network: `lan`, or `{name: lan, addresses: [192.0.2.7]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The network.
    pub name: Label,
    /// Addresses on it; empty: the next free one per family.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

impl<'de> Deserialize<'de> for Attachment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            name: Label,
            #[serde(default)]
            addresses: Vec<IpAddr>,
        }
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Attachment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a network, or {name, addresses}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Attachment, E> {
                let name = text.parse().map_err(E::custom)?;
                Ok(Attachment {
                    name,
                    addresses: Vec::new(),
                })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Attachment, A::Error> {
                let full = Full::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Attachment {
                    name: full.name,
                    addresses: full.addresses,
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A router between networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Its name.
    pub name: Label,
    /// The networks it joins.
    pub networks: Vec<Attachment>,
    /// Whether it tells senders that a packet is too big.
    #[serde(default = "yes")]
    pub icmp: bool,
    /// Routes beside those that the lab works out.
    #[serde(default)]
    pub routes: Vec<StaticRoute>,
    /// Network address translation towards one of its networks.
    #[serde(default)]
    pub nat: Option<Nat>,
}

/// A route somebody wrote down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticRoute {
    /// Destination.
    pub to: IpNet,
    /// Next hop, on one of the router's networks.
    pub via: IpAddr,
}

/// Network address translation: what leaves towards `network` bears the router's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    /// The outer network.
    pub network: Label,
    /// How ports are chosen.
    #[serde(default)]
    pub kind: NatKind,
}

/// How a NAT chooses the outer port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NatKind {
    /// A new, random one for each destination; nothing unasked comes in.
    #[default]
    Symmetric,
}

/// The embedded server's host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its networks.
    pub networks: Vec<Attachment>,
}

/// A member of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: Label,
    /// Its networks: the first becomes `eth0`, the next `eth1`, …
    pub networks: Vec<Attachment>,
    /// Labels of the Node resource.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its pods.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// Whether meshd runs on it from the start; false: it stands aside until it is admitted.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub mesh: bool,
    /// Which WireGuard its agent prefers; the mesh's own choice, where it makes one, goes before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
}

/// Which WireGuard a node uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// The kernel's.
    Kernel,
    /// `meshwire`.
    Userspace,
}

impl Backend {
    /// Its name, as the agent takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "Kernel",
            Self::Userspace => "Userspace",
        }
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Its Kubernetes namespace.
    #[serde(default = "default_label")]
    pub namespace: Label,
    /// Its name.
    pub name: Label,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The service account it runs as.
    #[serde(default = "default_label")]
    pub service_account: Label,
    /// Its addresses; empty: the agent chooses (in a plain lab, the lab).
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Named ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// What its echo server listens on.
    #[serde(default)]
    pub listens: Vec<Listen>,
}

impl Pod {
    /// A pod with nothing but its name.
    pub fn bare(name: PodName) -> Self {
        Self {
            namespace: name.namespace,
            name: name.name,
            labels: BTreeMap::new(),
            service_account: default_label(),
            addresses: Vec::new(),
            ports: Vec::new(),
            listens: Vec::new(),
        }
    }

    /// `NAMESPACE/NAME`.
    pub fn full_name(&self) -> PodName {
        PodName {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

fn default_label() -> Label {
    "default".parse().expect("`default` is a DNS label")
}

/// A port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The name that policy uses.
    pub name: String,
    /// The number.
    pub port: u16,
    /// The transport protocol.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

/// A host that is no member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// Its name.
    pub name: Label,
    /// Its networks.
    pub networks: Vec<Attachment>,
    /// Addresses of its own; those outside its networks are routed to it.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// What its echo server listens on.
    #[serde(default)]
    pub listens: Vec<Listen>,
}

/// Why a lab file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("{file}: cannot be read")]
    Open {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than a lab file may be.
    #[error("{file}: larger than {MAX_FILE} bytes")]
    TooLarge {
        /// The file.
        file: String,
    },
    /// The file holds no document, or more than one.
    #[error("{file}: expected one document of kind Lab, found {found}")]
    Documents {
        /// The file.
        file: String,
        /// How many there are.
        found: usize,
    },
    /// A field is wrong.
    #[error("{file}: document {document}: {path}: {reason}")]
    Field {
        /// The file.
        file: String,
        /// Number of the document in the file, from 1.
        document: usize,
        /// Path of the field, such as `spec.nodes[0].networks[1]`.
        path: String,
        /// What is wrong and what was expected.
        reason: String,
    },
}

impl Document {
    /// Reads a lab file.
    ///
    /// # Errors
    /// [`ReadError`], naming the file, the document and the field.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let file = path.display().to_string();
        let open = |source| ReadError::Open {
            file: file.clone(),
            source,
        };
        if path.metadata().map_err(open)?.len() > MAX_FILE {
            return Err(ReadError::TooLarge { file });
        }
        Self::parse(&file, &std::fs::read_to_string(path).map_err(open)?)
    }

    /// Parses the text of a lab file; `file` is only for messages.
    ///
    /// # Errors
    /// [`ReadError`], naming the file, the document and the field.
    pub fn parse(file: &str, text: &str) -> Result<Self, ReadError> {
        let mut documents = Vec::new();
        for (index, yaml) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
            let document = serde_path_to_error::deserialize(yaml).map_err(|error| {
                let path = error.path().to_string();
                let reason = error.into_inner().to_string();
                ReadError::Field {
                    file: file.to_owned(),
                    document: index + 1,
                    path,
                    reason,
                }
            })?;
            documents.push(document);
        }
        let found = documents.len();
        let Ok([document]) = <[Self; 1]>::try_from(documents) else {
            return Err(ReadError::Documents {
                file: file.to_owned(),
                found,
            });
        };
        document
            .spec
            .check()
            .map_err(|Wrong { path, reason }| ReadError::Field {
                file: file.to_owned(),
                document: 1,
                path,
                reason,
            })?;
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
apiVersion: meshd.dev/v1
kind: Lab
metadata: {name: demo}
spec:
  networks: [{name: lan, cidrs: [192.0.2.0/24]}]
  nodes:
    - {name: n1, networks: [lan]}
";

    fn refusal(text: &str) -> String {
        Document::parse("x.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_format_s_own_example_is_read() {
        let text = r#"
apiVersion: meshd.dev/v1
kind: Lab
metadata: {name: demo}
spec:
  networks:
    - {name: lan, cidrs: [192.0.2.0/24, "2001:db8:1::/64"], mtu: 1500}
    - {name: far, cidrs: [198.51.100.0/24], mtu: 1400, delay: 5ms, loss: 0.1%}
  routers:
    - {name: r1, networks: [lan, far], icmp: true, routes: []}
  server: {networks: [lan]}
  nodes:
    - name: n1
      networks: [lan]
      labels: {zone: a}
      pods:
        - {namespace: default, name: a, labels: {app: web}, serviceAccount: default, listens: [TCP/80, UDP/53]}
        - {namespace: default, name: b, addresses: [10.65.0.9], ports: [{name: http, port: 8080, protocol: TCP}]}
    - name: n2
      networks: [{name: far, addresses: [198.51.100.7]}]
  outside:
    - {name: internet, networks: [lan], addresses: [203.0.113.9], listens: [TCP/443]}
  resources: [{kind: IPPool}]
  mesh: true
"#;
        let document = Document::parse("x.yaml", text).unwrap();
        let spec = document.spec;
        assert_eq!(spec.networks[1].delay, "5ms".parse().unwrap());
        assert!(spec.networks[1].is_impaired() && !spec.networks[0].is_impaired());
        assert_eq!(spec.nodes[0].pods[0].listens[1], "UDP/53".parse().unwrap());
        assert_eq!(
            spec.nodes[1].networks[0].addresses,
            ["198.51.100.7".parse::<IpAddr>().unwrap()]
        );
        assert!(spec.mesh && spec.server.is_some());
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path() {
        let message = refusal(&MINIMAL.replace("{name: n1, ", "{name: n1, colour: red, "));
        assert!(
            message.starts_with("x.yaml: document 1: spec.nodes[0]"),
            "{message}"
        );
        assert!(message.contains("colour"), "{message}");
    }

    #[test]
    fn a_wrong_scalar_deep_inside_is_named_with_its_path() {
        let message = refusal(&MINIMAL.replace("[lan]}", "[{name: lan, addresses: [nonsense]}]}"));
        assert!(message.contains("spec.nodes[0].networks[0]"), "{message}");
    }

    #[test]
    fn a_network_nobody_made_is_refused() {
        let message = refusal(&MINIMAL.replace("[lan]}", "[wan]}"));
        assert_eq!(
            message,
            "x.yaml: document 1: spec.nodes[0].networks[0]: no network is called wan"
        );
    }

    #[test]
    fn names_and_addresses_are_not_given_twice() {
        let twice = MINIMAL.to_owned() + "    - {name: n1, networks: [lan]}\n";
        assert!(refusal(&twice).contains("spec.nodes[1].name: \"n1\": the name is taken"));
        let server = MINIMAL.replace("name: n1", "name: server") + "  server: {networks: [lan]}\n";
        assert!(refusal(&server).contains("the name is taken"));
        let pods = MINIMAL.replace(
            "[lan]}",
            "[lan], pods: [{name: a, addresses: [10.0.0.1]}, {name: b, addresses: [10.0.0.1]}]}",
        );
        assert!(refusal(&pods).contains("pods[1].addresses: 10.0.0.1 is another pod's"));
    }

    #[test]
    fn two_documents_are_refused() {
        let two = format!("{MINIMAL}\n---{MINIMAL}");
        assert_eq!(
            refusal(&two),
            "x.yaml: expected one document of kind Lab, found 2"
        );
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let document = Document::parse("x.yaml", MINIMAL).unwrap();
        let text = serde_yaml_ng::to_string(&document).unwrap();
        assert_eq!(Document::parse("again", &text).unwrap(), document);
    }
}
