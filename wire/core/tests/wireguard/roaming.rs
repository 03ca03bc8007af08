//! Where packets come from: roaming, replays, and who may speak for which address.
use std::time::Duration;

use wire_core::{AllowedIpChange, Event, PeerUpdate, Verdict};

use crate::host::{Host, Node, outer, packet, public_key};
use crate::world::{World, after, millis, secs};

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;
const ELSEWHERE: u8 = 77;

/// A, B and C, all connected, and the wire tapped.
fn world() -> World {
    let mut world = World::new(1);
    world.tapped = true;
    for (number, peers) in [(A, [B, C]), (B, [A, C]), (C, [A, B])] {
        let now = world.now();
        let mut node = Node::new(number, now);
        for peer in peers {
            node.add_peer(peer, Some(outer(peer)), now);
        }
        world.add(outer(number), node);
    }
    world.run(secs(6));
    world
}

fn endpoint_of_b(world: &mut World) -> std::net::SocketAddr {
    world.with(outer(A), |a: &mut Node, _| {
        a.tunnel.peer(a.peer(B)).unwrap().endpoint.unwrap().remote
    })
}

fn verdicts(world: &mut World, number: u8) -> Vec<Verdict> {
    world.with(outer(number), |node: &mut Node, _| {
        std::mem::take(&mut node.verdicts)
    })
}

#[test]
fn a_peer_that_moves_keeps_its_session_and_is_followed() {
    let mut world = world();
    world.with(outer(A), |a: &mut Node, _| a.events.clear());
    let b: Node = world.remove(outer(B));
    world.add(outer(ELSEWHERE), b);
    world.send((B, outer(ELSEWHERE)), A, 0);
    world.run(secs(1));
    world.send((A, outer(A)), B, 0);
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), 0);
    let events = world.with(outer(A), |a: &mut Node, _| {
        let moved = Event::EndpointChanged {
            peer: a.peer(B),
            public_key: public_key(B),
            endpoint: outer(ELSEWHERE),
        };
        (a.events.clone(), vec![moved])
    });
    assert_eq!(events.0, events.1);
}

#[test]
fn a_replay_from_elsewhere_is_dropped_and_moves_nothing() {
    let mut world = world();
    world.send((B, outer(B)), A, 0);
    world.run(secs(1));
    for (_, destination, datagram) in world.wire.clone() {
        if destination == outer(A) {
            world.inject(outer(ELSEWHERE), outer(A), datagram);
        }
    }
    verdicts(&mut world, A);
    world.run(secs(1));
    let seen = verdicts(&mut world, A);
    assert!(seen.len() >= 2 && seen.iter().all(|verdict| *verdict == Verdict::Replayed));
    assert_eq!(endpoint_of_b(&mut world), outer(B));
    assert_eq!(world.ledger.missing(), 0);
}

#[test]
fn a_forgery_under_a_known_index_moves_nothing() {
    let mut world = world();
    world.send((B, outer(B)), A, 0);
    let mut forged = world.wire.last().unwrap().2.clone();
    world.run(secs(1));
    forged[8] ^= 0x40;
    world.inject(outer(ELSEWHERE), outer(A), forged);
    verdicts(&mut world, A);
    world.run(secs(1));
    assert_eq!(verdicts(&mut world, A), []);
    assert_eq!(endpoint_of_b(&mut world), outer(B));
}

#[test]
fn a_peer_speaks_only_for_addresses_it_owns() {
    let mut world = world();
    let now = world.now();
    let forged = packet(C, A, 0, 0);
    world.with(outer(B), |b: &mut Node, _| {
        b.seal(&[forged], b.peer(A), now)
    });
    verdicts(&mut world, A);
    world.run(secs(1));
    assert_eq!(verdicts(&mut world, A), [Verdict::WrongSource]);
}

/// The hole of implementations that look only into the sender's own networks.
#[test]
fn the_owner_of_a_wide_network_does_not_speak_for_a_narrow_one_inside_it() {
    let mut world = world();
    world.with(outer(A), |a: &mut Node, now| {
        let allowed_ips = vec![AllowedIpChange::Add("10.0.0.0/8".parse().unwrap())];
        a.update_peer(
            B,
            PeerUpdate {
                allowed_ips,
                ..PeerUpdate::default()
            },
            now,
        );
    });
    let now = world.now();
    let sources = [
        (200, Verdict::Deliver),
        (C, Verdict::WrongSource),
        (B, Verdict::Deliver),
    ];
    for (source, expected) in sources {
        let claimed = packet(source, A, 1, 0);
        world.ledger.sent.insert(claimed.clone());
        world.with(outer(B), |b: &mut Node, _| {
            b.seal(&[claimed], b.peer(A), now)
        });
        verdicts(&mut world, A);
        world.run(secs(1));
        assert_eq!(verdicts(&mut world, A), [expected], "{source}");
    }
}

#[test]
fn a_replayed_initiation_is_refused_for_ever() {
    let mut world = world();
    let initiation = world
        .wire
        .iter()
        .find(|(_, to, d)| *to == outer(B) && d[0] == 1)
        .unwrap();
    let (source, _, datagram) = initiation.clone();
    for wait in [1, 300, 7200] {
        world.run(secs(wait));
        world.with(outer(B), |b: &mut Node, _| b.handshakes.clear());
        world.inject(source, outer(B), datagram.clone());
        world.run(secs(1));
        let taken = world.with(outer(B), |b: &mut Node, _| b.handshakes.clone());
        assert_eq!(taken, [Err(wire_core::Refusal::Replayed)]);
    }
}

#[test]
fn initiations_of_one_peer_faster_than_50_a_second_are_ignored() {
    let mut b = Node::new(B, after(Duration::ZERO));
    b.add_peer(A, None, after(Duration::ZERO));
    let mut initiations = Vec::new();
    for (i, at) in [0, 5_400].into_iter().enumerate() {
        let mut a = Node::seeded(A, i as u8, after(millis(at)));
        a.add_peer(B, Some(outer(B)), after(millis(at)));
        a.handle_timeout(after(millis(at)));
        initiations.push(a.outgoing().remove(0).1);
    }
    let now = after(millis(6_000));
    b.receive(outer(A), &initiations[0], now);
    b.receive(outer(A), &initiations[1], after(millis(6_019)));
    b.receive(outer(A), &initiations[1], after(millis(6_020)));
    let id = b.peer(A);
    let responded = Ok(wire_core::HandshakeOutcome::Responded(id));
    assert_eq!(
        b.handshakes,
        [responded, Err(wire_core::Refusal::TooFast), responded]
    );
}

#[test]
fn a_local_address_comes_back_with_the_reply_until_it_is_forgotten() {
    let mut a = Node::new(A, after(Duration::ZERO));
    a.add_peer(B, None, after(Duration::ZERO));
    let mut b = Node::new(B, after(Duration::ZERO));
    b.add_peer(A, Some(outer(A)), after(Duration::ZERO));
    b.handle_timeout(after(Duration::ZERO));
    let initiation = b.outgoing().remove(0).1;
    let local = wire_core::Local {
        address: outer(A).ip(),
        interface: 7,
    };
    let source = wire_core::Endpoint {
        remote: outer(B),
        local: Some(local),
    };
    a.tunnel
        .handle_handshake(source, &initiation, after(Duration::ZERO))
        .unwrap();
    assert_eq!(a.tunnel.poll_transmit().unwrap().destination, source);
    let id = a.peer(B);
    a.tunnel.forget_local(id);
    assert_eq!(a.tunnel.peer(id).unwrap().endpoint, Some(outer(B).into()));
}
