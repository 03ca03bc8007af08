//! kube-proxy itself, on a node of a lab.
//!
//! ```text
//! Service ─▶ objects.json ─▶ api.py (127.0.0.1:8001) ─▶ kube-proxy ─▶ its rules in the node's kernel
//! ```
//!
//! `tools/kubernetes/build` builds the program from pinned Go modules, once, and keeps it in the cache. As much of an
//! API as it asks for is `ruleset/api.py`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use lab::{End as _, Family, Node, Pod, poll_until};
use serde_json::{Value, json};

use crate::service::Traffic;

/// How long it may take until its rules are there.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its files on the node.
const FOLDER: &str = "/run/meshd/kube-proxy";

/// The port of its services, at their own addresses.
pub const PORT: u16 = 80;

/// The port on which their pods listen.
pub const TARGET: u16 = 8080;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Lays out its files and starts both programs; prints their processes. `$0` is the folder, `$1` the objects, `$2` the
/// API, `$3` kube-proxy, `$4` the mode, `$5` the node's name, `$6` the iptables that it finds (`nft`, `legacy`), `$7`
/// the networks of pods.
const START: &str = r#"
mkdir -p "$0/bin"; printf '%s' "$1" > "$0/objects.json"
for command in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
  ln -sf "$(command -v "xtables-$6-multi" || echo "/usr/sbin/xtables-$6-multi")" "$0/bin/$command"
done
printf '%s\n' 'apiVersion: v1' 'kind: Config' 'current-context: c' \
  'clusters: [{name: c, cluster: {server: "http://127.0.0.1:8001"}}]' \
  'contexts: [{name: c, context: {cluster: c, user: u}}]' 'users: [{name: u, user: {}}]' > "$0/config"
setsid python3 "$2" 8001 "$0/objects.json" </dev/null >"$0/api.log" 2>&1 &
echo $!
PATH="$0/bin:$PATH" setsid "$3" --kubeconfig "$0/config" --kube-api-content-type application/json \
  --proxy-mode "$4" --hostname-override "$5" --cluster-cidr "$7" --conntrack-max-per-core 0 \
  --healthz-bind-address 127.0.0.1:10256 --v 2 </dev/null >"$0/log" 2>&1 &
echo $!
"#;

/// How it writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `--proxy-mode nftables`.
    Nftables,
    /// `--proxy-mode iptables`, by the iptables that writes nftables.
    Iptables,
    /// `--proxy-mode iptables`, by the one that has tables of its own in the kernel.
    LegacyIptables,
}

/// A service of type NodePort, dual-stack, of TCP, UDP and SCTP: [`PORT`] leads to [`TARGET`] of its pods.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, in namespace `shop`.
    pub name: &'static str,
    /// The last number of its addresses, 10.96.0.x and fd00:96::x.
    pub number: u8,
    /// Its port on every node.
    pub node_port: u16,
    /// Its `externalTrafficPolicy`.
    pub traffic: Traffic,
    /// Its pods.
    pub pods: Vec<Pod>,
}

impl Service {
    /// Its own address and port.
    pub fn cluster(&self, family: Family) -> SocketAddr {
        let number = u16::from(self.number);
        let address = match family {
            Family::V4 => IpAddr::from([10, 96, 0, self.number]),
            Family::V6 => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, number]),
        };
        SocketAddr::new(address, PORT)
    }

    fn object(&self) -> Value {
        let addresses = FAMILIES.map(|family| self.cluster(family).ip().to_string());
        let ports = PROTOCOLS.map(|protocol| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT,
                "targetPort": TARGET, "nodePort": self.node_port})
        });
        json!({
            "metadata": {"name": self.name, "namespace": "shop", "uid": self.name, "resourceVersion": "1"},
            "spec": {
                "type": "NodePort", "clusterIP": addresses[0], "clusterIPs": addresses,
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "ports": ports,
                "externalTrafficPolicy": format!("{:?}", self.traffic),
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            },
            "status": {"loadBalancer": {}},
        })
    }

    fn slice(&self, family: Family) -> Value {
        let name = format!("{}-{family:?}", self.name).to_lowercase();
        let endpoints = self.pods.iter().map(|pod| {
            json!({"addresses": [pod.address(family)], "nodeName": pod.node().name(),
                "conditions": {"ready": true, "serving": true}})
        });
        let ports = PROTOCOLS.map(|protocol| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET})
        });
        json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": name, "resourceVersion": "1",
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": match family { Family::V4 => "IPv4", Family::V6 => "IPv6" },
            "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": ports,
        })
    }
}

