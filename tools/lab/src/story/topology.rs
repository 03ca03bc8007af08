//! A lab file, written by a program.

use super::{Lab, or_fail, or_fail_text};
use crate::spec::{
    ApiVersion, Attachment, Document, Kind, Label, Listen, Metadata, Nat, NatKind, Network, Node,
    Outside, Pod, PodName, Router, Runtime, Server, Spec,
};

/// A lab file in the making. Everything that is wrong in it is a panic, for it is a test's own text.
#[derive(Clone, Debug)]
pub struct Topology {
    spec: Spec,
}

impl Default for Topology {
    fn default() -> Self {
        Self::new()
    }
}

impl Topology {
    /// Nothing yet; a mesh will run in it.
    pub fn new() -> Self {
        let spec = Spec {
            networks: Vec::new(),
            routers: Vec::new(),
            server: None,
            nodes: Vec::new(),
            outside: Vec::new(),
            resources: Vec::new(),
            mesh: true,
            runtime: Runtime::Lab,
        };
        Self { spec }
    }

    /// No mesh: namespaces, links and plain routes.
    pub fn plain(mut self) -> Self {
        self.spec.mesh = false;
        self
    }

    /// The pods are containers of a containerd on every node.
    pub fn containerd(mut self) -> Self {
        self.spec.runtime = Runtime::Containerd;
        self
    }

    /// Adds a network.
    pub fn network(mut self, name: &str, cidrs: &[&str]) -> Self {
        let text = serde_json::json!({ "name": name, "cidrs": cidrs });
        self.spec
            .networks
            .push(or_fail(name, serde_json::from_value(text)));
        self
    }

    /// Changes the network that was added last: its MTU, delay, loss, …
    pub fn with(mut self, change: impl FnOnce(&mut Network)) -> Self {
        let Some(network) = self.spec.networks.last_mut() else {
            panic!("there is no network yet")
        };
        change(network);
        self
    }

    /// Adds a router between networks.
    pub fn router(mut self, name: &str, networks: &[&str]) -> Self {
        self.spec.routers.push(Router {
            name: label(name),
            networks: attachments(networks),
            icmp: true,
            routes: Vec::new(),
            nat: None,
        });
        self
    }

    /// The router that was added last translates towards `network`.
    pub fn nat(mut self, network: &str) -> Self {
        let Some(router) = self.spec.routers.last_mut() else {
            panic!("there is no router yet")
        };
        router.nat = Some(Nat {
            network: label(network),
            kind: NatKind::Symmetric,
        });
        self
    }

    /// Puts the server on networks.
    pub fn server(mut self, networks: &[&str]) -> Self {
        self.spec.server = Some(Server {
            networks: attachments(networks),
        });
        self
    }

    /// Adds a node.
    pub fn node(mut self, name: &str, networks: &[&str]) -> Self {
        self.spec.nodes.push(Node {
            name: label(name),
            networks: attachments(networks),
            labels: std::collections::BTreeMap::new(),
            pods: Vec::new(),
            mesh: true,
            backend: None,
        });
        self
    }

    /// The node that was added last stands aside until it is admitted.
    pub fn aside(mut self) -> Self {
        let Some(node) = self.spec.nodes.last_mut() else {
            panic!("there is no node yet")
        };
        node.mesh = false;
        self
    }

    /// Adds a pod, `NAMESPACE/NAME`, to the node that was added last.
    pub fn pod(mut self, name: &str) -> Self {
        let pod = Pod::bare(or_fail_text(name, name.parse::<PodName>()));
        let Some(node) = self.spec.nodes.last_mut() else {
            panic!("there is no node yet")
        };
        node.pods.push(pod);
        self
    }

    /// Adds a host that is no member.
    pub fn outside(mut self, name: &str, networks: &[&str], listens: &[&str]) -> Self {
        self.spec.outside.push(Outside {
            name: label(name),
            networks: attachments(networks),
            addresses: Vec::new(),
            listens: listens
                .iter()
                .map(|l| or_fail_text(l, l.parse::<Listen>()))
                .collect(),
        });
        self
    }

    /// Adds an IP pool with outgoing NAT.
    pub fn pool(mut self, cidr: &str) -> Self {
        let name: String = cidr
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        self.spec.resources.push(serde_json::json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "IPPool",
            "metadata": { "name": format!("pool-{}", name.trim_matches('-')) },
            "spec": { "cidr": cidr, "natOutgoing": true },
        }));
        self
    }

    /// Adds a resource.
    pub fn resource(mut self, resource: serde_json::Value) -> Self {
        self.spec.resources.push(resource);
        self
    }

    /// The file.
    pub fn document(self) -> Document {
        let document = Document {
            api_version: ApiVersion::V1,
            kind: Kind::Lab,
            metadata: Metadata {
                name: label("topology"),
            },
            spec: self.spec,
        };
        // Through the reader, so that nothing passes here that it would refuse.
        let text = or_fail("the topology", serde_json::to_string(&document));
        or_fail("the topology", Document::parse("topology", &text))
    }

    /// Builds it.
    pub fn up(self) -> Lab {
        Lab::of(self.document())
    }
}

fn label(text: &str) -> Label {
    or_fail_text(text, text.parse())
}

fn attachments(networks: &[&str]) -> Vec<Attachment> {
    networks
        .iter()
        .map(|name| Attachment {
            name: label(name),
            addresses: Vec::new(),
        })
        .collect()
}
