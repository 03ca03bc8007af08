//! A pod comes and goes.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    ActionKind, ActionResult, Event, Family, Pass, PodName, Resource,
    action::PodAnswer,
    event::PodRequest,
    plan::{RouteVia, RowKey},
    resource::WorkloadEndpoint,
};

use crate::fixture::*;

#[test]
fn a_pod_is_answered_only_once_its_rows_are_in_the_kernel() {
    let mut brain = ready();
    brain.tell(Event::PodRequested(request("s1")));

    let (id, kind) = brain.action();
    let ActionKind::AssignAddress(asked) = kind else {
        panic!("{kind:?}")
    };
    assert_eq!(asked.handle, "k8s-pod-network.s1");
    assert_eq!(asked.families, [Family::V4].into());
    assert_eq!(asked.attributes["pod"], "web");
    brain.done(id, ActionResult::Addresses(vec![own_address()]));
    assert_eq!(brain.world.plan().pods.rows().len(), 1);
    assert_eq!(brain.actions(), []);

    brain.applied();
    let (id, kind) = brain.action();
    let ActionKind::PublishEndpoint(endpoint) = kind else {
        panic!("{kind:?}")
    };
    assert_eq!(endpoint.addresses, [net("10.65.0.5/32")]);
    brain.done(id, ActionResult::Done);

    let (id, kind) = brain.action();
    let answer = PodAnswer {
        addresses: vec![net("10.65.0.5/32")],
        host_interface: WorkloadEndpoint::host_interface(&pod()).to_string(),
        mtu: 1440,
    };
    assert_eq!(kind, ActionKind::AnswerPod(pod(), Ok(answer)));
    brain.done(id, ActionResult::Done);
    assert_eq!(brain.actions(), []);
    assert_eq!(brain.world.poll_timeout(), None);
}

#[test]
fn a_pods_answer_waits_for_its_own_rows_and_nobody_elses() {
    let host = WorkloadEndpoint::host_interface(&pod());
    let own_route = |brain: &mut Brain| {
        let routes = brain.world.plan().routes.rows().iter();
        let mut routes = routes.filter(|(_, route)| route.via == RouteVia::Device(host.clone()));
        RowKey::Route(routes.next().unwrap().0.clone())
    };
    let device = "wireguard.cali".parse().unwrap();
    let others = [
        RowKey::Pod(PodName::parse("default/dead").unwrap()),
        RowKey::Tunnel(device),
        RowKey::Sysctl("net/ipv4/conf/eth9/rp_filter".into()),
    ];
    let mut brain = assigned();
    for own in [RowKey::Pod(pod()), own_route(&mut brain)] {
        brain.applied_but(vec![own.clone()]);
        assert_eq!(brain.actions(), [], "{own} is missing");
    }

    brain.applied_but(others.to_vec());

    let (_, kind) = brain.action();
    assert!(matches!(kind, ActionKind::PublishEndpoint(_)), "{kind:?}");
}

#[test]
fn a_pod_is_not_answered_while_what_comes_before_its_rows_is_refused() {
    let mut brain = assigned();
    let generation = brain.world.plan().generation;

    brain.tell(Event::PlanApplied(Pass {
        generation,
        failures: [("nftables".to_owned(), "no".to_owned())].into(),
        ..Pass::default()
    }));

    assert_eq!(brain.actions(), []);
}

#[test]
fn the_same_sandbox_is_answered_again_and_gets_nothing_new() {
    let mut brain = with_pod();

    brain.tell(Event::PodRequested(request("s1")));

    let (_, kind) = brain.action();
    assert!(matches!(kind, ActionKind::AnswerPod(_, Ok(_))), "{kind:?}");
}

#[test]
fn an_address_is_given_back_only_after_its_rows_left_the_kernel() {
    let mut brain = with_pod();

    brain.tell(Event::PodReleased(pod()));
    assert!(brain.world.plan().pods.rows().is_empty());
    assert_eq!(brain.actions(), []);

    brain.applied();
    let (id, kind) = brain.action();
    let handle = "k8s-pod-network.s1".to_owned();
    assert_eq!(kind, ActionKind::ReleaseHandle(handle));
    brain.done(id, ActionResult::Done);
    let (id, kind) = brain.action();
    assert!(
        matches!(kind, ActionKind::RemoveEndpoint { .. }),
        "{kind:?}"
    );
    brain.done(id, ActionResult::Done);
    assert_eq!(brain.actions(), []);
    assert_eq!(brain.world.poll_timeout(), None);
}

