//! Every timer at its exact moment: nothing a nanosecond before, something on the dot.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire_core::{Event, Message, Now, Outbound, PeerUpdate};

use crate::host::{Host, Node, outer, packet, public_key};
use crate::world::{after, millis, secs};

const A: u8 = 1;
const B: u8 = 2;
const KEEPALIVE: usize = 32;
const JITTER: Duration = Duration::from_millis(333);

/// Two nodes and no network: what one sends, the other has at once.
struct Pair {
    a: Node,
    b: Node,
}

impl Pair {
    /// A session since second 0, begun by A; nothing is outstanding.
    fn connected() -> Self {
        let mut pair = Self {
            a: lonely(),
            b: Node::new(B, after(Duration::ZERO)),
        };
        pair.b.add_peer(A, None, after(Duration::ZERO));
        pair.a.handle_timeout(after(Duration::ZERO));
        pair.exchange(after(Duration::ZERO));
        assert_eq!((pair.a.take_handshakes(), pair.b.take_handshakes()), (1, 1));
        pair
    }

    /// Carries datagrams until both are silent.
    fn exchange(&mut self, now: Now) {
        loop {
            let (from_a, from_b) = (self.a.outgoing(), self.b.outgoing());
            if from_a.is_empty() && from_b.is_empty() {
                return;
            }
            from_a
                .iter()
                .for_each(|(_, datagram)| self.b.receive(outer(A), datagram, now));
            from_b
                .iter()
                .for_each(|(_, datagram)| self.a.receive(outer(B), datagram, now));
        }
    }

    fn data_from_a(&mut self, at: Duration) {
        self.a.send(&packet(A, B, 0, 0), after(at));
        self.exchange(after(at));
    }

    fn data_from_b(&mut self, at: Duration) {
        self.b.send(&packet(B, A, 0, 0), after(at));
        self.exchange(after(at));
    }
}

/// A, which knows where B is; nobody answers.
fn lonely() -> Node {
    let mut a = Node::new(A, after(Duration::ZERO));
    a.add_peer(B, Some(outer(B)), after(Duration::ZERO));
    a
}

fn start() -> Instant {
    after(Duration::ZERO).instant
}

fn deadline(node: &Node) -> Duration {
    node.poll_timeout().expect("a timer runs") - start()
}

/// Serves the next timer, a nanosecond early in vain and then on time; gives when, and what was
/// sent.
fn next(node: &mut Node) -> (Duration, Vec<Vec<u8>>) {
    let at = deadline(node);
    if let Some(early) = at.checked_sub(Duration::from_nanos(1)) {
        node.handle_timeout(after(early));
        assert_eq!(node.outgoing(), []);
        assert_eq!(deadline(node), at);
    }
    node.handle_timeout(after(at));
    (
        at,
        node.outgoing()
            .into_iter()
            .map(|(_, datagram)| datagram)
            .collect(),
    )
}

fn is_initiation(datagrams: &[Vec<u8>]) -> bool {
    datagrams.len() == 1 && Message::classify(&datagrams[0]) == Ok(Message::Initiation)
}

#[test]
fn an_initiation_is_repeated_after_5_seconds_and_jitter_for_90_seconds() {
    let mut a = lonely();
    let (mut last, sent) = next(&mut a);
    assert!(last == Duration::ZERO && is_initiation(&sent));
    let mut count = 1;
    loop {
        let (at, sent) = next(&mut a);
        assert!(
            (secs(5)..=secs(5) + JITTER).contains(&(at - last)),
            "{at:?}"
        );
        last = at;
        if sent.is_empty() {
            break;
        }
        assert!(is_initiation(&sent) && at < secs(90));
        count += 1;
    }
    assert!((secs(90)..secs(96)).contains(&last) && (17..=18).contains(&count));
    let abandoned = Event::HandshakeAbandoned {
        peer: a.peer(B),
        public_key: public_key(B),
    };
    assert_eq!(a.events, [abandoned]);
    assert_eq!(next(&mut a), (last + secs(540), vec![]));
    assert_eq!(a.poll_timeout(), None);
}

