//! What is refused on apply, each with the path of the field: Calico's rules, and Kubernetes'.

mod kubernetes;
mod rule;

use serde_json::{Value, json};

use crate::{
    Kind,
    manifest::{object, parse, validate, validate_all},
};

#[test]
fn a_policy_gets_its_directions_and_the_label_of_its_tier() {
    for (spec, types, tier) in [
        (json!({}), json!(["Ingress"]), "default"),
        (
            json!({"tier": "net", "ingress": [{"action": "Allow"}]}),
            json!(["Ingress"]),
            "net",
        ),
        (
            json!({"egress": [{"action": "Allow"}]}),
            json!(["Egress"]),
            "default",
        ),
        (
            json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}),
            json!(["Ingress", "Egress"]),
            "default",
        ),
        (
            json!({"types": ["Egress"], "ingress": [{"action": "Deny"}]}),
            json!(["Egress"]),
            "default",
        ),
    ] {
        for kind in [
            Kind::NetworkPolicy,
            Kind::GlobalNetworkPolicy,
            Kind::StagedNetworkPolicy,
            Kind::StagedGlobalNetworkPolicy,
        ] {
            let object = object(written(kind, "p", spec.clone())).unwrap();
            assert_eq!(object.body["spec"]["types"], types, "{kind} {spec}");
            assert_eq!(object.metadata.labels["projectcalico.org/tier"], tier);
        }
    }
    let delete = json!({"stagedAction": "Delete", "tier": "net"});
    let object = object(written(Kind::StagedNetworkPolicy, "p", delete.clone())).unwrap();
    assert_eq!(object.body["spec"], delete);
}

#[test]
fn a_wrong_policy_is_refused_with_its_path() {
    let rules = vec![json!({"action": "Allow"}); 1025];
    for (spec, message) in [
        (
            json!({"ordre": 1}),
            "spec.ordre: unknown field; did you mean order?",
        ),
        (
            json!({"order": "high"}),
            "spec.order: expected a number, found \"high\"",
        ),
        (json!({"tier": 1}), "spec.tier: expected a text, found 1"),
        (
            json!({"selector": "global()"}),
            "spec.selector: expected a selector without global()",
        ),
        (
            json!({"selector": "a =="}),
            "spec.selector: at character 5: expected a value in quotes",
        ),
        (
            json!({"selector": long()}),
            "spec.selector: expected at most 1024 characters",
        ),
        (
            json!({"serviceAccountSelector": "global()"}),
            "spec.serviceAccountSelector: expected a selector without",
        ),
        (
            json!({"serviceAccountSelector": long()}),
            "spec.serviceAccountSelector: expected at most 1024",
        ),
        (
            json!({"types": ["ingress"]}),
            "spec.types[0]: expected Ingress or Egress",
        ),
        (
            json!({"types": ["Ingress", "Ingress"]}),
            "spec.types[1]: expected each direction once",
        ),
        (
            json!({"types": ["Ingress", "Egress", "Ingress"]}),
            "spec.types: expected at most 2 entries",
        ),
        (
            json!({"ingress": rules}),
            "spec.ingress: expected at most 1024 entries",
        ),
        (
            json!({"egress": rules}),
            "spec.egress: expected at most 1024 entries",
        ),
        (
            json!({"performanceHints": ["Fast"]}),
            "spec.performanceHints[0]: expected AssumeNeededOnEveryNode",
        ),
    ] {
        for kind in [
            Kind::NetworkPolicy,
            Kind::GlobalNetworkPolicy,
            Kind::StagedNetworkPolicy,
            Kind::StagedGlobalNetworkPolicy,
        ] {
            assert_refused(kind, "p", spec.clone(), message);
        }
    }
    for field in [
        "doNotTrack",
        "preDNAT",
        "applyOnForward",
        "namespaceSelector",
        "stagedAction",
    ] {
        let path = format!("spec.{field}: unknown field");
        assert_refused(Kind::NetworkPolicy, "p", json!({ field: true }), &path);
    }
}

