//! Containers of a real containerd, driven through the Container Runtime Interface.
//!
//! ```text
//! ┌─ n1 ────────────────────────────┐        ┌─ n2 ────────────────────────────┐
//! │ containerd ─▶ meshd-cni ─▶ agent │────────│ containerd ─▶ meshd-cni ─▶ agent │
//! │ 30 containers, 50 more          │        │ 30 containers                   │
//! └─────────────────────────────────┘        └─────────────────────────────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use lab::{Service, poll_until};
use netns::{Mesh, await_fact, await_settled, lan};
use runtime::{Fleet, Kept, Member, assigned};

/// How long the agents may take to do what they were asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// The labels of the containers, in turn.
const ROLES: [&str; 3] = ["web", "client", "db"];

/// Clients ask webs, webs ask databases, everybody asks clients; nobody asks otherwise.
const POLICY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  podSelector: {matchLabels: {role: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db}
spec:
  podSelector: {matchLabels: {role: db}}
  ingress: [{from: [{podSelector: {matchLabels: {role: web}}}], ports: [{port: 80}]}]
"#;

fn allows(from: &Member, to: &Member) -> bool {
    match to.role() {
        "web" => from.role() == "client",
        "db" => from.role() == "web",
        _ => true,
    }
}

/// A mesh of two nodes, each with a containerd and no container.
fn mesh() -> Mesh {
    let mut document = lan(&[("n1", "shop/none"), ("n2", "shop/nobody")])
        .containerd()
        .document();
    for node in &mut document.spec.nodes {
        node.pods.clear();
    }
    let mesh = Mesh::of(document);
    mesh.apply(r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#);
    mesh.apply(POLICY);

    mesh
}

/// So many containers with names of that kind, on these nodes in turn, every role in turn.
fn members(kind: &str, count: usize, nodes: &[&str], first_role: usize) -> Vec<Member> {
    let member = |index: usize| {
        let role = ROLES[(index / nodes.len() + first_role) % ROLES.len()];
        Member::new(nodes[index % nodes.len()], &format!("{kind}{index}"), role)
    };

    (0..count).map(member).collect()
}

/// No address is two pods', and the store says of each what the runtime was answered.
fn assert_addresses(mesh: &Mesh, fleet: &Fleet<'_>) {
    let wanted = fleet.addresses();
    let unique: BTreeSet<IpAddr> = wanted.iter().map(|(address, _)| *address).collect();
    assert_eq!(unique.len(), wanted.len(), "an address is two containers'");
    let wanted: BTreeMap<IpAddr, String> = wanted.into_iter().collect();
    await_fact("the store's blocks hold just what runs", PATIENCE, || {
        let assigned: BTreeMap<IpAddr, String> = assigned(mesh).into_iter().collect();
        let differs = assigned
            .iter()
            .find(|(address, pod)| wanted.get(address) != Some(pod));
        match differs {
            None if assigned.len() == wanted.len() => Ok(()),
            found => Err(format!(
                "{} assigned, {} run, {found:?}",
                assigned.len(),
                wanted.len()
            )),
        }
    });
}

/// The nodes' kernels have what they had before there was a container.
fn await_nothing_kept(mesh: &Mesh, before: &[Kept]) {
    for (node, before) in mesh.members().iter().zip(before) {
        await_fact("nothing of the containers is left", PATIENCE, || {
            let now = Kept::of(node);
            (now == *before).then_some(()).ok_or_else(|| {
                let left = now.elements.difference(&before.elements);
                format!(
                    "{:?} {:?} {:?} {:?}",
                    now.interfaces,
                    now.routes,
                    now.namespaces,
                    left.collect::<Vec<_>>()
                )
            })
        });
    }
}

#[test]
fn sixty_containers_are_reached_exactly_as_policy_says_and_leave_nothing() {
    let mesh = mesh();
    mesh.enable();
    let before: Vec<Kept> = mesh.members().iter().map(Kept::of).collect();
    let fleet = Fleet::new(&mesh);
    let sixty = members("p", 60, &["n1", "n2"], 0);
    fleet.announce(&sixty);
    fleet.run(&sixty, 12);
    assert_addresses(&mesh, &fleet);
    fleet.assert_reaches("sixty containers", 8, allows);

    // Made anew, a third of them have another role under the same name.
    fleet.remove(&sixty[..20], 12);
    let anew = members("p", 20, &["n1", "n2"], 1);
    fleet.announce(&anew);
    fleet.run(&anew, 12);
    assert_addresses(&mesh, &fleet);
    fleet.assert_reaches("a third made anew", 8, allows);

    let all = [&anew[..], &sixty[20..]].concat();
    fleet.remove(&all, 12);
    assert_addresses(&mesh, &fleet);
    await_nothing_kept(&mesh, &before);
    assert_eq!(fleet.sandboxes(), []);
}

#[test]
fn an_agent_killed_amid_fifty_starts_loses_and_leaks_nothing() {
    let mesh = mesh();
    mesh.enable();
    let before: Vec<Kept> = mesh.members().iter().map(Kept::of).collect();
    let fleet = Fleet::new(&mesh);
    let others = members("o", 6, &["n2"], 0);
    let fifty = members("p", 50, &["n1"], 0);
    fleet.announce(&[&others[..], &fifty[..]].concat());
    fleet.run(&others, 6);

    thread::scope(|scope| {
        let starts = scope.spawn(|| fleet.run(&fifty, 50));
        let begun = || fleet.progress().0 >= 3;
        assert!(
            poll_until(Instant::now() + PATIENCE, begun),
            "{:?}",
            fleet.progress()
        );
        let n1 = mesh.node("n1");
        n1.kill(Service::Agent);
        let (started, _) = fleet.progress();
        assert!(started < fifty.len(), "the agent was killed too late");
        // While it is away, starts fail; the runtime is asked again, as a kubelet asks.
        assert!(poll_until(Instant::now() + PATIENCE, || fleet.progress().1 > 0));
        n1.restart(Service::Agent);
        starts.join().unwrap();
        await_settled(&n1, PATIENCE);
    });

    assert_addresses(&mesh, &fleet);
    fleet.assert_reaches("fifty containers after a kill", 6, allows);
    fleet.remove(&[&others[..], &fifty[..]].concat(), 12);
    assert_addresses(&mesh, &fleet);
    await_nothing_kept(&mesh, &before);
    assert_eq!(fleet.sandboxes(), []);
}

#[test]
fn a_container_that_the_store_does_not_know_is_refused_with_that_reason() {
    let mesh = mesh();
    let fleet = Fleet::new(&mesh);
    let known = Member::new("n1", "known", "web");
    let unknown = Member::new("n1", "unknown", "web");
    fleet.announce(std::slice::from_ref(&known));

    let error = fleet.try_run(&unknown).unwrap_err();

    let said = error.source().unwrap().to_string();
    assert!(
        said.contains("shop/unknown") && said.contains("apply"),
        "{said}"
    );
    let known = fleet.try_run(&known).unwrap();
    assert_eq!(known.addresses.len(), 2);
    let configuration = r#"{"apiVersion": "meshd.dev/v1", "kind": "MeshConfiguration", "metadata": {"name": "default"}, "spec": {"cni": {"unknownPods": "NamespaceOnly"}}}"#;
    mesh.apply(configuration);
    await_fact(
        "containers that nobody announced are taken",
        PATIENCE,
        || {
            fleet
                .try_run(&unknown)
                .map(drop)
                .map_err(|error| format!("{:?}", error.source()))
        },
    );
    assert_eq!(fleet.sandboxes().len(), 2);
}
