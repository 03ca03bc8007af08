//! What is known is kept up to date; what is judged is compared with the evaluator in `tests/ruleset`.

use model::{
    InterfaceName,
    policy::{Action, Directions, Policy, Protocol, Rule, Stage},
};

use super::{BASE_CHAINS, Connection, Judge, Station};
use crate::{
    Header, Verdict,
    compile::{Ruleset, Scene, Workload, compile},
    packet::Ports,
};

#[test]
fn a_connection_is_denied_once_its_policy_is() {
    let mut judge = Judge::new();
    let interface = "cali1".parse().unwrap();
    let connection = to_pod(&interface, 80);

    change(&mut judge, &Ruleset::default(), &rows(Action::Allow));
    assert_eq!(judge.judge(&connection), Verdict::Allow);

    change(&mut judge, &rows(Action::Allow), &rows(Action::Deny));
    assert_eq!(judge.judge(&connection), Verdict::Deny);
}

#[test]
fn a_connection_between_strangers_is_nobodys() {
    let mut judge = Judge::new();
    change(&mut judge, &Ruleset::default(), &rows(Action::Deny));
    let interface = "cali1".parse().unwrap();
    let pods = to_pod(&interface, 80);

    for (from, to) in [
        (Station::Elsewhere, Station::Host),
        (Station::Host, Station::Elsewhere),
        (Station::Elsewhere, Station::Elsewhere),
        (Station::Host, Station::Interface(&interface)),
    ] {
        let connection = Connection { from, to, ..pods };
        assert_eq!(judge.judge(&connection), Verdict::Allow, "{connection:?}");
    }
    assert!(!judge.asks_about_hosts());
}

#[test]
fn what_is_taken_away_leaves_nothing_behind() {
    let mut judge = Judge::new();
    let rows = rows(Action::Allow);

    change(&mut judge, &Ruleset::default(), &rows);
    assert!(judge.chains.len() >= rows.chains.len());
    change(&mut judge, &rows, &Ruleset::default());

    assert_eq!((judge.chains.len(), judge.sets.len()), (0, 0), "{judge:#?}");
    assert_eq!(judge.bases, []);
}

#[test]
fn what_cannot_be_followed_is_denied() {
    let mut judge = Judge::new();
    let rows = rows(Action::Allow);
    change(&mut judge, &Ruleset::default(), &rows);
    let interface = "cali1".parse().unwrap();

    for key in rows
        .chains
        .keys()
        .filter(|key| key.name.contains("group_in"))
    {
        judge.set_chain(key, None);
    }

    assert_eq!(judge.judge(&to_pod(&interface, 80)), Verdict::Deny);
}

#[test]
fn every_base_chain_of_the_compiler_is_asked() {
    let mut scene = scene(Action::Allow);
    scene.hosts = vec![crate::compile::Host {
        interface: None,
        labels: Default::default(),
        profiles: Vec::new(),
    }];
    let mut early = scene.policies[0].clone();
    early.key.name = "early".to_owned();
    early.stage = Stage::PreDnat;
    scene.policies.push(early);

    let rows = compile(&scene).rows;
    let bases = rows.chains.iter().filter(|(_, chain)| chain.hook.is_some());
    let names: Vec<&str> = bases.map(|(key, _)| key.name.as_str()).collect();

    assert_eq!(names, BASE_CHAINS);
}

/// Applies a difference in the order of a plan's tables.
fn change(judge: &mut Judge, before: &Ruleset, after: &Ruleset) {
    for (set, element) in before.elements.symmetric_difference(&after.elements) {
        let is_there = after.elements.contains(&(set.clone(), element.clone()));
        judge.set_element(set, element, is_there);
    }
    for key in before.chains.keys().chain(after.chains.keys()) {
        if before.chains.get(key) != after.chains.get(key) {
            judge.set_chain(key, after.chains.get(key));
        }
    }
}

fn to_pod(interface: &InterfaceName, port: u16) -> Connection<'_> {
    let header = Header {
        source: "192.0.2.1".parse().unwrap(),
        destination: "10.65.0.1".parse().unwrap(),
        protocol: Protocol::TCP,
        ports: Some(Ports {
            source: 40_000,
            destination: port,
        }),
        icmp: None,
    };

    Connection {
        from: Station::Elsewhere,
        to: Station::Interface(interface),
        before: header,
        header,
        translated: false,
    }
}

fn rows(action: Action) -> Ruleset {
    compile(&scene(action)).rows
}

fn scene(action: Action) -> Scene {
    let policy = Policy {
        key: model::ObjectKey::namespaced(model::Kind::NetworkPolicy, "shop", "web"),
        tier: "default".into(),
        order: Some(1.0),
        selector: "app == 'web'".parse().unwrap(),
        types: Directions {
            ingress: true,
            egress: false,
        },
        ingress: vec![Rule::new(action)],
        egress: Vec::new(),
        stage: Stage::Normal,
        apply_on_forward: false,
        staged: None,
        invalid: Default::default(),
    };

    Scene {
        workloads: vec![Workload {
            interface: "cali1".parse().unwrap(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            profiles: Vec::new(),
        }],
        hosts: Vec::new(),
        members: Vec::new(),
        services: Default::default(),
        tiers: Vec::new(),
        policies: vec![policy],
        profiles: Default::default(),
        options: Default::default(),
    }
}
