//! What `wg` asks for is done, at once and completely; what is not understood changes nothing.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::command::{attempt, run, run_with};
use crate::namespace::Namespace;
use crate::pair::{Outside, ours, strangers};
use crate::traffic::{bulk, echo, reaches};
use crate::tunnel::{Make, Tunnel, socket};
use crate::wait::until;

const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const SECRET: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";

fn alone() -> (Tunnel, Namespace) {
    let namespace = Namespace::new();
    (Tunnel::start(&namespace, Make::Meshwire), namespace)
}

/// The raw answer to a raw request.
fn ask(tunnel: &Tunnel, request: &str) -> String {
    let mut stream = UnixStream::connect(socket(&tunnel.name)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn wg_shows_what_wg_has_set() {
    let (tunnel, _namespace) = alone();
    tunnel.wg_with(
        &format!(
            "fwmark 0x1234 peer {PEER} preshared-key /dev/stdin endpoint [2001:db8::7]:7 \
             persistent-keepalive 25 allowed-ips 10.0.0.9/8,fd00::/8"
        ),
        SECRET,
    );
    let dump = tunnel.show("dump");
    let mut lines = dump.lines();
    let device: Vec<&str> = lines.next().unwrap().split('\t').collect();
    assert_eq!(device[1..], [&tunnel.public_key, "51820", "0x1234"]);
    assert_eq!(
        lines.next().unwrap(),
        [
            PEER,
            SECRET,
            "[2001:db8::7]:7",
            "10.0.0.0/8,fd00::/8",
            "0",
            "0",
            "0",
            "25"
        ]
        .join("\t")
    );
    assert_eq!(lines.next(), None);
}

#[test]
fn a_configuration_that_wg_saved_can_be_set_again() {
    let (tunnel, _namespace) = alone();
    tunnel.wg_with(
        &format!("fwmark 0x77 peer {PEER} preshared-key /dev/stdin allowed-ips 10.0.0.0/8"),
        SECRET,
    );
    tunnel.wg(&format!("peer {OTHER} endpoint 192.0.2.9:9"));
    let saved = run(&format!("wg showconf {}", tunnel.name));
    run_with(
        &format!("wg setconf {} /dev/stdin", tunnel.name),
        "[Interface]\nListenPort = 1\n",
    );
    assert_eq!(tunnel.show("peers"), "");
    run_with(&format!("wg setconf {} /dev/stdin", tunnel.name), &saved);
    let again = run(&format!("wg showconf {}", tunnel.name));
    assert_eq!(sections(&again), sections(&saved));
}

#[test]
fn wg_syncconf_changes_only_what_differs() {
    let (a, b) = ours(Outside::V4);
    a.tunnel
        .wg(&format!("peer {OTHER} allowed-ips 10.77.0.0/16"));
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    let handshake = a.tunnel.last_handshake(&b.tunnel.public_key);
    let before = a.tunnel.transfer(&b.tunnel.public_key);

    let saved = run(&format!("wg showconf {}", a.tunnel.name));
    let without_other: String = saved
        .split("\n[Peer]")
        .filter(|section| !section.contains(OTHER))
        .collect::<Vec<_>>()
        .join("\n[Peer]");
    let wanted = format!("{without_other}\n[Peer]\nPublicKey = {PEER}\nAllowedIPs = fd77::/16\n");
    run_with(
        &format!("wg syncconf {} /dev/stdin", a.tunnel.name),
        &wanted,
    );

    assert_eq!(a.tunnel.show_peer("allowed-ips", OTHER), None);
    assert_eq!(
        a.tunnel.show_peer("allowed-ips", PEER).as_deref(),
        Some("fd77::/16")
    );
    echo(&a.namespace, &b.namespace, b.v6(), [100]);
    let after = a.tunnel.transfer(&b.tunnel.public_key);
    assert_eq!(a.tunnel.last_handshake(&b.tunnel.public_key), handshake);
    assert!(after.0 > before.0 && after.1 > before.1);
}

#[test]
fn an_allowed_ip_belongs_to_the_last_who_got_it() {
    let (tunnel, _namespace) = alone();
    tunnel.wg(&format!("peer {PEER} allowed-ips 10.0.0.0/8,10.1.0.0/16"));
    tunnel.wg(&format!("peer {OTHER} allowed-ips 10.1.0.0/16"));
    assert_eq!(
        tunnel.show_peer("allowed-ips", PEER).as_deref(),
        Some("10.0.0.0/8")
    );
    let key = hex(OTHER);
    let request =
        format!("set=1\npublic_key={key}\nallowed_ip=-10.1.0.0/16\nallowed_ip=fd00::1/128\n\n");
    assert_eq!(ask(&tunnel, &request), "errno=0\n\n");
    assert_eq!(
        tunnel.show_peer("allowed-ips", OTHER).as_deref(),
        Some("fd00::1/128")
    );
}

#[test]
fn a_peer_that_may_only_be_updated_is_not_created() {
    let (tunnel, _namespace) = alone();
    let request = format!(
        "set=1\npublic_key={}\nupdate_only=true\nallowed_ip=10.0.0.0/8\n\n",
        hex(PEER)
    );
    assert_eq!(ask(&tunnel, &request), "errno=0\n\n");
    assert_eq!(tunnel.show("peers"), "");
}

#[test]
fn a_bad_request_changes_nothing_and_says_why() {
    let (tunnel, namespace) = alone();
    tunnel.wg(&format!("peer {PEER} allowed-ips 10.0.0.0/8"));
    let before = tunnel.show("dump");
    for bad in ["listen_port=70000", "public_key=00", "nonsense=1"] {
        let request = format!("set=1\nfwmark=7\nreplace_peers=true\n{bad}\n\n");
        assert_eq!(ask(&tunnel, &request), "errno=-22\n\n", "{bad}");
    }
    assert_eq!(tunnel.show("dump"), before);

    namespace.ip(&format!("link set {} up", tunnel.name));
    let _taken = namespace.inside(|| std::net::UdpSocket::bind("0.0.0.0:4242").unwrap());
    let error = attempt(
        &format!("wg set {} listen-port 4242 fwmark 9", tunnel.name),
        "",
    )
    .unwrap_err();
    assert!(error.contains("Address already in use"), "{error}");
    assert_eq!(tunnel.show("dump"), before);
    until("the old port is listened on", || listens(&namespace, 51820));
}

#[test]
fn a_preshared_key_must_be_the_same_on_both_ends() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    let key = b.tunnel.public_key.clone();
    a.tunnel
        .wg_with(&format!("peer {key} preshared-key /dev/stdin"), SECRET);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);

    // A new session needs a new handshake.
    a.namespace.ip(&format!("link set {} down", a.tunnel.name));
    a.namespace.ip(&format!("link set {} up", a.tunnel.name));
    assert!(!reaches(
        &a.namespace,
        &b.namespace,
        b.v4(),
        Duration::from_secs(1)
    ));

    let key = a.tunnel.public_key.clone();
    b.tunnel
        .wg_with(&format!("peer {key} preshared-key /dev/stdin"), SECRET);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
}

