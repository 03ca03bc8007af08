//! Would a leak be seen? Both barriers and the `unreachable` routes are taken away from a node, then a
//! peer's key is cleared: its pods' packets have no tunnel and nothing stops them any more.
//!
//! ```text
//! ┌─ n1 (agent dead, no guard) ─┐            ┌─ n2 ─┐
//! │ p1 ═══ stream ══════════════┼─ sniffer ──│ p2   │    the default route leads to r1
//! └─────────────────────────────┘            └──────┘
//! ```
//!
//! No code of the product turns the guard off, so it is done in the kernel, where an agent without a
//! guard would have done it: the peer goes from the device, and its routes from the tunnel's tables.

use std::time::{Duration, Instant};

use chaos::topology;
use lab::{End as _, Family, Node, Plaintext, Service, poll_until, spec::Protocol};
use netns::{Mesh, await_fact, await_settled, await_summary};

/// How often.
const RUNS: u32 = 20;

/// How soon the sniffer reports it.
const SOON: Duration = Duration::from_secs(1);

/// How long a program may take to do its work again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes the guard away: the tables, and every route that only closes.
const UNGUARDED: &str = "
    for table in inet netdev; do nft delete table $table meshd; done
    for table in 1 2; do
      for family in -4 -6; do
        ip $family route flush table $table type unreachable
      done
    done";

/// What becomes of a peer whose key is cleared: it is no peer, and no route leads into the tunnel.
const CLEARED: &str = "
    wg set wireguard.cali peer $(wg show wireguard.cali peers) remove
    for table in 1 2; do
      for family in -4 -6; do
        ip $family route flush table $table dev wireguard.cali
      done
    done";

fn run(node: &Node, script: &str) {
    node.run("sh", &["-e", "-c", script]);
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "the time of each report is a figure that people read"
)]
fn a_cleared_key_without_a_guard_is_reported_within_a_second_every_time() {
    let mesh = Mesh::of(topology(2));
    mesh.enable();
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let streams = [Family::V4, Family::V6].map(|family| {
        let stream = n1.pod().stream(&n2.pod(), Protocol::Udp, family);
        stream.assert_carries(5);
        stream
    });
    for number in 1..=RUNS {
        n1.kill(Service::Agent);
        run(&n1, UNGUARDED);
        // Nothing leaks as long as there is a tunnel.
        for stream in &streams {
            stream.assert_carries(5);
        }
        mesh.assert_no_plaintext();

        mesh.plaintext(Plaintext::Allowed);
        let before = mesh.seen();
        let start = Instant::now();
        run(&n1, CLEARED);
        let is_seen = || mesh.seen().since(&before).leaked() > 0;
        assert!(poll_until(start + SOON, is_seen), "run {number}: no report");
        println!("run {number}: reported after {:?}", start.elapsed());

        n1.restart(Service::Agent);
        await_summary(&n1, "Enforced", PATIENCE);
        await_settled(&n1, PATIENCE);
        await_fact("the pods reach each other again", PATIENCE, || {
            let reached = n1.pod().try_ping(n2.pod().address(Family::V4));
            reached.map(drop).map_err(|error| error.to_string())
        });
        mesh.plaintext(Plaintext::Forbidden);
    }
}
