//! What is configured while the tunnel lives: keys, peers, allowed IPs, up and down, many peers.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire_core::{
    AllowedIpChange, DropReason, Now, Outbound, PeerChange, PeerId, PeerOutcome, PeerUpdate,
    PresharedKey, PublicKey, Refusal, Tunnel,
};

use crate::host::{Host, Node, inner, outer, packet, private_key, public_key};
use crate::world::{World, after, millis, secs};

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;

const START: Duration = Duration::ZERO;

/// A and B, connected.
fn world() -> World {
    let mut world = World::new(1);
    world.tapped = true;
    for (number, peer) in [(A, B), (B, A)] {
        let now = world.now();
        let mut node = Node::new(number, now);
        node.add_peer(peer, Some(outer(peer)), now);
        world.add(outer(number), node);
    }
    world.run(secs(1));
    world
}

fn a<R>(world: &mut World, act: impl FnOnce(&mut Node, Now) -> R) -> R {
    world.with(outer(A), act)
}

fn allowed(changes: &[AllowedIpChange]) -> PeerUpdate {
    PeerUpdate {
        allowed_ips: changes.to_vec(),
        ..PeerUpdate::default()
    }
}

fn add(network: &str) -> AllowedIpChange {
    AllowedIpChange::Add(network.parse().unwrap())
}

fn remove(network: &str) -> AllowedIpChange {
    AllowedIpChange::Remove(network.parse().unwrap())
}

fn networks(node: &Node, peer: PeerId) -> Vec<String> {
    node.tunnel
        .peer(peer)
        .unwrap()
        .allowed_ips
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A with the peers B and C, and no network.
fn alone() -> (Node, PeerId, PeerId) {
    let mut node = Node::new(A, after(START));
    let b = node.add_peer(B, None, after(START));
    let c = node.add_peer(C, None, after(START));
    (node, b, c)
}

#[test]
fn an_allowed_ip_moves_to_who_is_given_it_last() {
    let (mut node, b, c) = alone();
    node.update_peer(
        B,
        allowed(&[add("10.9.0.0/16"), add("fd00::/64")]),
        after(START),
    );
    node.update_peer(
        C,
        allowed(&[add("10.9.1.1/16"), add("10.9.1.0/24")]),
        after(START),
    );
    assert_eq!(networks(&node, b), ["10.0.0.2/32", "fd00::/64"]);
    assert_eq!(
        networks(&node, c),
        ["10.0.0.3/32", "10.9.0.0/16", "10.9.1.0/24"]
    );
    assert_eq!(node.tunnel.route(ip("10.9.200.1")), Some(c));
    assert_eq!(node.tunnel.route(ip("fd00::1")), Some(b));
    assert_eq!(node.tunnel.route(ip("10.10.0.1")), None);
}

#[test]
fn only_its_owner_gives_an_allowed_ip_back() {
    let (mut node, b, c) = alone();
    node.update_peer(
        B,
        allowed(&[remove("10.0.0.3/32"), remove("10.0.0.2/32")]),
        after(START),
    );
    assert_eq!(
        (networks(&node, b), networks(&node, c)),
        (vec![], vec!["10.0.0.3/32".into()])
    );
    assert_eq!(node.tunnel.route(inner(B)), None);
    assert_eq!(node.tunnel.route(inner(C)), Some(c));
}

#[test]
fn replacing_forgets_first_and_adds_then() {
    let (mut node, b, _) = alone();
    let update = PeerUpdate {
        replace_allowed_ips: true,
        allowed_ips: vec![
            add("10.1.0.0/16"),
            add("10.2.0.0/16"),
            remove("10.1.0.0/16"),
        ],
        ..PeerUpdate::default()
    };
    node.update_peer(B, update, after(START));
    assert_eq!(networks(&node, b), ["10.2.0.0/16"]);
    assert_eq!(node.tunnel.route(inner(B)), None);
}

#[test]
fn a_removed_peer_leaves_nothing_and_its_id_names_nobody_else() {
    let mut world = world();
    a(&mut world, |node, now| {
        let old = node.peer(B);
        let outcome = node
            .tunnel
            .configure_peer(public_key(B), PeerChange::Remove, now);
        assert_eq!(outcome, PeerOutcome::Removed);
        assert_eq!(
            (node.tunnel.route(inner(B)), node.poll_timeout()),
            (None, None)
        );
        let new = node.add_peer(C, Some(outer(C)), now);
        assert_ne!(old, new);
        let outbound = node.tunnel.send(old, 1, 48, now);
        assert!(matches!(outbound, Outbound::Drop(DropReason::NoPeer)));
        assert_eq!(node.tunnel.peer_key(old), None);
        assert_eq!(node.tunnel.peer_key(new), Some(public_key(C)));
    });
    world.send((B, outer(B)), A, 0);
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), 1);
}

