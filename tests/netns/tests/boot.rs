//! A machine that boots is closed before its agent runs.
//!
//! ```text
//! ┌─ n1 ────────────────────────────┐            ┌─ n2 ───────┐
//! │ default/a ── no tables, rules,  │            │ default/c  │     dual-stack, encrypted
//! │              tunnel or agent    │── plain? ──│            │
//! └─────────────────────────────────┘            └────────────┘
//! ```

use std::time::Duration;

use lab::{End, Family, Node, Service};
use netns::{Mesh, Traffic, await_fact, await_summary};

/// How long a program may take to do its work again.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a reboot takes with it: tables, rules, routes and the tunnel, but not what is on disk.
const REBOOT: &str = "
sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1
ip link set eth0 down
nft delete table inet meshd
nft delete table netdev meshd
for family in -4 -6; do
    ip $family rule del priority 99
    for each in $(ip $family rule | sed -n 's/^100:.*/100/p'); do ip $family rule del priority $each; done
    ip $family route flush table 1
    ip $family route flush table 2
done
ip link del wireguard.cali
";

#[test]
fn the_last_good_guard_is_restored_before_the_agent_runs() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    reboot(&n1);

    n1.run(&meshd(), &["guard"]);
    n1.run("ip", &["link", "set", "eth0", "up"]);

    let rules = n1.run("nft", &["list", "table", "inet", "meshd"]);
    assert!(rules.contains("chain barrier"), "{rules}");
    for family in ["-4", "-6"] {
        let routes = n1.run("ip", &[family, "route", "show", "table", "1"]);
        assert!(routes.contains("unreachable"), "{routes}");
    }
    let pod = n1.pod();
    for node in mesh.members().iter().filter(|node| node.name() != "n1") {
        for family in [Family::V4, Family::V6] {
            assert!(pod.try_ping(node.pod().address(family)).is_err());
        }
    }

    n1.restart(Service::Wire);
    n1.restart(Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
    let other = mesh.node("n2").pod().address(Family::V4);
    await_fact("the pods reach each other again", PATIENCE, || {
        pod.try_ping(other)
            .map(drop)
            .map_err(|error| error.to_string())
    });
    drop(traffic);
} // The mesh asserts that no plaintext left any node, from Enforced to the end.

#[test]
fn a_machine_without_a_guard_on_disk_boots_as_it_is() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    n1.kill(Service::Agent);
    n1.run("rm", &["/var/lib/meshd/guard.json"]);

    n1.run(&meshd(), &["guard"]);

    let rules = n1.run("nft", &["list", "table", "inet", "meshd"]);
    assert!(
        rules.contains("chain barrier"),
        "what is there stays: {rules}"
    );
    n1.restart(Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
}

/// The program beside this test's, as cargo lays them out.
fn meshd() -> String {
    let own = std::env::current_exe().expect("a test knows its own file");
    let folder = own.ancestors().nth(2).expect("a test lies in deps");

    folder.join("meshd").display().to_string()
}

/// Ends the node's programs and takes away what they wrote into the kernel; its network is down.
fn reboot(node: &Node) {
    node.kill(Service::Agent);
    node.run("sh", &["-e", "-c", REBOOT]);
    node.kill(Service::Wire);
}
