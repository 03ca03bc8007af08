//! Calico's rules about rules.

use serde_json::{Value, json};

use super::{assert_refused, assert_taken, long};
use crate::Kind;

#[test]
fn a_wrong_rule_is_refused_with_its_path() {
    for (rule, field) in [
        (
            json!({}),
            "action: expected Allow, Deny, Log or Pass, found nothing",
        ),
        (
            json!({"action": "allow"}),
            "action: expected Allow, Deny, Log or Pass",
        ),
        (
            json!({"action": "Allow", "port": 80}),
            "port: unknown field",
        ),
        (
            json!({"action": "Allow", "ipVersion": 5}),
            "ipVersion: expected 4 or 6, found 5",
        ),
        (
            json!({"action": "Allow", "ipVersion": 7}),
            "ipVersion: expected a number from 4 to 6",
        ),
        (
            json!({"action": "Allow", "protocol": "IP"}),
            "protocol: expected TCP, UDP,",
        ),
        (
            json!({"action": "Allow", "protocol": 0}),
            "protocol: expected TCP, UDP,",
        ),
        (
            json!({"action": "Allow", "protocol": 256}),
            "protocol: expected TCP, UDP,",
        ),
        (
            json!({"action": "Allow", "notProtocol": "x"}),
            "notProtocol: expected TCP, UDP,",
        ),
        (
            json!({"action": "Allow", "icmp": {"type": 8}}),
            "icmp: expected protocol ICMP or ICMPv6",
        ),
        (
            json!({"action": "Allow", "protocol": "TCP", "notICMP": {"type": 8}}),
            "notICMP: expected protocol ICMP or ICMPv6",
        ),
        (
            json!({"action": "Allow", "protocol": 1, "icmp": {"code": 1}}),
            "icmp.type: expected a type",
        ),
        (
            json!({"action": "Allow", "protocol": 1, "icmp": {"type": 255}}),
            "icmp.type: expected a number from 0 to 254",
        ),
        (
            json!({"action": "Allow", "protocol": 1, "icmp": {"type": 8, "code": 256}}),
            "icmp.code: expected a number from 0 to 255",
        ),
        (
            json!({"action": "Allow", "protocol": "ICMP", "ipVersion": 6}),
            "ipVersion: expected none: ICMP is IPv4 alone",
        ),
        (
            json!({"action": "Allow", "protocol": 58, "ipVersion": 4}),
            "ipVersion: expected none: ICMPv6 is IPv6 alone",
        ),
        (
            json!({"action": "Allow", "notProtocol": "ICMP", "ipVersion": 6}),
            "ipVersion: expected none: notProtocol is of IPv4",
        ),
    ] {
        assert_rule_refused(&rule, field);
    }
}

#[test]
fn a_wrong_http_match_is_refused_with_its_path() {
    for (rule, field) in [
        (
            json!({"action": "Allow", "http": {"methods": ["GET"]}, "protocol": "UDP"}),
            "http: expected protocol TCP",
        ),
        (
            json!({"action": "Deny", "http": {}}),
            "http: expected action Allow",
        ),
        (
            json!({"action": "Allow", "http": {"methods": ["GET", "PUT", "GET"]}}),
            "http.methods[2]: expected each method once",
        ),
        (
            json!({"action": "Allow", "http": {"paths": [{}]}}),
            "http.paths[0]: expected either exact or prefix",
        ),
        (
            json!({"action": "Allow", "http": {"paths": [{"exact": "/", "prefix": "/"}]}}),
            "http.paths[0]: expected either exact or prefix",
        ),
        (
            json!({"action": "Allow", "http": {"paths": [{"exact": "/"}, {"prefix": "a"}]}}),
            "http.paths[1].prefix: expected a path",
        ),
        (
            json!({"action": "Allow", "http": {"paths": [{"exact": "/a?b"}]}}),
            "http.paths[0].exact: expected a path",
        ),
        (
            json!({"action": "Allow", "http": {"paths": [{"exact": "x".repeat(1025)}]}}),
            "http.paths[0].exact: expected a text of at most 1024 bytes",
        ),
        (
            json!({"action": "Allow", "http": {"methods": vec!["GET"; 21]}}),
            "http.methods: expected at most 20 entries",
        ),
        (
            json!({"action": "Allow", "metadata": {"annotations": {"a b": "x"}}}),
            "metadata.annotations.a b: expected a key",
        ),
    ] {
        assert_rule_refused(&rule, field);
    }
}

