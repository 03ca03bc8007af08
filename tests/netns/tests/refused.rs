//! A policy that is too large for the kernel closes what it selects, says why, and takes nothing else with it.
//!
//! ```text
//! ┌─ n1 ────────────┐       ┌─ n2 ────────────┐
//! │ shop/s   kept/k │───────│ default/a       │     one LAN, both families
//! └─────────────────┘       └─────────────────┘
//!   huge ─▶ shop     small ─▶ kept
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{net::SocketAddr, time::Duration};

use lab::{Echo, End, Family, Node, Pod};
use netns::{Ask, Mesh, await_fact, condition, lan};
use serde_json::{Value, json};

/// How long what an agent says may take to follow what its kernel has.
const PATIENCE: Duration = Duration::from_secs(20);

/// So many peers, each of which becomes twelve rules of the kernel, are more than 20,000.
const TOO_MANY: usize = 1_800;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [u8; 2] = [6, 17];

fn small(ingress: &Value) -> String {
    let policy = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "small"},
        "spec": {
            "selector": "projectcalico.org/namespace == 'kept'",
            "types": ["Ingress"],
            "ingress": ingress,
        },
    });
    policy.to_string()
}

/// Everything is allowed by the first rule; the second has many peers. Each is a rule per protocol, per family, and for
/// the number and the name of a port.
fn huge(peers: usize) -> String {
    let ports = ["TCP", "UDP", "SCTP"].iter().flat_map(|protocol| {
        [json!(1), json!("p")].map(|port| json!({"protocol": protocol, "port": port}))
    });
    let many = json!({"from": vec![json!({"podSelector": {}}); peers], "ports": ports.collect::<Vec<_>>()});
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "huge", "namespace": "shop"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}, many]},
    });
    policy.to_string()
}

fn echo(pod: &Pod) -> Echo {
    let listens =
        ["TCP/8080", "UDP/8080", "TCP/8081", "UDP/8081"].map(|text| text.parse().unwrap());
    Echo::start(&pod.netns(), &pod.addresses(), &listens).unwrap()
}

fn asks(from: &dyn End, to: &dyn End, port: u16, passes: bool) -> Vec<Ask> {
    let sockets = FAMILIES.map(|family| SocketAddr::new(to.address(family), port));
    let each = sockets
        .iter()
        .flat_map(|socket| PROTOCOLS.map(|protocol| (*socket, protocol)));
    each.map(|(socket, protocol)| Ask::new(from, protocol, socket, passes))
        .collect()
}

fn await_condition(node: &Node, what: &str, holds: impl Fn(&str) -> bool) {
    await_fact(what, PATIENCE, || {
        let said = condition(node, "PolicyRefused");
        if holds(&said) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_policy_that_is_too_large_denies_what_it_selects_and_is_named_with_its_reason() {
    let mesh = Mesh::of(lan(&[("n1", "shop/s"), ("n2", "default/a")]).document());
    let k = mesh.add_pod("n1", "kept/k");
    let [s, a] = ["shop/s", "default/a"].map(|name| mesh.pod(name));
    let _echoes = [&s, &a, &k].map(echo);
    let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name));
    let assert_shop = |state: &str, is_open: bool| {
        mesh.wait();
        let all = [
            asks(&a, &s, 8080, is_open),
            asks(&k, &s, 8080, is_open),
            // What is not selected, and the other direction.
            asks(&s, &a, 8080, true),
            asks(&a, &k, 8080, true),
            asks(&a, &k, 8081, false),
        ];
        Ask::all(state, &all.concat());
    };
    let one_port = json!([
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}},
        {"action": "Allow", "protocol": "UDP", "destination": {"ports": [8080]}},
    ]);
    mesh.apply(&small(&one_port));
    mesh.apply(&huge(2));
    assert_shop("it is not too large yet", true);
    await_condition(&n1, "nothing is refused", str::is_empty);

    mesh.apply(&huge(TOO_MANY));
    assert_shop("it is too large", false);
    let reason = "shop/huge: it would become more than 20000 rules of the kernel";
    await_condition(&n1, "it is named", |said| said.contains(reason));
    assert_eq!(
        condition(&n2, "PolicyRefused"),
        "",
        "it selects nobody here"
    );

    // A policy that comes meanwhile is in force at once.
    mesh.apply(&small(&json!([{"action": "Deny"}])));
    mesh.wait();
    Ask::all("kept is closed", &asks(&a, &k, 8080, false));
    mesh.apply(&small(&one_port));

    mesh.apply(&huge(2));
    assert_shop("it is small again", true);
    await_condition(&n1, "nothing is refused any more", str::is_empty);
}