#[test]
fn packets_prolong_the_attempts_and_are_dropped_with_them() {
    let mut a = lonely();
    next(&mut a);
    while deadline(&a) < secs(50) {
        next(&mut a);
    }
    a.send(&packet(A, B, 0, 0), after(secs(50)));
    let mut last = secs(50);
    while a.events.is_empty() {
        last = next(&mut a).0;
    }
    assert!((secs(140)..secs(146)).contains(&last), "{last:?}");
    let mut b = Node::new(B, after(last));
    b.add_peer(A, Some(outer(A)), after(last));
    b.handle_timeout(after(last));
    let mut pair = Pair { a, b };
    pair.exchange(after(last));
    assert_eq!(pair.b.delivered(), Vec::<Vec<u8>>::new());
}

#[test]
fn a_packet_within_5_seconds_of_an_initiation_begins_no_other() {
    let mut a = lonely();
    next(&mut a);
    a.send(&packet(A, B, 0, 0), after(millis(4_999)));
    assert_eq!(a.outgoing(), []);
    let (at, sent) = next(&mut a);
    assert!(is_initiation(&sent) && at >= secs(5));
}

#[test]
fn received_data_is_answered_after_10_seconds_of_silence() {
    let mut pair = Pair::connected();
    pair.data_from_a(secs(7));
    let (at, sent) = next(&mut pair.b);
    assert_eq!((at, sent.len(), sent[0].len()), (secs(17), 1, KEEPALIVE));
}

#[test]
fn an_answer_in_time_makes_the_keepalive_needless() {
    let mut pair = Pair::connected();
    pair.data_from_a(secs(7));
    pair.data_from_b(secs(16));
    let (at, keepalive) = next(&mut pair.a);
    assert_eq!(at, secs(26));
    pair.b.receive(outer(A), &keepalive[0], after(at));
    assert_eq!(next(&mut pair.b), (secs(540), vec![]));
}

#[test]
fn data_that_comes_while_the_timer_runs_earns_one_more_keepalive() {
    let mut pair = Pair::connected();
    pair.data_from_a(secs(7));
    pair.data_from_a(secs(9));
    assert_eq!(next(&mut pair.b).0, secs(17));
    let (at, sent) = next(&mut pair.b);
    assert_eq!((at, sent.len()), (secs(27), 1));
    assert_eq!(next(&mut pair.b), (secs(540), vec![]));
}

#[test]
fn a_keepalive_earns_no_keepalive() {
    let mut pair = Pair::connected();
    assert_eq!(deadline(&pair.a), secs(540));
    assert_eq!(deadline(&pair.b), secs(540));
    pair.data_from_a(secs(7));
    let (at, sent) = next(&mut pair.b);
    pair.a.receive(outer(B), &sent[0], after(at));
    assert_eq!(deadline(&pair.a), secs(540));
}

#[test]
fn sent_data_without_an_answer_begins_a_handshake_after_15_seconds_and_jitter() {
    let mut pair = Pair::connected();
    pair.a.send(&packet(A, B, 0, 0), after(secs(20)));
    pair.a.send(&packet(A, B, 1, 0), after(secs(30)));
    pair.a.outgoing();
    let (at, sent) = next(&mut pair.a);
    assert!(
        (secs(35)..=secs(35) + JITTER).contains(&at) && is_initiation(&sent),
        "{at:?}"
    );
}

#[test]
fn any_authentic_packet_is_an_answer() {
    let mut pair = Pair::connected();
    pair.data_from_a(secs(20));
    let (at, sent) = next(&mut pair.b);
    assert_eq!(at, secs(30));
    pair.a.receive(outer(B), &sent[0], after(at));
    assert_eq!(deadline(&pair.a), secs(540));
}

#[test]
fn the_initiator_rekeys_with_the_first_packet_after_120_seconds() {
    let mut pair = Pair::connected();
    pair.data_from_a(secs(120) - Duration::from_nanos(1));
    assert_eq!(pair.a.take_handshakes(), 0);
    pair.data_from_a(secs(120));
    assert_eq!((pair.a.take_handshakes(), pair.b.take_handshakes()), (1, 1));
}

#[test]
fn the_responder_does_not_rekey_by_time() {
    let mut pair = Pair::connected();
    pair.b.send(&packet(B, A, 0, 0), after(secs(179)));
    let sent = pair.b.outgoing();
    assert_eq!(sent.len(), 1);
    assert!(matches!(
        Message::classify(&sent[0].1),
        Ok(Message::Data { .. })
    ));
}

