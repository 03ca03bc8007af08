//! Switching on and off as one brain sees it: what waits for what, and what stays until it is not needed.

use meshd_core::{Config, World};
use model::{
    ActionKind, Event, Family, Moment, Phase, PublicKey, Record, Resource,
    action::NodePublication,
    plan::{RouteKey, RouteVia, RowKey},
    resource::mesh_configuration::EncryptionMode,
    status::PeerState,
};

use crate::fixture::*;

const POOL_V6: &str = "fd00:65::/112";

#[test]
fn a_restarted_agent_sends_no_plaintext_to_who_may_count_on_ciphertext() {
    // We were on our way back when the agent died; b and c have not moved yet.
    let objects = [felix(Some(false), None), at("a", 1, Phase::Accepting)];
    let mut brain = Brain::with(&objects);

    assert_eq!(brain.route(1, BLOCKS[1]), tunnel());
    assert_eq!(brain.route(1, BLOCKS[2]), tunnel());

    brain.put(at("b", 2, Phase::Accepting));
    assert_eq!(brain.route(1, BLOCKS[1]), Some(RouteVia::Throw));
    assert_eq!(brain.route(1, BLOCKS[2]), tunnel());
}

#[test]
fn devices_stay_while_another_still_needs_them() {
    // Everybody has left but c, which comes back to Accepting before it reads that we are off.
    let objects = [
        felix(Some(false), None),
        at("a", 1, Phase::Off),
        at("b", 2, Phase::Off),
        at("c", 3, Phase::Accepting),
    ];
    let mut brain = Brain::with(&objects);
    assert_eq!(brain.world.plan().tunnels.rows().len(), 1);
    assert!(brain.tunnel_to(key(3)).is_some());

    brain.put(at("c", 3, Phase::Leaving));

    assert!(brain.world.plan().tunnels.rows().is_empty());
    assert!(brain.tunnel_to(key(3)).is_none());
}

#[test]
fn the_record_shows_the_tunnels_until_the_kernel_has_them_no_more() {
    let mut brain = Brain::with(&[
        felix(Some(false), None),
        at("a", 1, Phase::Off),
        at("b", 2, Phase::Off),
        at("c", 3, Phase::Accepting),
    ]);
    drop(brain.actions());

    brain.put(at("c", 3, Phase::Leaving));
    assert!(brain.world.plan().tunnels.rows().is_empty());
    assert_eq!(published(&mut brain), None, "the devices are still there");

    brain.applied_but(vec![RowKey::Tunnel(device())]);
    assert_eq!(published(&mut brain), None, "they could not be removed");

    brain.applied();
    let publication = published(&mut brain).expect("a record without tunnels");
    assert_eq!(publication.record.tunnels, []);
    assert_eq!(publication.record.phase, Phase::Off);
}

#[test]
fn a_phase_waits_for_what_it_promises_and_for_no_pod() {
    let route = |table, destination: &str| {
        RowKey::Route(RouteKey {
            table,
            destination: net(destination),
            metric: 0,
        })
    };
    let pod = RowKey::Pod(model::PodName::parse("default/dead").unwrap());
    let promised = [
        RowKey::Tunnel(device()),
        RowKey::Peer(device(), key(2)),
        RowKey::Sysctl("net/ipv4/ip_forward".into()),
        route(1, BLOCKS[1]),
    ];
    for row in promised {
        let mut brain = accepting();
        brain.applied_but(vec![row.clone()]);
        assert_eq!(published(&mut brain), None, "{row} is missing");
        brain.applied();
        assert_eq!(phase(&mut brain), Some(Phase::Sending), "{row} is there");
    }
    for row in [pod, route(254, BLOCKS[1])] {
        let mut brain = accepting();
        brain.applied_but(vec![row.clone()]);
        assert_eq!(phase(&mut brain), Some(Phase::Sending), "{row} is missing");
        let status = brain.world.status(brain.now);
        assert!(status.ready && !status.converged, "{row}");
        assert_eq!(status.incomplete[0].row, row.to_string());
    }
}

#[test]
fn a_peer_is_encrypted_once_that_is_in_the_kernel() {
    let mut brain = Brain::new();
    for resource in mesh() {
        brain.put(resource);
    }
    brain.sync();
    shake(&mut brain);
    assert_eq!(brain.state("b"), PeerState::Enabling, "only planned");

    brain.applied();
    assert_eq!(brain.state("b"), PeerState::Encrypted);

    let lost = RowKey::Peer(device(), key(2));
    brain.applied_but(vec![lost.clone()]);
    assert_eq!(brain.state("b"), PeerState::Unreachable);
    assert!(
        brain.reason("b").contains(&lost.to_string()),
        "{}",
        brain.reason("b")
    );
    assert_eq!(brain.state("c"), PeerState::Encrypted);
}

