//! Under load: cookies, rate limits, and what a stranger costs.
use std::time::Duration;

use wire_core::{HandshakeOutcome, Refusal};

use crate::host::{Host, Node, outer};
use crate::world::{World, after, millis, secs};

const A: u8 = 1;
const B: u8 = 2;

/// A knows where B is; B only answers.
fn world() -> World {
    let mut world = World::new(1);
    world.tapped = true;
    let now = world.now();
    let mut a = Node::new(A, now);
    a.add_peer(B, Some(outer(B)), now);
    let mut b = Node::new(B, now);
    b.add_peer(A, None, now);
    world.add(outer(A), a);
    world.add(outer(B), b);
    world
}

fn initiation(seed: u8, at: Duration) -> Vec<u8> {
    let mut a = Node::seeded(A, seed, after(at));
    a.add_peer(B, Some(outer(B)), after(at));
    a.handle_timeout(after(at));
    a.outgoing().remove(0).1
}

#[test]
fn under_load_a_handshake_takes_a_cookie_and_one_more_attempt() {
    let mut world = world();
    world.with(outer(B), |b: &mut Node, _| b.tunnel.set_under_load(true));
    world.run(secs(4));
    let first: Vec<_> = world
        .wire
        .iter()
        .map(|(.., datagram)| datagram.len())
        .collect();
    assert_eq!(first, [148, 64]);
    world.run(secs(2));
    let kinds: Vec<_> = world
        .wire
        .iter()
        .map(|(.., datagram)| datagram[0])
        .collect();
    assert_eq!(kinds, [1, 3, 1, 2, 4]);
    let seen = world.with(outer(B), |b: &mut Node, _| {
        (b.handshakes.clone(), b.peer(A))
    });
    let expected = [
        Ok(HandshakeOutcome::CookieSent),
        Ok(HandshakeOutcome::Responded(seen.1)),
    ];
    assert_eq!(seen.0, expected);
}

#[test]
fn a_cookie_is_of_no_use_at_another_port() {
    let mut world = world();
    world.with(outer(B), |b: &mut Node, _| b.tunnel.set_under_load(true));
    world.run(secs(4));
    let a: Node = world.remove(outer(A));
    let mut moved = outer(A);
    moved.set_port(1);
    world.add(moved, a);
    world.run(secs(2));
    let seen = world.with(outer(B), |b: &mut Node, _| b.handshakes.clone());
    assert_eq!(seen, [Ok(HandshakeOutcome::CookieSent); 2]);
}

/// Mallory's n-th address.
fn elsewhere(number: u16) -> std::net::SocketAddr {
    let [high, low] = number.to_be_bytes();
    std::net::SocketAddr::from(([10, 9, high, low], 51820))
}

fn count(node: &Node, outcome: Result<HandshakeOutcome, Refusal>) -> usize {
    let same = |taken: &&_| **taken == outcome;
    node.handshakes.iter().filter(same).count()
}

const COOKIE: Result<HandshakeOutcome, Refusal> = Ok(HandshakeOutcome::CookieSent);

#[test]
fn more_than_512_handshakes_a_second_are_a_load_by_themselves() {
    let mut b = Node::new(B, after(Duration::ZERO));
    b.add_peer(A, None, after(Duration::ZERO));
    let datagram = initiation(1, Duration::ZERO);
    for number in 0..600 {
        b.receive(elsewhere(number), &datagram, after(Duration::ZERO));
    }
    // The first of them is a peer's, and not counted.
    assert_eq!(count(&b, COOKIE), 600 - 513);
    b.receive(outer(A), &datagram, after(millis(1_100)));
    assert_eq!(count(&b, COOKIE), 600 - 513);
}

#[test]
fn a_flood_costs_512_key_agreements_and_few_cookies() {
    let mut b = Node::new(B, after(Duration::ZERO));
    let datagram = initiation(1, Duration::ZERO);
    for _ in 0..2000 {
        b.receive(outer(A), &datagram, after(Duration::ZERO));
    }
    let asked = count(&b, Err(Refusal::UnknownPeer));
    assert_eq!((asked, count(&b, COOKIE)), (512, 5));
    for number in 0..2000 {
        b.receive(elsewhere(number), &datagram, after(Duration::ZERO));
    }
    let asked = count(&b, Err(Refusal::UnknownPeer));
    assert_eq!((asked, count(&b, COOKIE)), (512, 1024));
    assert_eq!(b.outgoing().len(), 1024);
}

