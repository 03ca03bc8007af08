//! When is a mesh whole? When every pod reaches every other one in both families, by fresh sessions.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lab::{Document, End as _, Family, Lab, Node, Ping, Topology};
use serde_json::json;

/// How long one ping may take.
const ATTEMPT: Duration = Duration::from_millis(250);

/// A session is not used beyond this age (§6.1 of the WireGuard paper: `REJECT_AFTER_TIME`).
const REJECT_AFTER: u64 = 180;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Five nodes on one LAN, one pod on each, a router to a second network: what has no better route leaves
/// by the router, so that a guard that is missing is seen at once.
///
/// ```text
/// ┌─ n1 ──┐ ┌─ n2 ──┐ ┌─ n3 ──┐ ┌─ n4 ──┐ ┌─ n5 ──┐ ┌ server ┐
/// └───┬───┘ └───┬───┘ └───┬───┘ └───┬───┘ └───┬───┘ └───┬────┘
///  ───┴─────────┴─────────┴── lan ──┴─────────┴─────────┴── r1 ── data ──
/// ```
pub fn topology(nodes: usize) -> Document {
    let mut topology = Topology::new()
        .network("lan", &["192.0.2.0/24", "2001:db8:1::/64"])
        .network("data", &["198.51.100.0/24", "2001:db8:2::/64"])
        .router("r1", &["lan", "data"])
        .server(&["lan"])
        .pool("10.65.0.0/16")
        .pool("fd00:65::/112")
        .resource(json!({
            "apiVersion": "meshd.dev/v1",
            "kind": "MeshConfiguration",
            "metadata": { "name": "default" },
            "spec": { "underlay": { "networks": [
                "192.0.2.0/24", "2001:db8:1::/64", "198.51.100.0/24", "2001:db8:2::/64",
            ] } },
        }));
    for number in 1..=nodes {
        topology = topology
            .node(&format!("n{number}"), &["lan"])
            .pod(&format!("default/p{number}"));
    }
    topology.document()
}

/// Waits until every pair of pods reaches each other in both families, with a fresh handshake between
/// every two nodes. Returns how long that took since `since`, or whom it waits for.
///
/// # Errors
/// The pairs that do not reach each other within `patience`.
pub fn await_whole(
    lab: &Lab,
    nodes: &[Node],
    since: Instant,
    patience: Duration,
) -> Result<Duration, String> {
    let deadline = since + patience;
    let pods = lab.pods();
    let mut pairs = Vec::new();
    for (number, from) in pods.iter().enumerate() {
        for to in &pods[..number] {
            for family in [Family::V4, Family::V6] {
                let name = format!("{} to {} ({family:?})", from.label(), to.label());
                pairs.push((name, from.netns(), to.address(family)));
            }
        }
    }
    let silent: Vec<String> = thread::scope(|scope| {
        let looks: Vec<_> = pairs
            .iter()
            .map(|(name, netns, to)| {
                scope.spawn(move || {
                    let ping = Ping {
                        patience: ATTEMPT,
                        ..Ping::new(*to)
                    };
                    let reached = poll(deadline, || ping.send(netns).is_ok());
                    (!reached).then(|| name.clone())
                })
            })
            .collect();
        let looks = looks.into_iter().map(|look| look.join());
        looks
            .filter_map(|look| look.expect("a look does not panic"))
            .collect()
    });
    if !silent.is_empty() {
        return Err(format!("silent: {}", silent.join(", ")));
    }
    let mut stale = Vec::new();
    let fresh = poll(deadline.max(Instant::now() + ATTEMPT), || {
        stale = nodes
            .iter()
            .flat_map(|node| stale_peers(node, nodes.len() - 1))
            .collect();
        stale.is_empty()
    });
    if fresh {
        Ok(since.elapsed())
    } else {
        Err(format!("without a fresh handshake: {}", stale.join(", ")))
    }
}

/// The peers of a node that have no fresh session, as `wg` says.
fn stale_peers(node: &Node, peers: usize) -> Vec<String> {
    let script = "wg show wireguard.cali latest-handshakes || true";
    let said = node.run("sh", &["-c", script]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let is_fresh = |line: &&str| {
        let at = line
            .split_whitespace()
            .nth(1)
            .and_then(|at| at.parse().ok());
        at.is_some_and(|at: u64| now.saturating_sub(at) <= REJECT_AFTER)
    };
    let fresh = said.lines().filter(is_fresh).count();
    if fresh >= peers {
        return Vec::new();
    }
    vec![format!("{} has {fresh} of {peers}: {said}", node.name())]
}

fn poll(deadline: Instant, mut holds: impl FnMut() -> bool) -> bool {
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::park_timeout(LOOK);
    }
    true
}
