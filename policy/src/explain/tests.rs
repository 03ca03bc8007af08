use model::manifest;
use serde_json::{Value, json};

use super::*;
use crate::{
    explain::mismatch::mismatches,
    scenario::{PolicyTest, ProbeVerdict},
};

/// The conformance suite: what is explained there is what Calico and Kubernetes promise.
const FILES: [&str; 6] = [
    include_str!("../../../tests/conformance/case/change.yaml"),
    include_str!("../../../tests/conformance/case/host.yaml"),
    include_str!("../../../tests/conformance/case/kubernetes.yaml"),
    include_str!("../../../tests/conformance/case/rule.yaml"),
    include_str!("../../../tests/conformance/case/service.yaml"),
    include_str!("../../../tests/conformance/case/tier.yaml"),
];

fn cases() -> Vec<(String, Value)> {
    let mut cases = Vec::new();
    for text in FILES {
        for value in manifest::values(text) {
            let value = value.unwrap();
            cases.push((value["metadata"]["name"].to_string(), value));
        }
    }
    assert!(cases.len() > 50, "{} cases", cases.len());

    cases
}

fn test(value: &Value) -> PolicyTest {
    PolicyTest::parse(value).unwrap()
}

/// A shop: `web/front` may speak to `shop/api` on 8080, by way of a policy that selects it by its labels.
fn shop() -> Value {
    json!({
        "apiVersion": "meshd.dev/v1", "kind": "PolicyTest",
        "topology": {
            "namespaces": [{"name": "shop"}, {"name": "web", "labels": {"team": "web"}}],
            "nodes": [{"name": "n1", "interfaces": {"eth0": ["192.0.2.1"]}}],
            "pods": [
                {"namespace": "shop", "name": "api", "labels": {"app": "api"}, "addresses": ["10.65.0.2"]},
                {"namespace": "web", "name": "front", "labels": {"app": "front", "role": "front"}, "addresses": ["10.65.0.3"]},
                {"namespace": "web", "name": "back", "labels": {"app": "back"}, "addresses": ["10.65.0.4"]},
            ],
        },
        "resources": [{
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "api"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "api"}},
                "ingress": [
                    {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "front"}}}], "ports": [{"port": 8080}]},
                    {"from": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]},
                ],
            },
        }],
    })
}

fn shop_with(resource: Value) -> Value {
    let mut shop = shop();
    shop["resources"].as_array_mut().unwrap().push(resource);

    shop
}

fn cluster(document: &Value) -> Cluster {
    test(document).cluster(&[]).unwrap()
}

fn ask(document: &Value, from: &str, to: &str, port: u16) -> Explanation {
    let probe = json!({"from": from, "to": to, "port": port});
    let mut found = why(&cluster(document), &Probe::parse(&probe).unwrap()).unwrap();
    assert_eq!(found.len(), 1);

    found.remove(0)
}

#[test]
fn a_rule_has_a_reason_not_to_match_exactly_where_it_does_not() {
    let mut compared = [0, 0];
    for (place, value) in cases() {
        let test = test(&value);
        let cluster = test.cluster(&[]).unwrap();
        let evaluator = Evaluator::new(&cluster);
        for explanation in test.explain(&[]).unwrap().into_iter().flat_map(|one| one.2) {
            let header = crate::Header {
                source: explanation.source.address,
                destination: explanation.destination.address,
                protocol: explanation.protocol.parse().unwrap(),
                ports: explanation.port.map(|port| crate::packet::Ports {
                    source: 40_000,
                    destination: port,
                }),
                icmp: None,
            };
            for policy in &cluster.policies {
                for rule in policy.ingress.iter().chain(&policy.egress) {
                    let matches = evaluator.matches(rule, &header);
                    compared[usize::from(matches)] += 1;
                    let misses = mismatches(&evaluator, rule, &header);
                    assert_eq!(misses.is_empty(), matches, "{place}: {rule:?}: {misses:?}");
                }
            }
        }
    }
    assert!(compared.iter().all(|count| *count > 500), "{compared:?}");
}

#[test]
fn what_is_told_step_by_step_ends_where_the_evaluator_decided() {
    let mut rules = 0;
    for (place, value) in cases() {
        for (_, _, explanations) in test(&value).explain(&[]).unwrap() {
            for explanation in explanations {
                rules += explanation
                    .steps
                    .iter()
                    .filter(|step| agrees(&place, step))
                    .count();
            }
        }
    }
    assert!(rules > 200, "{rules}");
}

