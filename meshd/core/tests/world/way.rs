//! Ways to a pod beside its own addresses.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    ActionKind, ActionResult, Event, PodName,
    event::PodRequest,
    nft::{ChainKey, NftFamily},
    pod::{HostPort, PodWish},
    policy::Protocol,
};

use crate::fixture::*;

#[test]
fn a_hosts_port_leads_to_one_pod_and_to_none_that_is_gone() {
    let mut brain = placed("web", wish(Protocol::TCP, 8080), 5);
    assert!(brain.world.plan().nft_chains.rows().contains_key(&chain()));

    let refused = answer(&mut brain, "other", wish(Protocol::TCP, 8080));
    assert!(
        refused.contains("leads to default/web already"),
        "{refused}"
    );

    brain.tell(Event::PodReleased(pod("web")));
    assert!(!brain.world.plan().nft_chains.rows().contains_key(&chain()));
}

#[test]
fn a_port_that_the_tunnel_has_leads_nowhere() {
    let mut brain = placed("web", PodWish::default(), 5);

    let refused = answer(&mut brain, "thief", wish(Protocol::UDP, 51820));

    assert!(refused.contains("the tunnel's"), "{refused}");
}

#[test]
fn an_address_that_nobody_assigns_is_nobodys() {
    let mut brain = placed("web", PodWish::default(), 5);
    for taken in ["10.65.0.5", "192.0.2.1", "192.0.2.2", "127.0.0.1"] {
        let wish = PodWish {
            unmanaged: vec![taken.parse().unwrap()],
            ..PodWish::default()
        };
        let refused = answer(&mut brain, &format!("p{}", taken.replace('.', "-")), wish);
        assert!(refused.contains(taken), "{refused}");
    }
}

fn wish(protocol: Protocol, port: u16) -> PodWish {
    let port = HostPort {
        address: None,
        protocol,
        port,
        target: 80,
    };

    PodWish {
        host_ports: vec![port],
        ..PodWish::default()
    }
}

fn chain() -> ChainKey {
    ChainKey {
        table: NftFamily::Inet,
        name: "hostport_in".into(),
    }
}

/// A mesh in which a pod has got the address of this ordinal.
fn placed(name: &str, wish: PodWish, ordinal: u8) -> Brain {
    let mut brain = ready();
    brain.tell(Event::PodRequested(request(name, wish)));
    let (id, kind) = brain.action();
    assert!(matches!(kind, ActionKind::AssignAddress(_)), "{kind:?}");
    let address = IpAddr::from([10, 65, 0, ordinal]);
    brain.done(id, ActionResult::Addresses(vec![address]));

    brain
}

/// What a pod is told that is refused.
fn answer(brain: &mut Brain, name: &str, wish: PodWish) -> String {
    brain.tell(Event::PodRequested(request(name, wish)));
    let mut answers = brain
        .actions()
        .into_iter()
        .filter_map(|action| match action.kind {
            ActionKind::AnswerPod(answered, Err(why)) if answered == pod(name) => Some(why),
            _ => None,
        });

    answers.next_back().unwrap_or_default()
}

fn request(name: &str, wish: PodWish) -> PodRequest {
    PodRequest {
        pod: pod(name),
        network: PodRequest::usual_network(),
        sandbox: name.into(),
        netns: format!("/run/netns/{name}"),
        interface: "eth0".parse().unwrap(),
        labels: BTreeMap::new(),
        service_account: None,
        addresses: Vec::new(),
        wish: Box::new(wish),
    }
}

fn pod(name: &str) -> PodName {
    PodName::parse(&format!("default/{name}")).unwrap()
}
