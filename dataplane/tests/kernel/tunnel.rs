//! WireGuard devices and peers against `wg`: one contract, two implementations.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use dataplane::{PeerTarget, Target, TunnelTarget};
use ipnet::IpNet;
use model::{
    Change, InterfaceName, PublicKey,
    plan::{Peer, Tunnel},
    resource::mesh_configuration::Backend,
};

use wire::uapi::Configuration;
use wire_core::{AllowedIpChange, PeerChange, PeerUpdate};

use crate::{
    contract::{Case, check},
    namespace::{Namespace, alone_with_wireguard, eventually, ip, reaches, run, tell, veth},
    wireguard::{Machine, Service, Which, implementations, keyring, on_both, public},
};

on_both!(
    tunnels_keep_the_contract,
    peers_keep_the_contract,
    wg_shows_what_the_plan_says,
    an_allowed_ip_moves_between_peers_without_ever_being_with_nobody_else,
    an_allowed_ip_is_taken_from_a_peer_that_keeps_the_others,
    an_endpoint_that_roamed_is_left_alone_and_a_new_one_of_the_plan_is_set,
    a_thousand_peers_take_a_few_requests,
    a_peer_with_thousands_of_allowed_ips_has_them_all,
    a_key_that_is_not_in_the_keyring_is_named_and_nothing_is_made_up,
    a_new_peer_is_greeted_without_a_packet,
    a_restarted_agent_leaves_running_sessions_alone,
);

fn tunnels_keep_the_contract(which: Which) {
    let machine = Machine::start(which);
    let socket = machine.socket();
    check(Case::<TunnelTarget> {
        make: Box::new(move || {
            TunnelTarget::open(implementations(which, &socket), Box::new(keyring)).unwrap()
        }),
        rows: vec![(device(), tunnel(1))],
        changed: Some((
            device(),
            Tunnel {
                port: 51899,
                mtu: 1300,
                ..tunnel(2)
            },
        )),
        spoil: Box::new(|| {
            run("wg", "set wg.cali fwmark 7");
        }),
        recognises: true,
        removes: true,
        print: Box::new(|| ip("-d link show wg.cali") + &run("wg", "show wg.cali")),
    });
}

fn peers_keep_the_contract(which: Which) {
    let machine = Machine::start(which);
    made(&machine);
    let socket = machine.socket();
    let rows: Vec<_> = (10..14).map(|seed| (key(seed), peer(seed, 0))).collect();
    check(Case::<PeerTarget> {
        make: Box::new(move || {
            let mut target = PeerTarget::new(implementations(which, &socket));
            target.own([device()]);

            target
        }),
        changed: Some((
            key(11),
            Peer {
                keepalive: 25,
                ..peer(11, 64)
            },
        )),
        rows,
        spoil: Box::new(|| {
            run("wg", &format!("set wg.cali peer {} remove", public(12)));
        }),
        recognises: true,
        removes: true,
        print: Box::new(|| run("wg", "showconf wg.cali")),
    });
}

fn wg_shows_what_the_plan_says(which: Which) {
    let machine = Machine::start(which);
    made(&machine);
    let mut peers = peers(&machine);

    set(
        &mut peers,
        [(
            key(10),
            Peer {
                keepalive: 25,
                ..peer(10, 0)
            },
        )],
    );

    let dump = run("wg", "show wg.cali dump");
    let fields: Vec<Vec<&str>> = dump
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(
        fields[0][1..],
        [&*public(1).to_string(), "51820", "0x200000"]
    );
    let expected = [
        &*public(10).to_string(),
        "(none)",
        "192.0.2.10:51820",
        "10.0.10.0/26,fd00:10::/122",
    ];
    assert_eq!(fields[1][..4], expected);
    assert_eq!(fields[1][7], "25");
    assert!(ip("link show wg.cali").contains("mtu 1420"));
    assert!(ip("link show up").contains("wg.cali"));
}

