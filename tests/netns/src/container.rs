//! A container of a runtime that is not there: a network namespace of the story's own, attached by `meshd-cni` as a
//! runtime would call it.

use std::{net::IpAddr, sync::Arc};

use lab::{End, Lab, Netns, Node, Place};
use serde_json::{Value, json};

use crate::programs;

/// The namespace of Kubernetes that containers are of.
const NAMESPACE: &str = "shop";

/// A container: a network namespace on a node. Its pod is of its name, in the namespace `shop`.
pub struct Container {
    node: Node,
    id: String,
    pod: String,
    netns: Arc<Netns>,
    addresses: Vec<IpAddr>,
}

/// What the plugin said.
pub struct Said {
    /// It said that it failed.
    pub is_error: bool,
    /// What it printed.
    pub printed: Value,
}

impl Container {
    /// A container whose pod is applied with these annotations.
    pub fn annotated(lab: &Lab, node: &Node, id: &str, annotations: &Value) -> Self {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": id,
                "namespace": NAMESPACE,
                "labels": {"app": id},
                "annotations": annotations,
            },
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        });
        lab.apply(&pod.to_string());

        Self::unknown(lab, node, id)
    }

    /// A container whose pod is applied.
    pub fn new(lab: &Lab, node: &Node, id: &str) -> Self {
        Self::annotated(lab, node, id, &json!({}))
    }

    /// A container whose pod nobody applied.
    pub fn unknown(lab: &Lab, node: &Node, id: &str) -> Self {
        let name = format!("{}-{id}", lab.name());
        let netns = Netns::create(&name).unwrap_or_else(|error| panic!("{name}: {error}"));

        Self {
            node: node.clone(),
            id: id.to_owned(),
            pod: id.to_owned(),
            netns: Arc::new(netns),
            addresses: Vec::new(),
        }
    }

    /// Makes it another pod's.
    pub fn becomes(&mut self, pod: &str) {
        pod.clone_into(&mut self.pod);
    }

    /// The network configuration without wishes.
    pub fn network() -> Value {
        json!({"cniVersion": "1.1.0", "name": "mesh", "type": "meshd"})
    }

    /// Calls the plugin.
    pub fn call(&self, command: &str, network: &Value) -> Said {
        let script = format!(
            "CNI_COMMAND={command} CNI_CONTAINERID={} CNI_NETNS=/run/netns/{} CNI_IFNAME=eth0 \
             CNI_ARGS='K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={}' {} <<'END'\n{network}\nEND\necho \" $?\"",
            self.id,
            self.netns.name(),
            self.pod,
            programs().join("meshd-cni").display(),
        );
        let said = self.node.run("sh", &["-c", &script]);
        let (printed, code) = said.trim_end().rsplit_once(' ').unwrap_or(("", "127"));
        let printed = printed.trim();

        Said {
            is_error: code != "0",
            printed: match serde_json::from_str(printed) {
                Ok(value) => value,
                Err(_) if printed.is_empty() => Value::Null,
                Err(error) => panic!("{command} printed {printed:?}: {error}"),
            },
        }
    }

    /// Attaches it with this configuration; panics where that is refused.
    pub fn add_to(&mut self, network: &Value) -> Value {
        let said = self.call("ADD", network);
        assert!(!said.is_error, "{}", said.printed);
        let ips = said.printed["ips"].as_array().into_iter().flatten();
        let addresses = ips.filter_map(|ip| ip["address"].as_str()?.split('/').next());
        self.addresses = addresses.filter_map(|text| text.parse().ok()).collect();

        said.printed
    }

    /// Attaches it.
    pub fn add(&mut self) -> Value {
        self.add_to(&Self::network())
    }

    /// Says with which code it is refused, and why.
    pub fn refused(&self, network: &Value) -> (u64, String) {
        let said = self.call("ADD", network);
        assert!(said.is_error, "{}", said.printed);
        let text = said.printed["msg"].as_str().unwrap_or_default();

        (said.printed["code"].as_u64().unwrap_or(0), text.to_owned())
    }

    /// Compares it with the kernel, after `result` was answered.
    pub fn check(&self, result: &Value) -> Said {
        let mut network = Self::network();
        network["prevResult"] = result.clone();

        self.call("CHECK", &network)
    }

    /// Detaches it and removes its namespace.
    pub fn remove(self) {
        let said = self.call("DEL", &Self::network());
        assert!(!said.is_error, "{}", said.printed);
        self.destroy();
    }

    /// Removes its namespace.
    pub fn destroy(self) {
        self.run("ip", &["netns", "del", self.netns.name()]);
    }

    /// The host end that a result names.
    pub fn host_end(result: &Value) -> String {
        let name = result["interfaces"][0]["name"].as_str();

        name.unwrap_or_default().to_owned()
    }

    /// Runs a program inside.
    pub fn inside(&self, program: &[&str]) -> String {
        let arguments = [&["netns", "exec", self.netns.name()], program].concat();

        self.node.run("ip", &arguments)
    }
}

impl End for Container {
    fn label(&self) -> String {
        self.id.clone()
    }

    fn netns(&self) -> Arc<Netns> {
        Arc::clone(&self.netns)
    }

    fn place(&self) -> Place {
        Place {
            netns: self.netns.name().to_owned(),
            mounts: None,
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.clone()
    }
}
