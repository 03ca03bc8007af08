//! A handshake counts as long as the machine has the peer with whom it was made.

use model::{Event, Pass, Resource};

use crate::fixture::*;

/// The mesh, with a handshake with b.
fn shaken() -> Brain {
    let mut brain = Brain::enforced();
    assert_eq!(brain.reason("b"), "no handshake yet");
    brain.tell(Event::Handshake {
        device: "wireguard.cali".parse().unwrap(),
        peer: key(2),
    });
    assert_eq!(brain.reason("b"), "");

    brain
}

/// Somebody clears b's record.
fn clear(brain: &mut Brain) {
    brain.put(Resource::Node(Box::new(stock("b", None, address(2)))));
    assert!(brain.tunnel_to(key(2)).is_none());
}

fn restore(brain: &mut Brain) {
    brain.put(meshd("b", key(2), address(2)));
    assert!(brain.tunnel_to(key(2)).is_some());
}

fn pass(brain: &mut Brain, generation: u64) {
    brain.tell(Event::PlanApplied(Pass {
        generation,
        ..Pass::default()
    }));
}

#[test]
fn a_record_that_is_restored_before_a_pass_leaves_the_handshake() {
    let mut brain = shaken();
    clear(&mut brain);
    restore(&mut brain);
    brain.applied();

    assert_eq!(brain.reason("b"), "");
}

#[test]
fn a_pass_that_took_the_peer_out_takes_the_handshake_whenever_it_is_told() {
    let mut early = shaken();
    clear(&mut early);
    early.applied();
    restore(&mut early);
    assert_eq!(early.reason("b"), "no handshake yet");

    // The pass was under way when the record came back.
    let mut late = shaken();
    clear(&mut late);
    let under_way = late.world.plan().generation;
    restore(&mut late);
    assert_eq!(late.reason("b"), "");
    pass(&mut late, under_way);
    assert_eq!(late.reason("b"), "no handshake yet");
}

#[test]
fn another_key_has_to_prove_itself() {
    let mut brain = shaken();
    clear(&mut brain);
    brain.put(key_claim(key(22), "b"));
    brain.put(meshd("b", key(22), address(2)));
    brain.applied();

    assert_eq!(brain.reason("b"), "no handshake yet");
}