#[test]
fn an_update_of_who_is_not_there_creates_nobody() {
    let (mut node, ..) = alone();
    let update = PeerChange::Update(PeerUpdate::default());
    assert_eq!(
        node.tunnel
            .configure_peer(public_key(9), update, after(START)),
        PeerOutcome::Absent
    );
    let remove = PeerChange::Remove;
    assert_eq!(
        node.tunnel
            .configure_peer(public_key(9), remove, after(START)),
        PeerOutcome::Absent
    );
    assert_eq!(node.tunnel.peers().count(), 2);
}

#[test]
fn we_are_never_our_own_peer() {
    let (mut node, ..) = alone();
    let add = PeerChange::Upsert(PeerUpdate::default());
    assert_eq!(
        node.tunnel.configure_peer(public_key(A), add, after(START)),
        PeerOutcome::OwnKey
    );
    node.tunnel
        .set_private_key(Some(private_key(C)), after(START));
    assert_eq!(node.tunnel.find_peer(&public_key(C)), None);
    assert_eq!(node.tunnel.route(inner(C)), None);
    assert_eq!(node.tunnel.peers().count(), 1);
}

#[test]
fn a_new_key_ends_the_sessions_and_greets_with_the_new_one() {
    let mut world = world();
    world.with(outer(B), |node: &mut Node, now| {
        node.add_peer(9, Some(outer(A)), now);
        node.update_peer(9, allowed(&[add("10.0.0.1/32")]), now);
    });
    a(&mut world, |node, now| {
        node.tunnel.set_private_key(Some(private_key(9)), now);
        node.take_handshakes();
    });
    world.run(secs(6));
    world.send((A, outer(A)), B, 0);
    world.send((B, outer(B)), A, 0);
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), 0);
    assert_eq!(a(&mut world, |node, _| node.take_handshakes()), 1);
}

#[test]
fn the_same_key_again_changes_nothing() {
    let mut world = world();
    a(&mut world, |node, now| {
        let before = node.poll_timeout();
        node.tunnel.set_private_key(Some(private_key(A)), now);
        assert_eq!(node.poll_timeout(), before);
        let outbound = node.tunnel.send(node.peer(B), 1, 48, now);
        assert!(matches!(outbound, Outbound::Seal(_)));
    });
}

#[test]
fn without_a_key_nothing_is_sent_or_taken() {
    let mut world = world();
    let initiation = world
        .wire
        .iter()
        .find(|(.., d)| d[0] == 1)
        .unwrap()
        .2
        .clone();
    a(&mut world, |node, now| {
        node.tunnel.set_private_key(None, now);
        let outbound = node.tunnel.send(node.peer(B), 1, 48, now);
        assert!(matches!(outbound, Outbound::Drop(DropReason::NoPrivateKey)));
        node.handshakes.clear();
        node.receive(outer(B), &initiation, now);
        assert_eq!(node.handshakes, [Err(Refusal::NoPrivateKey)]);
        assert_eq!(node.outgoing(), []);
    });
}

#[test]
fn a_preshared_key_may_change_while_traffic_flows() {
    let mut world = world();
    for second in 0..400 {
        if second == 50 {
            world.with(outer(A), |node: &mut Node, now| {
                node.set_psk(B, [5; 32], now)
            });
            world.with(outer(B), |node: &mut Node, now| {
                node.set_psk(A, [5; 32], now)
            });
        }
        world.send((A, outer(A)), B, 0);
        world.send((B, outer(B)), A, 0);
        world.run(secs(1));
    }
    assert_eq!(world.ledger.missing(), 0);
    let shown = a(&mut world, |node, _| {
        node.tunnel.peer(node.peer(B)).unwrap().preshared_key == &PresharedKey::new([5; 32])
    });
    assert!(shown);
}

#[test]
fn down_is_silent_and_deaf_and_up_greets() {
    let mut world = world();
    let initiation = world
        .wire
        .iter()
        .find(|(.., d)| d[0] == 1)
        .unwrap()
        .2
        .clone();
    a(&mut world, |node, now| {
        node.tunnel.set_down();
        assert_eq!((node.poll_timeout(), node.outgoing()), (None, vec![]));
        let outbound = node.tunnel.send(node.peer(B), 1, 48, now);
        assert!(matches!(outbound, Outbound::Drop(DropReason::Down)));
        assert_eq!(node.tunnel.queue(node.peer(B), &[0; 20]), 1);
        node.handshakes.clear();
        node.receive(outer(B), &initiation, now);
        assert_eq!(node.handshakes, [Err(Refusal::Down)]);
        node.set_keepalive(B, 1, now);
        assert_eq!(node.poll_timeout(), None);
    });
    world.run(secs(10));
    a(&mut world, |node, now| node.tunnel.set_up(now));
    world.run(secs(1));
    world.send((A, outer(A)), B, 0);
    world.send((B, outer(B)), A, 0);
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), 0);
}

