//! What a container may wish for: its interface is as configuration and annotations say.
//!
//! ```text
//! ┌─ n1 ─────────────────────────────┐        ┌─ n2 ──────┐
//! │ meshd-cni ─▶ agent               │        │ default/c │     one LAN, both families, pools 10.65/16, fd00:65::/112
//! │ containers of the story's own    │────────│           │
//! └──────────────────────────────────┘        └───────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use lab::{End as _, Family};
use netns::{Container, Encryption, Mesh, await_fact, lan};
use serde_json::{Value, json};

/// How long what is under way may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn mesh() -> Mesh {
    Mesh::of(lan(&[("n1", "default/a"), ("n2", "default/c")]).document())
}

fn with(changes: &Value) -> Value {
    let mut network = Container::network();
    for (key, value) in changes.as_object().unwrap() {
        network[key] = value.clone();
    }
    network
}

fn calico(annotations: &[(&str, Value)]) -> Value {
    let named = annotations.iter().map(|(key, value)| {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        (format!("cni.projectcalico.org/{key}"), json!(text))
    });
    Value::Object(named.collect())
}

#[test]
fn an_interface_has_the_mtu_mac_and_forwarding_that_its_network_says() {
    let mesh = mesh();
    let (n1, c) = (mesh.node("n1"), mesh.pod("default/c"));
    let mut web = Container::new(&mesh, &n1, "web");
    let mut plain = Container::new(&mesh, &n1, "plain");

    let result = web.add_to(&with(&json!({
        "mtu": 1300,
        "container_settings": {"allow_ip_forwarding": true},
        "policy": {"type": "k8s"},
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
    })));
    let usual = plain.add_to(&with(&json!({"mtu": 9000})));

    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:01");
    assert_eq!(result["interfaces"][1]["mtu"], 1300);
    let link = web.inside(&["ip", "-o", "link", "show", "eth0"]);
    assert!(
        link.contains("mtu 1300") && link.contains("02:00:00:00:00:01"),
        "{link}"
    );
    let forwards = |of: &Container| of.inside(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
    assert_eq!((forwards(&web).trim(), forwards(&plain).trim()), ("1", "0"));
    // More than the mesh carries would only be lost on the way.
    let mesh_mtu = usual["interfaces"][1]["mtu"].as_u64().unwrap();
    assert!((1300..1500).contains(&mesh_mtu), "{mesh_mtu}");
    web.ping(&c);
    plain.ping(&c);
    web.remove();
    plain.remove();
}

#[test]
fn families_addresses_and_pools_are_those_that_were_asked_for() {
    let mesh = mesh();
    let (n1, a) = (mesh.node("n1"), mesh.pod("default/a"));
    let pool = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "by-hand"},
        "spec": {"cidr": "10.99.0.0/24", "assignmentMode": "Manual", "natOutgoing": true},
    });
    mesh.apply(&pool.to_string());
    mesh.wait();
    let mut only_v6 = Container::new(&mesh, &n1, "only-v6");
    only_v6.add_to(&with(&json!({
        "ipam": {"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"},
    })));
    let said = calico(&[
        ("ipv4pools", json!(["by-hand"])),
        ("ipFamilies", json!(["IPv4"])),
    ]);
    let mut pooled = Container::annotated(&mesh, &n1, "pooled", &said);
    pooled.add();

    let families =
        |of: &Container| -> Vec<Family> { of.addresses().iter().map(Family::of).collect() };
    assert_eq!(families(&only_v6), [Family::V6]);
    assert_eq!(families(&pooled), [Family::V4]);
    let address = pooled.addresses()[0].to_string();
    assert!(address.starts_with("10.99.0."), "{address}");

    let free = free_beside(&a.address(Family::V4).to_string());
    let said = calico(&[
        ("ipAddrs", json!([free])),
        ("hwAddr", json!("02:00:00:00:00:02")),
    ]);
    let mut exact = Container::annotated(&mesh, &n1, "exact", &said);
    let result = exact.add();
    assert_eq!(exact.addresses()[0].to_string(), free);
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:02");
    exact.ping(&a);
    for container in [only_v6, pooled, exact] {
        container.remove();
    }
}

/// An address of the same block that nobody has: blocks have 64.
fn free_beside(address: &str) -> String {
    let (start, last) = address.rsplit_once('.').unwrap();
    let last: u8 = last.parse().unwrap();
    format!("{start}.{}", last & 0xc0 | 60)
}

