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

use lab::{End as _, Service};
use netns::{Container, Mesh, await_fact, await_settled, lan};
use serde_json::{Value, json};

/// How long the agent may take to do what it was asked.
const PATIENCE: Duration = Duration::from_secs(20);

fn mesh() -> Mesh {
    Mesh::of(lan(&[("n1", "default/a"), ("n2", "default/c")]).document())
}

fn network() -> Value {
    Container::network()
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
    let mut web = Container::new(&mesh, &n1, "web");
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
    let mut old = Container::new(&mesh, &n1, "old");
    let mut new = Container::new(&mesh, &n1, "new");
    new.becomes("old");
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
    let (mut kept, mut lost) = (
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
    for container in [kept, lost, other] {
        container.remove();
    }
    await_endpoints(&mesh, &[]);
    mesh.pod("default/a").ping(&mesh.pod("default/c"));
}

#[test]
fn a_removal_counts_although_no_agent_runs() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let mut web = Container::new(&mesh, &n1, "web");
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
fn a_container_whose_pod_the_store_does_not_have_is_refused_unless_its_namespace_is_enough() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let mut web = Container::unknown(&mesh, &n1, "web");
    let (code, why) = web.refused(&network());
    assert_eq!(code, 100);
    assert!(why.contains("the store has no pod shop/web"), "{why}");
    assert_eq!(endpoints(&mesh), Vec::<String>::new());
    assert!(!web.inside(&["ip", "-o", "link"]).contains("eth0"));

    let spec = json!({"cni": {"unknownPods": "NamespaceOnly"}});
    let mesh_configuration = json!({
        "apiVersion": "meshd.dev/v1",
        "kind": "MeshConfiguration",
        "metadata": {"name": "default"},
        "spec": spec,
    });
    mesh.apply(&mesh_configuration.to_string());
    mesh.wait();

    web.add();
    await_endpoints(&mesh, &["web"]);
    web.remove();
}

#[test]
fn an_address_that_cannot_be_had_is_refused_and_leaves_nothing() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let web = Container::new(&mesh, &n1, "web");
    let mut wish = network();
    wish["runtimeConfig"] = json!({"ips": ["203.0.113.9"]});
    let (code, why) = web.refused(&wish);
    assert_eq!(code, 100, "{why}");

    assert_eq!(endpoints(&mesh), Vec::<String>::new());
    let links = web.inside(&["ip", "-o", "link"]);
    assert!(!links.contains("eth0"), "{links}");
    web.destroy();
}
