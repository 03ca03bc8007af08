//! A container runtime attaches containers through the plugin, with no lab in between.
//!
//! ```text
//! ┌─ n1 ─────────────────────────────┐        ┌─ n2 ──────┐
//! │ meshd-cni ─▶ agent               │        │ default/c │
//! │ containers of the story's own    │────────│           │
//! └──────────────────────────────────┘        └───────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use lab::{End as _, Node, Service};
use netns::{Mesh, await_fact, await_settled, lan, programs};
use serde_json::{Value, json};

/// How long the agent may take to do what it was asked.
const PATIENCE: Duration = Duration::from_secs(20);

/// A container of a runtime: a network namespace on a node.
struct Container<'a> {
    node: &'a Node,
    id: String,
    netns: String,
    args: String,
}

struct Said {
    is_error: bool,
    printed: Value,
}

fn mesh() -> Mesh {
    Mesh::of(lan(&[("n1", "default/a"), ("n2", "default/c")]).document())
}

fn network() -> Value {
    json!({"cniVersion": "1.1.0", "name": "mesh", "type": "meshd"})
}

impl<'a> Container<'a> {
    fn new(mesh: &Mesh, node: &'a Node, id: &str) -> Self {
        let netns = format!("{}-{id}", mesh.name());
        node.run("ip", &["netns", "add", &netns]);
        Self {
            node,
            id: id.to_owned(),
            netns,
            args: format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={id}"),
        }
    }

    fn call(&self, command: &str, network: &Value) -> Said {
        let script = format!(
            "CNI_COMMAND={command} CNI_CONTAINERID={} CNI_NETNS=/run/netns/{} CNI_IFNAME=eth0 CNI_ARGS='{}' \
             {} <<'END'\n{network}\nEND\necho \" $?\"",
            self.id,
            self.netns,
            self.args,
            programs().join("meshd-cni").display(),
        );
        let said = self.node.run("sh", &["-c", &script]);
        let (printed, code) = said.trim_end().rsplit_once(' ').unwrap();
        let printed = printed.trim();
        Said {
            is_error: code != "0",
            printed: if printed.is_empty() {
                Value::Null
            } else {
                serde_json::from_str(printed).unwrap()
            },
        }
    }

    fn add(&self) -> Value {
        let said = self.call("ADD", &network());
        assert!(!said.is_error, "{}", said.printed);

        said.printed
    }

    fn inside(&self, program: &[&str]) -> String {
        let arguments = [&["netns", "exec", &self.netns], program].concat();

        self.node.run("ip", &arguments)
    }

    fn destroy(&self) {
        self.node.run("ip", &["netns", "del", &self.netns]);
    }
}

