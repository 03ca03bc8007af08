//! The distribution's plugins portmap, bandwidth and tuning work behind ours, in the chain of a real containerd.
//!
//! ```text
//! ┌─ n1 ───────────────────────────────────────────┐        ┌─ n2 ──┐
//! │ containerd ─▶ meshd, portmap, bandwidth, tuning │────────│       │
//! │ shop/web: 80, on the host 8080                 │        │       │
//! └────────────────────────────────────────────────┘        └───────┘
//! ```

use std::net::SocketAddr;

use lab::{End as _, Family, HostPort, Netns, Wanted, spec::Pod};
use netns::{Ask, Mesh, lan};
use runtime::Kept;
use serde_json::json;

const TCP: u8 = 6;

/// Capabilities that ours does not claim are the others'.
const CHAIN: &str = r#"{"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [
    {"type": "meshd"},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "ingressRate": 80000000, "ingressBurst": 800000, "egressRate": 40000000, "egressBurst": 400000},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "517"}}]}"#;

#[test]
fn a_port_of_the_host_a_limit_and_a_setting_come_from_plugins_behind_ours() {
    let mut document = lan(&[("n1", "shop/none"), ("n2", "shop/nobody")])
        .containerd()
        .document();
    for node in &mut document.spec.nodes {
        node.pods.clear();
    }
    let mesh = Mesh::of(document);
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let engine = mesh.site(|site| site.engine("n1")).unwrap();
    engine.set_network(CHAIN).unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "web"},
                     "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}});
    mesh.apply(&pod.to_string());
    let before = Kept::of(&n1);
    let wanted = Wanted {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "web".to_owned(),
        arguments: ["serve", "80"].map(str::to_owned).into(),
        ports: vec![HostPort {
            container_port: 80,
            host_port: 8080,
        }],
        ..Wanted::default()
    };
    let started = engine.run(&wanted).unwrap();
    let name = "shop/web".parse().unwrap();
    mesh.site(|site| site.take_in("n1", &Pod::bare(name), &started))
        .unwrap();

    let host = SocketAddr::new(n1.address(Family::V4), 8080);
    Ask::all("the port of the host", &[Ask::new(&n2, TCP, host, true)]);
    let web = mesh.pod("shop/web");
    let setting = Netns::run(&web.netns(), || {
        std::fs::read_to_string("/proc/sys/net/core/somaxconn")
    });
    assert_eq!(setting.unwrap().unwrap().trim(), "517");
    let interface = Kept::of(&n1)
        .interfaces
        .difference(&before.interfaces)
        .next()
        .unwrap()
        .clone();
    let shaped = n1.run("tc", &["qdisc", "show", "dev", &interface]);
    assert!(
        shaped.contains("tbf") && shaped.contains("80Mbit"),
        "{shaped}"
    );

    engine.remove(&[&started.sandbox]).unwrap();
    mesh.site(|site| site.let_go(web.name())).unwrap();
    Ask::all("without the container", &[Ask::new(&n2, TCP, host, false)]);
    assert_eq!(Kept::of(&n1).interfaces, before.interfaces);
    let links = n1.run("ip", &["-o", "link"]);
    assert!(
        !links.contains("bwp"),
        "the bandwidth plugin's device stays: {links}"
    );
}
