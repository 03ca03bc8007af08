//! A mesh in which the kernel carries the packets of some nodes, and `meshwire` those of others.

use std::time::Duration;

use lab::{Builtin, End as _, Node, spec::Backend};
use netns::{Mesh, await_fact};
use serde_json::{Value, json};

/// How long a node may take to make its device.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who carries a node's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The kernel.
    Kernel,
    /// The tunnel service.
    Meshwire,
}

/// Who carries a node's packets, by what `ip` says of its tunnel device; nobody, where it has none.
pub fn carrier(node: &Node) -> Option<Carrier> {
    let script = "ip -d -j link show wireguard.cali 2>/dev/null || echo []";
    let said = node.run("sh", &["-c", script]);
    let said: Value = match serde_json::from_str(&said) {
        Ok(said) => said,
        Err(error) => panic!("ip says no JSON: {error}: {said}"),
    };
    match said[0]["linkinfo"]["info_kind"].as_str() {
        Some("wireguard") => Some(Carrier::Kernel),
        Some("tun") => Some(Carrier::Meshwire),
        Some(_) | None => None,
    }
}

/// An encrypted mesh of a built-in lab in which these nodes use `meshwire` and all others the kernel.
pub fn mixed(lab: &str, meshwire: &[&str]) -> Mesh {
    let builtin = Builtin::named(lab).map(Builtin::document);
    let Some(Ok(mut document)) = builtin else {
        panic!("{lab} is no built-in lab that can be read")
    };
    for node in &mut document.spec.nodes {
        let aside = meshwire.contains(&node.name.as_str());
        node.backend = aside.then_some(Backend::Userspace);
    }
    let mesh = Mesh::of(document);
    mesh.enable();
    for node in mesh.members() {
        let expected = if meshwire.contains(&node.name()) {
            Carrier::Meshwire
        } else {
            Carrier::Kernel
        };
        assert_eq!(carrier(&node), Some(expected), "{}", node.name());
    }
    mesh
}

/// Asks every node to use an implementation: `Auto`, `Kernel` or `Userspace`.
pub fn choose(mesh: &Mesh, backend: &str) {
    let configuration = json!({
        "apiVersion": "meshd.dev/v1",
        "kind": "MeshConfiguration",
        "metadata": { "name": "default" },
        "spec": { "encryption": { "backend": backend } },
    });
    mesh.apply(&configuration.to_string());
    mesh.wait();
}

/// Waits until a node's device is there, and whose it should be.
pub fn await_carrier(node: &Node, wanted: Carrier) {
    let what = format!("the device of {} is {wanted:?}'s", node.name());
    await_fact(&what, PATIENCE, || {
        let is = carrier(node);
        if is == Some(wanted) {
            Ok(())
        } else {
            Err(format!("it is {is:?}'s"))
        }
    });
}