#[test]
fn a_policy_that_is_asked_early_says_so_without_contradiction() {
    let egress = json!([{"action": "Deny"}]);
    for (spec, message) in [
        (
            json!({"doNotTrack": true}),
            "spec.applyOnForward: expected true, as spec.doNotTrack is true",
        ),
        (
            json!({"preDNAT": true, "applyOnForward": false}),
            "spec.applyOnForward: expected true, as spec.preDNAT is true",
        ),
        (
            json!({"preDNAT": true, "doNotTrack": true, "applyOnForward": true}),
            "spec.preDNAT: expected false, as spec.doNotTrack is true",
        ),
        (
            json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress"], "egress": egress}),
            "spec.egress: expected no rules, as spec.preDNAT is true",
        ),
        (
            json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress", "Egress"]}),
            "spec.types[1]: expected Ingress alone",
        ),
        (
            json!({"namespaceSelector": "global()"}),
            "spec.namespaceSelector: expected a selector without",
        ),
        (
            json!({"namespaceSelector": long()}),
            "spec.namespaceSelector: expected at most 1024",
        ),
    ] {
        assert_refused(Kind::GlobalNetworkPolicy, "p", spec.clone(), message);
        assert_refused(Kind::StagedGlobalNetworkPolicy, "p", spec, message);
    }
    let spec = json!({"doNotTrack": true, "applyOnForward": true, "egress": egress});
    assert_taken(Kind::GlobalNetworkPolicy, "p", spec);
    assert_taken(
        Kind::GlobalNetworkPolicy,
        "p",
        json!({"preDNAT": true, "applyOnForward": true}),
    );
}

#[test]
fn a_staged_deletion_says_nothing_else() {
    for (kind, field, value) in [
        (Kind::StagedNetworkPolicy, "order", json!(1)),
        (
            Kind::StagedNetworkPolicy,
            "ingress",
            json!([{"action": "Allow"}]),
        ),
        (Kind::StagedNetworkPolicy, "types", json!(["Ingress"])),
        (Kind::StagedGlobalNetworkPolicy, "selector", json!("all()")),
        (
            Kind::StagedGlobalNetworkPolicy,
            "applyOnForward",
            json!(true),
        ),
        (Kind::StagedKubernetesNetworkPolicy, "egress", json!([{}])),
    ] {
        let path = format!("spec.{field}: expected nothing, as spec.stagedAction is Delete");
        assert_refused(
            kind,
            "p",
            json!({"stagedAction": "Delete", field: value}),
            &path,
        );
        assert_taken(kind, "p", json!({"stagedAction": "Delete"}));
    }
    let path = "spec.stagedAction: expected Set, Delete, Learn or Ignore";
    assert_refused(
        Kind::StagedNetworkPolicy,
        "p",
        json!({"stagedAction": "Drop"}),
        path,
    );
}

#[test]
fn names_are_those_that_calico_takes() {
    let long = "a".repeat(254);
    for (kind, good, bad) in [
        (
            Kind::NetworkPolicy,
            vec!["p", "default.p", "knp.default.a.b", "ossg.default.a"],
            vec!["a.b.c", "P", "knp.other.a", "a_b", ".a", &long],
        ),
        (
            Kind::StagedNetworkPolicy,
            vec!["p", "knp.default.a.b"],
            vec!["a.b.c"],
        ),
        (
            Kind::GlobalNetworkPolicy,
            vec!["p", "default.p"],
            vec!["a.b.c", "knp.default.a.b"],
        ),
        (
            Kind::StagedGlobalNetworkPolicy,
            vec!["p", "default.p"],
            vec!["a.b.c"],
        ),
        (
            Kind::Tier,
            vec!["net", "a-1"],
            vec!["a.b", "A", "-a", &long[..64]],
        ),
        (
            Kind::StagedKubernetesNetworkPolicy,
            vec!["a.b.c"],
            vec!["A"],
        ),
        (Kind::HostEndpoint, vec!["n1.eth0"], vec!["n1/eth0"]),
        (Kind::GlobalNetworkSet, vec!["a.b.c"], vec!["A"]),
        (
            Kind::Profile,
            vec!["a.b.c"],
            vec!["A", "kns.shop", "ksa.shop.web"],
        ),
    ] {
        for name in good {
            assert_taken(kind, name, spec_of(kind));
        }
        for name in bad {
            assert_refused(kind, name, spec_of(kind), "metadata.name: expected ");
        }
    }
}

