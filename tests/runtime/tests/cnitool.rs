//! The CNI project's own driver calls the plugin with every verb of the specification 1.1.0.
//!
//! ```text
//! ┌─ n1 ──────────────────────────────┐        ┌─ n2 ──────┐
//! │ cnitool ─▶ meshd-cni ─▶ agent      │        │ default/c │
//! │ namespaces of the story's own     │────────│           │
//! └───────────────────────────────────┘        └───────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{io, time::Duration};

use lab::{End as _, Engine, Netns, Node, Program, Service};
use netns::{Mesh, await_settled, lan};
use runtime::Kept;
use serde_json::{Value, json};

/// How long the agent may take to settle.
const PATIENCE: Duration = Duration::from_secs(20);

/// The network of this story, of the newest specification.
const NETWORK: &str =
    r#"{"cniVersion": "1.1.0", "name": "newest", "plugins": [{"type": "meshd"}]}"#;

/// The folder of its configuration, on the node.
const FOLDER: &str = "/etc/cni/newest.d";

struct Driver {
    engine: Engine,
    node: Node,
}

impl Driver {
    fn new(mesh: &Mesh) -> Self {
        let node = mesh.node("n1");
        let engine = mesh.site(|site| site.engine("n1")).unwrap();
        let script = format!("mkdir -p {FOLDER} && printf '%s' '{NETWORK}' > {FOLDER}/10.conflist");
        node.run("sh", &["-c", &script]);

        Self { engine, node }
    }

    /// Calls a verb for a pod whose namespace bears its name.
    fn call(&self, verb: &str, netns: &Netns, pod: &str) -> io::Result<String> {
        let path = netns.path().display().to_string();
        let mut program = Program::new(
            &self.engine.tools().built("cnitool").unwrap(),
            [verb, "newest", &path],
        );
        let variables = [
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("NETCONFPATH", FOLDER.to_owned()),
            (
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}"),
            ),
        ];
        program.environment = variables
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        let said = program.output(&self.node.place(), b"");

        said.map(|said| String::from_utf8_lossy(&said).into_owned())
    }
}

fn namespace(mesh: &Mesh, name: &str) -> Netns {
    Netns::create(&format!("{}-{name}", mesh.name())).unwrap()
}

#[test]
fn cnitool_adds_checks_collects_and_deletes() {
    let mut document = lan(&[("n1", "shop/none"), ("n2", "default/c")])
        .containerd()
        .document();
    document.spec.nodes[0].pods.clear();
    let mesh = Mesh::of(document);
    let driver = Driver::new(&mesh);
    for pod in ["a", "b"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": pod},
                         "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}});
        mesh.apply(&pod.to_string());
    }
    let (a, b) = (namespace(&mesh, "a"), namespace(&mesh, "b"));
    let before = Kept::of(&driver.node);
    driver.call("status", &a, "a").unwrap();

    let said = driver.call("add", &a, "a").unwrap();

    let result: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);
    driver.call("check", &a, "a").unwrap();
    for address in mesh.pod("default/c").addresses() {
        lab::Ping::new(address).send(&a).unwrap();
    }
    driver.call("add", &b, "b").unwrap();
    assert_eq!(
        Kept::of(&driver.node).interfaces.len(),
        before.interfaces.len() + 2
    );

    driver.call("del", &a, "a").unwrap();
    assert!(driver.call("check", &a, "a").is_err());
    // Nobody names b as one that is still there.
    driver.call("gc", &b, "b").unwrap();
    await_settled(&driver.node, PATIENCE);
    assert_eq!(Kept::of(&driver.node).interfaces, before.interfaces);

    let script = "echo '{\"cniVersion\": \"1.1.0\"}' | CNI_COMMAND=VERSION /opt/cni/bin/meshd";
    let versions: Value = serde_json::from_str(&driver.node.run("sh", &["-c", script])).unwrap();
    assert_eq!(
        versions["supportedVersions"]
            .as_array()
            .unwrap()
            .last()
            .unwrap(),
        "1.1.0"
    );
    driver.node.kill(Service::Agent);
    assert!(driver.call("status", &a, "a").is_err());
    driver.node.restart(Service::Agent);
}
