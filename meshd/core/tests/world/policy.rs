//! Policy reaches the plan, whatever comes when.

use std::{collections::BTreeMap, time::Duration};

use model::{
    ActionId, ActionKind, ActionResult, Event, Kind, Object, ObjectKey, Plan, PodName, Resource,
    event::PodRequest,
    nft::{Chain, Element, Statement, Verdict},
    resource::WorkloadEndpoint,
};
use serde_json::json;

use crate::fixture::*;

#[test]
fn a_pod_and_its_policy_come_in_one_generation_of_the_plan() {
    let mut brain = ready();

    place(&mut brain, "a");

    let egress = way_of(brain.world.plan(), "from_pod", "a").unwrap();
    assert!(egress.rules.len() > 1, "the namespace allows: {egress:?}");
    assert!(way_of(brain.world.plan(), "to_pod", "a").is_some());
}

#[test]
fn a_policy_changes_what_a_pod_may_and_nothing_else() {
    let mut brain = ready();
    place(&mut brain, "a");
    let before = brain.world.plan().clone();

    brain.put(deny("a"));

    let ingress = way_of(brain.world.plan(), "to_pod", "a").unwrap();
    assert_ne!(Some(ingress), way_of(&before, "to_pod", "a"));
    assert_eq!(
        way_of(brain.world.plan(), "from_pod", "a"),
        way_of(&before, "from_pod", "a")
    );
    assert_eq!(brain.world.plan().routes.rows(), before.routes.rows());

    brain.tell(Event::Deleted(policy_key()));
    assert_eq!(
        way_of(brain.world.plan(), "to_pod", "a"),
        way_of(&before, "to_pod", "a")
    );
}

#[test]
fn a_policy_that_cannot_be_read_any_more_stays_in_force() {
    let mut brain = ready();
    place(&mut brain, "a");
    brain.put(deny("a"));
    let closed = brain.world.plan().clone();

    brain.tell(Event::Invalid(policy_key(), "spec.selector: ?".into()));

    assert_eq!(
        brain.world.plan().nft_chains.rows(),
        closed.nft_chains.rows()
    );
    let status = brain.world.status(brain.now);
    assert!(status.conditions["InvalidObjects"].contains("close"));
    brain.put(deny("a"));
    let status = brain.world.status(brain.now);
    assert!(!status.conditions.contains_key("InvalidObjects"));
}

#[test]
fn a_pod_whose_namespace_does_not_exist_is_answered_closed_and_named() {
    let mut brain = ready();
    brain.delete(Kind::Namespace, "default");
    brain.tell(Event::PodRequested(request("a")));
    let (id, _) = brain.action();
    brain.done(id, ActionResult::Addresses(vec![[10, 65, 0, 5].into()]));
    brain.applied();
    let (id, _) = brain.action();
    brain.done(id, ActionResult::Done);
    assert_eq!(brain.actions(), [], "its namespace may come");

    brain.now = brain.world.poll_timeout().unwrap();
    assert!(brain.now.since_start() <= Duration::from_secs(3));
    brain.tell(Event::Tick);

    assert!(matches!(brain.action().1, ActionKind::AnswerPod(_, Ok(_))));
    let ways = [("from_pod", "a"), ("to_pod", "a")];
    for (map, pod) in ways {
        let way = way_of(brain.world.plan(), map, pod).unwrap();
        let statements = way.rules.iter().map(|rule| &rule.statement);
        assert!(statements.eq([&Statement::Drop]), "{way:?}");
    }
    let status = brain.world.status(brain.now);
    assert!(status.conditions["NamespaceMissing"].contains("default/a"));

    brain.put(namespace("default"));
    let status = brain.world.status(brain.now);
    assert!(!status.conditions.contains_key("NamespaceMissing"));
}

