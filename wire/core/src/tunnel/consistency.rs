//! What is kept twice must agree, whatever happened: the schedule with the timers, the index table
//! with sessions and handshakes, the trie with the peers' lists, the byte count with the queues.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::test_clock::after;
use crate::{
    AllowedIpChange, DATA_OVERHEAD, Message, PeerChange, PeerUpdate, PresharedKey, PrivateKey,
};

const PEERS: u8 = 4;

/// One thing that may happen to a tunnel.
#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Serve,
    Send(u8),
    Queue(u8, usize),
    Configure {
        peer: u8,
        endpoint: bool,
        keepalive: Option<u16>,
        network: u8,
        replace: bool,
    },
    Remove(u8),
    Key(Option<u8>),
    Down,
    Up,
    Load(bool),
    /// Exchanges what is outgoing; of the datagrams whose bit is set none arrives.
    Exchange(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = 0..PEERS;
    prop_oneof![
        3 => (0_u64..200_000).prop_map(Step::Wait),
        4 => Just(Step::Serve),
        4 => peer.clone().prop_map(Step::Send),
        2 => (peer.clone(), 20_usize..2000).prop_map(|(peer, length)| Step::Queue(peer, length)),
        3 => (peer.clone(), any::<bool>(), proptest::option::of(0_u16..30), 0_u8..6, any::<bool>())
            .prop_map(|(peer, endpoint, keepalive, network, replace)| {
                Step::Configure { peer, endpoint, keepalive, network, replace }
            }),
        1 => peer.prop_map(Step::Remove),
        1 => proptest::option::of(0..PEERS).prop_map(Step::Key),
        1 => Just(Step::Down),
        1 => Just(Step::Up),
        1 => any::<bool>().prop_map(Step::Load),
        6 => any::<u16>().prop_map(Step::Exchange),
    ]
}

/// Two tunnels and the time.
struct Pair {
    tunnels: [Tunnel; 2],
    elapsed: Duration,
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::new([number + 1; 32])
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 1))
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            tunnels: [1, 2].map(|s| Tunnel::new([s; 32])),
            elapsed: Duration::ZERO,
        };
        for side in 0..2_u8 {
            pair.apply(side.into(), Step::Key(Some(side)));
            let peer = 1 - side;
            let step = Step::Configure {
                peer,
                endpoint: true,
                keepalive: None,
                network: peer,
                replace: false,
            };
            pair.apply(side.into(), step);
        }
        pair
    }

    fn now(&self) -> Now {
        after(self.elapsed)
    }

    fn apply(&mut self, side: usize, step: Step) {
        let now = self.now();
        let tunnel = &mut self.tunnels[side];
        let find = |tunnel: &Tunnel, peer| tunnel.find_peer(&key(peer).public_key());
        match step {
            Step::Wait(millis) => self.elapsed += Duration::from_millis(millis),
            Step::Serve => tunnel.handle_timeout(now),
            Step::Send(peer) => {
                let Some(id) = find(tunnel, peer) else { return };
                if let Outbound::Queue = tunnel.send(id, 1, 60, now) {
                    tunnel.queue(id, &[0x45; 28]);
                }
            }
            Step::Queue(peer, length) => {
                let Some(id) = find(tunnel, peer) else { return };
                tunnel.queue(id, &vec![0; length]);
            }
            Step::Configure {
                peer,
                endpoint,
                keepalive,
                network,
                replace,
            } => {
                let network = format!("10.{network}.0.0/16").parse().unwrap();
                let update = PeerUpdate {
                    preshared_key: keepalive.map(|_| PresharedKey::none()),
                    endpoint: endpoint.then(|| address(peer)),
                    persistent_keepalive: keepalive,
                    replace_allowed_ips: replace,
                    allowed_ips: vec![AllowedIpChange::Add(network)],
                };
                tunnel.configure_peer(key(peer).public_key(), PeerChange::Upsert(update), now);
            }
            Step::Remove(peer) => {
                tunnel.configure_peer(key(peer).public_key(), PeerChange::Remove, now);
            }
            Step::Key(number) => tunnel.set_private_key(number.map(key), now),
            Step::Down => tunnel.set_down(),
            Step::Up => tunnel.set_up(now),
            Step::Load(loaded) => tunnel.set_under_load(loaded),
            Step::Exchange(lost) => self.exchange(lost, now),
        }
    }

    fn exchange(&mut self, lost: u16, now: Now) {
        for turn in 0..8 {
            let (from, to) = (turn % 2, 1 - turn % 2);
            let mut count = 0;
            while let Some(transmit) = self.tunnels[from].poll_transmit() {
                if lost >> (count % 16) & 1 == 0 {
                    take(
                        &mut self.tunnels[to],
                        address(from as u8),
                        transmit.datagram,
                        now,
                    );
                }
                count += 1;
            }
        }
    }
}

fn take(tunnel: &mut Tunnel, source: SocketAddr, mut datagram: Vec<u8>, now: Now) {
    let Message::Data { receiver, .. } = Message::classify(&datagram).unwrap() else {
        // Refusals are as good an outcome as any here.
        let _refused = tunnel
            .handle_handshake(source.into(), &datagram, now)
            .is_err();
        return;
    };
    let Some(session) = tunnel.session(receiver, now) else {
        return;
    };
    let opened = session.open(&mut datagram).unwrap();
    assert!(opened.length >= DATA_OVERHEAD);
    let mut verdicts = Vec::new();
    tunnel.received(&session, source.into(), &[opened], &mut verdicts, now);
    assert_eq!(verdicts.len(), 1);
}

fn assert_consistent(tunnel: &Tunnel) {
    let peers: Vec<_> = tunnel.roster.iter().collect();
    let deadline = peers.iter().filter_map(|peer| peer.timers.earliest()).min();
    assert_eq!(tunnel.poll_timeout(), deadline, "schedule");

    let mut held = BTreeMap::new();
    for peer in &peers {
        for index in peer.held_indices() {
            assert_eq!(held.insert(index, peer.id), None, "one index held twice");
        }
    }
    assert_eq!(tunnel.device.reserved_indices(), &held, "indices");
    let live = &tunnel.device.live;
    assert!(held.keys().all(|index| live.may_hold(*index)));
    assert_eq!(live.count(), held.len(), "live indices");

    let queued: usize = peers.iter().map(|peer| peer.queued_bytes()).sum();
    assert_eq!(tunnel.device.queued_bytes, queued, "queued bytes");

    let mut owned = BTreeSet::new();
    for peer in &peers {
        for network in &peer.allowed_ips {
            assert!(owned.insert(*network), "{network} is owned twice");
            assert_eq!(tunnel.route(network.addr()), Some(peer.id), "{network}");
        }
    }
    let free = (0..6).map(|n| IpAddr::from([10, n, 0, 0]));
    for address in free.filter(|address| !owned.iter().any(|network| network.contains(address))) {
        assert_eq!(tunnel.route(address), None, "{address}");
    }
}

proptest! {
    #[test]
    fn what_is_kept_twice_agrees_whatever_happens(
        steps in proptest::collection::vec((0_usize..2, step()), 1..120)
    ) {
        let mut pair = Pair::new();
        for (side, step) in steps {
            pair.apply(side, step);
            pair.tunnels.iter().for_each(assert_consistent);
        }
        for tunnel in &mut pair.tunnels {
            tunnel.remove_peers();
            assert_consistent(tunnel);
        }
    }
}