#[test]
fn an_address_that_nobody_assigns_is_had_only_where_it_is_nobodys() {
    let mesh = mesh();
    let (n1, a) = (mesh.node("n1"), mesh.pod("default/a"));
    let network = with(&json!({"feature_control": {"ip_addrs_no_ipam": true}}));
    let said = calico(&[("ipAddrsNoIpam", json!(["203.0.113.9"]))]);
    let mut web = Container::annotated(&mesh, &n1, "web", &said);
    let (_, why) = web.refused(&Container::network());
    assert!(why.contains("feature_control.ip_addrs_no_ipam"), "{why}");

    web.add_to(&network);
    assert_eq!(
        web.addresses(),
        ["203.0.113.9".parse::<std::net::IpAddr>().unwrap()]
    );
    web.try_ping(a.address(Family::V4)).unwrap();
    for taken in [
        "203.0.113.9".to_owned(),
        a.address(Family::V4).to_string(),
        n1.address(Family::V4).to_string(),
        mesh.node("n2").address(Family::V4).to_string(),
        "127.0.0.1".to_owned(),
    ] {
        let said = calico(&[("ipAddrsNoIpam", json!([taken]))]);
        let thief = Container::annotated(&mesh, &n1, "thief", &said);
        let (code, why) = thief.refused(&network);
        assert!(code == 100 && why.contains(&taken), "{why}");
        thief.destroy();
    }
    web.remove();
}

#[test]
fn an_annotation_that_promises_what_there_is_not_is_refused_by_its_key() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let said = json!({"qos.projectcalico.org/ingressPacketRate": "100"});
    let web = Container::annotated(&mesh, &n1, "web", &said);

    let (code, why) = web.refused(&Container::network());

    assert_eq!(code, 2);
    assert!(
        why.contains("qos.projectcalico.org/ingressPacketRate"),
        "{why}"
    );
    assert!(!web.inside(&["ip", "-o", "link"]).contains("eth0"));
    web.destroy();
}

/// Bytes carried both ways: `carry` brings each one back.
const BYTES: u64 = 2 << 20;

#[test]
fn a_limit_of_either_direction_holds_and_goes_with_its_pod() {
    let mesh = mesh();
    let (n1, a) = (mesh.node("n1"), mesh.pod("default/a"));
    let said = json!({
        "kubernetes.io/ingress-bandwidth": "8M",
        "qos.projectcalico.org/ingressBurst": "1M",
    });
    let mut into = Container::annotated(&mesh, &n1, "into", &said);
    let into_end = Container::host_end(&into.add());
    let mut out = Container::new(&mesh, &n1, "out");
    let out_end = Container::host_end(&out.add_to(&with(&json!({
        "runtimeConfig": {"bandwidth": {"egressRate": 8_000_000, "egressBurst": 1_000_000}},
    }))));
    let mut free = Container::new(&mesh, &n1, "free");
    free.add();

    let echo = |of: &Container| {
        let listens = ["TCP/7007".parse().unwrap()];
        lab::Echo::start(&of.netns(), &of.addresses(), &listens).unwrap()
    };
    let _echoes = [echo(&into), echo(&out), echo(&free)];
    let taken = |of: &Container| {
        let to = std::net::SocketAddr::new(of.address(Family::V4), 7007);
        let start = Instant::now();
        a.netns().run(|| echoed(to, BYTES)).unwrap();
        start.elapsed()
    };
    let unlimited = taken(&free);
    let (limited_in, limited_out) = (taken(&into), taken(&out));

    // 16 Mbit less the burst at 8 Mbit/s: a little less than two seconds.
    let expected = Duration::from_millis(1500)..Duration::from_secs(12);
    assert!(unlimited < Duration::from_millis(750), "{unlimited:?}");
    assert!(expected.contains(&limited_in), "{limited_in:?}");
    assert!(expected.contains(&limited_out), "{limited_out:?}");
    for container in [into, out, free] {
        container.remove();
    }
    let links = n1.run("ip", &["-o", "link"]);
    assert!(
        !links.contains("ifb") && !links.contains("calii"),
        "{links}"
    );
    assert!(!links.contains(&into_end) && !links.contains(&out_end));
}

/// Sends so many bytes to an echo and waits for each of them.
fn echoed(to: std::net::SocketAddr, bytes: u64) {
    use std::io::{Read as _, Write as _};

    let mut stream = std::net::TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut sink = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let block = [7; 16 << 10];
            for _ in 0..bytes / 16 / 1024 {
                sink.write_all(&block).unwrap();
            }
        });
        let mut block = vec![0; 16 << 10];
        for _ in 0..bytes / 16 / 1024 {
            stream.read_exact(&mut block).unwrap();
        }
    });
}