#[test]
fn an_endpoint_that_somebody_removes_opens_nothing_and_comes_back() {
    let mut brain = ready();
    place(&mut brain, "a");
    let (id, published) = answered(&mut brain);
    brain.done(id, ActionResult::Done);
    brain.put(Resource::WorkloadEndpoint(Box::new(published.clone())));
    brain.put(deny("a"));
    let before = brain.world.plan().clone();

    brain.tell(Event::Deleted(
        Resource::WorkloadEndpoint(Box::new(published.clone())).key(),
    ));

    assert_eq!(
        way_of(brain.world.plan(), "from_pod", "a"),
        way_of(&before, "from_pod", "a")
    );
    let (id, again) = brain.action();
    assert_eq!(again, ActionKind::PublishEndpoint(Box::new(published)));
    brain.done(id, ActionResult::Done);
    assert_eq!(brain.actions(), []);
}

#[test]
fn labels_in_the_store_decide_which_policies_a_pod_has() {
    let mut brain = ready();
    place(&mut brain, "a");
    let (id, published) = answered(&mut brain);
    brain.done(id, ActionResult::Done);
    brain.put(deny("b"));
    let before = brain.world.plan().clone();

    let labels = BTreeMap::from([("app".to_owned(), "b".to_owned())]);
    let relabelled = WorkloadEndpoint {
        labels,
        ..published
    };
    brain.put(Resource::WorkloadEndpoint(Box::new(relabelled)));

    assert_ne!(
        way_of(brain.world.plan(), "to_pod", "a"),
        way_of(&before, "to_pod", "a")
    );
}

#[test]
fn rows_of_policy_do_not_move_what_the_guard_is_kept_by() {
    let mut brain = ready();
    place(&mut brain, "a");
    let (plan, mesh) = (brain.world.plan().generation, brain.world.mesh_generation());

    brain.put(deny("a"));

    assert!(brain.world.plan().generation > plan);
    assert_eq!(brain.world.mesh_generation(), mesh);
}

/// Brings a pod as far as its rows in the plan, which the dataplane has not applied.
fn place(brain: &mut Brain, pod: &str) {
    brain.tell(Event::PodRequested(request(pod)));
    let (id, _) = brain.action();
    brain.done(id, ActionResult::Addresses(vec![[10, 65, 0, 5].into()]));
}

/// Brings a pod to its answer, and returns the answer's action and what was published.
fn answered(brain: &mut Brain) -> (ActionId, WorkloadEndpoint) {
    brain.applied();
    let (id, ActionKind::PublishEndpoint(published)) = brain.action() else {
        panic!("an endpoint is published first");
    };
    brain.done(id, ActionResult::Done);

    (brain.action().0, *published)
}

/// The chain that a map of interfaces leads a pod's packets into.
fn way_of(plan: &Plan, base: &str, pod: &str) -> Option<Chain> {
    let interface = WorkloadEndpoint::host_interface(&pod_name(pod));
    let mut elements = plan.nft_elements.rows().keys();
    let name = elements.find_map(|(set, element)| match element {
        Element::InterfaceVerdict(name, Verdict::Goto(chain))
            if *name == interface && set.name == format!("{base}_by_interface") =>
        {
            Some(chain.clone())
        }
        _ => None,
    })?;
    let mut chains = plan.nft_chains.rows().iter();

    chains
        .find(|(key, _)| key.name == name)
        .map(|(_, chain)| chain.clone())
}

fn deny(app: &str) -> Resource {
    let spec = json!({"selector": format!("app == '{app}'"), "types": ["Ingress"]});

    Resource::try_from(&Object::new(&policy_key(), spec)).unwrap()
}

fn policy_key() -> ObjectKey {
    ObjectKey::namespaced(Kind::NetworkPolicy, "default", "close")
}

fn request(pod: &str) -> PodRequest {
    PodRequest {
        pod: pod_name(pod),
        network: PodRequest::usual_network(),
        sandbox: "s1".into(),
        netns: "/run/netns/a".into(),
        interface: "eth0".parse().unwrap(),
        labels: BTreeMap::from([("app".into(), pod.into())]),
        service_account: None,
        addresses: vec![],
        wish: Box::default(),
    }
}

fn pod_name(pod: &str) -> PodName {
    PodName::parse(&format!("default/{pod}")).unwrap()
}
