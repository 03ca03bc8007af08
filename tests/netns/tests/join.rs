//! Members that come late, that cannot take part, that lag, and that lie.
//!
//! ```text
//! ┌─ n1 ──────┐   ┌─ n2 ──────┐   ┌─ n3 ──────┐   ┌─ n4 ───────────────┐
//! │ default/a │───│ default/b │───│ default/c │───│ stands aside until │     one LAN, both families
//! └───────────┘   └───────────┘   └───────────┘   │ it is admitted     │
//!                                                 └────────────────────┘
//! ```

use std::time::Duration;

use lab::{End, Family, Node, Plaintext, Service};
use netns::{Encryption, Mesh, Traffic, await_fact, await_settled, await_summary, lan, peer};
use serde_json::json;

/// How long a mesh may take to notice something.
const PATIENCE: Duration = Duration::from_secs(20);

/// For how long a member that does not move is waited for, and then some.
const LAGGARD_PATIENCE: Duration = Duration::from_secs(60);

/// Three members, and a fourth node that stands aside.
fn three_and_one() -> Mesh {
    let topology = lan(&[
        ("n1", "default/a"),
        ("n2", "default/b"),
        ("n3", "default/c"),
    ]);
    Mesh::of(topology.node("n4", &["lan"]).aside().document())
}

