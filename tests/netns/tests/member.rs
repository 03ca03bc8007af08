//! What happens to single members of an encrypted mesh: an address changes, pods come and go, a
//! stranger speaks in a member's name.
//!
//! ```text
//! ┌─ a ───────────┐      ┌─ b ───────────┐      ┌─ server ──┐
//! │ 192.0.2.1     │──────│ 192.0.2.2     │──────│ no member │      one LAN, both families
//! │ default/a     │      │ default/b     │      └───────────┘
//! └───────────────┘      └───────────────┘
//! ```
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use lab::{
    End, Family, Lab, Service,
    forge::{self, frame, ip, udp},
};
use netns::{await_fact, peer};
use serde_json::Value;

/// Far less than the two minutes after which the next handshake is due.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_node_that_changes_its_address_keeps_its_connections() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let stream = a.connect(&b);
    a.change_address("192.0.2.77");
    stream.assert_carries(100);
    stream.assert_alive();
}

#[test]
fn a_pod_that_comes_is_reached_encrypted_and_one_that_goes_is_gone() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let fresh = lab.add_pod("b", "default/fresh");
    a.pod().ping(&fresh);
    a.pod().connect(&fresh).assert_carries(20);
    let address = fresh.address(Family::V4);
    lab.delete_pod(&fresh);
    assert!(
        b.pod().try_ping(address).is_err(),
        "a pod that is gone answers"
    );
}

#[test]
fn a_record_that_was_cleared_and_is_back_leaves_its_peers_as_they_were() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let stream = a.connect(&b);
    let record = || {
        let node = lab.meshctl(&["get", "node", "b", "-o", "json"]);
        let node: Value = serde_json::from_str(&node).unwrap();
        node["metadata"]["annotations"]["meshd.dev/record"].to_string()
    };
    let before = record();

    // What a hears of it, it hears at once.
    a.freeze(Service::Agent);
    lab.apply(
        r#"{"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata":
            {"name": "b", "annotations": {"meshd.dev/record": "nothing"}}}"#,
    );
    await_fact("b says again what is true", PATIENCE, || {
        let now = record();
        let is_back = now != before && now.contains("Enforced") && now.contains("key");
        if is_back { Ok(()) } else { Err(now) }
    });
    let fresh = lab.add_pod("b", "default/fresh");
    a.thaw(Service::Agent);

    await_fact("a knows the pod that came later", PATIENCE, || {
        let pinged = a.pod().try_ping(fresh.address(Family::V4));
        pinged.map(drop).map_err(|error| format!("{error:?}"))
    });
    await_fact("a counts its handshake with b", PATIENCE, || {
        let reason = peer(&a, "b")["reason"].clone();
        if reason.is_null() {
            Ok(())
        } else {
            Err(reason.to_string())
        }
    });
    stream.assert_alive();
}

#[test]
fn plaintext_that_a_stranger_sends_in_a_member_s_name_reaches_no_pod_once_it_is_enforced() {
    let lab = Lab::builtin("dual-stack");
    let (a, c) = (lab.pod("default/a"), lab.pod("default/c"));
    // The outcome before is the proof that the forgery is good.
    for arrives in [1, 0] {
        for family in [Family::V4, Family::V6] {
            let before = received(&c);
            forge_packet(&lab, &a, &c, family);
            lab.node("n1").ping(&c.node());
            assert_eq!(received(&c) - before, arrives, "{family:?}");
        }
        lab.encrypt();
    }
}

/// The server, which is no member, sends a packet from one pod to another to the other's node.
fn forge_packet(lab: &Lab, from: &lab::Pod, to: &lab::Pod, family: Family) {
    let stranger = lab.site(|site| site.host_space(&"server".parse().unwrap()).unwrap());
    let [from, target] = [from.address(family), to.address(family)].map(|a| a.to_string());
    let packet = ip(&from, &target, 17, &udp(7, 7, b"forged"));
    let mac = to.node().run("cat", &["/sys/class/net/eth0/address"]);
    let mac: Vec<u8> = mac
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let frame = forge::to(mac.try_into().unwrap(), &frame(&packet));
    forge::send(&stranger, "eth0", &frame).unwrap();
}

/// UDP datagrams that have reached a pod, as its kernel counts them: heard, for a port that nobody
/// listens on, or without the checksum that IPv6 wants.
fn received(pod: &lab::Pod) -> u64 {
    let four = pod.run("cat", &["/proc/net/snmp"]);
    let four = four.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let four = four.flat_map(|line| line.split_whitespace().take(3));
    let six = pod.run("cat", &["/proc/net/snmp6"]);
    let wanted = ["Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors"];
    let six = six
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace));
    let six = six
        .filter(|(name, _)| wanted.contains(name))
        .map(|(_, count)| count.trim());
    four.chain(six)
        .filter_map(|count| count.parse::<u64>().ok())
        .sum()
}
