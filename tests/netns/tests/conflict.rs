//! What others have, or do, where something of ours stands: named, not fought over.
//!
//! ```text
//! ┌─ n1 ────────────────────────────┐            ┌─ n2 ────────┐
//! │ default/a                       │            │ default/c   │     dual-stack, encrypted
//! │ + a WireGuard of the user's,    │════════════│             │
//! │   rules, routes, links, daemons │            └─────────────┘
//! └─────────────────────────────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::print_stdout,
    reason = "what a fight costs is a figure that people read"
)]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use lab::{End as _, Node, Service};
use netns::{Mesh, Traffic, await_fact, await_settled, condition, programs};
use serde_json::json;

/// How soon something is named, or healed: a look a second, and retries ten seconds apart.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition says all of this; of nothing, until it is gone.
fn await_condition(node: &Node, name: &str, words: &[&str]) {
    await_fact(&format!("{name} says {words:?}"), PATIENCE, || {
        let text = condition(node, name);
        let holds = words.iter().all(|word| text.contains(word));
        if holds && text.is_empty() == words.is_empty() {
            Ok(())
        } else {
            Err(format!("{:#}", node.ask("/v1/status")))
        }
    });
}

fn sh(node: &Node, script: &str) -> String {
    node.run("sh", &["-e", "-c", script])
}

/// A WireGuard of the user's: the kernel's where it has one, else the program that people start by hand.
fn users_wireguard(node: &Node, port: u16) {
    let program = programs().join("meshwire");
    let program = program.display();
    sh(
        node,
        &format!(
            "ip link add wg0 type wireguard 2>/dev/null || {program} wg0
             wg set wg0 listen-port {port}
             ip link set wg0 up"
        ),
    );
    await_fact("the user's WireGuard listens", PATIENCE, || {
        let said = sh(node, "ss -Hulan");
        if said.contains(&format!(":{port} ")) {
            Ok(())
        } else {
            Err(said)
        }
    });
}