#[test]
fn a_wrong_network_is_refused_with_its_path() {
    for (rule, field) in [
        (
            any(json!({"net": []})),
            "net: unknown field; did you mean nets?",
        ),
        (
            any(json!({"nets": ["10.0.0.0"]})),
            "nets[0]: expected a network such as",
        ),
        (
            any(json!({"nets": vec!["10.0.0.0/8"; 257]})),
            "nets: expected at most 256 entries",
        ),
        (
            any(json!({"notNets": vec!["10.0.0.0/8"; 257]})),
            "notNets: expected at most 256 entries",
        ),
        (
            any(json!({"nets": ["10.0.0.0/8", "fd00::/8"]})),
            "nets[1]: expected a network of IPv4",
        ),
        (
            any(json!({"nets": ["10.0.0.0/8"], "notNets": ["fd00::/8"]})),
            "notNets[0]: expected a network of IPv4",
        ),
        (
            any(json!({"notNets": ["0.0.0.0/0"]})),
            "notNets[0]: expected less than every address",
        ),
        (
            any(json!({"notNets": ["::/0"]})),
            "notNets[0]: expected less than every address",
        ),
    ] {
        assert_source_refused(&rule, field);
    }
}

#[test]
fn a_wrong_selector_of_a_side_is_refused_with_its_path() {
    for (rule, field) in [
        (
            any(json!({"selector": "a"})),
            "selector: at character 2: expected `==`",
        ),
        (
            any(json!({"selector": "global()"})),
            "selector: expected a selector without global()",
        ),
        (
            any(json!({"notSelector": "global()"})),
            "notSelector: expected a selector without global()",
        ),
        (
            any(json!({"namespaceSelector": "global() && has(a)"})),
            "namespaceSelector: expected global() alone",
        ),
        (
            any(json!({"namespaceSelector": "!global()"})),
            "namespaceSelector: expected global() alone",
        ),
        (
            any(json!({"selector": long()})),
            "selector: expected at most 1024 characters",
        ),
        (
            any(json!({"notSelector": long()})),
            "notSelector: expected at most 1024 characters",
        ),
        (
            any(json!({"namespaceSelector": long()})),
            "namespaceSelector: expected at most 1024 characters",
        ),
        (
            any(json!({"serviceAccounts": {"selector": "global()"}})),
            "serviceAccounts.selector: expected a selector without",
        ),
        (
            any(json!({"serviceAccounts": {"names": ["A"]}})),
            "serviceAccounts.names[0]: expected the name of",
        ),
    ] {
        assert_source_refused(&rule, field);
    }
}

#[test]
fn a_wrong_port_is_refused_with_its_path() {
    let tcp = |side: Value| json!({"action": "Allow", "protocol": "TCP", "source": side});
    for (rule, field) in [
        (
            any(json!({"ports": [80]})),
            "ports[0]: ports go with protocol TCP, UDP or SCTP",
        ),
        (
            any(json!({"notPorts": ["http", "1:2"]})),
            "notPorts[1]: ports go with protocol TCP, UDP or SCTP",
        ),
        (
            tcp(json!({"ports": [0]})),
            "ports[0]: expected a port from 1",
        ),
        (
            tcp(json!({"ports": ["0:1"]})),
            "ports[0]: expected a port from 1",
        ),
        (
            tcp(json!({"ports": ["2:1"]})),
            "ports[0]: expected a port from 1",
        ),
        (
            tcp(json!({"ports": [65536]})),
            "ports[0]: expected a port from 1",
        ),
        (
            tcp(json!({"ports": [1.5]})),
            "ports[0]: expected a port from 1",
        ),
        (
            tcp(json!({"ports": ["a b"]})),
            "ports[0]: expected a port from 1",
        ),
        (
            tcp(json!({"ports": vec![1; 51]})),
            "ports: expected at most 50 entries",
        ),
        (
            tcp(json!({"notPorts": vec![1; 51]})),
            "notPorts: expected at most 50 entries",
        ),
    ] {
        assert_source_refused(&rule, field);
    }
    for protocol in ["ICMP", "UDPLite"] {
        let rule =
            json!({"action": "Allow", "protocol": protocol, "destination": {"ports": ["http"]}});
        let path = "spec.egress[0].destination.ports[0]: ports go with";
        assert_refused(Kind::NetworkPolicy, "p", json!({"egress": [rule]}), path);
    }
}