fn an_allowed_ip_moves_between_peers_without_ever_being_with_nobody_else(which: Which) {
    let machine = Machine::start(which);
    made(&machine);
    let mut peers = peers(&machine);
    set(&mut peers, [(key(10), peer(10, 0)), (key(11), peer(11, 0))]);
    let (mut less, mut more) = (peer(10, 0), peer(11, 0));
    let moved = "10.0.10.0/26".parse().unwrap();
    less.allowed_ips.remove(&moved);
    more.allowed_ips.insert(moved);

    set(
        &mut peers,
        [(key(10), less.clone()), (key(11), more.clone())],
    );

    assert_eq!(
        peers.observe().unwrap(),
        BTreeMap::from([(key(10), less), (key(11), more)])
    );
}

fn an_endpoint_that_roamed_is_left_alone_and_a_new_one_of_the_plan_is_set(which: Which) {
    let machine = Machine::start(which);
    made(&machine);
    let mut peers = peers(&machine);
    set(&mut peers, [(key(10), peer(10, 0))]);
    run(
        "wg",
        &format!("set wg.cali peer {} endpoint 198.51.100.7:1234", public(10)),
    );

    assert_eq!(
        peers.observe().unwrap().get(&key(10)),
        Some(&peer(10, 0)),
        "nothing to do"
    );
    set(
        &mut peers,
        [(
            key(10),
            Peer {
                keepalive: 25,
                ..peer(10, 0)
            },
        )],
    );
    assert!(run("wg", "show wg.cali endpoints").contains("198.51.100.7:1234"));

    let endpoint: SocketAddr = "192.0.2.99:51820".parse().unwrap();
    set(
        &mut peers,
        [(
            key(10),
            Peer {
                endpoint,
                ..peer(10, 0)
            },
        )],
    );
    assert!(run("wg", "show wg.cali endpoints").contains("192.0.2.99:51820"));
}

fn a_thousand_peers_take_a_few_requests(which: Which) {
    let machine = Machine::start(which);
    made(&machine);
    let mut peers = peers(&machine);
    let rows: Vec<_> = (0..1000u32).map(many).collect();
    let changes: Vec<_> = rows
        .iter()
        .map(|(key, row)| Change::Set(key.clone(), row.clone()))
        .collect();

    let started = Instant::now();
    assert_eq!(peers.apply(&changes).unwrap(), []);
    let (set_in, started) = (started.elapsed(), Instant::now());
    let observed = peers.observe().unwrap();
    tell(&format!(
        "1,000 peers: set in {set_in:?}, observed in {:?}",
        started.elapsed()
    ));

    assert_eq!(observed, rows.into_iter().collect());
}

/// A peer with ten blocks.
pub(crate) fn many(index: u32) -> ((InterfaceName, PublicKey), Peer) {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&index.to_ne_bytes());
    let blocks = (0..10u32).map(|block| {
        let first = 0x0a00_0000 + (index * 10 + block) * 64;
        IpNet::new(Ipv4Addr::from(first).into(), 26).unwrap()
    });
    let peer = Peer {
        allowed_ips: blocks.collect(),
        ..peer(10, 0)
    };

    ((device(), PublicKey::new(bytes).unwrap()), peer)
}

#[test]
fn a_service_that_is_away_is_a_reason_and_devices_come_back_with_it() {
    alone_with_wireguard(|| {
        let mut service = Service::start();
        let there = implementations(Which::Meshwire, &service.socket());
        let mut tunnels = TunnelTarget::open(there, Box::new(keyring)).unwrap();
        let change = [Change::Set(device(), tunnel(1))];
        service.kill();

        let absent = tunnels.apply(&change).unwrap();
        assert_eq!(tunnels.observe().unwrap(), BTreeMap::new());
        assert!(
            absent[0].reason.contains("tunnel service"),
            "{}",
            absent[0].reason
        );

        let _service = service.restart();
        assert_eq!(tunnels.apply(&change).unwrap(), []);
        assert_eq!(
            tunnels.observe().unwrap(),
            BTreeMap::from([(device(), tunnel(1))])
        );
    });
}