/// What a node says of a peer: its state, and why.
fn standing(node: &Node, name: &str) -> (String, String) {
    let peer = peer(node, name);
    let text = |field: &str| peer[field].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

/// Waits until a node says so of a peer; returns the reason that it gives.
fn await_standing(node: &Node, name: &str, state: &str, patience: Duration) -> String {
    let mut reason = String::new();
    let what = format!("{name} is {state} to {}", node.name());
    await_fact(&what, patience, || {
        let said = standing(node, name);
        reason.clone_from(&said.1);
        if said.0 == state {
            Ok(())
        } else {
            Err(format!("{said:?}"))
        }
    });
    reason
}

/// Runs a command on a node with the node's own credential; returns what it said, and whether it was
/// done.
fn as_node(node: &Node, command: &str, input: &str) -> (bool, String) {
    // Where the lab finds the programs too: the folder that was named, or cargo's.
    let own = std::env::current_exe().unwrap_or_default();
    let near = own.ancestors().nth(2).map(|f| f.display().to_string());
    let folder = std::env::var("MESHD_BIN_DIR").ok().or(near);
    let folder = folder.unwrap_or_default();
    let script = format!(
        "export MESHD_CONFIG=/var/lib/meshd/config.yaml PATH=\"$1:$PATH\"
         if printf '%s' \"$0\" | {command} 2>&1; then echo DONE; else echo REFUSED; fi"
    );
    let said = node.run("sh", &["-c", &script, input, &folder]);
    (said.trim_end().ends_with("DONE"), said)
}

#[test]
fn a_node_that_joins_an_enforced_mesh_starts_closed() {
    let mesh = three_and_one();
    mesh.enable();
    let (n1, n4) = (mesh.node("n1"), mesh.node("n4"));
    let traffic = Traffic::between_two(&mesh);
    mesh.admit(&n4);
    n4.restart(Service::Agent);
    // From its first packet on: the sniffers forbid plaintext since the mesh was enforced.
    let pod = mesh.add_pod("n4", "default/d");
    let mut late = Traffic::none(&mesh);
    await_summary(&n4, "Enforced", PATIENCE);
    late.add_pod_to_pod(&pod, &n1.pod());
    late.add_pod_to_pod(&n1.pod(), &pod);
    late.add_pod_and_node(&pod, &n1);
    late.assert_unbroken();
    traffic.assert_unbroken();
    // An agent learns of a handshake a little after packets do.
    await_standing(&n1, "n4", "Encrypted", PATIENCE);
}

#[test]
fn a_member_without_a_key_is_unreachable_and_named() {
    let mesh = three_and_one();
    let (n1, n4) = (mesh.node("n1"), mesh.node("n4"));
    mesh.admit(&n4);
    n4.restart(Service::Agent);
    let pod = mesh.add_pod("n4", "default/d");
    n1.pod().ping(&pod);
    // It never comes to publish a key.
    n4.kill(Service::Agent);
    let traffic = Traffic::between_two(&mesh);
    mesh.ask_for(Encryption::On);
    for name in ["n1", "n2", "n3"] {
        await_summary(&mesh.node(name), "Enforced", LAGGARD_PATIENCE);
    }
    mesh.forbid_plaintext_of(&["n1", "n2", "n3"]);
    let reason = await_standing(&n1, "n4", "Unreachable", PATIENCE);
    assert!(reason.contains("no key"), "{reason:?}");
    for family in [Family::V4, Family::V6] {
        assert!(n1.pod().try_ping(pod.address(family)).is_err());
        assert!(n1.pod().try_ping(n4.address(family)).is_err());
    }
    n1.ping(&n4);
    traffic.assert_unbroken();

    n4.restart(Service::Agent);
    mesh.await_summary("Enforced");
    n1.pod().ping(&pod);
    traffic.assert_unbroken();
}

#[test]
fn under_permissive_a_member_without_a_key_stays_plain_and_is_named() {
    let mesh = three_and_one();
    let (n1, n4) = (mesh.node("n1"), mesh.node("n4"));
    mesh.set_mode("Permissive");
    mesh.admit(&n4);
    n4.restart(Service::Agent);
    let pod = mesh.add_pod("n4", "default/d");
    n4.kill(Service::Agent);
    mesh.ask_for(Encryption::On);
    for name in ["n1", "n2", "n3"] {
        await_summary(&mesh.node(name), "Enforced", LAGGARD_PATIENCE);
    }
    let reason = await_standing(&n1, "n4", "PlainPermitted", PATIENCE);
    assert!(reason.contains("no key"), "{reason:?}");
    let before = mesh.seen();
    n1.pod().ping(&pod);
    assert!(mesh.seen().since(&before).leaked() > 0, "nothing was plain");
    let n2 = mesh.node("n2");
    // As in Calico, one switch covers one family here: Strict alone lets IPv6 travel with IPv4.
    await_standing(&n1, "n2", "Partly", PATIENCE);
    await_standing(&n2, "n1", "Partly", PATIENCE);
    for node in [&n1, &n2] {
        await_settled(node, PATIENCE);
    }
    let before = mesh.seen();
    n1.pod().try_ping(n2.pod().address(Family::V4)).unwrap();
    let seen = mesh.seen().since(&before);
    assert_eq!(seen.leaked(), 0, "n2 has a key: {:?}", seen.samples);
}

#[test]
fn a_key_and_an_address_that_another_node_holds_are_refused_and_its_holder_is_unharmed() {
    let mesh = three_and_one();
    mesh.enable();
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let traffic = Traffic::between_two(&mesh);
    let claims = mesh.meshctl(&["get", "keyclaims", "-o", "json"]);
    let claims: serde_json::Value = serde_json::from_str(&claims).unwrap();
    let held = claims["items"].as_array().unwrap().iter();
    let held = { held }
        .find(|claim| claim["spec"]["node"] == "n1")
        .unwrap();
    let stolen = json!({
        "apiVersion": "meshd.dev/v1", "kind": "KeyClaim",
        "metadata": { "name": held["metadata"]["name"] }, "spec": { "node": "n2" },
    });
    let address = json!({
        "apiVersion": "meshd.dev/v1", "kind": "AddressClaim",
        "metadata": { "name": n1.address(Family::V4).to_string() }, "spec": { "node": "n2" },
    });
    for claim in [stolen, address] {
        let (done, said) = as_node(&n2, "meshctl apply -f -", &claim.to_string());
        assert!(!done && said.contains("who holds the claim"), "{said}");
    }
    for command in ["meshctl delete keyclaim", "meshctl delete addressclaim"] {
        let name = if command.ends_with("keyclaim") {
            held["metadata"]["name"].as_str().unwrap().to_owned()
        } else {
            n1.address(Family::V4).to_string()
        };
        let (done, said) = as_node(&n2, &format!("{command} {name}"), "");
        assert!(!done && said.contains("refused (create-only)"), "{said}");
    }
    traffic.assert_unbroken();
    for name in ["n1", "n2"] {
        // A member sends encrypted before it has seen a handshake of its own.
        await_fact(&format!("n3 reaches {name}"), PATIENCE, || {
            let found = standing(&mesh.node("n3"), name).0;
            (found == "Encrypted").then_some(()).ok_or(found)
        });
    }
}

#[test]
fn a_node_cannot_write_another_s_record() {
    let mesh = three_and_one();
    mesh.enable();
    let n2 = mesh.node("n2");
    let before = mesh.meshctl(&["get", "node", "n1", "-o", "yaml"]);
    let forged = before.replace("name: n1", "name: n1\n  labels: {forged: \"yes\"}");
    let (done, said) = as_node(&n2, "meshctl apply -f -", &forged);
    assert!(!done, "{said}");
    assert_eq!(mesh.meshctl(&["get", "node", "n1", "-o", "yaml"]), before);
}

#[test]
fn a_copied_key_harms_only_the_copier() {
    let mesh = three_and_one();
    mesh.enable();
    let (n1, n2, n3) = (mesh.node("n1"), mesh.node("n2"), mesh.node("n3"));
    let mut traffic = Traffic::none(&mesh);
    traffic.add_pod_to_pod(&n1.pod(), &n3.pod());
    traffic.add_pod_and_node(&n1.pod(), &n3);

    n2.kill(Service::Agent);
    let file = "/var/lib/meshd/keys/wireguard.key";
    let key = n1.run("cat", &[file]);
    n2.run(
        "sh",
        &[
            "-e",
            "-c",
            &format!("printf '%s\n' \"$0\" > {file}"),
            key.trim_end(),
        ],
    );
    n2.restart(Service::Agent);

    let reason = await_standing(&n3, "n2", "Unreachable", PATIENCE);
    assert!(!reason.is_empty(), "n3 does not say why");
    traffic.assert_unbroken();
    await_standing(&n3, "n1", "Encrypted", PATIENCE);
    assert!(n3.pod().try_ping(n2.pod().address(Family::V4)).is_err());
}

#[test]
fn a_copied_address_harms_only_the_copier() {
    let mesh = three_and_one();
    let configuration = json!({
        "apiVersion": "meshd.dev/v1", "kind": "MeshConfiguration", "metadata": { "name": "default" },
        "spec": { "underlay": { "networks": ["192.0.2.0/24", "2001:db8:1::/64"] } },
    });
    mesh.apply(&configuration.to_string());
    mesh.enable();
    let (n1, n2, n3) = (mesh.node("n1"), mesh.node("n2"), mesh.node("n3"));
    let mut traffic = Traffic::none(&mesh);
    traffic.add_pod_to_pod(&n1.pod(), &n3.pod());
    traffic.add_pod_and_node(&n1.pod(), &n3);
    // On a device that answers nobody's ARP: the LAN itself is not disturbed.
    let stolen = n1.address(Family::V4);
    let script = "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore; ip address add $0/32 dev lo";
    n2.run("sh", &["-e", "-c", script, &stolen.to_string()]);
    mesh.apply(&configuration.to_string());
    traffic.assert_unbroken();
    let claims = mesh.meshctl(&["get", "addressclaims", &stolen.to_string(), "-o", "json"]);
    assert!(
        claims.contains("\"n1\"") && !claims.contains("\"n2\""),
        "{claims}"
    );
    let allowed = peer(&n3, "n2")["allowedIps"].to_string();
    assert!(!allowed.contains(&format!("{stolen}/32")), "{allowed}");
}

#[test]
fn a_member_that_does_not_move_is_not_waited_for_but_named_and_closed() {
    let mesh = three_and_one();
    let (n1, n3) = (mesh.node("n1"), mesh.node("n3"));
    let traffic = Traffic::between_two(&mesh);
    n3.freeze(Service::Wire);
    mesh.ask_for(Encryption::On);
    let early = n1.ask("/v1/status")["encryption"]["summary"].clone();
    assert_ne!(early, "Enforced");
    for name in ["n1", "n2"] {
        await_summary(&mesh.node(name), "Enforced", LAGGARD_PATIENCE);
    }
    mesh.forbid_plaintext_of(&["n1", "n2"]);
    let (state, reason) = standing(&n1, "n3");
    assert_eq!(state, "Unreachable", "{reason}");
    assert!(reason.contains("30 s"), "{reason}");
    assert!(n1.pod().try_ping(n3.pod().address(Family::V4)).is_err());
    traffic.assert_unbroken();
    mesh.assert_no_plaintext();
    mesh.plaintext(Plaintext::Allowed);
    n3.thaw(Service::Wire);
    mesh.await_summary("Enforced");
    mesh.forbid_plaintext();
    n1.pod().ping(&n3.pod());
    traffic.assert_unbroken();
}
