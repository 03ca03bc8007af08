//! Calico's policies, and what their fields come to.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    Family, ObjectKey,
    policy::{Action, Icmp, PortMatch, Protocol, ServiceRef, Side},
};

#[test]
fn a_policy_of_a_namespace_selects_in_it_alone() {
    let policy = namespaced(json!({
        "order": 10.5,
        "selector": "app == 'web' || app == 'api'",
        "serviceAccountSelector": "team == 'a'",
        "types": ["Egress"],
    }));

    assert_eq!(
        policy,
        Policy {
            key: ObjectKey::namespaced(Kind::NetworkPolicy, "shop", "p"),
            tier: "default".into(),
            order: Some(10.5),
            selector: selector_of(
                "projectcalico.org/namespace == 'shop' && (app == 'web' || app == 'api') && pcsa.team == 'a'"
            ),
            types: Directions {
                ingress: false,
                egress: true,
            },
            ingress: Vec::new(),
            egress: Vec::new(),
            stage: Stage::Normal,
            apply_on_forward: true,
            staged: None,
            invalid: BTreeMap::new(),
        }
    );
}

#[test]
fn a_policy_of_no_namespace_selects_by_every_selector_that_it_has() {
    for (spec, selector) in [
        (json!({}), "all()"),
        (json!({"selector": "has(a)"}), "has(a)"),
        (json!({"namespaceSelector": "has(a)"}), "has(pcns.a)"),
        (
            json!({"namespaceSelector": "all()"}),
            "has(projectcalico.org/namespace)",
        ),
        (
            json!({"selector": "b == 'all()'", "namespaceSelector": "all()"}),
            "b == 'all()' && has(projectcalico.org/namespace)",
        ),
        (
            json!({"serviceAccountSelector": "all()", "selector": "has(b)"}),
            "has(b) && has(projectcalico.org/serviceaccount)",
        ),
    ] {
        assert_eq!(
            global(spec.clone()).selector,
            selector_of(selector),
            "{spec}"
        );
    }
}

#[test]
fn a_side_means_its_own_namespace_as_soon_as_it_means_endpoints() {
    let shop = "projectcalico.org/namespace == 'shop'";
    for (side, of_namespace, of_none) in [
        (json!({}), None, None),
        (json!({"nets": ["10.0.0.0/8"]}), None, None),
        (json!({"selector": ""}), None, None),
        (
            json!({"selector": "has(a)"}),
            Some(format!("{shop} && has(a)")),
            Some("has(a)".into()),
        ),
        (
            json!({"selector": "all()"}),
            Some(shop.into()),
            Some("all()".to_owned()),
        ),
        (
            json!({"namespaceSelector": "all()"}),
            Some("has(projectcalico.org/namespace)".into()),
            Some("has(projectcalico.org/namespace)".into()),
        ),
        (
            json!({"namespaceSelector": "global()", "selector": "has(a)"}),
            Some("!has(projectcalico.org/namespace) && has(a)".into()),
            Some("!has(projectcalico.org/namespace) && has(a)".into()),
        ),
        (
            json!({"namespaceSelector": "x == 'all()'"}),
            Some("pcns.x == 'all()'".into()),
            Some("pcns.x == 'all()'".into()),
        ),
        (
            json!({"serviceAccounts": {"names": ["b", "a"], "selector": "has(t)"}, "selector": "has(a)"}),
            Some(format!(
                "{shop} && (has(pcsa.t) && projectcalico.org/serviceaccount in {{'a', 'b'}}) && has(a)"
            )),
            Some(
                "(has(pcsa.t) && projectcalico.org/serviceaccount in {'a', 'b'}) && has(a)".into(),
            ),
        ),
        (
            json!({"selector": "has(a)", "notSelector": "has(b)"}),
            Some(format!("{shop} && has(a) && !has(b)")),
            Some("has(a) && !has(b)".into()),
        ),
        (
            json!({"namespaceSelector": "has(n)", "notSelector": "has(b)"}),
            Some("has(pcns.n) && !has(b)".into()),
            Some("has(pcns.n) && !has(b)".into()),
        ),
        (json!({"serviceAccounts": {}}), None, None),
    ] {
        let rule = json!({"action": "Allow", "source": side});
        let read = |policy: Policy| policy.ingress[0].source.clone();
        let source = read(namespaced(json!({"ingress": [rule]})));
        let global = read(global(json!({"ingress": [rule]})));
        assert_eq!(
            source.selector,
            of_namespace.as_deref().map(selector_of),
            "{side}"
        );
        assert_eq!(
            global.selector,
            of_none.as_deref().map(selector_of),
            "{side}"
        );
        assert_eq!(
            (source.not_selector, global.not_selector),
            (None, None),
            "{side}"
        );
    }
}

