//! A member is taken off its machine, and the machine is as it was before.
//!
//! ```text
//! ┌─ n1 ──────┐   ┌─ n2 ──────┐   ┌─ n4 ──────────────────────────────┐
//! │ default/a │═══│ default/b │═══│ others' tables, rules, routes,    │     both families, encrypted
//! └───────────┘   └───────────┘   │ devices ── joins ── is taken off  │
//!                                 └───────────────────────────────────┘
//! ```

use std::time::{Duration, Instant};

use lab::{End, Family, Node, Service, poll_until, spec::Protocol};
use netns::{Kernel, Mesh, Traffic, await_summary, lan, programs};

/// How long a member may take to do what it is asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// What others have on the machine, some of it next to ours: a table with nearly our name, a rule
/// beside ours, a route in our table, a pod's interface that is not ours.
const OTHERS: &str = r#"
nft -f - <<'END'
table inet meshd2 {
    set space4 { type ipv4_addr; flags interval; elements = { 10.65.0.0/16 } }
    chain barrier { type filter hook forward priority 0; policy accept; ip daddr @space4 counter accept; }
}
table ip filter {
    chain DOCKER-USER {
        ip saddr 198.51.100.7 drop
    }
    chain FORWARD {
        type filter hook forward priority 0; policy accept;
        jump DOCKER-USER
    }
}
table ip nat {
    chain post { type nat hook postrouting priority 100; oifname "nobody" masquerade; }
}
table netdev guard {
    chain out { type filter hook egress device eth0 priority 0; udp dport 9 drop; }
}
END
ip link add cali0foreign type veth peer name cali1foreign
ip link set cali0foreign up; ip link set cali1foreign up
ip addr add 172.20.0.1/24 dev cali0foreign
ip link add br-others type bridge
ip rule add priority 98 from 172.20.0.0/24 lookup 77
ip rule add priority 100 fwmark 0x20/0x20 lookup 77
ip -6 rule add priority 101 from fd77::/64 lookup 77
ip route add 172.21.0.0/24 via 172.20.0.9 table 77
ip route add unreachable 172.22.0.0/24 table 1 proto static
ip route add 172.23.0.0/24 via 172.20.0.9 proto boot
ip -6 route add unreachable fd78::/64 proto static
"#;

/// All that `nft` and `ip` say of a machine, and its settings; counters' and timers' values aside.
const DUMP: &str = r#"
echo == tables; nft -s list ruleset
for family in -4 -6; do
    echo == rules; ip $family rule
    echo == routes; ip $family route show table all | sed 's/ expires [0-9]*sec//'
    echo == addresses; ip $family -o addr | sed 's/ valid_lft.*//'
done
echo == links; ip -d link
echo == settings; sysctl -a 2>/dev/null | grep -E '^net\.(ipv4|ipv6)\.(ip_forward|conf\.)' | grep -v 'stable_secret'
"#;

fn dump(node: &Node) -> String {
    node.run("sh", &["-c", DUMP])
}

/// The lines that only one of two dumps has.
fn difference(before: &str, after: &str) -> String {
    let only = |a: &str, b: &str, mark: &str| -> Vec<String> {
        let lines = a.lines().filter(|line| !b.lines().any(|l| l == *line));
        lines.map(|line| format!("{mark} {line}")).collect()
    };

    [only(before, after, "-"), only(after, before, "+")]
        .concat()
        .join("\n")
}

/// Two members, and a third node that stands aside.
fn two_and_one() -> Mesh {
    let members = lan(&[("n1", "default/a"), ("n2", "default/b")]);
    let topology = members.node("n4", &["lan"]).aside();
    Mesh::of(topology.document())
}

fn meshd() -> String {
    programs().join("meshd").display().to_string()
}

/// Says what of ours stands although the guard does not: the order in which things go is the promise.
const OPEN: &str = r#"
while true; do
    nft list tables | grep -q ' meshd$' && continue
    ip -o link | grep -oE 'wireguard\.cali|cali[0-9a-f]{11}@' | sed 's/^/OPEN: link /'
    ip route show table all | grep -E '10\.65\.0\.0/16|proto 80' | sed 's/^/OPEN: route /'
    ip rule | grep -E '^(99|100):.*lookup 1$' | sed 's/^/OPEN: rule /'
    break
done
"#;

/// Runs `meshd uninstall` on a node; returns whether it was done, and all that it said.
fn uninstall(node: &Node, arguments: &str) -> (bool, String) {
    run_uninstall(node, &format!("$0 uninstall {arguments}"))
}

/// The same with a pause before each of its messages to the kernel, so that what is open between two
/// steps is open for long enough to be seen: what is seen is said, too.
fn uninstall_slowly(node: &Node, arguments: &str) -> (bool, String) {
    let slowly = "strace -f -qq -o /dev/null -e trace=sendto,sendmsg -e inject=sendto,sendmsg:delay_enter=100000";
    let watched =
        format!("{{ {OPEN} }} & {slowly} $0 uninstall {arguments}; done=$?; wait; (exit $done)");
    run_uninstall(node, &watched)
}

