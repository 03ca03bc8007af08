//! Docker, firewalld and kube-proxy on one machine with meshd.
//!
//! ```text
//! ┌─ n1 ────────────────┐            ┌─ n2 ────────┐
//! │ default/a           │            │ default/c   │     dual-stack, encrypted
//! │ + a ruleset of …    │════════════│             │
//! └─────────────────────┘            └─────────────┘
//! ```
//!
//! The rulesets in `ruleset/` are what the programs themselves wrote; `ruleset/capture` takes them anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lab::{Echo, End as _, Family, Node, Plaintext, spec::Protocol};
use netns::{Mesh, Traffic, await_fact, await_firewall, condition, set_foreign_firewalls};

const DOCKER: &str = include_str!("../ruleset/docker.iptables");
const FIREWALLD: &str = include_str!("../ruleset/firewalld.nft");
const KUBE_PROXY_NFTABLES: &str = include_str!("../ruleset/kube-proxy.nft");
const KUBE_PROXY_IPTABLES: &str = include_str!("../ruleset/kube-proxy.iptables");

/// How soon a foreign ruleset is answered: at most once a second it is read.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a script with this text on its standard input.
fn feed(node: &Node, script: &str, text: &str) {
    let program = format!("printf '%s\\n' \"$0\" | {script}");
    node.run("sh", &["-e", "-c", &program, text]);
}

/// The lines of the table that docker manages, without counts and without ours.
fn docker_table(node: &Node) -> (Vec<String>, Vec<String>) {
    let text = node.run("iptables-nft-save", &["-t", "filter"]);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned());
    lines.partition(|line| line.contains("meshd"))
}

#[test]
fn beside_docker_pods_pass_and_only_its_users_chain_has_rules_of_ours() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    feed(&n1, "iptables-nft-restore", DOCKER);
    await_fact("DOCKER-USER has both rules", PATIENCE, || {
        let rules = n1.run("iptables-nft", &["-S", "DOCKER-USER"]);
        let wanted = [
            "-N DOCKER-USER",
            "-A DOCKER-USER -i cali+ -m comment --comment \"meshd: from pods\" -j ACCEPT",
            "-A DOCKER-USER -o cali+ -m comment --comment \"meshd: to pods\" -j ACCEPT",
            "-A DOCKER-USER -j RETURN",
        ];
        if rules.lines().eq(wanted) {
            Ok(())
        } else {
            Err(rules)
        }
    });
    await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
    // New connections, of which its connection tracking knows nothing.
    let traffic = Traffic::between_two(&mesh);
    traffic.assert_alive();

    let (ours, theirs) = docker_table(&n1);
    assert_eq!(ours.len(), 2, "{ours:?}");
    let original = DOCKER.split("*nat").next().unwrap();
    let original = original.lines().filter(|line| !line.starts_with('#'));
    let original: Vec<&str> = original
        .map(|line| line.split(" [").next().unwrap_or_default())
        .collect();
    assert_eq!(theirs, original);

    n1.run("iptables-nft", &["-F", "DOCKER-USER"]);
    n1.run("iptables-nft", &["-A", "DOCKER-USER", "-j", "RETURN"]);
    await_fact("what somebody flushed comes back", PATIENCE, || {
        let (ours, _) = docker_table(&n1);
        if ours.len() == 2 {
            Ok(())
        } else {
            Err(format!("{ours:?}"))
        }
    });
}

#[test]
fn a_firewall_that_is_only_to_be_reported_stays_as_it_is_and_is_named() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    set_foreign_firewalls(&mesh, "Report");
    feed(&n1, "iptables-nft-restore", DOCKER);
    await_firewall(&n1, "the drop is named", PATIENCE, |text| {
        text.contains("table ip filter chain FORWARD drops packets from the tunnel to pods")
    });
    let (ours, _) = docker_table(&n1);
    assert_eq!(ours, [""; 0]);

    set_foreign_firewalls(&mesh, "Open");
    await_firewall(&n1, "it is opened", PATIENCE, str::is_empty);
    set_foreign_firewalls(&mesh, "Report");
    await_fact("our rules are taken back", PATIENCE, || {
        let (ours, _) = docker_table(&n1);
        if ours.is_empty() {
            Ok(())
        } else {
            Err(format!("{ours:?}"))
        }
    });
}

