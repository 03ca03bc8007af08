//! Our tunnels among themselves through hours of virtual time and bad weather. The ledger asserts
//! at every delivery that the packet was sent and was not delivered before.
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use wire_core::{Event, Role};

use crate::host::{Node, outer, public_key};
use crate::world::{CALM, Weather, World, millis, secs};

const NODES: [u8; 3] = [1, 2, 3];

/// Three nodes that all know each other, connected.
fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    for number in NODES {
        let now = world.now();
        let mut node = Node::seeded(number, number + 10 * (seed % 20) as u8, now);
        for peer in NODES.into_iter().filter(|peer| *peer != number) {
            node.add_peer(peer, Some(outer(peer)), now);
        }
        world.add(outer(number), node);
    }
    world.run(secs(6));
    world
}

/// Packets between random nodes at random distances.
fn traffic(world: &mut World, duration: Duration, pause: u32) {
    let end = world.elapsed + duration;
    while world.elapsed < end {
        for _ in 0..=world.random(3) {
            let from = NODES[world.random(3) as usize];
            let to = NODES
                .into_iter()
                .filter(|to| *to != from)
                .nth(world.random(2) as usize);
            let more = world.random(1300) as usize;
            world.send(at(from), to.unwrap(), more);
        }
        let wait = world.random(pause);
        world.run(millis(wait.into()));
    }
}

fn at(number: u8) -> (u8, SocketAddr) {
    (number, outer(number))
}

fn node<R>(world: &mut World, number: u8, act: impl FnOnce(&mut Node) -> R) -> R {
    world.with(outer(number), |node: &mut Node, _| act(node))
}

fn handshakes(world: &mut World) -> [usize; 3] {
    NODES.map(|number| node(world, number, Node::take_handshakes))
}

/// Packets that a tunnel dropped for a reason it names.
fn named(world: &mut World) -> usize {
    NODES
        .map(|number| node(world, number, |node| node.overflown + node.expired))
        .iter()
        .sum()
}

fn assert_nobody_moved(world: &mut World, elsewhere: SocketAddr) {
    for number in NODES {
        let moved = node(world, number, |node| {
            node.tunnel
                .peers()
                .any(|peer| peer.endpoint.is_some_and(|e| e.remote == elsewhere))
        });
        assert!(!moved, "an endpoint of {number} moved");
    }
}

#[test]
fn hours_of_calm_lose_nothing_and_rekey_every_two_minutes() {
    for seed in 0..4 {
        let mut world = world(seed);
        handshakes(&mut world);
        traffic(&mut world, secs(2 * 3600), 1000);
        world.run(secs(1));
        assert_eq!(world.ledger.missing(), 0, "of {}", world.ledger.sent.len());
        for completed in handshakes(&mut world) {
            assert!(
                (2 * 57..=2 * 60).contains(&completed),
                "{completed} with two peers"
            );
        }
    }
}

/// Sessions that one of the two began, and that the other did.
fn initiated(world: &mut World) -> [usize; 2] {
    [1, 2].map(|number| {
        let peer = public_key(3 - number);
        let begun = |event: &&Event| match event {
            Event::HandshakeCompleted {
                public_key, role, ..
            } => *public_key == peer && *role == Role::Initiator,
            Event::HandshakeAbandoned { .. }
            | Event::EndpointChanged { .. }
            | Event::SessionExpired { .. } => false,
        };
        node(world, number, |node| {
            node.events.iter().filter(begun).count()
        })
    })
}

#[test]
fn two_who_began_at_once_do_not_collide_at_every_rekey() {
    for seed in 0..4 {
        let mut world = world(seed);
        assert_eq!(initiated(&mut world), [1, 1], "they began at once");
        for _ in 0..3600 {
            world.send(at(1), 2, 0);
            world.send(at(2), 1, 0);
            world.run(secs(1));
        }
        assert_eq!(world.ledger.missing(), 0);
        let first = usize::from(public_key(1) > public_key(2));
        let begun = initiated(&mut world);
        assert_eq!(begun[1 - first], 1, "{begun:?}: the greater key gave way");
        assert!((29..=31).contains(&begun[first]), "{begun:?}");
    }
}

