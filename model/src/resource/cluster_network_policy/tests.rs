//! What administrators' policies come to, and what a bad rule does.

use serde_json::json;

use super::*;
use crate::{Kind, ObjectKey};

const PODS: &str = "projectcalico.org/orchestrator == 'k8s'";

#[test]
fn a_policy_is_of_its_tier_and_applies_where_it_has_rules() {
    let peer =
        json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}});
    let policy = policy(json!({
        "tier": "Admin", "priority": 7,
        "subject": {"namespaces": {"matchLabels": {"team": "a"}}},
        "ingress": [
            {"name": "web", "action": "Accept", "from": [peer, {"namespaces": {}}], "protocols": [
                {"tcp": {"destinationPort": {"number": 80}}},
                {"tcp": {"destinationPort": {"range": {"start": 81, "end": 90}}}},
                {"udp": {}},
                {"destinationNamedPort": "web"},
            ]},
        ],
    }))
    .unwrap();

    assert_eq!(
        (policy.tier.as_str(), policy.order),
        ("kube-admin", Some(7.0))
    );
    assert_eq!(
        policy.selector,
        selector(&format!("pcns.team == 'a' && {PODS}"))
    );
    assert_eq!((policy.types.ingress, policy.types.egress), (true, false));
    let [web, dns] = [Protocol::TCP, Protocol::UDP].map(Some);
    let said: Vec<_> = policy
        .ingress
        .iter()
        .map(|rule| (rule.protocol, rule.destination.ports.clone()))
        .collect();
    let named = (None, vec![PortMatch::Named("web".into())]);
    let tcp = (web, vec![PortMatch::Range(80, 90)]);
    let udp = (dns, vec![]);
    assert_eq!(
        said,
        [named.clone(), named, tcp.clone(), tcp, udp.clone(), udp]
    );
    for pair in policy.ingress.chunks(2) {
        let pods = format!("has(projectcalico.org/namespace) && {PODS} && app == 'web'");
        assert_eq!(pair[0].source.selector, Some(selector(&pods)));
        let anything = selector("has(projectcalico.org/namespace)");
        assert_eq!(pair[1].source.selector, Some(anything));
        assert_eq!(pair[0].name.as_deref(), Some("web"));
    }
}

#[test]
fn networks_are_the_other_end_of_what_goes_out() {
    let policy = policy(json!({
        "tier": "Baseline", "priority": 0,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}},
        "egress": [{"action": "Pass", "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}]}],
    }))
    .unwrap();

    assert_eq!(policy.tier, "kube-baseline");
    let pods = format!("has(projectcalico.org/namespace) && {PODS} && app == 'web'");
    assert_eq!(policy.selector, selector(&pods));
    assert_eq!(
        policy.egress,
        [Rule {
            destination: Side {
                nets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
                ..Side::default()
            },
            ..Rule::new(Action::Pass)
        }]
    );
}

#[test]
fn a_bad_rule_denies_everything_unless_it_would_accept() {
    for (rule, field) in [
        (json!({"to": []}), "to"),
        (json!({"to": [{}]}), "to[0]"),
        (json!({"to": [{"domainNames": ["example.org"]}]}), "to[0]"),
        (
            json!({"to": [{"namespaces": {}, "pods": {}}]}),
            "to[0].pods",
        ),
        (
            json!({"to": [{"namespaces": {}, "networks": ["10.0.0.0/8"]}]}),
            "to[0].networks",
        ),
        (
            json!({"to": [{"networks": ["10.0.0.0"]}]}),
            "to[0].networks[0]",
        ),
        (
            json!({"to": [{"namespaces": {}}], "protocols": [{}]}),
            "protocols[0]",
        ),
        (
            json!({"to": [{"namespaces": {}}], "protocols": [{"tcp": {}, "udp": {}}]}),
            "protocols[0]",
        ),
        (
            json!({"to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {}}}]}),
            "protocols[0].tcp.destinationPort",
        ),
        (
            json!({"to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"number": 0}}}]}),
            "protocols[0].tcp.destinationPort.number",
        ),
        (
            json!({"to": [{"namespaces": {}}],
                   "protocols": [{"udp": {"destinationPort": {"range": {"start": 9, "end": 8}}}}]}),
            "protocols[0].udp.destinationPort.range.end",
        ),
        (
            json!({"to": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "80"}]}),
            "protocols[0].destinationNamedPort",
        ),
    ] {
        for (action, instead) in [
            ("Accept", None),
            ("Deny", Some(Action::Deny)),
            ("Pass", Some(Action::Deny)),
        ] {
            let mut rule = rule.clone();
            rule["action"] = json!(action);
            let policy = policy(json!({
                "tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [rule],
            }))
            .unwrap();
            let right: Vec<_> = instead.map(Rule::new).into_iter().collect();
            assert_eq!(policy.egress, right, "{action} {rule}");
            let path = format!("spec.egress[0].{field}");
            assert_eq!(policy.invalid.keys().collect::<Vec<_>>(), [&path], "{rule}");
        }
    }
}

#[test]
fn a_policy_without_tier_or_subject_is_refused() {
    for (spec, field) in [
        (
            json!({"priority": 1, "subject": {"namespaces": {}}}),
            "spec.tier",
        ),
        (
            json!({"tier": "Other", "subject": {"namespaces": {}}}),
            "spec.tier",
        ),
        (json!({"tier": "Admin"}), "spec.subject"),
        (json!({"tier": "Admin", "subject": {}}), "spec.subject"),
        (
            json!({"tier": "Admin", "subject": {"namespaces": {"matchLabels": {"a": "!"}}}}),
            "spec.subject.namespaces.matchLabels.a",
        ),
    ] {
        assert_eq!(policy(spec).unwrap_err().field, field);
    }
}

fn policy(spec: Value) -> Result<Policy, FieldError> {
    read(&Object::new(
        &ObjectKey::cluster(Kind::ClusterNetworkPolicy, "p"),
        spec,
    ))
}

fn selector(text: &str) -> Selector {
    text.parse().unwrap()
}