#[test]
fn every_planted_difference_is_found_by_check() {
    let mesh = mesh();
    let n1 = mesh.node("n1");
    let mut web = Container::new(&mesh, &n1, "web");
    let result = web.add();
    assert!(!web.check(&result).is_error);
    let own = |family| web.address(family).to_string();
    let (v4, v6) = (own(Family::V4), own(Family::V6));

    // With its last address, a link loses its routes and neighbours.
    const OUT: &str = "ip route add 169.254.1.1 dev eth0 scope link && \
                       ip route add default via 169.254.1.1 dev eth0 && \
                       ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent";
    let mtu = mtu(&result);
    let differences = [
        (
            format!("ip addr del {v4}/32 dev eth0"),
            format!("ip addr add {v4}/32 dev eth0 && {OUT}"),
            "lacks",
        ),
        (
            "ip addr add 10.65.77.7/32 dev eth0".to_owned(),
            "ip addr del 10.65.77.7/32 dev eth0".to_owned(),
            "10.65.77.7/32, which is not its own",
        ),
        (
            format!("ip -6 addr del {v6}/128 dev eth0"),
            format!("ip -6 addr add {v6}/128 dev eth0 nodad"),
            "lacks",
        ),
        (
            "ip route del default".to_owned(),
            "ip route add default via 169.254.1.1 dev eth0".to_owned(),
            "no default route by 169.254.1.1",
        ),
        (
            "ip neigh del 169.254.1.1 dev eth0".to_owned(),
            "ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent".to_owned(),
            "does not know its gateway 169.254.1.1",
        ),
        (
            "ip link set eth0 mtu 1280".to_owned(),
            format!("ip link set eth0 mtu {mtu}"),
            "has MTU 1280",
        ),
        (
            "sysctl -w net.ipv6.conf.eth0.accept_ra=1".to_owned(),
            "sysctl -w net.ipv6.conf.eth0.accept_ra=0".to_owned(),
            "accept_ra is 1",
        ),
        (
            "ip link set eth0 name eth7".to_owned(),
            "ip link set eth7 name eth0".to_owned(),
            "the pod has no eth0",
        ),
    ];
    for (plant, mend, words) in differences {
        web.inside(&["sh", "-c", &plant]);
        let said = web.check(&result);
        assert_eq!(said.printed["code"], 101, "{plant}: {}", said.printed);
        assert!(said.printed.to_string().contains(words), "{}", said.printed);
        web.inside(&["sh", "-c", &mend]);
    }
    assert!(
        !web.check(&result).is_error,
        "{}",
        web.check(&result).printed
    );
    web.remove();
}

fn mtu(result: &Value) -> String {
    result["interfaces"][1]["mtu"].to_string()
}

#[test]
fn a_restarted_agent_knows_its_containers_by_its_own_state_and_the_kernel() {
    let mesh = mesh();
    let (n1, c) = (mesh.node("n1"), mesh.pod("default/c"));
    let said = json!({"kubernetes.io/egress-bandwidth": "100M"});
    let mut web = Container::annotated(&mesh, &n1, "web", &said);
    let result = web.add_to(&with(&json!({"mtu": 1300})));
    let host = Container::host_end(&result);
    let index = n1.run("cat", &[&format!("/sys/class/net/{host}/ifindex")]);
    n1.kill(lab::Service::Agent);
    n1.run("ip", &["link", "set", &host, "mtu", "1290"]);

    n1.restart(lab::Service::Agent);

    await_fact("the container is as it was", PATIENCE, || {
        let said = web.check(&result);
        if said.is_error {
            Err(said.printed.to_string())
        } else {
            Ok(())
        }
    });
    assert_eq!(
        n1.run("cat", &[&format!("/sys/class/net/{host}/ifindex")]),
        index
    );
    web.ping(&c);
    web.remove();
}

