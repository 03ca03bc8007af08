//! Both sides begin a handshake at once.
use std::time::Duration;

use wire_core::{HandshakeOutcome, Message, Now, Refusal};

use crate::host::{Host, Node, outer, packet};
use crate::world::after;

const A: u8 = 1;
const B: u8 = 2;

/// Two nodes whose initiations are under way to each other, and those initiations.
fn both_have_begun() -> (Node, Node, Vec<u8>, Vec<u8>, Now) {
    let now = after(Duration::ZERO);
    let [(a, from_a), (b, from_b)] = [(A, B), (B, A)].map(|(number, peer)| {
        let mut node = Node::new(number, now);
        node.add_peer(peer, Some(outer(peer)), now);
        node.handle_timeout(now);
        let initiation = only(&mut node);
        (node, initiation)
    });
    (a, b, from_a, from_b, now)
}

fn only(node: &mut Node) -> Vec<u8> {
    let mut sent = node.outgoing();
    assert_eq!(sent.len(), 1);
    sent.remove(0).1
}

#[test]
fn whichever_response_comes_first_is_used() {
    let (mut a, mut b, from_a, from_b, now) = both_have_begun();
    a.receive(outer(B), &from_b, now);
    b.receive(outer(A), &from_a, now);
    let response = only(&mut b);
    a.receive(outer(B), &response, now);
    assert_eq!(a.handshakes[1], Ok(HandshakeOutcome::Completed(a.peer(B))));
    a.send(&packet(A, B, 0, 0), now);
    for (_, datagram) in a.outgoing() {
        assert!(!matches!(
            Message::classify(&datagram),
            Ok(Message::Initiation)
        ));
        b.receive(outer(A), &datagram, now);
    }
    assert_eq!(b.delivered(), [packet(A, B, 0, 0)]);
}

#[test]
fn a_response_that_comes_when_the_peers_session_is_in_use_is_refused() {
    let (mut a, mut b, from_a, from_b, now) = both_have_begun();
    b.receive(outer(A), &from_a, now);
    let late = only(&mut b);
    a.receive(outer(B), &from_b, now);
    let response = only(&mut a);
    b.receive(outer(A), &response, now);
    let first_packet = only(&mut b);
    a.receive(outer(B), &first_packet, now);
    a.receive(outer(B), &late, now);
    let expected = [
        Ok(HandshakeOutcome::Responded(a.peer(B))),
        Err(Refusal::UnknownIndex),
    ];
    assert_eq!(a.handshakes, expected);
    a.send(&packet(A, B, 0, 0), now);
    a.outgoing()
        .iter()
        .for_each(|(_, datagram)| b.receive(outer(A), datagram, now));
    assert_eq!(b.delivered(), [packet(A, B, 0, 0)]);
}
