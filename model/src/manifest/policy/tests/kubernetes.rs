//! Kubernetes' rules, and how its kinds are told from Calico's.

use serde_json::{Value, json};

use super::{assert_refused, assert_taken};
use crate::{Kind, kind::Scope, manifest::object};

#[test]
fn a_wrong_kubernetes_policy_is_refused_with_its_path() {
    let port = |port: Value| json!({"podSelector": {}, "ingress": [{"ports": [port]}]});
    let peer = |peer: Value| json!({"podSelector": {}, "egress": [{"to": [peer]}]});
    for (spec, message) in [
        (
            json!({}),
            "spec.podSelector: expected fields with names, found nothing",
        ),
        (
            json!({"podSelector": {}, "policytypes": []}),
            "spec.policytypes: unknown field; did you mean policyTypes?",
        ),
        (
            json!({"podSelector": {"app": "web"}}),
            "spec.podSelector.app: unknown field",
        ),
        (
            json!({"podSelector": {"matchLabels": {"a": "b c"}}}),
            "spec.podSelector.matchLabels.a: expected a label's value",
        ),
        (
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Ingress"]}),
            "spec.policyTypes[1]: expected each",
        ),
        (
            json!({"podSelector": {}, "policyTypes": ["ingress"]}),
            "spec.policyTypes[0]: expected Ingress or",
        ),
        (
            port(json!({"port": 80, "endPort": 79})),
            "spec.ingress[0].ports[0].endPort: expected a number from 80",
        ),
        (
            port(json!({"port": "80"})),
            "spec.ingress[0].ports[0].port: expected a port from 1",
        ),
        (
            port(json!({"port": "a-name-of-16-let"})),
            "spec.ingress[0].ports[0].port: expected a port from 1",
        ),
        (
            port(json!({"port": "Web"})),
            "spec.ingress[0].ports[0].port: expected a port from 1",
        ),
        (
            port(json!({"protocol": "ICMP"})),
            "spec.ingress[0].ports[0].protocol: expected TCP, UDP or SCTP",
        ),
        (
            port(json!({"protocol": "tcp"})),
            "spec.ingress[0].ports[0].protocol: expected TCP, UDP or SCTP",
        ),
        (
            peer(json!({})),
            "spec.egress[0].to[0]: expected podSelector, namespaceSelector or ipBlock",
        ),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0"}})),
            "spec.egress[0].to[0].ipBlock.cidr: expected a network",
        ),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}})),
            "spec.egress[0].to[0].ipBlock.except[0]: expected a network inside 10.0.0.0/8",
        ),
        (
            json!({"podSelector": {}, "ingress": [{"to": []}]}),
            "spec.ingress[0].to: unknown field; known are from, ports",
        ),
    ] {
        assert_refused(Kind::KubernetesNetworkPolicy, "p", spec, message);
    }
    assert_taken(
        Kind::KubernetesNetworkPolicy,
        "p",
        json!({"podSelector": {}}),
    );
}

#[test]
fn a_wrong_cluster_network_policy_is_refused_with_its_path() {
    let with = |rule: Value| json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]});
    let from = json!([{"namespaces": {}}]);
    for (spec, message) in [
        (
            json!({"tier": "Admin", "subject": {"namespaces": {}}}),
            "spec.priority: expected a number from 0 to 1000",
        ),
        (
            json!({"tier": "Admin", "priority": 1001, "subject": {"namespaces": {}}}),
            "spec.priority: expected a number from 0 to 1000, found 1001",
        ),
        (
            json!({"tier": "admin", "priority": 1, "subject": {"namespaces": {}}}),
            "spec.tier: expected Admin or Baseline",
        ),
        (
            json!({"tier": "Admin", "priority": 1}),
            "spec.subject: expected fields with names, found nothing",
        ),
        (
            json!({"tier": "Admin", "priority": 1, "subject": {}}),
            "spec.subject: expected namespaces or pods",
        ),
        (
            with(json!({"action": "Allow", "from": from})),
            "spec.ingress[0].action: expected Accept, Deny or Pass",
        ),
        (
            with(json!({"action": "Deny"})),
            "spec.ingress[0].from: expected",
        ),
        (
            with(json!({"action": "Deny", "from": []})),
            "spec.ingress[0].from: expected one peer or more",
        ),
        (
            with(json!({"action": "Deny", "from": [{"networks": ["10.0.0.0/8"]}]})),
            "spec.ingress[0].from[0].networks: unknown field",
        ),
        (
            with(json!({"action": "Deny", "from": from, "name": "x".repeat(101)})),
            "spec.ingress[0].name: expected a text of at most 100 bytes",
        ),
        (
            with(json!({"action": "Deny", "from": vec![json!({"namespaces": {}}); 26]})),
            "spec.ingress[0].from: expected at most 25 entries",
        ),
        (
            with(json!({"action": "Deny", "from": from, "protocols": [{"icmp": {}}]})),
            "spec.ingress[0].protocols[0].icmp: unknown field",
        ),
    ] {
        assert_refused(Kind::ClusterNetworkPolicy, "p", spec, message);
    }
    assert_taken(
        Kind::ClusterNetworkPolicy,
        "p",
        with(json!({"action": "Deny", "from": from})),
    );
}

#[test]
fn every_kind_is_written_and_read_back_alike() {
    for kind in Kind::ALL.iter().copied() {
        let key = match kind.scope() {
            Scope::Cluster => crate::ObjectKey::cluster(kind, "x"),
            Scope::Namespaced => crate::ObjectKey::namespaced(kind, "n", "x"),
        };
        let object = crate::Object::new(&key, json!({"a": 1}));
        for text in [
            serde_json::to_string(&object).unwrap(),
            serde_yaml_ng::to_string(&object).unwrap(),
        ] {
            let read: crate::Object = serde_yaml_ng::from_str(&text).unwrap();
            assert_eq!(read, object);
            let written: Value = serde_yaml_ng::from_str(&text).unwrap();
            assert_eq!(written["kind"], kind.manifest_name());
            assert_eq!(written["apiVersion"], kind.api_version());
        }
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(
            serde_json::from_str::<crate::ObjectKey>(&text).unwrap(),
            key
        );
    }
}

#[test]
fn network_policy_is_two_kinds_by_its_api_version() {
    for (api_version, kind, spec) in [
        ("projectcalico.org/v3", Kind::NetworkPolicy, json!({})),
        ("crd.projectcalico.org/v1", Kind::NetworkPolicy, json!({})),
        (
            "networking.k8s.io/v1",
            Kind::KubernetesNetworkPolicy,
            json!({"podSelector": {}}),
        ),
    ] {
        let value = json!({
            "apiVersion": api_version, "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": spec,
        });
        assert_eq!(object(value).unwrap().kind, kind);
    }
    for (api_version, message) in [
        (
            "extensions/v1beta1",
            "apiVersion: expected projectcalico.org/v3 or networking.k8s.io/v1 for kind NetworkPolicy",
        ),
        (
            "networking.k8s.io/v2",
            "apiVersion: expected networking.k8s.io/v1 for kind NetworkPolicy",
        ),
    ] {
        let value =
            json!({"apiVersion": api_version, "kind": "NetworkPolicy", "metadata": {"name": "p"}});
        let error = object(value).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let value = json!({"apiVersion": "networking.k8s.io/v1", "kind": "KubernetesNetworkPolicy", "metadata": {}});
    assert_eq!(object(value).unwrap_err().field, "kind");
}