#[test]
fn a_lone_negation_reaches_beyond_the_cluster_only_from_a_policy_of_no_namespace() {
    let spec = json!({"egress": [{"action": "Allow", "destination": {"notSelector": "has(b)"}}]});

    let of_none = &global(spec.clone()).egress[0].destination;
    assert_eq!(of_none.selector, None);
    assert_eq!(of_none.not_selector, Some(selector_of("has(b)")));

    let of_namespace = &namespaced(spec).egress[0].destination;
    assert_eq!(
        of_namespace.selector,
        Some(selector_of(
            "projectcalico.org/namespace == 'shop' && !has(b)"
        ))
    );
    assert_eq!(of_namespace.not_selector, None);
}

#[test]
fn every_field_of_a_rule_is_read() {
    let policy = namespaced(json!({"egress": [
        {"action": "Log"},
        {
            "action": "Pass", "ipVersion": 4, "protocol": "tcp", "notProtocol": 17,
            "source": {"nets": ["10.1.2.3/8", "192.0.2.1"], "notNets": ["10.0.0.0/16"]},
            "destination": {"ports": [80, "8080:8090", "http"], "notPorts": ["81"]},
            "http": {"methods": ["GET"]},
            "metadata": {"annotations": {"name": "web", "other": "x"}},
        },
        {"action": "Deny", "protocol": "ICMPv6", "icmp": {"type": 128}, "notICMP": {"type": 1, "code": 0}},
        {"action": "Allow", "destination": {"services": {"name": "db"}}},
    ]}));

    assert_eq!(
        policy.egress,
        [
            Rule::new(Action::Log),
            Rule {
                family: Some(Family::V4),
                protocol: Some(Protocol::TCP),
                not_protocol: Some(Protocol::UDP),
                source: Side {
                    nets: vec![
                        "10.0.0.0/8".parse().unwrap(),
                        "192.0.2.1/32".parse().unwrap()
                    ],
                    not_nets: vec!["10.0.0.0/16".parse().unwrap()],
                    ..Side::default()
                },
                destination: Side {
                    ports: vec![
                        PortMatch::single(80),
                        PortMatch::Range(8080, 8090),
                        PortMatch::Named("http".into()),
                    ],
                    not_ports: vec![PortMatch::single(81)],
                    ..Side::default()
                },
                http: true,
                name: Some("web".into()),
                index: 1,
                ..Rule::new(Action::Pass)
            },
            Rule {
                family: Some(Family::V6),
                protocol: Some(Protocol::ICMPV6),
                icmp: Some(Icmp {
                    kind: 128,
                    code: None,
                }),
                not_icmp: Some(Icmp {
                    kind: 1,
                    code: Some(0),
                }),
                index: 2,
                ..Rule::new(Action::Deny)
            },
            Rule {
                destination: Side {
                    service: Some(Box::new(ServiceRef {
                        namespace: "shop".into(),
                        name: "db".into(),
                    })),
                    ..Side::default()
                },
                index: 3,
                ..Rule::new(Action::Allow)
            },
        ]
    );
}

#[test]
fn a_stored_policy_without_types_applies_both_ways() {
    let both = Directions {
        ingress: true,
        egress: true,
    };
    assert_eq!(namespaced(json!({})).types, both);
    assert_eq!(
        namespaced(json!({"types": [], "egress": [{"action": "Deny"}]})).types,
        both
    );
    assert_eq!(
        global(json!({"types": ["Ingress"]})).types,
        Directions {
            ingress: true,
            egress: false,
        }
    );
}

#[test]
fn a_policy_of_no_namespace_says_where_it_is_asked() {
    let stage = |spec| {
        let policy = global(spec);
        (policy.stage, policy.apply_on_forward)
    };
    assert_eq!(stage(json!({})), (Stage::Normal, false));
    assert_eq!(
        stage(json!({"applyOnForward": true})),
        (Stage::Normal, true)
    );
    assert_eq!(
        stage(json!({"doNotTrack": true, "applyOnForward": true})),
        (Stage::Untracked, true)
    );
    assert_eq!(
        stage(json!({"preDNAT": true, "applyOnForward": true})),
        (Stage::PreDnat, true)
    );
}

#[test]
fn a_staged_policy_says_what_it_stands_for() {
    for (said, staged) in [
        (json!({}), StagedAction::Set),
        (json!({"stagedAction": "Set"}), StagedAction::Set),
        (json!({"stagedAction": "Delete"}), StagedAction::Delete),
        (json!({"stagedAction": "Learn"}), StagedAction::Learn),
        (json!({"stagedAction": "Ignore"}), StagedAction::Ignore),
    ] {
        let key = ObjectKey::cluster(Kind::StagedGlobalNetworkPolicy, "p");
        let policy = Policy::try_from(&Object::new(&key, said)).unwrap();
        assert_eq!(policy.staged, Some(staged));
    }
}