#[test]
fn a_new_port_is_used_at_once_and_the_peer_follows() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    for port in [4000, 51820, 4000, 4001] {
        a.tunnel.wg(&format!("listen-port {port}"));
        assert!(listens(&a.namespace, port));
        echo(&a.namespace, &b.namespace, b.v4(), [100]);
        assert_eq!(
            b.tunnel.show_peer("endpoints", &a.tunnel.public_key),
            Some(format!("192.0.2.1:{port}"))
        );
        bulk(&a.namespace, &b.namespace, b.v4(), 1 << 18);
    }
    // A port that was left a moment ago, before the packet threads have looked up.
    let back_and_forth = "set=1\nlisten_port=4002\n\nset=1\nlisten_port=4001\n\n".repeat(50);
    assert_eq!(ask(&a.tunnel, &back_and_forth), "errno=0\n\n".repeat(100));
    echo(&a.namespace, &b.namespace, b.v4(), [100]);

    a.tunnel.wg("listen-port 0");
    let port: u16 = a.tunnel.show("listen-port").trim().parse().unwrap();
    assert!(port != 4001 && listens(&a.namespace, port));
}

#[test]
fn the_mark_chooses_the_route_of_outer_packets() {
    let (a, b) = strangers(Make::Meshwire, Make::Meshwire);
    a.namespace.ip("route add 192.0.2.2/32 dev eth0 table 77");
    a.namespace
        .ip("route replace prohibit 192.0.2.2/32 table main");
    a.namespace.ip("rule add fwmark 0x77 table 77");
    b.add_peer(&a, None);
    a.add_peer(&b, Some(Outside::V4));
    b.up(1420);
    a.up(1420);
    let second = Duration::from_secs(1);
    assert!(!reaches(&a.namespace, &b.namespace, b.v4(), second));
    a.tunnel.wg("fwmark 0x77");
    // The next attempt comes within five seconds.
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    a.tunnel.wg("fwmark 0");
    assert!(!reaches(&a.namespace, &b.namespace, b.v4(), second));
}