#[test]
fn received_data_makes_the_initiator_rekey_from_165_seconds_on_and_once() {
    let mut pair = Pair::connected();
    pair.data_from_b(secs(165) - Duration::from_nanos(1));
    assert_eq!(pair.a.take_handshakes(), 0);
    for at in [165, 166, 171] {
        pair.b.send(&packet(B, A, 0, 0), after(secs(at)));
        for (_, datagram) in pair.b.outgoing() {
            pair.a.receive(outer(B), &datagram, after(secs(at)));
        }
    }
    let sent: Vec<_> = pair
        .a
        .outgoing()
        .into_iter()
        .map(|(_, datagram)| datagram)
        .collect();
    assert!(is_initiation(&sent));
}

#[test]
fn a_session_is_neither_sent_nor_received_with_from_180_seconds_on() {
    let mut pair = Pair::connected();
    let to_b = pair.a.peer(B);
    let before = after(secs(180) - Duration::from_nanos(1));
    pair.b.send(&packet(B, A, 0, 0), before);
    let datagram = pair.b.outgoing().remove(0).1;
    let Ok(Message::Data { receiver, .. }) = Message::classify(&datagram) else {
        panic!()
    };
    assert!(pair.a.tunnel.session(receiver, before).is_some());
    assert!(pair.a.tunnel.session(receiver, after(secs(180))).is_none());
    assert!(matches!(
        pair.a.tunnel.send(to_b, 1, 48, before),
        Outbound::Seal(_)
    ));
    assert!(matches!(
        pair.a.tunnel.send(to_b, 1, 48, after(secs(180))),
        Outbound::Queue
    ));
    assert!(matches!(
        pair.a.tunnel.send(to_b, 1, 48, before),
        Outbound::Queue
    ));
}

#[test]
fn a_session_opened_in_time_but_judged_too_late_counts_for_nothing() {
    let mut pair = Pair::connected();
    pair.b.send(&packet(B, A, 0, 0), after(secs(179)));
    let mut datagram = pair.b.outgoing().remove(0).1;
    let Ok(Message::Data { receiver, .. }) = Message::classify(&datagram) else {
        panic!()
    };
    let session = pair.a.tunnel.session(receiver, after(secs(179))).unwrap();
    let opened = [session.open(&mut datagram).unwrap()];
    let mut verdicts = Vec::new();
    let (source, now) = (outer(9).into(), after(secs(180)));
    pair.a
        .tunnel
        .received(&session, source, &opened, &mut verdicts, now);
    assert_eq!(verdicts, [wire_core::Verdict::SessionGone]);
    let endpoint = pair
        .a
        .tunnel
        .peer(pair.a.peer(B))
        .unwrap()
        .endpoint
        .unwrap();
    assert_eq!(endpoint.remote, outer(B));
}

#[test]
fn all_keys_are_erased_540_seconds_after_the_last_handshake() {
    let mut pair = Pair::connected();
    assert_eq!(next(&mut pair.a), (secs(540), vec![]));
    let expired = Event::SessionExpired {
        peer: pair.a.peer(B),
        public_key: public_key(B),
    };
    assert_eq!(pair.a.events, [expired]);
    assert_eq!(pair.a.poll_timeout(), None);
}

#[test]
fn persistent_keepalives_fill_the_silence() {
    let mut pair = Pair::connected();
    pair.a.set_keepalive(B, 25, after(secs(1)));
    for expected in [1, 26, 51] {
        let (at, sent) = next(&mut pair.a);
        assert_eq!(
            (at, sent.len(), sent[0].len()),
            (secs(expected), 1, KEEPALIVE)
        );
    }
    pair.data_from_b(secs(60));
    assert_eq!(next(&mut pair.a).0, secs(70));
    assert_eq!(deadline(&pair.a), secs(95));
    pair.a.set_keepalive(B, 0, after(secs(80)));
    assert_eq!(deadline(&pair.a), secs(540));
}

