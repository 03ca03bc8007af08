//! Both implementations by `defguard_wireguard_rs`, a client that knows nothing of us: what we set it reads, and
//! what it sets we see. The kernel it asks by generic netlink, meshwire by its UAPI socket.
//!
//! ```text
//! dataplane ──▶ device ◀── defguard_wireguard_rs
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    dead_code,
    reason = "the namespaces and the service are those of dataplane's own tests"
)]

mod namespace;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};

use dataplane::{PeerTarget, Target, TunnelTarget};
use defguard_wireguard_rs::{
    Kernel, Userspace, WGApi, WireguardInterfaceApi, host::Host, key::Key, peer::Peer as Theirs,
};
use model::{
    Change, InterfaceName, PublicKey,
    plan::{Peer, Tunnel},
    resource::mesh_configuration::Backend,
};

use crate::wireguard::{Machine, Which, keyring, on_both, public};

on_both!(
    what_we_set_is_what_a_stranger_reads,
    what_a_stranger_sets_is_what_we_see,
);

fn what_we_set_is_what_a_stranger_reads(which: Which) {
    let machine = Machine::start(which);
    let mut peers = device_with_peers(&machine);
    let rows: BTreeMap<_, _> = (10..40).map(|seed| (key(seed), peer(seed))).collect();
    set(&mut peers, &rows);

    let host = client(which).read_interface_data().unwrap();
    assert_eq!((host.listen_port, host.fwmark), (51820, Some(0x0020_0000)));
    assert_eq!(seen(&host), rows);

    let less: BTreeMap<_, _> = (20..40).map(|seed| (key(seed), peer(seed))).collect();
    let gone: Vec<_> = (10..20).map(|seed| Change::Unset(key(seed))).collect();
    assert_eq!(peers.apply(&gone).unwrap(), []);
    assert_eq!(seen(&client(which).read_interface_data().unwrap()), less);
}

fn what_a_stranger_sets_is_what_we_see(which: Which) {
    let machine = Machine::start(which);
    let mut peers = device_with_peers(&machine);
    set(&mut peers, &BTreeMap::from([(key(10), peer(10))]));

    let mut theirs = Theirs::new(their_key(&public(11)));
    theirs.endpoint = Some("192.0.2.11:51820".parse().unwrap());
    theirs.persistent_keepalive_interval = Some(25);
    theirs.set_allowed_ips(vec![
        "10.0.11.0/26".parse().unwrap(),
        "fd00:11::/122".parse().unwrap(),
    ]);
    client(which).configure_peer(&theirs).unwrap();
    let both = BTreeMap::from([
        (key(10), peer(10)),
        (
            key(11),
            Peer {
                keepalive: 25,
                ..peer(11)
            },
        ),
    ]);
    assert_eq!(peers.observe().unwrap(), both);

    client(which).remove_peer(&their_key(&public(10))).unwrap();
    let left: BTreeSet<_> = peers.observe().unwrap().into_keys().collect();
    assert_eq!(left, BTreeSet::from([key(11)]));
}

fn client(which: Which) -> Box<dyn WireguardInterfaceApi> {
    match which {
        Which::Kernel => Box::new(WGApi::<Kernel>::new(device().to_string()).unwrap()),
        Which::Meshwire => Box::new(WGApi::<Userspace>::new(device().to_string()).unwrap()),
    }
}

/// Peers as the stranger read them, in our words.
fn seen(host: &Host) -> BTreeMap<(InterfaceName, PublicKey), Peer> {
    let peers = host.peers.values();

    peers
        .map(|peer| {
            let key: PublicKey = peer.public_key.to_string().parse().unwrap();
            let nets = peer
                .allowed_ips
                .iter()
                .map(|net| net.to_string().parse().unwrap());
            let row = Peer {
                endpoint: peer.endpoint.unwrap(),
                keepalive: peer.persistent_keepalive_interval.unwrap_or_default(),
                allowed_ips: nets.collect(),
            };

            ((device(), key), row)
        })
        .collect()
}

fn device_with_peers(machine: &Machine) -> PeerTarget {
    let tunnel = Tunnel {
        key: public(1),
        port: 51820,
        mark: 0x0020_0000,
        mtu: 1420,
        backend: Backend::Auto,
        threaded: false,
    };
    let mut tunnels = TunnelTarget::open(machine.implementations(), Box::new(keyring)).unwrap();
    assert_eq!(tunnels.apply(&[Change::Set(device(), tunnel)]).unwrap(), []);
    let mut peers = PeerTarget::new(machine.implementations());
    peers.own([device()]);

    peers
}

fn set(peers: &mut PeerTarget, rows: &BTreeMap<(InterfaceName, PublicKey), Peer>) {
    let changes = rows
        .iter()
        .map(|(key, row)| Change::Set(key.clone(), row.clone()));
    let changes: Vec<_> = changes.collect();

    assert_eq!(peers.apply(&changes).unwrap(), []);
}

fn device() -> InterfaceName {
    "wg.cali".parse().unwrap()
}

fn key(seed: u8) -> (InterfaceName, PublicKey) {
    (device(), public(seed))
}

fn their_key(key: &PublicKey) -> Key {
    key.to_string().as_str().try_into().unwrap()
}

fn peer(seed: u8) -> Peer {
    Peer {
        endpoint: format!("192.0.2.{seed}:51820").parse().unwrap(),
        keepalive: 0,
        allowed_ips: [format!("10.0.{seed}.0/26"), format!("fd00:{seed}::/122")]
            .map(|net| net.parse().unwrap())
            .into(),
    }
}
