//! Somebody changes what is ours, and within a second it is as it was.
//!
//! ```text
//! ┌─ n1 ───────────────────┐            ┌─ n2 ────────┐
//! │ default/a              │            │ default/c   │     dual-stack, encrypted, streams run
//! │ routes, rules, tables, │════════════│             │
//! │ device, peers, settings│            └─────────────┘
//! └──── ↑ an administrator, a script, another agent
//! ```

#![expect(
    clippy::print_stdout,
    reason = "the time of each repair is a figure that people read"
)]

use std::time::Duration;

use lab::{End as _, Node, Service};
use netns::{Kernel, Mesh, Traffic, await_fact};

/// How soon a drift is repaired.
const SOON: Duration = Duration::from_secs(1);

/// How long a harness on a busy machine may take to see it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Breaks something on n1 and asserts that it is whole again soon, that no plaintext left meanwhile (by
/// the lab's standing assertion), and that no connection broke.
fn is_repaired(scripts: &[&str]) {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    for script in scripts {
        let taken = repair_after(&n1, script);
        println!("{taken:?}: {script}");
        assert!(taken < lab::patience(SOON), "{taken:?}: {script}");
        mesh.assert_no_plaintext();
        traffic.assert_alive();
    }
}

/// Runs a script while the agent holds still, so that what it broke is seen; returns how long it stayed
/// broken once the agent went on.
fn repair_after(node: &Node, script: &str) -> Duration {
    let whole = Kernel::of(node);
    node.freeze(Service::Agent);
    node.run("sh", &["-e", "-c", script]);
    let broken = whole.difference(&Kernel::of(node));
    node.thaw(Service::Agent);
    assert!(!broken.is_empty(), "nothing was broken: {script}");
    let what = format!("what this broke is repaired: {script}");
    await_fact(&what, PATIENCE, || whole_again(&whole, node))
}

fn whole_again(whole: &Kernel, node: &Node) -> Result<(), String> {
    let difference = whole.difference(&Kernel::of(node));
    if difference.is_empty() {
        Ok(())
    } else {
        Err(difference)
    }
}

#[test]
fn a_deleted_route_comes_back() {
    is_repaired(&[
        "ip route flush table 1",
        "ip route flush table 2",
        "ip -6 route flush table 1",
        "ip -6 route flush table 2",
        "ip route del $(ip route show table 1 type unicast | head -1 | cut -d' ' -f1) table 1",
        "ip route del unreachable $(ip route show table 1 type unreachable | head -1 | cut -d' ' -f2) table 1",
        "ip route del blackhole $(ip route show type blackhole | head -1 | cut -d' ' -f2)",
    ]);
}

#[test]
fn a_route_that_somebody_replaced_is_ours_again() {
    is_repaired(&[
        "ip route replace $(ip route show table 1 type unicast | head -1 | cut -d' ' -f1) dev eth0 table 1 proto 80",
    ]);
}

#[test]
fn a_deleted_rule_comes_back() {
    is_repaired(&[
        "ip rule del priority 99",
        "ip rule del priority 100",
        "ip -6 rule del priority 99",
        "ip -6 rule del priority 100",
    ]);
}

#[test]
fn a_removed_peer_comes_back() {
    is_repaired(&[
        "wg set wireguard.cali peer $(wg show wireguard.cali peers | head -1) remove",
        "wg set wireguard.cali peer $(wg show wireguard.cali peers | head -1) allowed-ips ''",
    ]);
}

#[test]
fn a_changed_device_is_as_it_was() {
    is_repaired(&[
        "wg set wireguard.cali fwmark 0x77",
        "ip link set wireguard.cali mtu 1300",
        "ip address flush dev wireguard.cali scope global",
        "ip link set wireguard.cali down",
    ]);
}

#[test]
fn a_changed_port_is_as_it_was() {
    is_repaired(&["wg set wireguard.cali listen-port 7777"]);
}

#[test]
fn a_changed_setting_is_as_it_was() {
    is_repaired(&[
        "echo 1 > /proc/sys/net/ipv4/conf/wireguard.cali/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    ]);
}

#[test]
fn a_deleted_device_comes_back() {
    is_repaired(&["ip link del wireguard.cali"]);
}

#[test]
fn a_table_is_its_owner_s_alone() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let whole = Kernel::of(&n1);
    let script =
        "for table in inet netdev; do nft delete table $table meshd 2>&1 || echo refused; done
                  nft flush ruleset || echo refused";
    let said = n1.run("sh", &["-c", script]);
    assert!(said.matches("refused").count() >= 2, "{said}");
    assert_eq!(whole.difference(&Kernel::of(&n1)), "");
    traffic.assert_unbroken();
}

#[test]
fn a_table_that_was_lost_between_two_lives_of_its_owner_comes_back() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    for script in [
        "nft delete table inet meshd",
        "nft delete table netdev meshd",
        "nft flush table inet meshd",
        "nft flush ruleset",
    ] {
        let whole = Kernel::of(&n1);
        n1.kill(Service::Agent);
        n1.run("sh", &["-e", "-c", script]);
        assert_ne!(whole.difference(&Kernel::of(&n1)), "", "{script}");
        n1.restart(Service::Agent);
        let taken = await_fact(script, PATIENCE, || whole_again(&whole, &n1));
        assert!(
            taken < lab::patience(SOON),
            "{taken:?} after the start: {script}"
        );
        mesh.assert_no_plaintext();
        traffic.assert_alive();
    }
}