#[test]
fn a_peer_that_was_here_before_gets_its_cookie_in_any_flood() {
    let mut world = world();
    world.run(secs(1));
    let stranger = initiation(9, secs(1));
    world.with(outer(B), |b: &mut Node, now| {
        (0..2000).for_each(|number| b.receive(elsewhere(number), &stranger, now));
        b.handshakes.clear();
        b.receive(elsewhere(3000), &stranger, now);
        b.receive(outer(A), &stranger, now);
        assert_eq!(b.handshakes, [Err(Refusal::NoCookie), COOKIE]);
    });
}

#[test]
fn who_does_not_know_our_key_gets_no_answer_not_even_a_cookie() {
    let mut b = Node::new(B, after(Duration::ZERO));
    b.tunnel.set_under_load(true);
    let mut datagram = initiation(1, Duration::ZERO);
    datagram[147 - 16] ^= 1;
    b.receive(outer(A), &datagram, after(Duration::ZERO));
    assert_eq!(b.handshakes, [Err(Refusal::Mac1)]);
    assert_eq!(b.outgoing(), []);
}

#[test]
fn a_stranger_who_knows_our_key_gets_no_answer_and_leaves_nothing_behind() {
    let mut b = Node::new(B, after(Duration::ZERO));
    b.receive(
        outer(A),
        &initiation(1, Duration::ZERO),
        after(Duration::ZERO),
    );
    assert_eq!(b.handshakes, [Err(Refusal::UnknownPeer)]);
    assert_eq!(
        (b.outgoing(), b.poll_timeout(), b.tunnel.peers().count()),
        (vec![], None, 0)
    );
}

#[test]
fn with_cookies_a_source_gets_five_handshakes_at_once() {
    let mut world = world();
    world.with(outer(B), |b: &mut Node, _| b.tunnel.set_under_load(true));
    world.run(secs(6));
    let proved = world
        .wire
        .iter()
        .rfind(|(.., d)| d[0] == 1)
        .unwrap()
        .2
        .clone();
    let mut refusals = world.with(outer(B), |b: &mut Node, now| {
        b.handshakes.clear();
        (0..20).for_each(|_| b.receive(outer(A), &proved, now));
        std::mem::take(&mut b.handshakes)
    });
    let limited = refusals
        .iter()
        .filter(|taken| **taken == Err(Refusal::RateLimited))
        .count();
    refusals.retain(|taken| *taken == Err(Refusal::Replayed));
    assert_eq!((refusals.len(), limited), (5, 15));
}

#[test]
fn a_forged_cookie_is_refused_and_the_true_one_still_taken() {
    let mut world = world();
    world.with(outer(B), |b: &mut Node, _| b.tunnel.set_under_load(true));
    world.run(millis(15));
    let mut forged = world.wire.last().unwrap().2.clone();
    assert_eq!(forged[0], 3);
    forged[40] ^= 1;
    let taken = world.with(outer(A), |a: &mut Node, now| {
        a.receive(outer(B), &forged, now);
        a.handshakes.clone()
    });
    assert_eq!(taken, [Err(Refusal::Forged)]);
    world.run(secs(6));
    let completed = world.with(outer(A), |a: &mut Node, _| a.take_handshakes());
    assert_eq!(completed, 1);
}

#[test]
fn a_forged_response_is_refused_and_the_true_one_still_taken() {
    let mut world = world();
    world.run(millis(15));
    let mut forged = world.wire.last().unwrap().2.clone();
    assert_eq!(forged[0], 2);
    forged[20] ^= 1;
    let taken = world.with(outer(A), |a: &mut Node, now| {
        a.receive(outer(B), &forged, now);
        a.handshakes.clone()
    });
    assert_eq!(taken, [Err(Refusal::Mac1)]);
    world.run(secs(1));
    let completed = world.with(outer(A), |a: &mut Node, _| a.take_handshakes());
    assert_eq!(completed, 1);
}
