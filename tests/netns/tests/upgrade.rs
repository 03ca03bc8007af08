//! Members are replaced by another version of meshd, one by one, under traffic, and back again.
//!
//! ```text
//! ┌─ n1 ────────────────┐   ┌─ n2 ────────────────┐   ┌─ n3 ────────────────┐
//! │ agent, meshwire     │═══│ agent, meshwire     │═══│ agent, meshwire     │   dual-stack, encrypted
//! └─────────────────────┘   └─────────────────────┘   └─────────────────────┘
//!      this version ─▶ the previous one ─▶ this version, one program after another; server
//! ```
//!
//! The previous version is the commit in `tests/netns/previous`; `tools/previous` builds it.

#![expect(
    clippy::print_stdout,
    reason = "how long a tunnel service's replacement takes is a figure that people read"
)]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lab::{End as _, Node, Service};
use netns::{Mesh, Sessions, Traffic, await_fact, await_settled, await_summary};

/// How long a program may take to do its work again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which version a program is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Previous,
    This,
}

impl Version {
    /// Starts a service in this version, after it was ended as a service manager ends it.
    fn replace(self, node: &Node, service: Service) {
        node.kill(service);
        match self {
            Self::Previous => node.restart_from(service, &previous()),
            Self::This => node.restart(service),
        }
    }
}

/// The folder of the previous version's programs.
fn previous() -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("previous");
    let text = std::fs::read_to_string(file).expect("the repository names its previous version");
    let named = text.lines().find(|line| !line.starts_with('#'));
    let commit = std::env::var("MESHD_PREVIOUS").ok();
    let commit = commit.as_deref().or(named).unwrap_or_default().trim();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").unwrap_or_default();
        Path::new(&home).join(".cache")
    });
    let folder = cache.join("meshd/previous").join(commit);
    assert!(
        folder.join(".complete").exists(),
        "{} is not there: run tools/previous, which builds it once",
        folder.display()
    );

    folder
}

/// Asks the kernel which file a node's agent runs from.
fn runs(node: &Node, program: &str) -> String {
    let script = "for pid in $(ip netns pids \"$(ip netns identify $$)\"); do
                      readlink /proc/$pid/exe; done | grep \"/$0$\" | head -1";

    node.run("sh", &["-c", script, program]).trim().to_owned()
}

/// Replaces server and agents: nobody notices, and no session is made anew. The server is never older than an agent,
/// which may ask it for kinds that only the newer one knows.
fn replace_agents(mesh: &Mesh, traffic: &Traffic, version: Version) {
    if version == Version::This {
        replace_server(mesh, traffic, version);
    }
    for node in mesh.members() {
        let before = sessions(mesh);
        version.replace(&node, Service::Agent);
        await_summary(&node, "Enforced", PATIENCE);
        await_settled(&node, PATIENCE);
        await_connected(&node);
        traffic.assert_unbroken();
        mesh.assert_no_plaintext();
        assert_eq!(
            before,
            sessions(mesh),
            "{version:?} agent of {}",
            node.name()
        );
    }
    if version == Version::Previous {
        replace_server(mesh, traffic, version);
    }
}

fn replace_server(mesh: &Mesh, traffic: &Traffic, version: Version) {
    version.replace(&mesh.node("n1"), Service::Server);
    for node in mesh.members() {
        await_connected(&node);
    }
    traffic.assert_unbroken();
}

/// Replaces every tunnel service: its sessions are new, no connection breaks, nothing leaves in plaintext.
fn replace_tunnels(mesh: &Mesh, traffic: &Traffic, version: Version) {
    for node in mesh.members() {
        let start = Instant::now();
        version.replace(&node, Service::Wire);
        await_tunnel(&node);
        println!(
            "{version:?} meshwire of {}: sessions after {:?}",
            node.name(),
            start.elapsed()
        );
        await_summary(&node, "Enforced", PATIENCE);
        await_settled(&node, PATIENCE);
        traffic.assert_alive();
        traffic.forget();
        mesh.assert_no_plaintext();
    }
}

/// The sessions of every member, as WireGuard has them.
fn sessions(mesh: &Mesh) -> Vec<Sessions> {
    mesh.members().iter().map(Sessions::of).collect()
}

/// Waits until a node has its device and a session with each peer: its last ones ended with the service.
fn await_tunnel(node: &Node) {
    let script = "wg show wireguard.cali latest-handshakes 2>&1 || true";
    await_fact("every peer shakes hands", PATIENCE, || {
        let said = node.run("sh", &["-c", script]);
        let times: Vec<&str> = said
            .lines()
            .filter_map(|line| line.split('\t').nth(1))
            .collect();
        let all = times.len() == 2 && times.iter().all(|time| *time != "0");
        all.then_some(()).ok_or(said)
    });
}

fn await_connected(node: &Node) {
    await_fact("the agent finds the server", PATIENCE, || {
        let connected = node.ask("/v1/status")["storeConnected"].clone();
        (connected == true)
            .then_some(())
            .ok_or(connected.to_string())
    });
}

#[test]
fn members_go_back_one_version_and_forward_again_without_a_flow_lost() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let this = runs(&n1, "meshd");

    replace_agents(&mesh, &traffic, Version::Previous);
    assert_ne!(runs(&n1, "meshd"), this, "another program runs now");
    replace_tunnels(&mesh, &traffic, Version::Previous);
    assert!(runs(&n1, "meshwire").contains("/previous/"));

    // What the previous version wrote, this one reads: keys, certificates, guard, pods, the store.
    replace_agents(&mesh, &traffic, Version::This);
    replace_tunnels(&mesh, &traffic, Version::This);
    assert_eq!(runs(&n1, "meshd"), this);
}

#[test]
fn a_tunnel_service_is_upgraded_under_an_agent_that_is_not() {
    let mesh = Mesh::enforced("dual-stack");
    let traffic = Traffic::between_two(&mesh);

    // Each of the two programs speaks with the other's previous version.
    replace_tunnels(&mesh, &traffic, Version::Previous);
    let n1 = mesh.node("n1");
    Version::Previous.replace(&n1, Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
    Version::This.replace(&n1, Service::Wire);
    await_tunnel(&n1);
    await_summary(&n1, "Enforced", PATIENCE);
    await_settled(&n1, PATIENCE);
    traffic.assert_alive();
    mesh.assert_no_plaintext();
}