#[test]
fn a_rule_that_cannot_be_read_lets_less_through_and_is_named() {
    let policy = global(json!({
        "ingress": [
            {"action": "Allow", "source": {"nets": ["10.0.0.0/33"]}},
            {"action": "Allow", "protocol": "TCP"},
            {"action": "Deny", "source": {"selector": "has("}},
            {"action": "Log", "protocol": "nonsense"},
            {"action": "Pass", "icmp": {"code": 1}, "protocol": "ICMP"},
            {"action": "Reject"},
            {"protocol": 6},
            17,
        ],
    }));

    let denied = |index| Rule {
        index,
        ..Rule::new(Action::Deny)
    };
    let kept = Rule {
        protocol: Some(Protocol::TCP),
        index: 1,
        ..Rule::new(Action::Allow)
    };
    assert_eq!(
        policy.ingress,
        [kept, denied(2), denied(4), denied(5), denied(6), denied(7)]
    );
    let fields: Vec<_> = policy.invalid.keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        [
            "spec.ingress[0].source.nets[0]",
            "spec.ingress[2].source.selector",
            "spec.ingress[3].protocol",
            "spec.ingress[4].icmp.type",
            "spec.ingress[5].action",
            "spec.ingress[6].action",
            "spec.ingress[7]",
        ]
    );
}

#[test]
fn a_policy_whose_endpoints_cannot_be_told_is_refused() {
    for (spec, field) in [
        (json!({"selector": "has("}), "spec.selector"),
        (json!({"namespaceSelector": "a"}), "spec.namespaceSelector"),
        (
            json!({"serviceAccountSelector": "a"}),
            "spec.serviceAccountSelector",
        ),
        (json!({"types": ["Ingress", "Up"]}), "spec.types[1]"),
        (json!({"order": "high"}), "spec.order"),
        (json!({"doNotTrack": true, "preDNAT": true}), "spec.preDNAT"),
        (json!({"ingress": {}}), "spec.ingress"),
    ] {
        let key = ObjectKey::cluster(Kind::GlobalNetworkPolicy, "p");
        let error = Policy::try_from(&Object::new(&key, spec)).unwrap_err();
        assert_eq!(error.field, field);
    }
    let pool = Object::new(&ObjectKey::cluster(Kind::KeyClaim, "p"), json!({}));
    assert!(Policy::try_from(&pool).is_err());
}

proptest! {
    #[test]
    fn protocols_are_read_as_they_are_written(number in 1u8..) {
        let protocol = Protocol(number);
        let text = protocol.to_string();
        prop_assert_eq!(text.parse(), Ok(protocol));
        prop_assert_eq!(text.to_lowercase().parse(), Ok(protocol));
        prop_assert_eq!(number.to_string().parse(), Ok(protocol));
    }

    #[test]
    fn ports_are_read_as_they_are_written(a: u16, b: u16, name in "[a-zA-Z_.-][a-zA-Z0-9_.-]{0,127}") {
        for port in [PortMatch::single(a), PortMatch::Range(a.min(b), a.max(b)), PortMatch::Named(name)] {
            prop_assert_eq!(port.to_string().parse(), Ok(port));
        }
        prop_assume!(a != b);
        let reversed = format!("{}:{}", a.max(b), a.min(b));
        prop_assert!(reversed.parse::<PortMatch>().is_err());
    }

    #[test]
    fn no_rule_makes_the_reader_panic(text in "[-a-z{}\\[\\]:,\"0-9 ]{0,60}") {
        if let Ok(value) = serde_yaml_ng::from_str::<Value>(&text) {
            let _ = rule::rule(&value, "r", 0, None);
        }
    }
}

#[test]
fn what_is_no_port_or_protocol_is_refused() {
    let long = "a".repeat(129);
    for text in [
        "", "65536", "+80", "1:", ":1", "1:2:3", "2:1", "+1:2", "a b", "ä", &long,
    ] {
        assert!(text.parse::<PortMatch>().is_err(), "{text:?}");
    }
    for value in [
        json!(-1),
        json!(65536),
        json!(1.5),
        json!(true),
        json!(null),
    ] {
        assert!(rule::port(&value, "p").is_err(), "{value}");
    }
    for text in ["", "0", "256", "+6", "-1", "IP", "tcp "] {
        assert!(text.parse::<Protocol>().is_err(), "{text:?}");
    }
}

fn namespaced(spec: Value) -> Policy {
    let key = ObjectKey::namespaced(Kind::NetworkPolicy, "shop", "p");

    Policy::try_from(&Object::new(&key, spec)).unwrap()
}

fn global(spec: Value) -> Policy {
    let key = ObjectKey::cluster(Kind::GlobalNetworkPolicy, "p");

    Policy::try_from(&Object::new(&key, spec)).unwrap()
}

fn selector_of(text: &str) -> Selector {
    text.parse().unwrap()
}
