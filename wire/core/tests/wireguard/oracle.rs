//! Against boringtun: both roles, loss and reordering, rekey, both at once, preshared keys,
//! cookies, and an hour of traffic.
use std::net::SocketAddr;

use wire_core::Event;

use crate::boring::{Boring, Setup};
use crate::host::{Node, outer};
use crate::world::{CALM, Weather, World, after, millis, secs};

const OURS: u8 = 1;
const THEIRS: u8 = 2;

fn us() -> (u8, SocketAddr) {
    (OURS, outer(OURS))
}

fn them() -> (u8, SocketAddr) {
    (THEIRS, outer(THEIRS))
}

/// One of ours at one end, boringtun at the other. Ours does not know where boringtun is, so that
/// boringtun begins, unless `endpoint` says.
fn world(seed: u64, endpoint: Option<SocketAddr>, psk: Option<[u8; 32]>, setup: Setup) -> World {
    let mut world = World::new(seed);
    let now = world.now();
    let mut node = Node::seeded(OURS, seed as u8, now);
    node.add_peer(THEIRS, None, now);
    if let Some(psk) = psk {
        node.set_psk(THEIRS, psk, now);
    }
    if endpoint.is_some() {
        node.add_peer(THEIRS, endpoint, now);
    }
    world.add(outer(OURS), node);
    world.add(outer(THEIRS), Boring::new(THEIRS, us(), setup, now));
    world
}

fn handshakes(world: &mut World) -> usize {
    world.with(outer(OURS), |node: &mut Node, _| node.take_handshakes())
}

fn assert_both_ways(world: &mut World) {
    let before = world.ledger.missing();
    world.send(us(), THEIRS, 100);
    world.run(secs(1));
    world.send(them(), OURS, 0);
    world.run(secs(1));
    assert_eq!(world.ledger.missing(), before);
}

#[test]
fn boringtun_answers_our_initiation() {
    let mut world = world(1, Some(outer(THEIRS)), None, Setup::default());
    world.run(secs(1));
    assert_eq!(handshakes(&mut world), 1);
    assert_both_ways(&mut world);
}

#[test]
fn we_answer_boringtuns_initiation() {
    let mut world = world(1, None, None, Setup::default());
    world.send(them(), OURS, 33);
    world.run(secs(1));
    assert_eq!(handshakes(&mut world), 1);
    assert_eq!(world.ledger.missing(), 0);
    assert_both_ways(&mut world);
}

#[test]
fn preshared_keys_agree_in_both_roles() {
    for endpoint in [None, Some(outer(THEIRS))] {
        let setup = Setup {
            psk: Some([9; 32]),
            ..Setup::default()
        };
        let mut world = world(1, endpoint, Some([9; 32]), setup);
        world.send(them(), OURS, 0);
        world.run(secs(1));
        assert_both_ways(&mut world);
    }
}

#[test]
fn a_wrong_preshared_key_makes_no_session() {
    for endpoint in [None, Some(outer(THEIRS))] {
        let setup = Setup {
            psk: Some([9; 32]),
            ..Setup::default()
        };
        let mut world = world(1, endpoint, Some([8; 32]), setup);
        world.send(them(), OURS, 0);
        world.run(secs(60));
        assert_eq!(handshakes(&mut world), 0);
        assert_eq!(world.ledger.missing(), 1);
    }
}

#[test]
fn a_preshared_key_set_later_holds_from_the_next_handshake_on() {
    let setup = Setup {
        psk: Some([9; 32]),
        ..Setup::default()
    };
    let mut world = world(1, Some(outer(THEIRS)), None, setup);
    world.send(us(), THEIRS, 0);
    world.run(secs(8));
    assert_eq!(handshakes(&mut world), 0);
    world.with(outer(OURS), |node: &mut Node, now| {
        node.set_psk(THEIRS, [9; 32], now)
    });
    world.run(secs(8));
    assert_eq!(handshakes(&mut world), 1);
    assert_both_ways(&mut world);
}

#[test]
fn both_may_initiate_at_once() {
    for seed in 0..20 {
        let mut world = world(seed, Some(outer(THEIRS)), None, Setup::default());
        world.with(outer(THEIRS), |boring: &mut Boring, now| {
            boring.initiate(now)
        });
        world.run(secs(1));
        assert!(handshakes(&mut world) > 0, "seed {seed}");
        assert_both_ways(&mut world);
    }
}