#[test]
fn a_policy_needs_its_tier_which_may_stand_behind_it_in_the_file() {
    let policy = |tier: &str| {
        let value = written(Kind::GlobalNetworkPolicy, "p", json!({"tier": tier}));
        serde_json::to_string(&value).unwrap()
    };
    let tier = serde_json::to_string(&written(Kind::Tier, "net", json!({}))).unwrap();
    let errors = |text: &str| {
        let documents = parse("f", text).unwrap();
        let errors = validate_all(&documents, [].into_iter()).err();
        errors
            .into_iter()
            .flatten()
            .map(|error| error.to_string())
            .collect::<Vec<_>>()
    };

    assert_eq!(errors(&policy("kube-baseline")), Vec::<String>::new());
    assert_eq!(
        errors(&policy("net")),
        ["f, document 1: spec.tier: expected a tier that exists, found \"net\""]
    );
    assert_eq!(
        errors(&format!("{}\n{tier}", policy("net"))),
        Vec::<String>::new()
    );

    let stored = object(written(
        Kind::GlobalNetworkPolicy,
        "p",
        json!({"tier": "gone"}),
    ))
    .unwrap();
    let changed = json!({"tier": "gone", "order": 1});
    let changed = object(written(Kind::GlobalNetworkPolicy, "p", changed)).unwrap();
    assert_eq!(validate(&changed, [&stored].into_iter()), Ok(()));
    let moved = object(written(
        Kind::GlobalNetworkPolicy,
        "p",
        json!({"tier": "net"}),
    ))
    .unwrap();
    let error = validate(&moved, [&stored].into_iter()).unwrap_err();
    assert_eq!(error.field, "spec.tier");
}

#[test]
fn a_policy_of_an_older_cluster_has_the_name_that_it_was_given() {
    for (name, packed, tier, given) in [
        ("default.web", None, None, "web"),
        ("default.web", None, Some("default"), "web"),
        ("default.web", None, Some("net"), "default.web"),
        ("net.web", None, Some("net"), "net.web"),
        (
            "default.web",
            Some(r#"{"name":"default.web"}"#),
            None,
            "default.web",
        ),
        (
            "net.web",
            Some(r#"{"name":"web","labels":{"a":"b"}}"#),
            Some("net"),
            "web",
        ),
        ("web", Some(r#"{"labels":{"a":"b"}}"#), None, "web"),
    ] {
        let mut value = written(Kind::NetworkPolicy, name, json!({"tier": tier}));
        value["apiVersion"] = json!("crd.projectcalico.org/v1");
        value["metadata"]["annotations"] = json!({"projectcalico.org/metadata": packed});
        if packed.is_none() {
            value["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("annotations");
        }
        let policy = object(value).unwrap();
        assert_eq!(policy.metadata.name, given, "{name} {packed:?} {tier:?}");
        assert_eq!(policy.api_version, "projectcalico.org/v3");
    }
    let current = object(written(Kind::NetworkPolicy, "default.web", json!({}))).unwrap();
    assert_eq!(current.metadata.name, "default.web");
}

#[test]
fn the_built_in_tiers_and_profile_stay_as_they_are() {
    for (name, order, action) in [
        ("default", 1_000_000, "Deny"),
        ("kube-admin", 1_000, "Pass"),
        ("kube-baseline", 10_000_000, "Pass"),
    ] {
        let other = if action == "Deny" { "Pass" } else { "Deny" };
        assert_taken(
            Kind::Tier,
            name,
            json!({"order": order, "defaultAction": action}),
        );
        assert_refused(
            Kind::Tier,
            name,
            json!({"order": 5, "defaultAction": action}),
            "spec.order: expected ",
        );
        assert_refused(
            Kind::Tier,
            name,
            json!({"defaultAction": action}),
            "spec.order: expected ",
        );
        let spec = json!({"order": order, "defaultAction": other});
        assert_refused(Kind::Tier, name, spec, "spec.defaultAction: expected ");
    }
    let spec = json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]});
    assert_taken(Kind::Profile, "projectcalico-default-allow", spec);
    let spec = json!({"ingress": [{"action": "Allow"}]});
    assert_refused(
        Kind::Profile,
        "projectcalico-default-allow",
        spec,
        "spec: this profile is built in",
    );
    for (spec, message) in [
        (json!({"order": "x"}), "spec.order: expected a number"),
        (
            json!({"defaultAction": "Drop"}),
            "spec.defaultAction: expected Deny or Pass",
        ),
        (json!({"action": "Deny"}), "spec.action: unknown field"),
    ] {
        assert_refused(Kind::Tier, "net", spec, message);
    }
}

#[test]
fn a_wrong_host_endpoint_is_refused_with_its_path() {
    for (kind, spec, message) in [
        (
            Kind::HostEndpoint,
            json!({"interfaceName": "*"}),
            "spec.node: expected the name of a node",
        ),
        (
            Kind::HostEndpoint,
            json!({"node": "n1"}),
            "spec.interfaceName: expected an interface name or `*`",
        ),
        (
            Kind::HostEndpoint,
            json!({"node": "n1", "expectedIPs": []}),
            "spec.interfaceName: expected an",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"interfaceName": "eth0:1"})),
            "spec.interfaceName: expected an",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"interfaceName": "eth*"})),
            "spec.interfaceName: expected an",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"interfaceName": "a".repeat(16)})),
            "spec.interfaceName: expected an",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"node": "N1"})),
            "spec.node: expected the name of a node",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"expectedIPs": ["192.0.2.1/32"]})),
            "spec.expectedIPs[0]: expected an address",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"ports": [{"protocol": "TCP", "port": 1}]})),
            "spec.ports[0].name: expected",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"ports": [{"name": "a", "protocol": "ICMP", "port": 1}]})),
            "spec.ports[0].protocol: expected TCP, UDP or SCTP",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"ports": [{"name": "a", "protocol": "TCP", "port": 0}]})),
            "spec.ports[0].port: expected a number from 1 to 65535",
        ),
        (
            Kind::HostEndpoint,
            hep(json!({"ports": [{"name": "a b", "protocol": "TCP", "port": 1}]})),
            "spec.ports[0].name: expected the name of a port",
        ),
    ] {
        assert_refused(kind, "p", spec, message);
    }
    assert_taken(
        Kind::HostEndpoint,
        "h",
        json!({"node": "n1", "interfaceName": "*"}),
    );
    assert_taken(
        Kind::HostEndpoint,
        "h",
        json!({"node": "n1", "expectedIPs": ["192.0.2.1"]}),
    );
}

