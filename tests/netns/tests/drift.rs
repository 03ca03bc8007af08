//! Somebody changes what is ours, and within a second it is as it was.
//!
//! ```text
//! ┌─ n1 ───────────────────┐            ┌─ n2 ────────┐
//! │ default/a              │            │ default/c   │     dual-stack, encrypted, streams run
//! │ routes, rules, tables, │════════════│             │
//! │ device, peers, settings│            └─────────────┘
//! └──── ↑ an administrator, a script, another agent
//! ```

use std::time::Duration;

use lab::{End as _, Node};
use netns::{Kernel, Mesh, Traffic, await_fact};

/// How soon a drift is repaired.
const SOON: Duration = Duration::from_secs(1);

/// How long a harness on a busy machine may take to see it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether streams feel a drift: a lost device loses its sessions with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Felt {
    No,
    Yes,
}

/// Breaks something on n1 and asserts that it is whole again soon, that no plaintext left meanwhile (by
/// the lab's standing assertion), and that no connection broke.
fn is_repaired(felt: Felt, scripts: &[&str]) {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    for script in scripts {
        let taken = repair_of(&n1, script);
        println!("{taken:?}: {script}");
        assert!(taken < SOON, "{taken:?}: {script}");
        mesh.assert_no_plaintext();
        match felt {
            Felt::No => traffic.assert_alive(),
            Felt::Yes => traffic.assert_alive(),
        }
    }
}

/// Runs a script that must change something of ours; returns how long it stayed changed.
fn repair_of(node: &Node, script: &str) -> Duration {
    let whole = Kernel::of(node);
    // The script tells itself what it broke, for the repair may be done before anybody else can look.
    node.run("sh", &["-e", "-c", script]);
    await_fact(&format!("what this broke is repaired: {script}"), PATIENCE, || {
        let difference = whole.difference(&Kernel::of(node));
        if difference.is_empty() {
            Ok(())
        } else {
            Err(difference)
        }
    })
}

#[test]
fn a_deleted_route_comes_back() {
    is_repaired(
        Felt::No,
        &[
            "ip route flush table 1",
            "ip route flush table 2",
            "ip -6 route flush table 1",
            "ip -6 route flush table 2",
            "ip route del $(ip route show table 1 type unicast | head -1 | cut -d' ' -f1) table 1",
            "ip route del unreachable $(ip route show table 1 type unreachable | head -1 | cut -d' ' -f2) table 1",
            "ip route del blackhole $(ip route show type blackhole | head -1 | cut -d' ' -f2)",
        ],
    );
}

#[test]
fn a_route_that_somebody_replaced_is_ours_again() {
    is_repaired(
        Felt::No,
        &["ip route replace $(ip route show table 1 type unicast | head -1 | cut -d' ' -f1) dev eth0 table 1 proto 80"],
    );
}

#[test]
fn a_deleted_rule_comes_back() {
    is_repaired(
        Felt::No,
        &[
            "ip rule del priority 99",
            "ip rule del priority 100",
            "ip -6 rule del priority 99",
            "ip -6 rule del priority 100",
        ],
    );
}

#[test]
fn a_removed_peer_comes_back() {
    is_repaired(
        Felt::Yes,
        &[
            "wg set wireguard.cali peer $(wg show wireguard.cali peers | head -1) remove",
            "wg set wireguard.cali peer $(wg show wireguard.cali peers | head -1) allowed-ips ''",
        ],
    );
}

#[test]
fn a_changed_device_is_as_it_was() {
    is_repaired(
        Felt::Yes,
        &[
            "wg set wireguard.cali fwmark 0x77",
            "ip link set wireguard.cali mtu 1300",
            "ip address flush dev wireguard.cali scope global",
            "ip link set wireguard.cali down",
        ],
    );
}

#[test]
fn a_changed_port_is_as_it_was() {
    is_repaired(Felt::Yes, &["wg set wireguard.cali listen-port 7777"]);
}

#[test]
fn a_changed_setting_is_as_it_was() {
    is_repaired(
        Felt::No,
        &[
            "echo 1 > /proc/sys/net/ipv4/conf/wireguard.cali/rp_filter",
            "echo 0 > /proc/sys/net/ipv4/ip_forward",
            "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        ],
    );
}

#[test]
fn a_deleted_device_comes_back() {
    is_repaired(Felt::Yes, &["ip link del wireguard.cali"]);
}

/// The kernel refuses to let anybody but its owner touch an owned table; where it knows no owners, or the
/// owner is between two lives, what is flushed comes back.
#[test]
fn a_table_is_its_owner_s_and_comes_back_where_it_was_lost() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    for table in ["inet", "netdev"] {
        let script = format!("nft delete table {table} meshd 2>/dev/null && echo gone || echo kept");
        let said = n1.run("sh", &["-c", &script]);
        let whole = Kernel::of(&n1);
        if said.trim() == "gone" {
            continue;
        }
        n1.kill(lab::Service::Agent);
        n1.run("nft", &["delete", "table", table, "meshd"]);
        n1.restart(lab::Service::Agent);
        let taken = await_fact(&format!("{table} meshd comes back"), PATIENCE, || {
            let difference = whole.difference(&Kernel::of(&n1));
            if difference.is_empty() { Ok(()) } else { Err(difference) }
        });
        println!("{taken:?} after the start: {table}");
        mesh.assert_no_plaintext();
    }
    n1.run("sh", &["-c", "nft flush ruleset || true"]);
    traffic.assert_unbroken();
}
