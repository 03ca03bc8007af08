//! Containers of podman, whose network is ours through its CNI backend.
//!
//! ```text
//! ┌─ n1 ──────────────────────────────┐        ┌─ n2 ──────┐
//! │ podman ─▶ meshd-cni ─▶ agent       │────────│ default/c │
//! │ web: serves 80                    │        │           │
//! └───────────────────────────────────┘        └───────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{io, net::SocketAddr, time::Duration};

use lab::{End as _, Engine, Node, Program};
use netns::{Ask, Mesh, await_fact, lan};
use runtime::{Kept, assigned};
use serde_json::{Value, json};

const TCP: u8 = 6;

/// How long the agent may take to give everything back.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the container's folder is called, in the node's own part of the machine.
const FOLDER: &str = "/run/meshd/podman";

struct Podman {
    engine: Engine,
    node: Node,
    group: String,
}

impl Podman {
    fn new(mesh: &Mesh) -> Self {
        let node = mesh.node("n1");
        let engine = mesh.site(|site| site.engine("n1")).unwrap();
        let podman = Self {
            engine,
            node,
            group: format!("/meshd-lab/{}/podman", mesh.name()),
        };
        podman.configure();

        podman
    }

    fn configure(&self) {
        let tools = self.engine.tools();
        let program = |name| tools.program(name).unwrap().display().to_string();
        let settings = format!(
            r#"[containers]
default_sysctls = []
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
seccomp_profile = "unconfined"
apparmor_profile = "unconfined"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "k8s-pod-network"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
conmon_path = ["{}"]
tmp_dir = "{FOLDER}/tmp"
static_dir = "{FOLDER}/static"
volume_path = "{FOLDER}/volumes"
[engine.runtimes]
runc = ["{}"]
"#,
            program("conmon"),
            program("runc"),
        );
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = \"{FOLDER}/run\"\ngraphroot = \"{FOLDER}/root\"\n"
        );
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        let script = format!(
            "mkdir -p {FOLDER} && cd {FOLDER} && cat > containers.conf <<'E'\n{settings}E\ncat > storage.conf <<'E'\n{storage}E\n\
             cat > policy.json <<'E'\n{policy}\nE\n: > registries.conf"
        );
        self.node.run("sh", &["-c", &script]);
    }

    fn call(&self, arguments: &[&str]) -> io::Result<String> {
        let tools = self.engine.tools();
        let file = |name: &str| format!("{FOLDER}/{name}");
        let mut program =
            Program::new(&tools.program("podman").unwrap(), arguments.iter().copied());
        program.environment = tools.environment();
        program.environment.extend([
            ("CONTAINERS_CONF".to_owned(), file("containers.conf")),
            ("CONTAINERS_STORAGE_CONF".to_owned(), file("storage.conf")),
            (
                "CONTAINERS_REGISTRIES_CONF".to_owned(),
                file("registries.conf"),
            ),
            ("HOME".to_owned(), FOLDER.to_owned()),
            ("XDG_RUNTIME_DIR".to_owned(), FOLDER.to_owned()),
            ("TMPDIR".to_owned(), FOLDER.to_owned()),
        ]);
        let said = program.output(&self.node.place(), b"");

        said.map(|said| String::from_utf8_lossy(&said).trim().to_owned())
    }

    fn load(&self) {
        let image = self
            .engine
            .tools()
            .built("pod.tar")
            .unwrap()
            .display()
            .to_string();
        let policy = format!("{FOLDER}/policy.json");
        self.call(&["load", "--signature-policy", &policy, "-i", &image])
            .unwrap();
    }

    /// Starts a container of that name, as somebody at a shell does; podman's own network namespaces are named in the
    /// node's mount namespace.
    fn run(&self, name: &str) -> io::Result<String> {
        let group = format!("--cgroup-parent={}", self.group);
        self.call(&[
            "run",
            "-d",
            "--name",
            name,
            &group,
            lab::IMAGE,
            "serve",
            "80",
        ])
    }
}

#[test]
fn podman_runs_reaches_and_removes_a_container_of_the_mesh() {
    let mut document = lan(&[("n1", "shop/none"), ("n2", "default/c")])
        .containerd()
        .document();
    document.spec.nodes[0].pods.clear();
    let mesh = Mesh::of(document);
    let podman = Podman::new(&mesh);
    podman.load();
    let before = Kept::of(&podman.node);

    let refused = podman.run("stranger").unwrap_err().to_string();
    assert!(refused.contains("default/stranger"), "{refused}");
    podman.call(&["rm", "-f", "stranger"]).unwrap();

    // Podman says the container's name and no namespace: its pod is that of the namespace `default`.
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
                     "metadata": {"namespace": "default", "name": "web", "labels": {"role": "web"}},
                     "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}});
    mesh.apply(&pod.to_string());
    podman.run("web").unwrap();
    let found: Vec<_> = assigned(&mesh)
        .into_iter()
        .filter(|(_, pod)| pod == "default/web")
        .collect();
    assert_eq!(found.len(), 2, "{found:?}");
    let c = mesh.pod("default/c");
    let asks: Vec<Ask> = found
        .iter()
        .map(|(address, _)| Ask::new(&c, TCP, SocketAddr::new(*address, 80), true))
        .collect();
    Ask::all("podman's container", &asks);
    let endpoints = mesh.meshctl(&["get", "workloadendpoints", "-n", "default", "-o", "json"]);
    let endpoints: Value = serde_json::from_str(&endpoints).unwrap();
    let labelled = endpoints["items"].as_array().unwrap().iter();
    let labelled = labelled
        .filter(|item| item["metadata"]["labels"]["role"] == "web")
        .count();
    assert_eq!(labelled, 1, "{endpoints}");

    podman.call(&["rm", "-f", "-t", "0", "web"]).unwrap();
    await_fact("nothing of podman's containers is left", PATIENCE, || {
        let left = assigned(&mesh)
            .into_iter()
            .filter(|(_, pod)| pod == "default/web")
            .count();
        let now = Kept::of(&podman.node);
        (left == 0 && now.interfaces == before.interfaces && now.elements == before.elements)
            .then_some(())
            .ok_or_else(|| format!("{left} addresses, {:?}", now.interfaces))
    });
}