/// A running kube-proxy, and its API; both end when this is dropped.
#[derive(Debug)]
pub struct KubeProxy {
    node: Node,
    processes: Vec<String>,
}

impl KubeProxy {
    /// Starts it on a node and waits until its rules for these services are there.
    ///
    /// # Panics
    /// Where the program cannot be built or started, or writes nothing in time.
    pub fn start(node: &Node, mode: Mode, services: &[Service]) -> Self {
        let slices = services
            .iter()
            .flat_map(|service| FAMILIES.map(|family| service.slice(family)));
        let objects = json!({
            "services": services.iter().map(Service::object).collect::<Vec<_>>(),
            "endpointslices": slices.collect::<Vec<_>>(),
            "nodes": [object_of(node)],
        });
        let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("ruleset/api.py");
        let (proxy_mode, iptables) = match mode {
            Mode::Nftables => ("nftables", "nft"),
            Mode::Iptables => ("iptables", "nft"),
            Mode::LegacyIptables => ("iptables", "legacy"),
        };
        let started = node.run(
            "sh",
            &[
                "-e",
                "-c",
                START,
                FOLDER,
                &objects.to_string(),
                &api.display().to_string(),
                &program(),
                proxy_mode,
                node.name(),
                iptables,
                "10.65.0.0/16,fd00:65::/112",
            ],
        );
        let proxy = Self {
            node: node.clone(),
            processes: started.lines().map(str::to_owned).collect(),
        };
        proxy.await_rules(mode, services.len());

        proxy
    }

    /// Its rules as the distribution's programs print them, both families.
    pub fn rules(&self, mode: Mode) -> String {
        let script = match mode {
            Mode::Nftables => {
                "nft list table ip kube-proxy; nft list table ip6 kube-proxy; true".to_owned()
            }
            Mode::Iptables | Mode::LegacyIptables => {
                format!("{FOLDER}/bin/iptables-save; {FOLDER}/bin/ip6tables-save")
            }
        };
        self.node
            .run("sh", &["-c", &format!("{{ {script}; }} 2>&1")])
    }

    /// One rule sends each service's packets of a protocol and family to a pod.
    fn await_rules(&self, mode: Mode, services: usize) {
        let wanted = services * PROTOCOLS.len() * FAMILIES.len();
        let are_there = || {
            let rules = self.rules(mode);
            let found = rules.lines().filter(|line| {
                line.contains("meta l4proto") && line.contains(" dnat ") || line.contains("-j DNAT")
            });
            found.count() >= wanted
        };
        if !poll_until(Instant::now() + PATIENCE, are_there) {
            let log = format!("tail -n 20 {FOLDER}/log {FOLDER}/api.log");
            let said = self.node.run("sh", &["-c", &log]);
            panic!("kube-proxy writes no rules: {said}\n{}", self.rules(mode));
        }
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let kill = format!(
            "kill -KILL {} 2>/dev/null || true",
            self.processes.join(" ")
        );
        self.node.run("sh", &["-c", &kill]);
    }
}

fn object_of(node: &Node) -> Value {
    let addresses =
        FAMILIES.map(|family| json!({"type": "InternalIP", "address": node.address(family)}));
    json!({
        "metadata": {"name": node.name(), "uid": node.name(), "resourceVersion": "1"},
        "spec": {},
        "status": {"addresses": addresses},
    })
}

/// Where `tools/kubernetes/build` has put it.
#[expect(
    clippy::disallowed_methods,
    reason = "the program is built outside the lab, where there may be a network"
)]
fn program() -> String {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/kubernetes/build");
    let built = Command::new(build).arg("kube-proxy").output();
    let built = built.expect("bash is there");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "kube-proxy cannot be built: {said}");

    format!(
        "{}/kube-proxy",
        String::from_utf8_lossy(&built.stdout).trim()
    )
}
