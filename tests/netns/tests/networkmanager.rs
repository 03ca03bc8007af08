//! NetworkManager beside us: named until it was told, and then it leaves everything of ours alone.
//!
//! ```text
//! ┌─ n1 ───────────────────────────┐            ┌─ n2 ────────┐
//! │ default/a                      │            │ default/c   │     dual-stack, encrypted
//! │ + NetworkManager, a new NIC    │════════════│             │
//! └────────────────────────────────┘            └─────────────┘
//! ```

use std::time::Duration;

use lab::{End as _, Node, Service};
use netns::{Mesh, NetworkManager, Traffic, await_fact, condition};

const PATIENCE: Duration = Duration::from_secs(60);

fn sh(node: &Node, script: &str) -> String {
    node.run("sh", &["-e", "-c", script])
}

/// Everything of ours that it could touch: links, addresses (but those that the kernel gives every link), routes,
/// rules.
fn ours(node: &Node) -> String {
    sh(
        node,
        "show() { grep -E 'cali|wireguard' | grep -vE 'fe80|scope link' | sed 's/^[0-9]*//; s/ link-netns.*//' || true; }
         ip rule; ip -6 rule; ip route show table 1; ip -6 route show table 1; ip route show table 2
         ip -o link | show; ip -o address | show; ip -6 route | show
         ip route | sed 's/ scope link//' | show",
    )
}

/// Its word for each device of ours.
fn states(manager: &NetworkManager) -> Vec<String> {
    let devices = manager.devices();
    let ours = devices
        .lines()
        .filter(|line| line.starts_with("cali") || line.starts_with("wireguard"));

    ours.map(str::to_owned).collect()
}

fn await_named(node: &Node, named: bool) {
    await_fact("the condition", PATIENCE, || {
        let text = condition(node, "NetworkManager");
        let file = text.contains("/etc/NetworkManager/conf.d/90-meshd.conf");
        if file == named && text.is_empty() != named {
            Ok(())
        } else {
            Err(text)
        }
    });
}

#[test]
fn networkmanager_takes_pods_interfaces_for_nics_until_it_is_told_and_so_it_says() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let whole = ours(&n1);

    n1.freeze(Service::Agent);
    let mut manager = NetworkManager::start(&n1);
    await_fact("it takes routes to pods away", PATIENCE, || {
        let now = ours(&n1);
        if now == whole {
            Err(manager.devices())
        } else {
            Ok(())
        }
    });
    let taken = states(&manager);
    assert!(
        taken.iter().any(|line| line.contains(":connect")),
        "{taken:?}"
    );
    n1.thaw(Service::Agent);
    await_named(&n1, true);
    await_fact("what it took is back", PATIENCE, || {
        let now = ours(&n1);
        if now == whole { Ok(()) } else { Err(now) }
    });
    mesh.assert_no_plaintext();
    manager.end();

    let file = include_str!("../../../deploy/network/NetworkManager/90-meshd.conf");
    manager.tell("90-meshd.conf", file);
    manager.begin();
    await_named(&n1, false);
    await_fact("it knows ours and leaves them alone", PATIENCE, || {
        let states = states(&manager);
        if states.len() >= 2 && states.iter().all(|line| line.ends_with(":unmanaged")) {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    });
    n1.freeze(Service::Agent);
    sh(
        &n1,
        "ip link add plug0 type veth peer name eth9; ip link set plug0 up; ip link set eth9 up",
    );
    await_fact("it configures the new NIC", PATIENCE, || {
        let said = sh(&n1, "ip -o address show dev plug0");
        if said.contains("198.51.100.1/24") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let untouched = ours(&n1);
    n1.thaw(Service::Agent);
    assert_eq!(untouched, whole);

    manager.end();
    assert_eq!(ours(&n1), whole, "and when it ends");
    sh(&n1, "ip link del plug0");
    traffic.assert_alive();
    mesh.assert_no_plaintext();
}