fn a_key_that_is_not_in_the_keyring_is_named_and_nothing_is_made_up(which: Which) {
    let machine = Machine::start(which);
    let mut tunnels =
        TunnelTarget::open(machine.implementations(), Box::new(|_: &PublicKey| None)).unwrap();

    let error = tunnels
        .apply(&[Change::Set(device(), tunnel(1))])
        .unwrap_err();

    let expected = format!("the private half of {} is not in the keyring", public(1));
    assert_eq!(error.to_string(), expected);
}

fn an_allowed_ip_is_taken_from_a_peer_that_keeps_the_others(which: Which) {
    let machine = Machine::start(which);
    made(&machine);
    let mut peers = peers(&machine);
    let mut rows = [(key(10), peer(10, 0)), (key(11), peer(11, 0))];
    set(&mut peers, rows.clone());

    let taken = "10.0.10.0/26".parse().unwrap();
    rows[0].1.allowed_ips.remove(&taken);
    set(&mut peers, rows.clone());

    assert_eq!(peers.observe().unwrap(), BTreeMap::from(rows));
    let shown = run("wg", "show wg.cali allowed-ips");
    assert_eq!(shown.lines().count(), 2, "{shown}");
}

fn a_peer_with_thousands_of_allowed_ips_has_them_all(which: Which) {
    let machine = Machine::start(which);
    made(&machine);
    let mut peers = peers(&machine);
    let nets = (0..5000u32).map(|net| {
        let first = 0xac10_0000 + net * 64;
        IpNet::new(Ipv4Addr::from(first).into(), 26).unwrap()
    });
    let many = Peer {
        allowed_ips: nets.collect(),
        ..peer(10, 0)
    };
    let mut rows = [(key(10), many), (key(11), peer(11, 0))];
    set(&mut peers, rows.clone());
    let has_all = peers.observe().unwrap() == BTreeMap::from(rows.clone());
    assert!(has_all);

    rows[0].1 = peer(10, 0);
    set(&mut peers, rows.clone());
    let has_all = peers.observe().unwrap() == BTreeMap::from(rows);
    assert!(has_all);
}

/// The other end has no word to say, and we have nothing to send.
fn a_new_peer_is_greeted_without_a_packet(which: Which) {
    let here = Machine::start(which);
    let (_other, _far) = far_end();
    made(&here);
    let mut peers = peers(&here);

    set(&mut peers, [(key(10), peer(10, 0))]);

    eventually("the handshake", || {
        peers.statistics().unwrap()[0].last_handshake.is_some()
    });
    assert_eq!(
        peers.observe().unwrap(),
        BTreeMap::from([(key(10), peer(10, 0))])
    );
}

/// Two nodes with a session between them; the agent of one is restarted.
fn a_restarted_agent_leaves_running_sessions_alone(which: Which) {
    let here = Machine::start(which);
    let (other, _far) = far_end();
    made(&here);
    set(&mut peers(&here), [(key(10), peer(10, 0))]);
    ip("addr add 10.0.1.1/32 dev wg.cali");
    ip("route add 10.0.10.0/26 dev wg.cali");
    reaches("10.0.10.1", &other);
    let state = || {
        (
            run("wg", "show wg.cali latest-handshakes"),
            run("wg", "show wg.cali endpoints"),
            ip("-o link show wg.cali"),
        )
    };
    let before = state();

    let (mut tunnels, mut peers) = (tunnels(&here), peers(&here));
    assert_eq!(
        tunnels.observe().unwrap(),
        BTreeMap::from([(device(), tunnel(1))])
    );
    tunnels.apply(&[Change::Set(device(), tunnel(1))]).unwrap();
    peers.observe().unwrap();
    set(&mut peers, [(key(10), peer(10, 0))]);

    reaches("10.0.10.1", &other);
    assert_eq!(state(), before);
    let statistics = peers.statistics().unwrap();
    assert_eq!(statistics.len(), 1);
    assert!(statistics[0].last_handshake.is_some() && statistics[0].received > 0);
}

