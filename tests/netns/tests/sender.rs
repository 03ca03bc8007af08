//! What a pod sends: in its own name, and nothing that it may not.
//!
//! ```text
//! ┌─ n1 ────────────────┐       ┌─ n2 ────────┐
//! │ default/a default/b │═══════│ default/c   │     one LAN, both families, encrypted
//! └─────────────────────┘       └─────────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread::park_timeout,
    time::Duration,
};

use lab::{Echo, End, Family, Node, Pod};
use netns::{Ask, Mesh, await_fact, lan};
use serde_json::json;

/// How long nothing must come of what is stopped.
const SILENCE: Duration = Duration::from_millis(500);

/// How long what is under way may take.
const PATIENCE: Duration = Duration::from_secs(30);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PORT: u16 = 8080;

fn mesh() -> Mesh {
    let mesh = Mesh::of(lan(&[("n1", "default/a"), ("n2", "default/c")]).document());
    mesh.add_pod("n1", "default/b");
    mesh.enable();
    mesh
}

/// Sends datagrams in the name of an address and says whether one of them gets there.
fn arrives(from: &Pod, name: IpAddr, to: &dyn End) -> bool {
    let to_address = to.address(Family::of(&name));
    let receiver = to
        .netns()
        .run(|| UdpSocket::bind((to_address, 0)))
        .unwrap()
        .unwrap();
    receiver
        .set_read_timeout(Some(lab::patience(SILENCE)))
        .unwrap();
    let target = SocketAddr::new(to_address, receiver.local_addr().unwrap().port());
    from.netns()
        .run(|| {
            let sender = UdpSocket::bind((name, 0)).unwrap();
            for _ in 0..20 {
                // A refusal is an answer to an earlier one.
                drop(sender.send_to(b"in whose name", target));
            }
        })
        .unwrap();
    let mut heard = [0; 32];
    receiver
        .recv_from(&mut heard)
        .is_ok_and(|(_, said)| said.ip() == name)
}

#[test]
fn a_pod_speaks_in_no_name_but_its_own() {
    let mesh = mesh();
    mesh.set("defaultEndpointToHostAction", json!("Accept"));
    mesh.ask_for(netns::Encryption::On);
    mesh.wait();
    let [a, b, c] = ["default/a", "default/b", "default/c"].map(|name| mesh.pod(name));
    let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name));
    let receivers: [&dyn End; 4] = [&b, &c, &n1, &n2];
    let others = |family| {
        let stranger = match family {
            Family::V4 => "203.0.113.7",
            Family::V6 => "2001:db8:ffff::7",
        };
        [
            b.address(family),
            n2.address(family),
            stranger.parse().unwrap(),
        ]
    };
    for family in FAMILIES {
        for to in receivers {
            assert!(
                arrives(&a, a.address(family), to),
                "{} hears nothing",
                to.label()
            );
        }
        for name in others(family) {
            let length = if name.is_ipv4() { 32 } else { 128 };
            let address = format!("{name}/{length}");
            a.run("ip", &["address", "add", &address, "dev", "lo", "nodad"]);
            for to in receivers
                .iter()
                .filter(|to| !to.addresses().contains(&name))
            {
                assert!(!arrives(&a, name, *to), "{} hears {name}", to.label());
            }
            a.run("ip", &["address", "del", &address, "dev", "lo"]);
        }
    }
}

/// Has the kernel count what a pod's packets become: a table of the test's own, behind all others.
fn watch(node: &Node, pod: &Pod) {
    let [v4, v6] = FAMILIES.map(|family| pod.address(family));
    let table = format!(
        "table inet watch {{
           chain out {{
             type filter hook postrouting priority 300
             oifname wireguard.cali ip saddr {v4} counter
             oifname wireguard.cali ip6 saddr {v6} counter
           }}
         }}"
    );
    node.run("nft", &[&table]);
}

/// The packets of the pod that went into the tunnel so far.
fn sent(node: &Node) -> u64 {
    let listing = node.run("nft", &["list", "table", "inet", "watch"]);
    let mut words = listing.split_whitespace();
    std::iter::from_fn(|| {
        words
            .find(|word| *word == "packets")
            .and_then(|_| words.next())
    })
    .map(|count| count.parse::<u64>().unwrap())
    .sum()
}

#[test]
fn what_a_pod_may_not_send_never_enters_the_tunnel() {
    let mesh = mesh();
    let [a, c] = ["default/a", "default/c"].map(|name| mesh.pod(name));
    let listens = ["TCP/8080", "UDP/8080"].map(|text| text.parse().unwrap());
    let _echo = Echo::start(&c.netns(), &c.addresses(), &listens).unwrap();
    let asks = |passes| {
        let sockets = FAMILIES.map(|family| SocketAddr::new(c.address(family), PORT));
        let each = sockets
            .iter()
            .flat_map(|to| [6, 17].map(|protocol| (*to, protocol)));
        each.map(|(to, protocol)| Ask::new(&a, protocol, to, passes))
            .collect::<Vec<_>>()
    };
    let policy = |name: &str, order: u32, action: &str| {
        let policy = json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"order": order, "types": ["Egress"], "egress": [{"action": action}]},
        });
        mesh.apply(&policy.to_string());
        mesh.wait();
    };
    let n1 = mesh.node("n1");
    watch(&n1, &a);
    Ask::all("without policy", &asks(true));
    assert!(sent(&n1) > 0);

    policy("closed", 20, "Deny");
    // What was on its way has passed.
    let mut before = sent(&n1);
    await_fact("the tunnel is silent", PATIENCE, || {
        park_timeout(SILENCE);
        let now = sent(&n1);
        let was = std::mem::replace(&mut before, now);
        if was == now {
            Ok(())
        } else {
            Err(format!("{} more", now - was))
        }
    });
    Ask::all("closed", &asks(false));
    assert_eq!(sent(&n1), before, "packets entered the tunnel");

    policy("open", 10, "Allow");
    Ask::all("an earlier policy allows it", &asks(true));
    assert!(sent(&n1) > before);
    mesh.assert_no_plaintext();
}
