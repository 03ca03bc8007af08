//! What a node says of others on its machine, and what it may do about their firewalls.

use std::time::Duration;

use lab::Node;
use serde_json::json;

use crate::{Mesh, await_fact};

/// Returns what a node says under a condition; nothing where it does not say it.
pub fn condition(node: &Node, name: &str) -> String {
    let status = node.ask("/v1/status");
    let text = status["conditions"][name].as_str();
    text.unwrap_or_default().to_owned()
}

/// Waits until what a node says of foreign firewalls is so.
pub fn await_firewall(node: &Node, what: &str, patience: Duration, holds: impl Fn(&str) -> bool) {
    await_fact(what, patience, || {
        let condition = condition(node, "ForeignFirewall");
        if holds(&condition) {
            Ok(())
        } else {
            Err(condition)
        }
    });
}

/// Sets `MeshConfiguration.spec.foreignFirewalls`.
pub fn set_foreign_firewalls(mesh: &Mesh, value: &str) {
    let configuration = json!({
        "apiVersion": "meshd.dev/v1",
        "kind": "MeshConfiguration",
        "metadata": { "name": "default" },
        "spec": { "foreignFirewalls": value },
    });
    mesh.apply(&configuration.to_string());
}