#[test]
fn we_come_through_when_boringtun_wants_a_cookie() {
    let setup = Setup {
        loaded: true,
        ..Setup::default()
    };
    let mut world = world(1, Some(outer(THEIRS)), None, setup);
    world.run(secs(4));
    assert_eq!(handshakes(&mut world), 0);
    world.run(secs(2));
    assert_eq!(handshakes(&mut world), 1);
    assert_both_ways(&mut world);
}

#[test]
fn boringtun_comes_through_when_we_want_a_cookie() {
    let mut world = world(1, None, None, Setup::default());
    world.with(outer(OURS), |node: &mut Node, _| {
        node.tunnel.set_under_load(true)
    });
    world.send(them(), OURS, 0);
    world.run(secs(4));
    assert_eq!(handshakes(&mut world), 0);
    world.run(secs(3));
    assert_eq!(handshakes(&mut world), 1);
    assert_both_ways(&mut world);
}

/// Packets both ways at random distances, in bursts.
fn traffic(world: &mut World, seconds: u64) {
    let end = world.elapsed + secs(seconds);
    while world.elapsed < end {
        for _ in 0..=world.random(3) {
            let (from, to) = if world.random(2) == 0 {
                (us(), THEIRS)
            } else {
                (them(), OURS)
            };
            let more = world.random(1300) as usize;
            world.send(from, to, more);
        }
        let pause = millis(world.random(1500).into());
        world.run(pause);
    }
}

#[test]
fn an_hour_of_traffic_loses_nothing_and_rekeys_every_two_minutes() {
    for (seed, endpoint) in [(1, None), (2, Some(outer(THEIRS)))] {
        let mut world = world(seed, endpoint, None, Setup::default());
        world.send(them(), OURS, 0);
        world.run(secs(1));
        traffic(&mut world, 3600);
        world.run(secs(1));
        assert_eq!(world.ledger.missing(), 0, "of {}", world.ledger.sent.len());
        let handshakes = handshakes(&mut world);
        assert!((28..=31).contains(&handshakes), "{handshakes} handshakes");
    }
}

#[test]
fn loss_and_reordering_cost_only_what_the_network_lost() {
    for seed in 0..8 {
        let mut world = world(seed, Some(outer(THEIRS)), None, Setup::default());
        world.send(us(), THEIRS, 0);
        world.run(secs(2));
        world.weather = Weather {
            loss: 10,
            twice: 10,
            delay: millis(5),
            jitter: millis(400),
        };
        traffic(&mut world, 1200);
        world.weather = CALM;
        world.run(secs(30));
        let (missing, lost) = (world.ledger.missing(), world.ledger.lost);
        assert!(missing <= lost, "{missing} missing, {lost} lost");
        assert_both_ways(&mut world);
    }
}

#[test]
fn silence_is_answered_with_a_keepalive_and_then_a_handshake() {
    let mut world = world(1, Some(outer(THEIRS)), None, Setup::default());
    world.run(secs(1));
    world.tapped = true;
    world.send(them(), OURS, 0);
    world.run(secs(12));
    let from_us: Vec<_> = world
        .wire
        .iter()
        .filter(|(source, ..)| *source == outer(OURS))
        .collect();
    assert_eq!(from_us.len(), 1, "one keepalive");
    assert_eq!(from_us[0].2.len(), 32);

    world.remove::<Boring>(outer(THEIRS));
    world.send(us(), THEIRS, 0);
    let now = world.now();
    world.add(
        outer(THEIRS),
        Boring::new(THEIRS, us(), Setup::default(), now),
    );
    world.run(secs(16));
    assert_both_ways(&mut world);
}

#[test]
fn keys_die_after_nine_minutes_of_silence_and_are_made_anew() {
    let mut world = world(1, Some(outer(THEIRS)), None, Setup::default());
    world.run(secs(1));
    handshakes(&mut world);
    world.run(secs(600));
    let expired = world.with(outer(OURS), |node: &mut Node, _| {
        node.events
            .iter()
            .filter(|event| matches!(event, Event::SessionExpired { .. }))
            .count()
    });
    assert_eq!(expired, 1);
    let now = after(world.elapsed);
    world.remove::<Boring>(outer(THEIRS));
    world.add(
        outer(THEIRS),
        Boring::new(THEIRS, us(), Setup::default(), now),
    );
    assert_both_ways(&mut world);
}
