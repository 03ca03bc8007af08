//! What the ruleset looks like; what it decides is compared with the evaluator in `tests/ruleset`.

use std::collections::BTreeMap;

use model::{
    Family, Kind, ObjectKey,
    nft::{Element, Rule as Row, Sense, SetKey},
    policy::{
        Action, Directions, Policy, PortMatch, Protocol, Rule, ServiceRef, Side, Stage, TierAction,
    },
};

use super::*;
use crate::{
    cluster::Backend,
    compiler::{Change, Row as Line},
};

#[test]
fn endpoints_with_the_same_policies_share_a_chain() {
    let mut scene = scene([allow("web", "app == 'web'")]);
    scene.workloads = vec![pod("cali1", "web"), pod("cali2", "web"), pod("cali3", "db")];

    let rows = compile(&scene).rows;

    let [first, second, third] = ["cali1", "cali2", "cali3"].map(|name| leads_to(&rows, name));
    assert_eq!(first, second);
    assert_ne!(first, third);
}

#[test]
fn a_policy_more_is_its_chain_and_a_jump_in_each_group_that_asks_it() {
    let mut scene = scene([allow("web", "app == 'web'"), allow("db", "app == 'db'")]);
    scene.workloads = vec![pod("cali1", "web"), pod("cali2", "web"), pod("cali3", "db")];
    let before = compile(&scene).rows;

    scene.policies.push(allow("all", "all()"));
    let after = compile(&scene).rows;

    assert_eq!(before.elements, after.elements);
    let changed: Vec<_> = after.since(&before);
    let news = key_of("policy_in/NetworkPolicy/shop/all");
    let groups = ["group_in/cali1", "group_in/cali3"].map(key_of);
    for change in &changed {
        let Change::Set(Line::Chain(key, chain)) = change else {
            panic!("{change:?}");
        };
        assert!(*key == news || groups.contains(key), "{key:?}");
        let former = before.chains.get(key).map_or(0, |chain| chain.rules.len());
        assert_eq!(chain.rules.len(), former + 1, "{key:?}");
    }
    assert_eq!(changed.len(), 3, "{changed:?}");
}

/// What is the least of a group's interfaces names it: that one's coming and going is all that renames.
#[test]
fn a_group_is_called_after_the_least_of_its_interfaces() {
    let mut scene = scene([allow("web", "app == 'web'")]);
    scene.workloads = vec![pod("cali2", "web"), pod("cali5", "web")];
    let leads = |scene: &Scene| {
        let rows = compile(scene).rows;
        assert!(rows.chains.contains_key(&key_of(&leads_to(&rows, "cali5"))));
        leads_to(&rows, "cali5")
    };
    assert_eq!(leads(&scene), "group_in/cali2");

    scene.workloads.push(pod("cali3", "web"));
    scene.workloads.push(pod("cali0", "db"));
    assert_eq!(leads(&scene), "group_in/cali2");
    scene.workloads.push(pod("cali1", "web"));
    assert_eq!(leads(&scene), "group_in/cali1");
    scene
        .workloads
        .retain(|pod| pod.interface.as_str() > "cali2");
    assert_eq!(leads(&scene), "group_in/cali3");
}

#[test]
fn a_pod_more_is_elements_and_nothing_else() {
    let mut scene = scene([allow("web", "app == 'web'")]);
    scene.policies[0].ingress[0].source.selector = Some("app == 'web'".parse().unwrap());
    scene.members.push(member("web", "10.65.0.1/32"));
    let before = compile(&scene).rows;

    scene.workloads.push(pod("cali9", "web"));
    scene.members.push(member("web", "10.65.0.9/32"));
    let after = compile(&scene).rows;

    assert_eq!(before.chains, after.chains);
    assert_eq!(before.sets, after.sets);
    let more: Vec<_> = after.elements.difference(&before.elements).collect();
    // A map for what it sends, one for what it gets, and the selector's set.
    assert_eq!(more.len(), 3, "{more:?}");
}

#[test]
fn a_pod_that_is_in_no_map_is_closed() {
    let rows = compile(&scene([allow("web", "all()")])).rows;

    for base in ["from_pod", "to_pod"] {
        let [.., lookup, last] = &rows.chains[&verdict::key(base)].rules[..] else {
            panic!("{base} is too short");
        };
        assert_eq!(lookup.comment, "the interface's own");
        let drops = (&[][..], &Statement::Drop);
        assert_eq!((&last.matches[..], &last.statement), drops, "{base}");
    }
}