#[test]
fn silence_of_any_length_costs_nothing() {
    let mut world = world(1);
    for silence in [
        1, 9, 11, 100, 119, 121, 164, 166, 179, 181, 539, 541, 3600, 90_000,
    ] {
        world.run(secs(silence));
        world.send(at(1), 2, 0);
        world.send(at(2), 1, 0);
        world.send(at(3), 1, 0);
        world.run(secs(6));
        assert_eq!(world.ledger.missing(), 0, "after {silence} s");
    }
}

#[test]
fn a_restarted_node_is_back_at_once_because_it_greets() {
    let mut world = world(1);
    world.send(at(1), 2, 0);
    world.run(secs(60));
    world.remove::<Node>(outer(2));
    let now = world.now();
    let mut reborn = Node::seeded(2, 99, now);
    reborn.add_peer(1, Some(outer(1)), now);
    world.add(outer(2), reborn);
    world.run(secs(1));
    world.send(at(1), 2, 0);
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), 0);
}

#[test]
fn after_a_cut_of_any_length_traffic_is_back_within_six_seconds() {
    for cut in [1, 14, 16, 60, 100, 170, 190, 600, 4000] {
        let mut world = world(cut);
        world.weather = Weather { loss: 100, ..CALM };
        traffic(&mut world, secs(cut), 1000);
        world.weather = CALM;
        traffic(&mut world, secs(6), 1000);
        let before = world.ledger.missing();
        traffic(&mut world, secs(300), 1000);
        world.run(secs(1));
        assert_eq!(world.ledger.missing(), before, "after a cut of {cut} s");
        assert_eq!(
            before,
            world.ledger.lost + named(&mut world),
            "cut of {cut} s"
        );
    }
}

/// Everything that was ever on the wire comes again, from elsewhere, at random later times.
#[test]
fn an_attacker_who_repeats_everything_achieves_nothing() {
    let elsewhere = outer(200);
    let mut world = world(3);
    world.tapped = true;
    for _ in 0..60 {
        traffic(&mut world, secs(20), 1000);
        for _ in 0..200 {
            let pick = world.random(world.wire.len() as u32) as usize;
            let (_, destination, datagram) = world.wire[pick].clone();
            world.inject(elsewhere, destination, datagram);
        }
    }
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), 0);
    assert_nobody_moved(&mut world, elsewhere);
}

/// Datagrams that were on the wire, with bits flipped, cut short or made longer.
#[test]
fn an_attacker_who_changes_what_he_saw_achieves_nothing() {
    let elsewhere = outer(200);
    let mut world = world(5);
    world.tapped = true;
    for _ in 0..100 {
        traffic(&mut world, secs(5), 1000);
        for _ in 0..200 {
            let pick = world.random(world.wire.len() as u32) as usize;
            let (_, destination, mut datagram) = world.wire[pick].clone();
            match world.random(4) {
                0 => datagram.truncate(world.random(datagram.len() as u32) as usize),
                1 => datagram.push(0),
                _ => {
                    let bit = world.random(8 * datagram.len() as u32);
                    datagram[bit as usize / 8] ^= 1 << (bit % 8);
                }
            }
            world.inject(elsewhere, destination, datagram);
        }
    }
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), 0);
    assert_nobody_moved(&mut world, elsewhere);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn bad_weather_costs_exactly_what_the_network_lost(
        seed: u64,
        loss in 0_u32..30,
        twice in 0_u32..20,
        jitter in 0_u64..900,
        pause in 200_u32..3000,
    ) {
        let mut world = world(seed);
        world.weather = Weather { loss, twice, jitter: millis(jitter), ..CALM };
        traffic(&mut world, secs(1200), pause);
        world.weather = CALM;
        traffic(&mut world, secs(20), pause);
        world.run(secs(6));
        let named = world.ledger.lost + named(&mut world);
        prop_assert_eq!(world.ledger.missing(), named, "of {}", world.ledger.sent.len());
    }
}
