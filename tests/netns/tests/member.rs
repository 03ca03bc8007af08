//! What happens to single members of an encrypted mesh: an address changes, pods come and go, a
//! stranger speaks in a member's name.
//!
//! ```text
//! ┌─ a ───────────┐      ┌─ b ───────────┐      ┌─ server ──┐
//! │ 192.0.2.1     │──────│ 192.0.2.2     │──────│ no member │      one LAN, both families
//! │ default/a     │      │ default/b     │      └───────────┘
//! └───────────────┘      └───────────────┘
//! ```

use lab::{
    End, Family, Lab,
    forge::{self, frame, ip, udp},
};

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
fn plaintext_that_a_stranger_sends_in_a_member_s_name_reaches_no_pod() {
    let lab = Lab::new();
    let [a, b] = lab.mesh(["a", "b"]);
    let pod = b.pod();
    let heard = |mark: &[u8]| {
        let (from, to) = (a.pod().address(Family::V4), pod.address(Family::V4));
        let forged = ip(&from.to_string(), &to.to_string(), 17, &udp(7, 7, mark));
        let netns = lab.site(|site| site.host_space(&"server".parse().unwrap()).unwrap());
        let before = received(&pod);
        forge::send(&netns, "eth0", &frame(&forged)).unwrap();
        a.ping(&b);
        received(&pod) - before
    };
    assert_eq!(heard(b"forged"), 0);
}

/// Packets that a pod's device has received, as the kernel counts them.
fn received(pod: &lab::Pod) -> u64 {
    let text = pod.run("cat", &["/proc/net/dev"]);
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"))
        .unwrap()
        .to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