/// Whether a rule decided; panics where the steps do not say who did.
fn agrees(place: &str, step: &Step) -> bool {
    let last = step.tiers.last();
    if let Some(tier) = step.by.strip_prefix("end of tier ") {
        let last = last.unwrap();
        assert_eq!(
            (last.tier.as_str(), last.end),
            (tier, TierEnd::DefaultDeny),
            "{place}"
        );
        return false;
    }
    let Some((policy, rule)) = step.by.split_once(" rule ") else {
        let decided = last.is_some_and(|tier| tier.end != TierEnd::Pass);
        assert!(!decided, "{place}: {step:#?}");
        return false;
    };
    let decider = last.unwrap().policies.last().unwrap();
    let matching = decider.rules.last().unwrap();
    assert_eq!(decider.policy, policy, "{place}");
    assert!(matching.matches, "{place}");
    assert_eq!(matching.rule.to_string(), rule, "{place}");

    true
}

#[test]
fn every_object_that_is_proposed_turns_the_verdict_round_when_it_is_applied() {
    let mut turned = [0, 0];
    for (place, value) in cases() {
        let before = test(&value).run(&[]).unwrap();
        for (step, probe, explanations) in test(&value).explain(&[]).unwrap() {
            let [explanation] = &explanations[..] else {
                continue;
            };
            for flip in explanation
                .flips
                .iter()
                .filter(|flip| flip.changes.len() == flip.manifests.len())
            {
                let entry = |report: &crate::scenario::Report| {
                    let mut verdicts = report.verdicts.iter();
                    verdicts
                        .find(|entry| (entry.step, entry.probe) == (step, probe))
                        .unwrap()
                        .verdict
                };
                if step != 0 {
                    continue;
                }
                let mut changed = value.clone();
                let resources = &mut changed["resources"];
                if resources.is_null() {
                    *resources = json!([]);
                }
                resources
                    .as_array_mut()
                    .unwrap()
                    .extend(flip.manifests.clone());
                let after = test(&changed).run(&[]).unwrap();
                assert_eq!(after.errors, before.errors, "{place}: {flip:?}");
                let expected = match entry(&before) {
                    ProbeVerdict::Allow => ProbeVerdict::Deny,
                    ProbeVerdict::Deny => ProbeVerdict::Allow,
                    ProbeVerdict::Mixed => continue,
                };
                assert_eq!(entry(&after), expected, "{place} probe {probe}: {flip:#?}");
                turned[usize::from(expected == ProbeVerdict::Allow)] += 1;
            }
        }
    }
    assert!(turned.iter().all(|count| *count > 25), "{turned:?}");
}

#[test]
fn nearly_everybody_who_is_denied_is_told_a_way() {
    let mut told = [0, 0];
    for (_, value) in cases() {
        let explanations = test(&value).explain(&[]).unwrap();
        for explanation in explanations.into_iter().flat_map(|one| one.2) {
            if explanation.verdict == Verdict::Deny {
                told[usize::from(!explanation.flips.is_empty())] += 1;
            }
        }
    }
    assert!(told[1] > 300 && told[0] * 20 < told[1], "{told:?}");
}

#[test]
fn a_denied_packet_is_told_which_label_is_missing() {
    let told = ask(&shop(), "web/back", "shop/api", 8080);

    assert_eq!(told.verdict, Verdict::Deny);
    assert_eq!(told.steps.last().unwrap().by, "end of tier default");
    assert_eq!(told.flips[0].changes, ["label pod web/back role=front"]);
    let rules = &told.steps.last().unwrap().tiers[0].policies[0].rules;
    assert_eq!(rules.len(), 2);
    assert_eq!(
        rules[1].because,
        ["the source 10.65.0.4 is not in 198.51.100.0/24"]
    );
}

#[test]
fn a_denied_port_is_named_and_the_policy_that_would_open_it_opens_nothing_else() {
    let told = ask(&shop(), "web/front", "shop/api", 9090);

    let rules = &told.steps.last().unwrap().tiers[0].policies[0].rules;
    assert_eq!(rules[0].because, ["the destination port 9090 is not 8080"]);
    assert_eq!(
        told.flips[0].changes,
        [
            "a NetworkPolicy in shop that selects app == 'api' allows ingress from pods of web where app == 'front' on TCP 9090"
        ]
    );
    let changed = shop_with(told.flips[0].manifests[0].clone());
    let verdict = |from: &str, port| ask(&changed, from, "shop/api", port).verdict;
    assert_eq!(verdict("web/front", 9090), Verdict::Allow);
    assert_eq!(verdict("web/back", 9090), Verdict::Deny);
    assert_eq!(verdict("web/front", 9091), Verdict::Deny);
}