#[test]
fn a_rule_says_where_it_was_written() {
    let scene = scene([allow("web", "all()")]);

    let rows = compile(&scene).rows;

    let rules = &rows.chains[&verdict::key("policy_in/NetworkPolicy/shop/web")].rules;
    let comments: Vec<&str> = rules.iter().map(|rule| rule.comment.as_str()).collect();
    assert_eq!(comments, ["NetworkPolicy shop/web ingress 0"]);
    assert!(rules.iter().all(|rule| rule.counter));
}

#[test]
fn what_log_rules_match_is_told_and_what_is_denied_where_that_is_wanted() {
    let mut policy = allow("web", "all()");
    policy.ingress = vec![Rule::new(Action::Log), Rule::new(Action::Deny)];
    let mut scene = scene([policy]);
    let rules_of = |scene: &Scene| {
        let rows = compile(scene).rows;
        let chain = &rows.chains[&verdict::key("policy_in/NetworkPolicy/shop/web")];
        let rules = chain.rules.iter();
        rules.map(|rule| rule.statement.clone()).collect::<Vec<_>>()
    };
    assert!(matches!(
        rules_of(&scene)[..],
        [Statement::Log(_), Statement::Drop]
    ));
    scene.options.tells_denied = true;

    let told = rules_of(&scene);

    let [Statement::Log(noted), Statement::LogAndDrop(denied)] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((noted.group, denied.group), (1, 1));
    assert_eq!(denied.prefix, "NetworkPolicy shop/web ingress 0");
}

#[test]
fn the_order_of_objects_changes_nothing() {
    let policies = ["a", "b", "c"].map(|name| Policy {
        order: None,
        ..allow(name, "all()")
    });
    let mut scene = scene(policies);
    scene.workloads.push(pod("cali2", "db"));
    scene.members = vec![member("web", "10.65.0.2/32"), member("db", "10.65.0.0/24")];
    scene.policies[1].ingress[0].source.selector = Some("has(app)".parse().unwrap());
    let forward = compile(&scene);

    scene.policies.reverse();
    scene.workloads.reverse();
    scene.members.reverse();

    assert_eq!(compile(&scene), forward);
}

#[test]
fn networks_in_a_set_do_not_overlap() {
    let mut scene = scene([allow("web", "all()")]);
    scene.policies[0].ingress[0].source.selector = Some("all()".parse().unwrap());
    scene.members = vec![
        member("web", "10.65.0.2/32"),
        member("web", "10.65.0.0/24"),
        member("web", "10.65.1.0/24"),
    ];

    let rows = compile(&scene).rows;

    let nets = rows.elements.iter().filter_map(|(_, element)| {
        let Element::Net(net) = element else {
            return None;
        };

        Some(net.to_string())
    });
    assert_eq!(nets.collect::<Vec<_>>(), ["10.65.0.0/23"]);
}