#[test]
fn a_port_that_a_users_wireguard_has_is_named_and_taken_when_it_is_free() {
    let mesh = Mesh::builtin("dual-stack");
    let n1 = mesh.node("n1");
    users_wireguard(&n1, 51820);

    mesh.ask_for(netns::Encryption::On);
    await_condition(
        &n1,
        "PortTaken",
        &[
            "wireguard.cali",
            "51820 (IPv4, IPv6)",
            "wg0",
            "wireguardListeningPort",
        ],
    );
    // All else goes on: the device is there with key and peers, rules and unreachable routes stand. (The
    // kernel's own is down without its port, and no route leads to a device that is down.)
    await_fact("the rest stands", PATIENCE, || {
        let said = sh(
            &n1,
            "ip rule; ip route show table 1
             wg show wireguard.cali allowed-ips | sed 's/^/peer /'",
        );
        let peers = said.lines().filter(|line| line.starts_with("peer "));
        let peers = peers.filter(|line| line.contains("10.65.")).count();
        if peers == 2
            && ["99:", "unreachable"]
                .iter()
                .all(|word| said.contains(word))
        {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(sh(&n1, "wg show wg0 listen-port").trim(), "51820");

    sh(&n1, "ip link del wg0");
    await_condition(&n1, "PortTaken", &[]);
    mesh.await_summary("Enforced");
    Traffic::between_two(&mesh).assert_alive();
}

#[test]
fn a_port_may_be_given_up_to_its_user() {
    let mesh = Mesh::builtin("dual-stack");
    let n1 = mesh.node("n1");
    users_wireguard(&n1, 51820);
    mesh.ask_for(netns::Encryption::On);
    await_condition(&n1, "PortTaken", &["51820"]);

    mesh.set("wireguardListeningPort", json!(51830));
    mesh.enable();

    assert_eq!(condition(&n1, "PortTaken"), "");
    Traffic::between_two(&mesh).assert_alive();
}

/// A VPN of the user's that takes his default route, as `wg-quick` sets it up.
struct Vpn {
    node: Node,
    folder: PathBuf,
}

impl Vpn {
    fn up(node: &Node) -> Self {
        let folder = std::env::temp_dir().join(format!("vpn-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let vpn = Self {
            node: node.clone(),
            folder,
        };
        let key = sh(node, "wg genkey");
        let public = sh(node, "wg genkey | wg pubkey");
        let (key, public) = (key.trim(), public.trim());
        let text = format!(
            "[Interface]\nPrivateKey = {key}\nAddress = 10.7.0.1/24, fd07::1/64\n\
             [Peer]\nPublicKey = {public}\nEndpoint = 192.0.2.99:6002\nAllowedIPs = 0.0.0.0/0, ::/0\n"
        );
        fs::write(vpn.folder.join("vpn0.conf"), text).unwrap();
        vpn.quick("up");
        vpn
    }

    fn quick(&self, verb: &str) {
        let program = programs().join("meshwire");
        let file = self.folder.join("vpn0.conf");
        let (program, file) = (program.display(), file.display());
        let script = format!(
            "chmod 600 {file}; WG_QUICK_USERSPACE_IMPLEMENTATION={program} wg-quick {verb} {file} 2>&1"
        );
        sh(&self.node, &script);
    }
}

impl Drop for Vpn {
    fn drop(&mut self) {
        // What is left of it harms nobody.
        drop(fs::remove_dir_all(&self.folder));
    }
}

#[test]
fn a_default_route_vpn_beside_us_is_named_leaks_nothing_and_the_advice_heals() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    traffic.assert_alive();
    assert_eq!(condition(&n1, "PolicyRouting"), "");

    let vpn = Vpn::up(&n1);
    await_condition(
        &n1,
        "PolicyRouting",
        &[
            "rule \"97: from all lookup main suppress_prefixlength 0\" (IPv4)",
            "packets to other nodes' pods",
            "to eth0 (table main) instead of wireguard.cali",
            "dropped, never sent in plaintext",
            "wireguardRoutingRulePriority in FelixConfiguration to 95 or less",
        ],
    );
    // Its rules stand, and what they take is dropped.
    assert!(sh(&n1, "ip rule").contains("not from all fwmark 0xca6c lookup 51820"));
    mesh.assert_no_plaintext();

    mesh.set("wireguardRoutingRulePriority", json!(95));
    mesh.ask_for(netns::Encryption::On);
    await_condition(&n1, "PolicyRouting", &[]);
    await_settled(&n1, PATIENCE);
    // New connections: the old ones may still wait to send again.
    Traffic::between_two(&mesh).assert_alive();
    mesh.assert_no_plaintext();

    vpn.quick("down");
    Traffic::between_two(&mesh).assert_alive();
}

#[test]
fn rules_that_take_nothing_of_ours_are_not_named_and_stay() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    // A host with two providers, and a table of others' for a network of theirs.
    sh(
        &n1,
        "ip route add default via 192.0.2.250 table 77
         ip rule add from 192.0.2.1 lookup 77 priority 50
         ip rule add to 203.0.113.0/24 lookup 77 priority 51
         ip -6 rule add to 2001:db8:99::/64 lookup 77 priority 51",
    );
    // The last one does.
    sh(
        &n1,
        "ip rule add to 10.65.0.0/16 lookup 77 priority 52 protocol static",
    );
    await_condition(
        &n1,
        "PolicyRouting",
        &["52: from all to 10.65.0.0/16 lookup 77 proto static"],
    );
    let text = condition(&n1, "PolicyRouting");
    assert!(!text.contains("\"50:") && !text.contains("\"51:"), "{text}");

    sh(&n1, "ip rule del priority 52");
    await_condition(&n1, "PolicyRouting", &[]);
    assert_eq!(sh(&n1, "ip rule").matches("lookup 77").count(), 2);
}

#[test]
fn a_rule_for_one_port_is_named_with_it_and_takes_that_port_alone() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    sh(
        &n1,
        "ip route add default via 192.0.2.250 table 77
         ip rule add ipproto tcp dport 9 lookup 77 priority 52
         ip rule add tun_id 5 lookup 77 priority 51",
    );
    await_condition(
        &n1,
        "PolicyRouting",
        &[
            "rule \"52: from all ipproto tcp dport 9 lookup 77\" (IPv4)",
            "takes some packets to other nodes' pods",
            "dropped, never sent in plaintext",
        ],
    );
    assert!(!condition(&n1, "PolicyRouting").contains("tun_id"));

    // One of those that it takes, and what it leaves alone.
    let pod = mesh.pod("default/a");
    let to = mesh.pod("default/c");
    let [to] = to
        .addresses()
        .into_iter()
        .filter(std::net::IpAddr::is_ipv4)
        .collect::<Vec<_>>()[..]
    else {
        panic!("one IPv4 address")
    };
    let script = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{to}/9' 2>&1 || true");
    let said = pod.run("sh", &["-c", &script]);
    assert!(
        !said.contains("refused"),
        "it reached the other pod: {said}"
    );
    traffic.assert_alive();
    mesh.assert_no_plaintext();

    sh(&n1, "ip rule del priority 52");
    await_condition(&n1, "PolicyRouting", &[]);
    let said = pod.run("sh", &["-c", &script]);
    assert!(said.contains("refused"), "nobody listens there: {said}");
}

/// Clock ticks of a hundredth of a second that a node's agent has used.
fn ticks(mesh: &Mesh, node: &Node) -> u64 {
    let name = format!("agent-{}", node.name());
    let pid = mesh.site(|site| {
        let mut programs = site.state().programs.iter();
        let agent = programs.find(|program| program.name == name);
        agent.map(|agent| agent.process.pid).unwrap()
    });
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn who_keeps_deleting_a_route_is_named_and_met_ever_more_rarely_but_never_where_it_could_leak() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let script = "set -- $(ip route show table 1 type unicast | head -1)
                  n=0 u=0 end=$(($(date +%s) + 12))
                  while [ $(date +%s) -lt $end ]; do
                    ip route del $1 dev wireguard.cali table 1 2>/dev/null && n=$((n + 1))
                    ip route del unreachable 10.65.0.0/16 table 1 2>/dev/null && u=$((u + 1))
                    sleep 0.1
                  done
                  echo $n $u";
    let said = sh(&n1, script);
    println!("deleted, a route and an unreachable one: {said}");
    let counts: Vec<u32> = said
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    let [route, unreachable] = counts[..] else {
        panic!("{said}")
    };

    // Ten within a minute, then after 1, 2, 4 and 8 seconds.
    assert!((8..=16).contains(&route), "{said}");
    assert!(unreachable > 2 * route, "{said}");
    await_condition(
        &n1,
        "Contested",
        &["somebody else keeps changing route", "in table 1"],
    );
    mesh.assert_no_plaintext();
    await_fact("it is whole again", PATIENCE, || {
        let said = sh(&n1, "ip route show table 1 type unicast");
        if said.contains("dev wireguard.cali") {
            Ok(())
        } else {
            Err(said)
        }
    });
}

#[test]
fn a_fight_without_pause_costs_little() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let (start, before) = (Instant::now(), ticks(&mesh, &n1));
    let script = "end=$(($(date +%s) + 8)) n=0
                  while [ $(date +%s) -lt $end ]; do
                    ip rule del priority 99 2>/dev/null && n=$((n + 1))
                    ip route flush table 2 2>/dev/null
                  done
                  echo $n";
    let said = sh(&n1, script);
    let used = ticks(&mesh, &n1) - before;
    let share = used as f64 / 100.0 / start.elapsed().as_secs_f64();
    println!(
        "restored {} times; the agent took {share:.3} of a core",
        said.trim()
    );

    assert!(said.trim().parse::<u32>().unwrap() > 10, "{said}");
    assert!(share < 0.35, "{share}");
    await_condition(&n1, "Contested", &["rule 99 to table 1"]);
    await_settled(&n1, PATIENCE);
    Traffic::between_two(&mesh).assert_alive();
}