/// What the store has of the pods of the namespace `shop`.
fn endpoints(mesh: &Mesh) -> Vec<String> {
    let listed = mesh.meshctl(&["get", "workloadendpoints", "-n", "shop", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let items = listed["items"].as_array().cloned().unwrap_or_default();

    items
        .iter()
        .map(|item| item["spec"]["pod"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn await_endpoints(mesh: &Mesh, wanted: &[&str]) {
    await_fact("the store has those endpoints", PATIENCE, || {
        let found = endpoints(mesh);
        (found == wanted).then_some(()).ok_or(format!("{found:?}"))
    });
}

#[test]
fn a_runtime_attaches_a_container_and_takes_it_away_again() {
    let mesh = mesh();
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let web = Container::new(&mesh, &n1, "web");
    assert!(!web.call("STATUS", &network()).is_error);

    let result = web.add();

    let host = result["interfaces"][0]["name"].as_str().unwrap();
    let links = n1.run("ip", &["-o", "link", "show", "dev", host]);
    assert!(links.contains("ee:ee:ee:ee:ee:ee"), "{links}");
    let devices = web.inside(&["ip", "-o", "addr", "show", "dev", "eth0"]);
    for ip in result["ips"].as_array().unwrap() {
        let address = ip["address"].as_str().unwrap();
        assert!(devices.contains(address), "{address} in {devices}");
    }
    for address in n2.pod().addresses() {
        web.inside(&["ping", "-c", "1", "-W", "5", &address.to_string()]);
    }
    await_endpoints(&mesh, &["web"]);
    let again = web.add();
    assert_eq!(again, result, "the same container is answered the same");

    let mut former = network();
    former["prevResult"] = result.clone();
    let said = web.call("CHECK", &former);
    assert!(!said.is_error, "{}", said.printed);
    former["prevResult"]["ips"][0]["address"] = json!("10.65.255.1/32");
    assert_eq!(web.call("CHECK", &former).printed["code"], 101);

    for _ in 0..2 {
        assert!(!web.call("DEL", &network()).is_error);
    }
    await_endpoints(&mesh, &[]);
    assert!(!n1.run("ip", &["-o", "link"]).contains(host));
    assert_eq!(web.call("CHECK", &former).printed["code"], 101);
    web.destroy();
}

#[test]
fn a_newer_container_of_a_pod_outlives_the_removal_of_the_older() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let old = Container::new(&mesh, &n1, "old");
    let mut new = Container::new(&mesh, &n1, "new");
    new.args.clone_from(&old.args);
    old.add();
    let result = new.add();

    assert!(!old.call("DEL", &network()).is_error);

    await_endpoints(&mesh, &["old"]);
    let mut former = network();
    former["prevResult"] = result.clone();
    let said = new.call("CHECK", &former);
    assert!(!said.is_error, "{}", said.printed);
    assert!(!new.call("DEL", &network()).is_error);
    await_endpoints(&mesh, &[]);
    old.destroy();
    new.destroy();
}

#[test]
fn a_collection_takes_what_the_runtime_no_longer_has_and_nothing_of_other_networks() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let (kept, lost) = (
        Container::new(&mesh, &n1, "kept"),
        Container::new(&mesh, &n1, "lost"),
    );
    let other = Container::new(&mesh, &n1, "other");
    kept.add();
    lost.add();
    let mut foreign = network();
    foreign["name"] = json!("another");
    assert!(!other.call("ADD", &foreign).is_error);

    let mut collection = network();
    collection["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    assert!(!kept.call("GC", &collection).is_error);

    await_endpoints(&mesh, &["kept", "other"]);
    let pods = n1.ask("/v1/status").to_string();
    assert!(!pods.contains("lost"), "{pods}");
    for container in [&kept, &lost, &other] {
        assert!(!container.call("DEL", &network()).is_error);
        container.destroy();
    }
    await_endpoints(&mesh, &[]);
    mesh.pod("default/a").ping(&mesh.pod("default/c"));
}

#[test]
fn a_removal_counts_although_no_agent_runs() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let web = Container::new(&mesh, &n1, "web");
    web.add();
    await_endpoints(&mesh, &["web"]);
    n1.kill(Service::Agent);

    let said = web.call("ADD", &network());
    assert!(said.is_error);
    assert_eq!(said.printed["code"], 11);
    assert_eq!(web.call("STATUS", &network()).printed["code"], 50);
    // The namespace stays: only the tombstone tells that the container is gone.
    let said = web.call("DEL", &network());
    assert!(!said.is_error, "{}", said.printed);

    n1.restart(Service::Agent);
    await_endpoints(&mesh, &[]);
    await_settled(&n1, PATIENCE);
    web.destroy();
}

#[test]
fn what_the_agent_cannot_do_is_refused_by_its_field_and_leaves_nothing() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let web = Container::new(&mesh, &n1, "web");
    let mut wish = network();
    wish["runtimeConfig"] = json!({"mac": "02:00:00:00:00:01"});
    let said = web.call("ADD", &wish);
    assert!(said.is_error);
    assert_eq!(said.printed["code"], 2);
    wish["runtimeConfig"] = json!({"ips": ["203.0.113.9"]});
    let said = web.call("ADD", &wish);
    assert!(said.is_error);
    assert_eq!(said.printed["code"], 100, "{}", said.printed);

    assert_eq!(endpoints(&mesh), Vec::<String>::new());
    let links = web.inside(&["ip", "-o", "link"]);
    assert!(!links.contains("eth0"), "{links}");
    web.destroy();
}