#[test]
fn a_new_private_key_is_answered_for_and_the_old_one_is_not() {
    let (a, mut b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    let old = b.tunnel.public_key.clone();
    let private = run("wg genkey");
    b.tunnel.wg_with("private-key /dev/stdin", &private);
    b.tunnel.public_key = run_with("wg pubkey", &private).trim().to_owned();
    a.add_peer(&b, Some(Outside::V4));
    echo(&a.namespace, &b.namespace, b.v4(), [100]);

    a.tunnel.wg(&format!("peer {} remove", b.tunnel.public_key));
    a.tunnel.wg(&format!("peer {old} remove"));
    b.tunnel.public_key = old;
    a.add_peer(&b, Some(Outside::V4));
    let patience = Duration::from_secs(1);
    assert!(!reaches(&a.namespace, &b.namespace, b.v4(), patience));
}

#[test]
fn a_new_mtu_holds_for_the_next_packet() {
    let (a, b) = ours(Outside::V4);
    for mtu in [1420, 1280, 1401, 1420] {
        for end in [&a, &b] {
            end.namespace
                .ip(&format!("link set {} mtu {mtu}", end.tunnel.name));
        }
        echo(
            &a.namespace,
            &b.namespace,
            b.v4(),
            mtu - 28 - 17..mtu - 28 + 2,
        );
        bulk(&a.namespace, &b.namespace, b.v6(), 1 << 18);

        // The largest packet is not padded beyond it. The stream's last acknowledgements may come between.
        until("the largest packet takes its own size and 32 bytes", || {
            let before = a.tunnel.transfer(&b.tunnel.public_key).1;
            echo(&a.namespace, &b.namespace, b.v4(), [mtu - 28]);
            let after = a.tunnel.transfer(&b.tunnel.public_key).1;

            after - before == mtu as u64 + 32
        });
    }
}

#[test]
fn an_interface_that_is_down_does_not_listen() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    a.namespace.ip(&format!("link set {} down", a.tunnel.name));
    until("the port is closed", || !listens(&a.namespace, 51820));
    a.namespace.ip(&format!("link set {} up", a.tunnel.name));
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
}

#[test]
fn an_interface_that_moves_to_another_namespace_takes_its_tunnel_along() {
    let (a, b) = strangers(Make::Meshwire, Make::Meshwire);
    let elsewhere = Namespace::new();
    let name = &b.tunnel.name;
    b.namespace
        .ip(&format!("link set {name} netns {}", elsewhere.name));
    elsewhere.ip(&format!("addr add {}/24 dev {name}", b.v4()));
    elsewhere.ip(&format!("link set {name} up"));
    b.add_peer(&a, None);
    a.add_peer(&b, Some(Outside::V4));
    a.up(1420);
    echo(&a.namespace, &elsewhere, b.v4(), [100, 1392]);
}

/// Whether a UDP socket is bound to `port`, as the kernel lists them.
fn listens(namespace: &Namespace, port: u16) -> bool {
    let wanted = format!(":{port:04X} ");
    ["udp", "udp6"].iter().all(|table| {
        namespace
            .exec(&format!("cat /proc/net/{table}"))
            .lines()
            .any(|line| line.split(" 0").next().is_some() && line.contains(&wanted))
    })
}

/// The sections of a configuration; peers have no order.
fn sections(configuration: &str) -> BTreeSet<&str> {
    configuration.split("\n\n").map(str::trim).collect()
}

/// A key as UAPI writes it.
fn hex(base64: &str) -> String {
    let key: wire::event::Key = base64.parse().unwrap();
    key.0
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