#[test]
fn a_running_containers_mtu_follows_the_meshs() {
    let mesh = mesh();
    let (n1, c) = (mesh.node("n1"), mesh.pod("default/c"));
    let mut web = Container::new(&mesh, &n1, "web");
    let host = Container::host_end(&web.add());
    let index = n1.run("cat", &[&format!("/sys/class/net/{host}/ifindex")]);
    mesh.enable();

    mesh.set("wireguardMTU", json!(1340));
    mesh.ask_for(Encryption::On);

    await_fact("both ends have the new MTU", PATIENCE, || {
        let inside = web.inside(&["cat", "/sys/class/net/eth0/mtu"]);
        let outside = n1.run("cat", &[&format!("/sys/class/net/{host}/mtu")]);
        if (inside.trim(), outside.trim()) == ("1340", "1340") {
            Ok(())
        } else {
            Err(format!("{inside} {outside}"))
        }
    });
    assert_eq!(
        n1.run("cat", &[&format!("/sys/class/net/{host}/ifindex")]),
        index
    );
    web.ping(&c);
    web.remove();
}

/// How many hostile containers are started.
const STARTS: usize = 50;

#[test]
fn a_container_that_sends_from_its_first_moment_sends_nothing_before_its_policy_is_live() {
    let mesh = mesh();
    let (n1, a) = (mesh.node("n1"), mesh.pod("default/a"));
    let silent = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "silent", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["loud"]}]},
            "policyTypes": ["Egress"],
        },
    });
    mesh.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}).to_string(),
    );
    mesh.apply(&silent.to_string());
    mesh.wait();
    let to = std::net::SocketAddr::new(a.address(Family::V4), 7);
    let receiver = a.netns().run(|| UdpSocket::bind(to)).unwrap().unwrap();
    receiver.set_nonblocking(true).unwrap();

    for index in 0..STARTS {
        sends_while_attached(&mesh, &n1, &format!("hostile{index}"), to);
        let heard = receiver.recv_from(&mut [0; 16]);
        assert!(heard.is_err(), "start {index}: {heard:?}");
    }
    sends_while_attached(&mesh, &n1, "loud", to);
    assert!(
        receiver.recv_from(&mut [0; 16]).is_ok(),
        "the story can hear"
    );
}

/// Attaches a container in which a program sends all the time, from before there is an interface.
fn sends_while_attached(mesh: &Mesh, node: &lab::Node, id: &str, to: std::net::SocketAddr) {
    let mut container = Container::new(mesh, node, id);
    let (sent, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let netns = container.netns();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            netns.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let is_sent = socket.send_to(b"hostile", to).is_ok();
                    sent.fetch_add(usize::from(is_sent), Ordering::Relaxed);
                }
            })
        });
        container.add();
        let before = sent.load(Ordering::Relaxed);
        await_fact("it sends", PATIENCE, || {
            let now = sent.load(Ordering::Relaxed);
            (now > before + 100).then_some(()).ok_or(format!("{now}"))
        });
        stop.store(true, Ordering::Relaxed);
    });
    container.remove();
}

/// EtherType of ARP, and its operations (RFC 826).
const ARP: u16 = 0x0806;
const OPERATIONS: [u8; 2] = [1, 2];

#[test]
fn what_a_container_says_of_others_addresses_by_arp_changes_nobodys_way() {
    let mesh = mesh();
    let (n1, a, c) = (
        mesh.node("n1"),
        mesh.pod("default/a"),
        mesh.pod("default/c"),
    );
    let mut thief = Container::new(&mesh, &n1, "thief");
    let host = Container::host_end(&thief.add());
    a.ping(&c);
    let ways = || n1.run("ip", &["-4", "route", "show", "table", "main"]);
    let before = ways();
    let victim = a.address(Family::V4).to_string();

    for operation in OPERATIONS {
        for claimed in [&*victim, "169.254.1.1"] {
            let claimed: std::net::Ipv4Addr = claimed.parse().unwrap();
            let mac = [2, 0, 0, 0, 0, 0x66];
            let start = [0, 1, 8, 0, 6, 4, 0, operation];
            let said = [
                &start[..],
                &mac,
                &claimed.octets(),
                &[0xff; 6],
                &claimed.octets(),
            ]
            .concat();
            let frame = lab::forge::to([0xff; 6], &lab::forge::ethernet(ARP, &said));
            for _ in 0..10 {
                lab::forge::send(&thief.netns(), "eth0", &frame).unwrap();
            }
        }
    }

    assert_eq!(ways(), before);
    n1.run("ping", &["-c", "1", "-W", "5", &victim]);
    c.ping(&a);
    let neighbours = n1.run("ip", &["-4", "neigh"]);
    let wrong = neighbours
        .lines()
        .filter(|line| line.contains("02:00:00:00:00:66"));
    assert!(
        wrong.clone().all(|line| line.contains(&host)),
        "{neighbours}"
    );
    thief.remove();
}