/// The other node, by eth0: 192.0.2.10, key 10, and 10.0.10.1 inside the tunnel. Here is 192.0.2.1.
pub(crate) fn far_end() -> (Namespace, FarEnd) {
    veth("eth0", "peer0");
    let namespace = Namespace::new();
    namespace.adopt("peer0");
    ip("addr add 192.0.2.1/24 dev eth0");
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().display().to_string();
    let service = namespace.run(move || {
        ip("link set lo up");
        ip("link set peer0 up");
        ip("addr add 192.0.2.10/24 dev peer0");
        let service = FarService::start(&path);
        service.configure(&far_configuration());
        ip("link set wgfar up");
        ip("addr add 10.0.10.1/32 dev wgfar");
        ip("route add 10.0.1.0/26 dev wgfar");

        service
    });

    (
        namespace,
        FarEnd {
            _service: service,
            _folder: folder,
        },
    )
}

fn far_configuration() -> Configuration {
    let us = PeerUpdate {
        allowed_ips: vec![AllowedIpChange::Add("10.0.1.0/26".parse().unwrap())],
        ..PeerUpdate::default()
    };
    let key = wire_core::PublicKey(*public(1).as_bytes());

    Configuration {
        private_key: Some(Some(wire_core::PrivateKey::new([10; 32]))),
        listen_port: Some(51820),
        peers: vec![(key, PeerChange::Upsert(us))],
        ..Configuration::default()
    }
}

pub(crate) struct FarEnd {
    _service: FarService,
    _folder: tempfile::TempDir,
}

/// A standalone `meshwire` whose socket is in a folder of the test.
struct FarService {
    child: std::process::Child,
    folder: String,
}

impl FarService {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tunnel is a program of its own"
    )]
    fn start(folder: &str) -> Self {
        let mut binary = std::env::current_exe().unwrap();
        binary.pop();
        binary.pop();
        let child = std::process::Command::new(binary.join("meshwire"))
            .args(["wgfar", "--foreground", "--uapi-directory", folder])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let service = Self {
            child,
            folder: folder.to_owned(),
        };
        eventually("the far end", || service.client().is_ok());

        service
    }

    fn client(&self) -> Result<wire::uapi::Client, wire::uapi::ClientError> {
        wire::uapi::Client::connect(std::path::Path::new(&self.folder), "wgfar")
    }

    fn configure(&self, configuration: &Configuration) {
        self.client().unwrap().set(configuration).unwrap();
    }
}

impl Drop for FarService {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub(crate) fn device() -> InterfaceName {
    "wg.cali".parse().unwrap()
}

pub(crate) fn tunnel(seed: u8) -> Tunnel {
    Tunnel {
        key: public(seed),
        port: 51820,
        mark: 0x0020_0000,
        mtu: 1420,
        backend: Backend::Auto,
        threaded: false,
    }
}

pub(crate) fn key(seed: u8) -> (InterfaceName, PublicKey) {
    (device(), public(seed))
}

/// A peer that has the blocks at `offset` of its networks.
pub(crate) fn peer(seed: u8, offset: u8) -> Peer {
    Peer {
        endpoint: format!("192.0.2.{seed}:51820").parse().unwrap(),
        keepalive: 0,
        allowed_ips: [
            format!("10.0.{seed}.{offset}/26"),
            format!("fd00:{seed}::{offset:x}00/122"),
        ]
        .map(|net| net.parse().unwrap())
        .into(),
    }
}

fn tunnels(machine: &Machine) -> TunnelTarget {
    TunnelTarget::open(machine.implementations(), Box::new(keyring)).unwrap()
}

fn peers(machine: &Machine) -> PeerTarget {
    let mut peers = PeerTarget::new(machine.implementations());
    peers.own([device()]);
    peers.observe().unwrap();

    peers
}

fn made(machine: &Machine) {
    let change = Change::Set(device(), tunnel(1));

    assert_eq!(tunnels(machine).apply(&[change]).unwrap(), []);
}

fn set<const N: usize>(target: &mut PeerTarget, rows: [((InterfaceName, PublicKey), Peer); N]) {
    let changes = rows.map(|(key, row)| Change::Set(key, row));

    assert_eq!(target.apply(&changes).unwrap(), []);
}