#[test]
fn persistent_keepalives_never_give_up() {
    let mut a = lonely();
    a.set_keepalive(B, 25, after(Duration::ZERO));
    let mut last = Duration::ZERO;
    while last < secs(3600) {
        let (at, sent) = next(&mut a);
        assert!(at <= last + secs(25), "silent from {last:?} to {at:?}");
        if is_initiation(&sent) {
            last = at;
        }
    }
}

#[test]
fn many_new_peers_are_greeted_500_a_second() {
    let mut a = Node::new(A, after(Duration::ZERO));
    for number in 10..110 {
        a.add_peer(number, Some(outer(number)), after(Duration::ZERO));
    }
    for turn in 0..100 {
        let (at, sent) = next(&mut a);
        assert!(
            at == millis(2 * turn) && is_initiation(&sent),
            "{turn}: {at:?}"
        );
    }
    assert!(deadline(&a) >= secs(5));
}

#[test]
fn a_keepalive_configured_with_the_peer_does_not_jump_the_queue() {
    let mut a = Node::new(A, after(Duration::ZERO));
    for number in 10..60 {
        let update = PeerUpdate {
            endpoint: Some(outer(number)),
            persistent_keepalive: Some(25),
            ..PeerUpdate::default()
        };
        a.update_peer(number, update, after(Duration::ZERO));
    }
    for turn in 0..50 {
        let (at, sent) = next(&mut a);
        assert!(
            at == millis(2 * turn) && is_initiation(&sent),
            "{turn}: {at:?}"
        );
    }
}

#[test]
fn a_packet_does_not_wait_for_the_greeting() {
    let mut a = Node::new(A, after(Duration::ZERO));
    for number in 10..110 {
        a.add_peer(number, Some(outer(number)), after(Duration::ZERO));
    }
    a.send(&packet(A, 109, 0, 0), after(Duration::ZERO));
    assert_eq!(a.outgoing().len(), 1);
    let greeted = (0..100).map(|_| next(&mut a).1.len()).sum::<usize>();
    assert_eq!(greeted, 99);
}

#[test]
fn packets_for_a_hundred_peers_at_once_ask_for_a_few_handshakes_at_once_and_all_soon() {
    let mut a = Node::new(A, after(Duration::ZERO));
    for number in 10..110 {
        a.add_peer(number, Some(outer(number)), after(Duration::ZERO));
    }
    // All greetings have been sent; nobody answered, and they were given up.
    let begin = secs(200);
    while deadline(&a) < begin {
        next(&mut a);
    }
    let packets = (10..110).flat_map(|number| [0, 1].map(|n| packet(A, number, n, 0)));
    for packet in packets {
        a.send(&packet, after(begin));
    }
    assert_eq!(a.outgoing().len(), 16);

    let mut last = begin;
    for turn in 1..=84 {
        let (at, sent) = next(&mut a);
        assert!(is_initiation(&sent), "{turn}");
        last = at;
    }
    assert_eq!(last, begin + millis(84));
}

#[test]
fn a_session_that_ages_is_renewed_though_packets_ask_for_many_others() {
    let mut pair = Pair::connected();
    let now = after(secs(120));
    for number in 10..30 {
        pair.a.add_peer(number, Some(outer(number)), now);
        pair.a.send(&packet(A, number, 0, 0), now);
    }
    pair.a.send(&packet(A, B, 0, 0), now);
    let to_b = |sent: Vec<(SocketAddr, Vec<u8>)>| {
        let to_b = sent.into_iter().filter(|(to, _)| *to == outer(B));
        to_b.map(|(_, datagram)| datagram).collect::<Vec<_>>()
    };
    let sent = to_b(pair.a.outgoing());
    assert!(sent.len() == 1 && !is_initiation(&sent), "the packet alone");

    let later = after(secs(120) + millis(10));
    pair.a.handle_timeout(later);
    assert!(is_initiation(&to_b(pair.a.outgoing())));
}

#[test]
fn an_endpoint_given_later_is_greeted_then() {
    let mut a = Node::new(A, after(Duration::ZERO));
    a.add_peer(B, None, after(Duration::ZERO));
    assert_eq!(a.poll_timeout(), None);
    let update = PeerUpdate {
        endpoint: Some(outer(B)),
        ..PeerUpdate::default()
    };
    a.update_peer(B, update, after(secs(3)));
    let (at, sent) = next(&mut a);
    assert!(at == secs(3) && is_initiation(&sent));
}