fn run_uninstall(node: &Node, command: &str) -> (bool, String) {
    let script = format!("if {{ {command}; }} 2>&1; then echo DONE; else echo REFUSED; fi");
    let said = node.run("sh", &["-c", &script, &meshd()]);

    (said.trim_end().ends_with("DONE"), said)
}

#[test]
fn a_machine_is_as_it_was_before_it_was_a_member() {
    let mesh = two_and_one();
    mesh.enable();
    let (n1, n4) = (mesh.node("n1"), mesh.node("n4"));
    n4.run("sh", &["-e", "-c", OTHERS]);
    let before = dump(&n4);
    mesh.admit(&n4);
    n4.restart(Service::Agent);
    await_summary(&n4, "Enforced", PATIENCE);
    let pod = mesh.add_pod("n4", "default/d");
    mesh.forbid_plaintext();
    let mut traffic = Traffic::none(&mesh);
    traffic.add_pod_to_pod(&n1.pod(), &mesh.node("n2").pod());
    let streams = [Family::V4, Family::V6].map(|family| {
        [
            pod.stream(&n1.pod(), Protocol::Tcp, family),
            n1.pod().stream(&pod, Protocol::Tcp, family),
        ]
    });
    streams
        .iter()
        .flatten()
        .for_each(|stream| stream.assert_alive());
    assert!(before.contains("meshd2") && dump(&n4).contains("table netdev meshd"));

    let (done, said) = uninstall_slowly(&n4, "--force");

    assert!(done, "{said}");
    assert!(!said.contains("OPEN"), "the guard goes last: {said}");
    assert!(said.contains("meshctl delete node n4"), "{said}");
    n4.kill(Service::Wire);
    assert_eq!(difference(&before, &dump(&n4)), "");
    mesh.assert_no_plaintext();
    traffic.assert_unbroken();
    drop(streams);
} // The mesh asserts that no plaintext left any node, while the guard went and afterwards.

#[test]
fn a_dry_run_names_what_would_go_and_changes_nothing() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let before = dump(&n1);

    let (done, said) = uninstall(&n1, "--dry-run");

    assert!(done, "{said}");
    for expected in [
        "agent      process",
        "nftables   table inet meshd",
        "nftables   table netdev meshd",
        "tunnels    wireguard.cali",
        "pods       cali",
        "priority 99, to table 1",
        "10.65.0.0/16 in table 1: Unreachable",
        "/var/lib/meshd/guard.json",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in\n{said}");
    }
    assert!(
        !said.contains("wireguard.key"),
        "keys stay without --purge: {said}"
    );
    assert_eq!(difference(&before, &dump(&n1)), "");
    traffic.assert_unbroken();
}

#[test]
fn a_running_agent_and_running_pods_are_not_ended_unless_that_is_meant() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let before = Kernel::of(&n1);

    let (done, said) = uninstall(&n1, "");
    assert!(!done && said.contains("the agent runs (process "), "{said}");
    n1.kill(Service::Agent);
    let (done, said) = uninstall(&n1, "");
    assert!(!done && said.contains("default/a"), "{said}");

    assert_eq!(before.difference(&Kernel::of(&n1)), "");
    n1.restart(Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
    traffic.assert_unbroken();
}

#[test]
fn a_purged_member_leaves_no_file_and_one_that_is_not_purged_joins_as_before() {
    let mesh = two_and_one();
    mesh.enable();
    let n4 = mesh.node("n4");
    mesh.admit(&n4);
    n4.restart(Service::Agent);
    await_summary(&n4, "Enforced", PATIENCE);
    let keys = || n4.run("sh", &["-c", "cd /var/lib/meshd && find . -type f | sort"]);

    let (done, said) = uninstall(&n4, "--force");
    assert!(done, "{said}");
    assert_eq!(
        keys(),
        "./config.yaml\n./keys/wireguard-second.key\n./keys/wireguard.key\n"
    );

    // The same member again, with the same key.
    let key = || {
        n4.run(
            "sh",
            &["-c", "sha256sum < /var/lib/meshd/keys/wireguard.key"],
        )
    };
    let same = key();
    n4.restart(Service::Agent);
    await_summary(&n4, "Enforced", PATIENCE);
    assert_eq!(key(), same);

    let (done, said) = uninstall(&n4, "--force --purge");
    assert!(done, "{said}");
    assert_eq!(n4.run("sh", &["-c", "ls -A /var/lib/meshd"]), "");
    let n4_is_gone = || mesh.node("n1").try_ping(n4.address(Family::V4)).is_ok();
    assert!(
        poll_until(Instant::now() + PATIENCE, n4_is_gone),
        "the host itself stays reachable"
    );
}