#[test]
fn a_drop_of_firewalld_is_named_by_table_and_chain() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    assert_eq!(condition(&n1, "ForeignFirewall"), "");
    feed(&n1, "nft -f -", FIREWALLD);
    let before = n1.run("nft", &["-s", "list", "table", "inet", "firewalld"]);
    await_firewall(&n1, "the drops are named", PATIENCE, |text| {
        text.contains(
            "table inet firewalld chain filter_IN_public drops WireGuard packets from peers",
        ) && text.contains("chain filter_INPUT, hook input, priority 10")
    });
    assert_eq!(
        n1.run("nft", &["-s", "list", "table", "inet", "firewalld"]),
        before
    );

    n1.run("nft", &["delete", "table", "inet", "firewalld"]);
    await_firewall(&n1, "nothing is dropped any more", PATIENCE, str::is_empty);
}

/// Puts the lab's addresses in the place of those in a captured ruleset of kube-proxy.
fn with_addresses(ruleset: &str, node: &Node, pod: &[IpAddr]) -> String {
    let of = |addresses: &[IpAddr], family| {
        let mut found = addresses
            .iter()
            .filter(|address| Family::of(address) == family);
        found.next().unwrap().to_string()
    };
    ruleset
        .replace("192.0.2.1,", &format!("{},", node.address(Family::V4)))
        .replace(
            "{ 192.0.2.1 }",
            &format!("{{ {} }}", node.address(Family::V4)),
        )
        .replace(
            "{ 2001:db8:2::1 }",
            &format!("{{ {} }}", node.address(Family::V6)),
        )
        .replace("203.0.113.9", &of(pod, Family::V4))
        .replace("2001:db8:113::9", &of(pod, Family::V6))
}

/// Takes out the matches that only count: their counters would have to be made first.
fn without_accounting(ruleset: &str) -> String {
    let plain = |line: &str| match line.split_once(" -m nfacct --nfacct-name  ") {
        Some((before, after)) => {
            let (_name, after) = after.split_once(' ').unwrap();
            format!("{before} {after}\n")
        }
        None => format!("{line}\n"),
    };
    ruleset.lines().map(plain).collect()
}

/// NodePort 30080 (IPv6: 30082) of n1, served by a pod of n2, before, during and after the toggle.
fn serves_node_ports(load: &str, ruleset: &str, families: &[Family]) {
    let mesh = Mesh::builtin("dual-stack");
    let (n1, pod) = (mesh.node("n1"), mesh.pod("default/c"));
    let listens = ["TCP/8080", "UDP/8080"].map(|text| text.parse().unwrap());
    let _echo = Echo::start(&pod.netns(), &pod.addresses(), &listens).unwrap();
    feed(&n1, load, &with_addresses(ruleset, &n1, &pod.addresses()));
    let mut traffic = Traffic::none(&mesh);
    for family in families {
        let port = match family {
            Family::V4 => 30080,
            Family::V6 => 30082,
        };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = SocketAddr::new(n1.address(*family), port);
            let stream = mesh.pod("default/a").stream_to(protocol, to).unwrap();
            traffic.add("default/a", "n1's port", protocol, stream);
        }
    }
    traffic.assert_unbroken();
    mesh.enable();
    traffic.assert_unbroken();
    mesh.assert_no_plaintext();
    assert_eq!(
        condition(&n1, "ForeignFirewall"),
        "",
        "kube-proxy drops nothing of ours"
    );
    mesh.disable();
    traffic.assert_unbroken();
    mesh.plaintext(Plaintext::Allowed);
}

#[test]
fn with_kube_proxy_s_own_nftables_rules_node_ports_survive_the_toggle() {
    serves_node_ports("nft -f -", KUBE_PROXY_NFTABLES, &[Family::V4, Family::V6]);
}

#[test]
fn with_kube_proxy_s_own_iptables_rules_node_ports_survive_the_toggle() {
    let ruleset = without_accounting(KUBE_PROXY_IPTABLES);
    serves_node_ports("iptables-nft-restore", &ruleset, &[Family::V4]);
}