#[test]
fn a_link_of_others_with_our_name_is_named_and_left_alone() {
    let mesh = Mesh::builtin("dual-stack");
    let n1 = mesh.node("n1");
    sh(
        &n1,
        "ip link add wireguard.cali type bridge
         ip address add 10.9.9.1/24 dev wireguard.cali
         ip link set wireguard.cali up",
    );

    mesh.ask_for(netns::Encryption::On);
    await_condition(
        &n1,
        "DeviceNameTaken",
        &["kind bridge", "wireguard.cali", "wireguardInterfaceName"],
    );
    await_fact("unreachable routes stand", PATIENCE, || {
        let said = sh(&n1, "ip route show table 1");
        if said.contains("unreachable 10.65.0.0/16") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let said = sh(
        &n1,
        "ip -o -4 address show dev wireguard.cali; ip route show table 1; ip -d link show wireguard.cali",
    );
    assert!(
        said.contains("10.9.9.1/24") && said.contains("bridge"),
        "{said}"
    );
    assert!(
        !said.contains("10.65.0.0/16 dev") && !said.contains("dev wireguard.cali proto 80"),
        "{said}"
    );

    sh(&n1, "ip link del wireguard.cali");
    await_condition(&n1, "DeviceNameTaken", &[]);
    mesh.await_summary("Enforced");
    Traffic::between_two(&mesh).assert_alive();
}

#[test]
fn others_routes_in_our_tables_and_rules_for_our_mark_are_named_and_stay() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    sh(
        &n1,
        "ip route add 198.51.100.0/24 dev eth0 table 1 proto static
         ip rule add fwmark 0x200000/0x200000 lookup 78 priority 500",
    );
    await_condition(
        &n1,
        "ForeignRoutes",
        &["198.51.100.0/24 dev eth0 proto static in table 1"],
    );
    await_condition(
        &n1,
        "ForeignMark",
        &["500: from all fwmark 0x200000/0x200000 lookup 78"],
    );
    assert!(sh(&n1, "ip route show table 1").contains("198.51.100.0/24"));

    sh(
        &n1,
        "ip route del 198.51.100.0/24 table 1; ip rule del priority 500",
    );
    await_condition(&n1, "ForeignRoutes", &[]);
    await_condition(&n1, "ForeignMark", &[]);
}

/// The real one, without a service manager: it is given a state folder of its own, and told that it is in
/// a container, where nobody waits for udev.
struct Networkd {
    node: Node,
    pid: String,
}

impl Networkd {
    fn start(node: &Node) -> Self {
        let script = "cd /run/systemd; mkdir -p netif/links netif/leases netif/lldp network
             chown -R systemd-network: /run/systemd/netif
             echo yes > /run/systemd/container
             printf '[Match]\nName=plug*\n[Network]\nAddress=198.51.100.1/24\n' > /run/systemd/network/10-plug.network
             rm -f /run/systemd/netif/state
             unshare -m sh -c 'mount -t sysfs none /sys; mount -o remount,bind,ro /sys
               exec /lib/systemd/systemd-networkd' >/run/systemd/log 2>&1 &
             echo $!";
        let pid = sh(node, script).trim().to_owned();
        await_fact("networkd runs", PATIENCE, || {
            let said = sh(node, "ls /run/systemd/netif; cat /run/systemd/log");
            if said.contains("Enumeration completed") {
                Ok(())
            } else {
                Err(said)
            }
        });
        Self {
            node: node.clone(),
            pid,
        }
    }

    /// A new NIC that it has to configure.
    fn plug(&self, name: &str) {
        sh(
            &self.node,
            &format!(
                "ip link add {name} type veth peer name other{name}; ip link set {name} up; ip link set other{name} up"
            ),
        );
        await_fact("networkd configures the new NIC", PATIENCE, || {
            let said = sh(
                &self.node,
                &format!("ip -o address show dev {name}; cat /run/systemd/log"),
            );
            if said.contains("198.51.100.1/24") {
                Ok(())
            } else {
                Err(said)
            }
        });
    }

    fn unplug(&self, name: &str) {
        sh(&self.node, &format!("ip link del {name}"));
    }
}

impl Drop for Networkd {
    fn drop(&mut self) {
        sh(&self.node, &format!("kill {}", self.pid));
    }
}

/// Policy routing of ours.
fn policy(node: &Node) -> String {
    sh(
        node,
        "ip rule | grep 'proto 80' || true; ip -6 rule | grep 'proto 80' || true; ip route show table 1; ip -6 route show table 1; ip route show table 2",
    )
}

#[test]
fn networkd_takes_our_rules_away_until_it_is_told_and_so_it_says() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    sh(&n1, "mount -t tmpfs none /run/systemd");
    let whole = policy(&n1);
    let networkd = Networkd::start(&n1);
    await_condition(
        &n1,
        "NetworkManager",
        &[
            "systemd-networkd",
            "/etc/systemd/networkd.conf.d/90-meshd.conf",
        ],
    );

    n1.freeze(Service::Agent);
    networkd.plug("plug0");
    let broken = policy(&n1);
    n1.thaw(Service::Agent);
    assert_ne!(broken, whole, "networkd takes nothing away");
    await_fact("what it took is back", PATIENCE, || {
        let now = policy(&n1);
        if now == whole { Ok(()) } else { Err(now) }
    });
    mesh.assert_no_plaintext();
    networkd.unplug("plug0");
    drop(networkd);

    let file = include_str!("../../../deploy/network/networkd/90-meshd.conf");
    let script = format!(
        "mkdir -p /run/systemd/networkd.conf.d; printf '%s' '{file}' > /run/systemd/networkd.conf.d/90-meshd.conf"
    );
    sh(&n1, &script);
    let networkd = Networkd::start(&n1);
    await_condition(&n1, "NetworkManager", &[]);
    n1.freeze(Service::Agent);
    networkd.plug("plug1");
    let untouched = policy(&n1);
    n1.thaw(Service::Agent);
    assert_eq!(untouched, whole);
    networkd.unplug("plug1");
    drop(networkd);
    traffic.assert_alive();
    mesh.assert_no_plaintext();
}