#[test]
fn a_wrong_set_or_profile_is_refused_with_its_path() {
    for (kind, spec, message) in [
        (
            Kind::NetworkSet,
            json!({"nets": ["10.0.0.0/33"]}),
            "spec.nets[0]: expected a network or an address",
        ),
        (
            Kind::GlobalNetworkSet,
            json!({"net": []}),
            "spec.net: unknown field; did you mean nets?",
        ),
        (
            Kind::Profile,
            json!({"labelsToApply": {"a b": "c"}}),
            "spec.labelsToApply.a b: expected a key",
        ),
        (
            Kind::Profile,
            json!({"labelsToApply": {"a": 1}}),
            "spec.labelsToApply.a: expected a text",
        ),
        (
            Kind::Profile,
            json!({"selector": "all()"}),
            "spec.selector: unknown field",
        ),
    ] {
        assert_refused(kind, "p", spec, message);
    }
    for kind in [Kind::NetworkSet, Kind::GlobalNetworkSet] {
        let mut set = written(kind, "p", json!({}));
        set["metadata"]["labels"] = json!({"projectcalico.org/namespace": "x"});
        let error = object(set).unwrap_err();
        assert_eq!(error.field, "metadata.labels.projectcalico.org/namespace");
    }
    assert_taken(
        Kind::GlobalNetworkSet,
        "s",
        json!({"nets": ["192.0.2.1", "10.0.0.0/8", "fd00::/8"]}),
    );
}

/// What a host endpoint says, and more.
fn hep(more: Value) -> Value {
    let mut spec = json!({"node": "n1", "interfaceName": "eth0"});
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());

    spec
}

/// A selector that is one character too long.
fn long() -> String {
    format!("has({})", "a".repeat(1020))
}

/// The least that an object of a kind must say.
fn spec_of(kind: Kind) -> Value {
    if kind == Kind::HostEndpoint {
        json!({"node": "n1", "interfaceName": "*"})
    } else {
        json!({})
    }
}

fn written(kind: Kind, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": kind.api_version(), "kind": kind.manifest_name(), "metadata": {"name": name}, "spec": spec,
    })
}

fn assert_taken(kind: Kind, name: &str, spec: Value) {
    let object =
        object(written(kind, name, spec)).unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
    assert_eq!(validate(&object, [].into_iter()), Ok(()));
}

fn assert_refused(kind: Kind, name: &str, spec: Value, message: &str) {
    let error = object(written(kind, name, spec.clone()))
        .expect_err(&format!("{kind} {name} {spec}"))
        .to_string();
    assert!(
        error.starts_with(message),
        "{error}\n instead of\n{message}"
    );
}
