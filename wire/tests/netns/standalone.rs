//! `meshwire IFNAME`, as `wg-quick` and people start it.

use std::net::UdpSocket;

use crate::command::{attempt, run};
use crate::namespace::{Namespace, unique};
use crate::tunnel::socket;
use crate::wait::until;

/// A daemon in the background; ended by the test.
fn daemon(namespace: &Namespace, name: &str) -> Result<String, String> {
    let line = format!(
        "ip netns exec {} {} {name}",
        namespace.name,
        env!("CARGO_BIN_EXE_meshwire")
    );
    attempt(&line, "")
}

fn pids(namespace: &Namespace) -> Vec<i32> {
    run(&format!("ip netns pids {}", namespace.name))
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}

fn ended(namespace: &Namespace, name: &str) -> bool {
    pids(namespace).is_empty() && !namespace.has_link(name) && !socket(name).exists()
}

#[test]
fn in_the_background_it_serves_before_the_foreground_returns() {
    let (namespace, name) = (Namespace::new(), unique("mw"));
    daemon(&namespace, &name).unwrap();
    assert!(run(&format!("wg show {name}")).contains(&name));
    let [pid] = pids(&namespace)[..] else {
        panic!("one daemon");
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = status.rsplit_once(')').unwrap().1.split(' ').collect();
    assert_eq!(fields[4], pid.to_string(), "a session of its own");

    let link = run(&format!("ip -n {} link show {name}", namespace.name));
    assert!(
        link.contains("mtu 1420") && link.contains("qlen 256"),
        "{link}"
    );
    namespace.ip(&format!("link del {name}"));
    until("the daemon ends with its interface", || {
        ended(&namespace, &name)
    });
}

#[test]
fn it_ends_when_its_socket_is_removed() {
    let (namespace, name) = (Namespace::new(), unique("mw"));
    daemon(&namespace, &name).unwrap();
    std::fs::remove_file(socket(&name)).unwrap();
    until("the daemon ends with its socket", || {
        ended(&namespace, &name)
    });
}

#[test]
fn told_to_end_it_leaves_nothing_behind() {
    let (namespace, name) = (Namespace::new(), unique("mw"));
    daemon(&namespace, &name).unwrap();
    run(&format!("kill {}", pids(&namespace)[0]));
    until("the daemon ends", || ended(&namespace, &name));
}

#[test]
fn a_name_that_is_taken_is_refused_with_a_reason() {
    let (namespace, name) = (Namespace::new(), unique("mw"));
    daemon(&namespace, &name).unwrap();
    let error = daemon(&namespace, &name).unwrap_err();
    assert!(error.contains("cannot create interface"), "{error}");
    let other = Namespace::new();
    let error = daemon(&other, &name).unwrap_err();
    assert!(error.contains("served by another process"), "{error}");
    assert!(
        run(&format!("wg show {name}")).contains(&name),
        "the first goes on"
    );
    namespace.ip(&format!("link del {name}"));
    until("the daemon ends", || ended(&namespace, &name));
}

#[test]
fn a_socket_that_a_dead_process_left_is_replaced() {
    let (namespace, name) = (Namespace::new(), unique("mw"));
    daemon(&namespace, &name).unwrap();
    run(&format!("kill -9 {}", pids(&namespace)[0]));
    until("it is dead", || pids(&namespace).is_empty());
    assert!(socket(&name).exists());
    until("the interface is gone", || !namespace.has_link(&name));
    daemon(&namespace, &name).unwrap();
    namespace.ip(&format!("link del {name}"));
    until("the daemon ends", || ended(&namespace, &name));
}

#[test]
fn idle_it_is_small() {
    let (namespace, name) = (Namespace::new(), unique("mw"));
    daemon(&namespace, &name).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pids(&namespace)[0])).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib <= 15 << 10, "{kib} KiB");
    namespace.ip(&format!("link del {name}"));
    until("the daemon ends", || ended(&namespace, &name));
}

#[test]
fn a_device_whose_port_is_taken_says_that_it_has_none_and_takes_it_when_it_is_free() {
    let (namespace, name) = (Namespace::new(), unique("mw"));
    let other = namespace.inside(|| UdpSocket::bind("0.0.0.0:6100").unwrap());
    daemon(&namespace, &name).unwrap();
    let port = || run(&format!("wg show {name} listen-port"));
    run(&format!("wg set {name} listen-port 6100"));
    namespace.ip(&format!("link set {name} up"));
    until("it could not listen", || port().trim() == "0");
    let refusal = attempt(&format!("wg set {name} listen-port 6100"), "").unwrap_err();
    assert!(refusal.contains("Address already in use"), "{refusal}");

    drop(other);
    run(&format!("wg set {name} listen-port 6100"));
    assert_eq!(port().trim(), "6100");
    namespace.ip(&format!("link del {name}"));
    until("the daemon ends", || ended(&namespace, &name));
}