#[test]
fn a_family_that_stays_plain_is_told_apart() {
    let both = |mode| {
        [
            pool(POOL_V6),
            block("fd00:65::40/122", Some("b")),
            settings(Some(mode)),
        ]
    };
    let mut permissive = Brain::with(&both(EncryptionMode::Permissive));
    shake(&mut permissive);
    let peer = permissive.peer("b");
    assert_eq!(peer.state, PeerState::Partly);
    assert_eq!(peer.families[&Family::V4], PeerState::Encrypted);
    assert_eq!(peer.families[&Family::V6], PeerState::PlainPermitted);
    assert!(permissive.reason("b").contains("IPv6 is not encrypted"));
    assert_eq!(permissive.state("c"), PeerState::Encrypted, "c has no IPv6");

    let mut strict = Brain::with(&both(EncryptionMode::Strict));
    shake(&mut strict);
    assert_eq!(strict.state("b"), PeerState::Encrypted);
}

#[test]
fn a_device_that_cannot_be_made_is_named_with_its_reason() {
    let mut brain = Brain::enforced();

    brain.applied_but(vec![RowKey::Tunnel(device())]);

    let status = brain.world.status(brain.now);
    assert!(!status.ready);
    let device = &status.encryption.devices[0];
    assert_eq!(
        (device.backend.as_str(), &device.backend_reason),
        ("none", &MISSING.to_owned())
    );
    assert!(status.conditions["DeviceMissing"].contains(&MISSING.to_owned()));
    assert_eq!(
        brain.route(1, BLOCKS[1]),
        tunnel(),
        "and never plaintext instead"
    );
}

/// Everybody is `Accepting` and has shaken hands: we may say that we send, once it is applied.
fn accepting() -> Brain {
    let mut brain = Brain::with(&[
        at("a", 1, Phase::Accepting),
        at("b", 2, Phase::Accepting),
        at("c", 3, Phase::Accepting),
    ]);
    drop(brain.actions());
    shake(&mut brain);

    brain
}

fn shake(brain: &mut Brain) {
    for number in [2, 3] {
        brain.tell(Event::Handshake {
            device: device(),
            peer: key(number),
        });
    }
}

/// A node's record in a phase.
fn at(node: &str, number: u8, phase: Phase) -> Resource {
    let Resource::Node(mut found) = meshd(node, key(number), address(number)) else {
        unreachable!()
    };
    if let Some(Ok(record)) = &mut found.record {
        *record = Record {
            phase,
            ..record.clone()
        };
    }
    if node == "a" && phase >= Phase::Leaving {
        found.tunnel_addresses = vec!["10.65.0.1".parse().unwrap()];
        found.key_v4 = Some(Ok(own_key()));
    }

    Resource::Node(found)
}

fn own_key() -> PublicKey {
    key(1)
}

fn device() -> model::InterfaceName {
    "wireguard.cali".parse().unwrap()
}

fn tunnel() -> Option<RouteVia> {
    Some(RouteVia::Device(device()))
}

/// What the node writes about itself now, if anything.
fn published(brain: &mut Brain) -> Option<NodePublication> {
    brain
        .actions()
        .into_iter()
        .find_map(|action| match action.kind {
            ActionKind::PublishNode(publication) => Some(*publication),
            _ => None,
        })
}

fn phase(brain: &mut Brain) -> Option<Phase> {
    published(brain).map(|publication| publication.record.phase)
}

#[test]
fn nothing_is_said_or_planned_before_the_links_are_known() {
    // A busy machine: the store has told everything before the kernel said anything.
    let mut brain = Brain {
        world: World::new(Config::new(name("a"))),
        now: Moment::START,
    };
    brain.tell(Event::Keys(vec![key(1), key(11)]));
    for resource in mesh() {
        brain.put(resource);
    }
    brain.sync();
    assert_eq!(brain.actions(), [], "a record without addresses");
    assert!(!brain.world.plan().in_sync);

    brain.tell(Event::Underlay(links()));
    brain.applied();
    assert!(brain.world.plan().in_sync);
    assert!(brain.tunnel_to(key(2)).is_some());
}