#[test]
fn closing_one_connection_leaves_what_nobody_policed_open() {
    let told = ask(&shop(), "shop/api", "web/front", 443);
    assert_eq!(told.verdict, Verdict::Allow);

    for flip in &told.flips {
        let changed = shop_with(flip.manifests[0].clone());
        assert_eq!(
            ask(&changed, "shop/api", "web/front", 443).verdict,
            Verdict::Deny
        );
        assert_eq!(
            ask(&changed, "shop/api", "web/front", 80).verdict,
            Verdict::Allow
        );
        assert_eq!(
            ask(&changed, "web/back", "web/front", 443).verdict,
            Verdict::Allow
        );
    }
    assert_eq!(told.flips.len(), 2);
}

#[test]
fn a_label_that_would_not_help_is_not_proposed() {
    let document = shop_with(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "never"},
        "spec": {"order": 1, "selector": "app == 'api'", "types": ["Ingress"], "ingress": [
            {"action": "Deny", "source": {"selector": "app == 'back'", "namespaceSelector": "all()"}},
        ]},
    }));

    let told = ask(&document, "web/back", "shop/api", 8080);

    assert_eq!(
        told.steps.last().unwrap().by,
        "NetworkPolicy shop/never rule 0"
    );
    let changes: Vec<_> = told.flips.iter().map(|flip| &flip.changes).collect();
    assert!(
        changes
            .iter()
            .all(|changes| !changes[0].starts_with("label")),
        "{changes:?}"
    );
    assert_eq!(told.flips[0].manifests[0]["spec"]["order"], 0);
}

#[test]
fn what_is_denied_at_both_ends_takes_a_change_at_each() {
    let document = shop_with(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"namespace": "web", "name": "closed"},
        "spec": {"selector": "app == 'back'", "types": ["Egress"]},
    }));

    let told = ask(&document, "web/back", "shop/api", 9090);

    let flip = &told.flips[0];
    assert_eq!(
        (flip.changes.len(), flip.manifests.len()),
        (2, 2),
        "{flip:#?}"
    );
    let mut changed = document;
    changed["resources"]
        .as_array_mut()
        .unwrap()
        .extend(flip.manifests.clone());
    assert_eq!(
        ask(&changed, "web/back", "shop/api", 9090).verdict,
        Verdict::Allow
    );
}

#[test]
fn a_staged_policy_is_shown_in_its_place_with_the_packets_that_it_would_drop() {
    let document = shop_with(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "StagedNetworkPolicy",
        "metadata": {"namespace": "shop", "name": "strict"},
        "spec": {"order": 5, "selector": "app == 'api'", "types": ["Ingress"], "ingress": [
            {"action": "Deny", "protocol": "TCP", "destination": {"ports": [8080]}},
        ]},
    }));
    let told = ask(&document, "web/front", "shop/api", 8080);
    assert_eq!(told.verdict, Verdict::Allow);
    assert_eq!(told.staged, ["StagedNetworkPolicy shop/strict"]);

    let view = show(&cluster(&document), "shop/api").unwrap().remove(0);

    let ingress = &view.points[1];
    let policies = &ingress.tiers[0].policies;
    let names: Vec<_> = policies
        .iter()
        .map(|one| (one.policy.as_str(), one.staged.is_some()))
        .collect();
    assert_eq!(
        names,
        [
            ("StagedNetworkPolicy shop/strict", true),
            ("NetworkPolicy shop/api", false)
        ]
    );
    assert_eq!(ingress.profiles, ["kns.shop", "ksa.shop.default"]);
    let effect = &view.staged[0];
    assert_eq!(effect.shifts[0].from, "web/front");
    assert_eq!(
        (effect.shifts[0].now, effect.shifts[0].then),
        (Verdict::Allow, Verdict::Deny)
    );
    assert_eq!(effect.differ, effect.shifts.len());
    assert!(effect.tried > effect.differ);
    // What it allows to nobody else stays denied: nothing is opened.
    assert!(
        effect
            .shifts
            .iter()
            .all(|shift| shift.then == Verdict::Deny)
    );
}

#[test]
fn an_endpoint_that_is_not_there_is_named() {
    let cluster = cluster(&shop());

    for name in ["shop/gone", "host/n1", "shop", "a/b/c/d"] {
        let error = show(&cluster, name).unwrap_err();
        assert_eq!(error.field, "endpoint");
        assert!(error.message.contains(name), "{}", error.message);
    }
}