#[test]
fn what_cannot_be_compiled_denies_and_is_named() {
    let mut scene = scene([allow("bad", "all()"), allow("good", "all()")]);
    scene.policies[0].ingress[0].destination.ports = vec![PortMatch::single(80)];

    let compiled = compile(&scene);

    let bad = key("bad");
    assert_eq!(
        compiled.refused,
        BTreeMap::from([(bad, Refusal::PortWithoutProtocol)])
    );
    let drops = |name: &str| {
        let rules: &[Row] = &compiled.rows.chains[&verdict::key(name)].rules;
        rules
            .iter()
            .map(|rule| rule.statement.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(drops("policy_in/NetworkPolicy/shop/bad"), [Statement::Drop]);
    assert_eq!(
        drops("policy_in/NetworkPolicy/shop/good"),
        [Statement::Accept]
    );
}

#[test]
fn what_is_too_large_denies_and_is_named() {
    let mut many = allow("many", "all()");
    many.ingress = vec![Rule::new(Action::Allow); 6];
    let mut wide = allow("wide", "all()");
    wide.ingress[0].source.selector = Some("all()".parse().unwrap());
    let mut scene = scene([many, wide]);
    scene.members = (1..=4)
        .map(|host| member("web", &format!("10.65.0.{host}/32")))
        .collect();
    scene.options.limits.rules = 5;
    scene.options.limits.elements = 3;

    let compiled = compile(&scene);

    let wanted = [
        (key("many"), Refusal::TooManyRules { most: 5 }),
        (key("wide"), Refusal::TooManyElements { found: 4, most: 3 }),
    ];
    assert_eq!(compiled.refused, BTreeMap::from(wanted));
}

#[test]
fn more_tiers_with_pass_than_the_kernel_can_follow_close_the_endpoint() {
    let policies = (0..12).map(|index| {
        let mut policy = allow(&format!("p{index}"), "all()");
        policy.ingress = vec![Rule::new(Action::Pass)];
        policy.tier = format!("tier{index}");
        policy
    });
    let scene = scene(policies);

    let rows = compile(&scene).rows;

    let group = &rows.chains[&verdict::key(&leads_to_in(&rows, "to_pod_by_interface", "cali1"))];
    assert_eq!(group.rules.len(), 1);
    assert_eq!(group.rules[0].statement, Statement::Drop);
}

#[test]
fn a_tunnel_s_own_packets_and_failsafe_ports_come_before_a_host_s_policy() {
    let mut scene = scene([]);
    scene.hosts = vec![Host {
        interface: Some("eth0".parse().unwrap()),
        labels: BTreeMap::new(),
        profiles: Vec::new(),
    }];
    scene.options.tunnel_ports = vec![51820];

    let rows = compile(&scene).rows;

    let comments = |name: &str| {
        let rules = rows.chains[&verdict::key(name)].rules.iter();
        rules.map(|rule| rule.comment.clone()).collect::<Vec<_>>()
    };
    let base = comments("host_in");
    let place = |comment: &str| base.iter().position(|each| each == comment).unwrap();
    assert!(place("a tunnel's own") < place("the interface's own"));
    let mut group = comments(&leads_to_in(&rows, "host_in_by_interface", "eth0"));
    group.retain(|comment| comment != "a host finds its neighbours");
    assert_eq!(group[1..=10], ["failsafe port"; 10]);
    assert_eq!(group[11], "no policy and no profile allows it");
}

#[test]
fn a_negated_port_is_looked_at_once_and_negated() {
    let mut policy = allow("web", "all()");
    policy.ingress[0].protocol = Some(Protocol::TCP);
    policy.ingress[0].destination = Side {
        not_ports: vec![PortMatch::Range(80, 90), PortMatch::single(91)],
        ..Side::default()
    };

    let rows = compile(&scene([policy])).rows;

    let rules = &rows.chains[&verdict::key("policy_in/NetworkPolicy/shop/web")].rules;
    let port = Match::Port(model::nft::End::Destination, Sense::Not, 80, 91);
    assert_eq!(rules[0].matches, [Match::Protocol(Sense::Is, 6), port]);
}

#[test]
fn a_rule_that_asks_for_somebody_is_written_for_the_families_that_anybody_has() {
    let mut scene = scene([allow("web", "all()")]);
    scene.policies[0].ingress[0].source.selector = Some("app == 'web'".parse().unwrap());
    assert_eq!(families(&scene), []);
    assert_eq!(asked(&scene), [""; 0]);

    // Whoever it is: the set that is asked may be empty still.
    scene.members = vec![member("db", "10.65.0.2/32")];
    assert_eq!(families(&scene), [Family::V4]);
    assert_eq!(asked(&scene), ["selected4"]);
    scene.members.push(member("db", "2001:db8::/32"));
    assert_eq!(families(&scene), Family::BOTH);
    assert_eq!(asked(&scene), ["selected4", "selected6"]);
    scene.members.remove(0);
    assert_eq!(families(&scene), [Family::V6]);
    assert_eq!(asked(&scene), ["selected6"]);
}

#[test]
fn who_answers_for_a_service_has_a_family_too() {
    let mut scene = scene([allow("web", "all()")]);
    let web = ServiceRef {
        namespace: "shop".into(),
        name: "web".into(),
    };
    scene.policies[0].ingress[0].source.service = Some(Box::new(web.clone()));
    assert_eq!(families(&scene), []);

    let backend = Backend {
        address: "2001:db8::2".parse().unwrap(),
        protocol: Protocol::TCP,
        port: 80,
        service_port: 80,
    };
    scene.services.insert(web, vec![backend]);

    assert_eq!(families(&scene), [Family::V6]);
}

#[test]
fn a_named_port_is_asked_for_where_anybody_could_have_it_and_a_number_in_both_families() {
    let mut scene = scene([allow("web", "all()")]);
    let rule = &mut scene.policies[0].ingress[0];
    rule.protocol = Some(Protocol::TCP);
    rule.destination.ports = vec![PortMatch::single(80), PortMatch::Named("http".into())];
    scene.members = vec![member("db", "10.65.0.2/32")];

    let [v4, v6] = Family::BOTH.map(|family| {
        let mut families = families(&scene);
        families.retain(|each| *each == family);
        families.len()
    });

    assert_eq!((v4, v6), (2, 1));
    assert_eq!(asked(&scene), ["named4"]);
}

#[test]
fn who_must_not_be_meant_is_excepted_in_both_families() {
    let mut scene = scene([allow("web", "all()")]);
    scene.policies[0].ingress[0].source.not_selector = Some("app == 'db'".parse().unwrap());

    assert_eq!(families(&scene), Family::BOTH);
    assert_eq!(asked(&scene), ["selected4", "selected6"]);
}

#[test]
fn what_cannot_be_compiled_denies_also_where_nobody_is_there_whom_it_asks_for() {
    let mut scene = scene([allow("bad", "all()")]);
    scene.policies[0].ingress[0].destination.ports = vec![PortMatch::single(80)];
    scene.policies[0].ingress[0].source.selector = Some("app == 'db'".parse().unwrap());

    let refused = compile(&scene).refused;

    let bad = BTreeMap::from([(key("bad"), Refusal::PortWithoutProtocol)]);
    assert_eq!(refused, bad);
}

/// The family of each rule of the scene's first policy.
fn families(scene: &Scene) -> Vec<Family> {
    let name = Author::Policy(&scene.policies[0]).chain(Direction::Ingress);
    let rows = compile(scene).rows;
    let rules = rows.chains[&verdict::key(&name)].rules.iter();

    rules
        .map(|rule| {
            let Match::Family(family) = rule.matches[0] else {
                panic!("{rule:?}");
            };

            family
        })
        .collect()
}

/// What the sets that rules speak of stand for.
fn asked(scene: &Scene) -> Vec<String> {
    let sets = compile(scene).rows.sets.into_iter();
    let sets = sets.filter(|(_, kind)| *kind != SetKind::InterfaceVerdicts);

    sets.map(|(key, _)| key.name.split('_').next().unwrap().to_owned())
        .collect()
}

fn scene(policies: impl IntoIterator<Item = Policy>) -> Scene {
    Scene {
        workloads: vec![pod("cali1", "web")],
        hosts: Vec::new(),
        members: Vec::new(),
        services: BTreeMap::new(),
        tiers: vec![model::policy::Tier {
            name: "unused".into(),
            order: Some(5.0),
            default_action: TierAction::Deny,
        }],
        policies: policies.into_iter().collect(),
        profiles: BTreeMap::new(),
        options: Options::default(),
    }
}

fn allow(name: &str, selector: &str) -> Policy {
    Policy {
        key: key(name),
        tier: "default".into(),
        order: Some(1.0),
        selector: selector.parse().unwrap(),
        types: Directions {
            ingress: true,
            egress: false,
        },
        ingress: vec![Rule::new(Action::Allow)],
        egress: Vec::new(),
        stage: Stage::Normal,
        apply_on_forward: false,
        staged: None,
        invalid: BTreeMap::new(),
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced(Kind::NetworkPolicy, "shop", name)
}

fn pod(interface: &str, app: &str) -> Workload {
    Workload {
        interface: interface.parse().unwrap(),
        labels: labels(app),
        profiles: Vec::new(),
    }
}

fn member(app: &str, net: &str) -> Member {
    Member {
        labels: labels(app),
        nets: vec![net.parse().unwrap()],
        ports: Vec::new(),
    }
}

fn labels(app: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app".into(), app.into())])
}

/// Where a pod's interface leads for what it gets.
fn leads_to(rows: &Ruleset, interface: &str) -> String {
    leads_to_in(rows, "to_pod_by_interface", interface)
}

fn key_of(name: &str) -> model::nft::ChainKey {
    verdict::key(name)
}

fn leads_to_in(rows: &Ruleset, map: &str, interface: &str) -> String {
    let set = SetKey {
        table: model::nft::NftFamily::Inet,
        name: map.into(),
    };
    let mut found = rows.elements.iter().filter_map(|(key, element)| {
        let Element::InterfaceVerdict(name, model::nft::Verdict::Goto(chain)) = element else {
            return None;
        };

        (*key == set && name.as_str() == interface).then(|| chain.to_string())
    });

    found.next().unwrap()
}