#[test]
fn a_wrong_service_is_refused_with_its_path() {
    for (rule, field) in [
        (
            any(json!({"services": {}})),
            "services.name: expected a text, found nothing",
        ),
        (
            any(json!({"services": {"name": ""}})),
            "services.name: expected the name of a service",
        ),
        (
            any(json!({"services": {"name": "a.b"}})),
            "services.name: expected a lower-case DNS label",
        ),
        (
            any(services(json!({"selector": "has(a)"}))),
            "services: expected no selector beside it",
        ),
        (
            any(services(json!({"notSelector": "has(a)"}))),
            "services: expected no notSelector beside it",
        ),
        (
            any(services(json!({"namespaceSelector": "has(a)"}))),
            "services: expected no namespaceSelector",
        ),
        (
            any(services(json!({"nets": ["10.0.0.0/8"]}))),
            "services: expected no nets beside it",
        ),
        (
            any(services(json!({"notNets": ["10.0.0.0/8"]}))),
            "services: expected no notNets beside it",
        ),
        (
            any(services(json!({"serviceAccounts": {"names": ["a"]}}))),
            "services: expected no serviceAccounts",
        ),
    ] {
        assert_source_refused(&rule, field);
    }
}

#[test]
fn the_networks_of_a_rule_are_of_its_family_on_both_sides() {
    let rule = json!({
        "action": "Allow", "source": {"nets": ["10.0.0.0/8"]}, "destination": {"notNets": ["10.0.0.0/8", "fd00::/8"]},
    });
    let path = "spec.ingress[0].destination.notNets[1]: expected a network of IPv4";
    assert_refused(
        Kind::GlobalNetworkPolicy,
        "p",
        json!({"ingress": [rule]}),
        path,
    );

    let rule = json!({"action": "Allow", "ipVersion": 6, "source": {"nets": ["10.0.0.0/8"]}});
    let path = "spec.ingress[0].source.nets[0]: expected a network of IPv6";
    assert_refused(
        Kind::GlobalNetworkPolicy,
        "p",
        json!({"ingress": [rule]}),
        path,
    );
}

#[test]
fn services_are_at_the_other_end_and_bring_their_ports() {
    let with = |side: &str, more: Value| json!({"action": "Allow", "protocol": "TCP", side: services(more)});
    let none = json!({});
    for (kind, spec, message) in [
        (
            Kind::NetworkPolicy,
            json!({"egress": [with("source", none.clone())]}),
            "spec.egress[0].source.services: expected none: egress rules name services at the other end",
        ),
        (
            Kind::GlobalNetworkPolicy,
            json!({"ingress": [with("destination", none)]}),
            "spec.ingress[0].destination.services: expected none: ingress rules",
        ),
        (
            Kind::NetworkPolicy,
            json!({"egress": [with("destination", json!({"ports": [80]}))]}),
            "spec.egress[0].destination.ports: expected none beside services",
        ),
        (
            Kind::NetworkPolicy,
            json!({"egress": [with("destination", json!({"notPorts": [80]}))]}),
            "spec.egress[0].destination.notPorts: expected none beside services",
        ),
        (
            Kind::GlobalNetworkPolicy,
            json!({"egress": [{"action": "Allow", "destination": {"services": {"name": "db"}}}]}),
            "spec.egress[0].destination.services.namespace: expected the service's namespace",
        ),
        (
            Kind::GlobalNetworkPolicy,
            json!({"ingress": [{"action": "Allow", "source": {"services": {"name": "db"}}}]}),
            "spec.ingress[0].source.services.namespace: expected the service's namespace",
        ),
        (
            Kind::NetworkPolicy,
            json!({"egress": [{"action": "Allow", "http": {"methods": ["GET"]}}]}),
            "spec.egress[0].http: expected none in an egress rule",
        ),
    ] {
        assert_refused(kind, "p", spec, message);
    }
    let ports =
        json!({"action": "Allow", "protocol": "TCP", "source": services(json!({"ports": [80]}))});
    assert_taken(Kind::NetworkPolicy, "p", json!({"ingress": [ports]}));
}

/// A rule with this source.
fn any(side: Value) -> Value {
    json!({"action": "Allow", "source": side})
}

/// Asserts that no kind with Calico's rules takes the rule.
fn assert_rule_refused(rule: &Value, field: &str) {
    for kind in [
        Kind::NetworkPolicy,
        Kind::StagedGlobalNetworkPolicy,
        Kind::Profile,
    ] {
        let spec = json!({"ingress": [{"action": "Allow"}, rule]});
        assert_refused(kind, "p", spec, &format!("spec.ingress[1].{field}"));
    }
}

fn assert_source_refused(rule: &Value, field: &str) {
    let message = format!("spec.ingress[0].source.{field}");
    assert_refused(
        Kind::NetworkPolicy,
        "p",
        json!({"ingress": [rule]}),
        &message,
    );
}

fn services(more: Value) -> Value {
    let mut side = json!({"services": {"name": "db", "namespace": "shop"}});
    side.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());

    side
}