#[test]
fn at_most_128_packets_of_a_peer_wait_and_the_oldest_give_way() {
    let mut node = Node::new(A, after(START));
    node.add_peer(B, Some(outer(B)), after(START));
    node.handle_timeout(after(START));
    let mut other = Node::new(B, after(START));
    other.add_peer(A, Some(outer(A)), after(START));
    for id in 0..200 {
        node.send(&packet(A, B, id, 0), after(START));
    }
    assert_eq!(node.overflown, 200 - 128);
    for _ in 0..3 {
        node.outgoing()
            .iter()
            .for_each(|(_, d)| other.receive(outer(A), d, after(START)));
        other
            .outgoing()
            .iter()
            .for_each(|(_, d)| node.receive(outer(B), d, after(START)));
    }
    let expected: Vec<_> = (72..200).map(|id| packet(A, B, id, 0)).collect();
    assert_eq!(other.delivered(), expected);
}

#[test]
fn all_waiting_packets_together_take_at_most_64_mib() {
    let mut node = Node::new(A, after(START));
    let big = vec![0; 65_000];
    let mut kept = 0;
    for number in 10..20 {
        let peer = node.add_peer(number, Some(outer(number)), after(START));
        kept += (0..128)
            .filter(|_| node.tunnel.queue(peer, &big) == 0)
            .count();
    }
    assert_eq!(kept, (64 << 20) / 65_000);
    node.tunnel.remove_peers();
    let peer = node.add_peer(10, Some(outer(10)), after(START));
    assert_eq!(node.tunnel.queue(peer, &big), 0);
}

#[test]
fn counters_of_bytes_count_both_ways() {
    let mut world = world();
    world.send((A, outer(A)), B, 72);
    world.run(secs(1));
    let on_wire = |world: &World, from: u8| -> u64 {
        let from_there = world
            .wire
            .iter()
            .filter(|(source, ..)| *source == outer(from));
        from_there.map(|(.., datagram)| datagram.len() as u64).sum()
    };
    let (sent_a, sent_b) = (on_wire(&world, A), on_wire(&world, B));
    let shown = a(&mut world, |node, _| {
        let status = node.tunnel.peer(node.peer(B)).unwrap();
        (
            status.sent_bytes,
            status.received_bytes,
            status.last_handshake.is_some(),
        )
    });
    assert_eq!(shown, (sent_a, sent_b, true));
}

/// The whole cost of one timer with very many peers: as with few.
#[test]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn a_timer_costs_the_same_with_ten_thousand_peers() {
    let cost = |peers: u32| {
        let mut tunnel = Tunnel::new([1; 32]);
        tunnel.set_private_key(Some(private_key(A)), after(START));
        for number in 0..peers {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            let update = PeerUpdate {
                endpoint: Some(SocketAddr::from(([192, 0, 2, 1], 1))),
                ..PeerUpdate::default()
            };
            tunnel.configure_peer(PublicKey(key), PeerChange::Upsert(update), after(START));
        }
        (0..50)
            .map(|turn| {
                let now = after(millis(2 * turn));
                let before = std::time::Instant::now();
                tunnel.handle_timeout(now);
                assert!(tunnel.poll_timeout().is_some());
                let cost = before.elapsed();
                assert!(tunnel.poll_transmit().is_some());
                cost
            })
            .min()
            .unwrap()
    };
    let (few, many) = (cost(60), cost(10_000));
    assert!(
        many < few * 5,
        "{few:?} with 60 peers, {many:?} with 10,000"
    );
}

#[test]
fn packets_that_waited_are_padded_to_the_mtu_of_the_moment_they_leave() {
    for (mtu, padded) in [(1420, 1280), (1277, 1277), (1275, 1275)] {
        let mut world = World::new(1);
        world.tapped = true;
        for (number, endpoint) in [(A, Some(outer(B))), (B, None)] {
            let now = world.now();
            let mut node = Node::new(number, now);
            node.add_peer(B + A - number, endpoint, now);
            world.add(outer(number), node);
        }
        world.send((A, outer(A)), B, 1275 - 28);
        assert!(
            !world.wire.iter().any(|(.., datagram)| datagram[0] == 4),
            "it waits"
        );
        a(&mut world, |node, _| node.tunnel.set_mtu(mtu));
        world.run(secs(1));
        let sent = world.wire.iter().map(|(.., d)| d.len()).max();
        assert_eq!(
            (sent, world.ledger.missing()),
            (Some(padded + 32), 0),
            "{mtu}"
        );
    }
}