#[test]
fn another_sandbox_of_the_name_waits_until_the_former_is_gone() {
    let mut brain = with_pod();

    brain.tell(Event::PodRequested(request("s2")));
    brain.applied();
    for _ in 0..2 {
        let (id, kind) = brain.action();
        assert!(!matches!(kind, ActionKind::AssignAddress(_)));
        brain.done(id, ActionResult::Done);
    }

    let (_, kind) = brain.action();
    let ActionKind::AssignAddress(asked) = kind else {
        panic!("{kind:?}")
    };
    assert_eq!(asked.handle, "k8s-pod-network.s2");
}

#[test]
fn a_pod_released_while_its_address_is_being_assigned_leaves_none_behind() {
    let mut brain = ready();
    brain.tell(Event::PodRequested(request("s1")));
    let (assign, _) = brain.action();

    brain.tell(Event::PodReleased(pod()));
    brain.applied();
    assert_eq!(brain.actions(), [], "the assignment has not ended");
    brain.done(assign, ActionResult::Addresses(vec![own_address()]));

    let (_, kind) = brain.action();
    assert!(matches!(kind, ActionKind::ReleaseHandle(_)), "{kind:?}");
    assert!(brain.world.plan().pods.rows().is_empty());
}

#[test]
fn a_pod_that_gets_no_address_is_told_why_and_cleaned_up() {
    let mut brain = ready();
    brain.tell(Event::PodRequested(request("s1")));
    let (id, _) = brain.action();

    brain.done(id, ActionResult::Refused("no free address".into()));

    let (id, kind) = brain.action();
    assert_eq!(
        kind,
        ActionKind::AnswerPod(pod(), Err("no free address".into()))
    );
    brain.done(id, ActionResult::Done);
    brain.applied();
    let (_, kind) = brain.action();
    assert!(matches!(kind, ActionKind::ReleaseHandle(_)), "{kind:?}");
}

#[test]
fn after_a_restart_a_pod_finds_the_address_that_its_handle_holds() {
    let mut brain = Brain::new();
    brain.tell(Event::PodRequested(request("s1")));
    for resource in mesh().into_iter().chain([held_block()]) {
        brain.put(resource);
    }

    brain.sync();

    let addresses = brain.world.plan().pods.rows()[&pod()].addresses.clone();
    assert_eq!(addresses, [net("10.65.0.5/32")]);
    assert_eq!(brain.actions(), []);
}

#[test]
fn a_pod_of_an_earlier_run_is_cleaned_up_by_what_its_address_says() {
    let mut brain = Brain::with(&[held_block()]);

    brain.tell(Event::PodReleased(pod()));
    brain.applied();

    let (_, kind) = brain.action();
    let ActionKind::ReleaseHandle(handle) = kind else {
        panic!("{kind:?}")
    };
    assert_eq!(handle, "k8s-pod-network.s1");
}

/// A brain with a pod whose rows are planned.
fn assigned() -> Brain {
    let mut brain = ready();
    brain.tell(Event::PodRequested(request("s1")));
    let (id, _) = brain.action();
    brain.done(id, ActionResult::Addresses(vec![own_address()]));

    brain
}

/// A brain with a pod that was answered.
fn with_pod() -> Brain {
    let mut brain = ready();
    brain.tell(Event::PodRequested(request("s1")));
    let (id, _) = brain.action();
    brain.done(id, ActionResult::Addresses(vec![own_address()]));
    brain.applied();
    for _ in 0..2 {
        let (id, _) = brain.action();
        brain.done(id, ActionResult::Done);
    }

    brain
}

fn held_block() -> Resource {
    own_block(&[(5, "k8s-pod-network.s1"), (1, "wireguard-tunnel-addr-a")])
}

fn request(sandbox: &str) -> PodRequest {
    PodRequest {
        pod: pod(),
        network: PodRequest::usual_network(),
        sandbox: sandbox.into(),
        netns: "/run/netns/web".into(),
        interface: "eth0".parse().unwrap(),
        labels: BTreeMap::new(),
        service_account: None,
        addresses: vec![],
        wish: Box::default(),
    }
}

fn pod() -> PodName {
    PodName::parse("default/web").unwrap()
}

fn own_address() -> IpAddr {
    IpAddr::from([10, 65, 0, 5])
}
