//! What holds for every cluster and every packet.

#![expect(
    clippy::unwrap_used,
    reason = "what the generator makes is a policy test"
)]

use policy::scenario::{Entry, PolicyTest, ProbeVerdict};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

const CALICO: &str = "projectcalico.org/v3";

/// A policy test whose probes are every pair of ends with every kind of packet.
fn document(pods: &[Value], resources: &[Value], steps: &Value) -> Value {
    json!({
        "apiVersion": "meshd.dev/v1", "kind": "PolicyTest", "metadata": {"name": "random"},
        "topology": {
            "namespaces": [{"name": "a", "labels": {"team": "one"}}, {"name": "b", "labels": {"team": "two"}}],
            "nodes": [
                {"name": "n1", "interfaces": {"eth0": ["192.0.2.1", "2001:db8::1"]}},
                {"name": "n2", "interfaces": {"eth0": ["192.0.2.2", "2001:db8::2"]}},
            ],
            "pods": pods,
            "outside": [{"name": "world", "addresses": ["203.0.113.9", "2001:db8:ffff::9"]}],
        },
        "resources": resources,
        "probes": probes(),
        "steps": steps,
    })
}

fn probes() -> Value {
    let ends = json!(["*/*", "node/n1", "outside/world"]);

    json!([{"from": ends, "to": ends, "ports": ["TCP/80", "TCP/81", "UDP/53", "47"]}])
}

/// Five pods with these labels.
fn pods(labels: &[(&'static str, &'static str)]) -> Vec<Value> {
    labels
        .iter()
        .enumerate()
        .map(|(index, (app, role))| {
            json!({
                "namespace": if index % 2 == 0 { "a" } else { "b" },
                "name": format!("p{index}"),
                "node": if index < 3 { "n1" } else { "n2" },
                "labels": {"app": app, "role": role},
                "addresses": [format!("10.65.0.{}", index + 1), format!("fd00:65::{}", index + 1)],
                "ports": [{"name": "web", "port": 80 + index % 2}],
            })
        })
        .collect()
}

fn labels() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    prop::collection::vec((select(&["x", "y"][..]), select(&["r", "s"][..])), 5)
}

fn selector() -> impl Strategy<Value = &'static str> {
    select(
        &[
            "all()",
            "app == 'x'",
            "app != 'x'",
            "has(role) && app in {'y'}",
            "!has(role)",
            "role == 'r' || has(host)",
        ][..],
    )
}

/// One side of a rule; with addresses only if they may be asked for.
fn side(addresses: bool) -> impl Strategy<Value = Value> {
    let nets: &[&str] = if addresses {
        &["10.65.0.0/30", "203.0.113.0/24"]
    } else {
        &[]
    };
    let nets = prop::collection::vec(
        select([nets, &["0.0.0.0/1"]].concat()),
        0..=usize::from(addresses),
    );

    (
        nets,
        prop::option::of(selector()),
        prop::option::of(selector()),
        any::<bool>(),
    )
        .prop_map(|(nets, selector, not_selector, namespaced)| {
            let mut side = json!({});
            if !nets.is_empty() {
                side["nets"] = json!(nets);
            }
            if let Some(selector) = selector {
                side["selector"] = json!(selector);
            }
            if let Some(selector) = not_selector {
                side["notSelector"] = json!(selector);
            }
            if namespaced {
                side["namespaceSelector"] = json!("team == 'two'");
            }
            side
        })
}

fn rule(addresses: bool) -> impl Strategy<Value = Value> {
    let action = select(&["Allow", "Allow", "Deny", "Pass", "Log"][..]);
    let ports = select(vec![
        json!([80]),
        json!(["web"]),
        json!(["53:80", "web"]),
        json!([]),
    ]);

    (
        action,
        side(addresses),
        side(addresses),
        ports,
        any::<bool>(),
    )
        .prop_map(|(action, source, mut destination, ports, negated)| {
            let mut rule = json!({"action": action, "source": source});
            if ports.as_array().is_some_and(|ports| !ports.is_empty()) {
                rule["protocol"] = json!("TCP");
                destination[if negated { "notPorts" } else { "ports" }] = ports;
            }
            rule["destination"] = destination;
            rule
        })
}

/// A global policy without a name.
fn spec(addresses: bool) -> impl Strategy<Value = Value> {
    let rules = || prop::collection::vec(rule(addresses), 0..4);
    let tier = select(&["default", "default", "high", "soft"][..]);
    let types = select(vec![
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);

    (
        tier,
        prop::option::of(0..4_i32),
        selector(),
        types,
        rules(),
        rules(),
        any::<bool>(),
    )
        .prop_map(|(tier, order, selector, types, ingress, egress, forward)| {
            json!({
                "tier": tier, "order": order, "selector": selector, "types": types,
                "ingress": ingress, "egress": egress, "applyOnForward": forward,
            })
        })
}

/// Policies of every tier, the tiers themselves, and hosts' endpoints.
fn resources(addresses: bool) -> impl Strategy<Value = Vec<Value>> {
    let hosts = prop::collection::vec(select(&["eth0", "*"][..]), 0..2);

    (prop::collection::vec(spec(addresses), 0..6), hosts).prop_map(|(specs, hosts)| {
        let mut resources = vec![
            object("Tier", "high", json!({"order": 10})),
            object("Tier", "soft", json!({"order": 20, "defaultAction": "Pass"})),
        ];
        let specs = specs.into_iter().enumerate();
        resources.extend(specs.map(|(index, spec)| object("GlobalNetworkPolicy", &format!("g{index}"), spec)));
        resources.extend(hosts.into_iter().enumerate().map(|(index, interface)| {
            let mut host = object(
                "HostEndpoint",
                &format!("h{index}"),
                json!({"node": "n1", "interfaceName": interface, "profiles": ["projectcalico-default-allow"]}),
            );
            host["metadata"]["labels"] = json!({"host": "n1"});
            host
        }));
        resources
    })
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": CALICO, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Returns the verdicts, in the order of the ends' names.
fn verdicts(document: &Value) -> Vec<Entry> {
    let report = PolicyTest::parse(document).unwrap().run(&[]).unwrap();
    assert_eq!(report.errors, []);
    let mut verdicts = report.verdicts;
    let key = |entry: &Entry| {
        (
            entry.step,
            entry.from.clone(),
            entry.to.clone(),
            entry.protocol.to_string(),
            entry.port,
            entry.family,
        )
    };
    verdicts.sort_by_key(key);

    verdicts
}

fn later(verdicts: Vec<Entry>, step: usize) -> Vec<Entry> {
    let chosen = verdicts.into_iter().filter(|entry| entry.step == step);

    chosen.map(|entry| Entry { step: 0, ..entry }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_order_in_which_objects_and_pods_are_known_decides_nothing(
        labels in labels(),
        (resources, shuffled) in resources(true).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let mut reversed = pods(&labels);
        reversed.reverse();

        prop_assert_eq!(
            verdicts(&document(&pods(&labels), &resources, &json!([]))),
            verdicts(&document(&reversed, &shuffled, &json!([])))
        );
    }

    #[test]
    fn an_allow_behind_all_policies_closes_nothing(labels in labels(), resources in resources(true)) {
        let allow = json!([{"action": "Allow"}]);
        let last = json!({"selector": "all()", "types": ["Ingress", "Egress"], "ingress": allow, "egress": allow});
        let with = [resources.clone(), vec![object("GlobalNetworkPolicy", "zz", last)]].concat();

        let before = verdicts(&document(&pods(&labels), &resources, &json!([])));
        let after = verdicts(&document(&pods(&labels), &with, &json!([])));

        for (before, after) in before.iter().zip(&after) {
            let closed = before.verdict == ProbeVerdict::Allow && after.verdict != ProbeVerdict::Allow;
            prop_assert!(!closed, "{before:?}\n{after:?}");
        }
    }

    #[test]
    fn a_deny_before_all_policies_leaves_pods_their_own_host_alone(labels in labels(), resources in resources(true)) {
        let deny = json!([{"action": "Deny"}]);
        let first = json!({
            "tier": "first", "selector": "has(projectcalico.org/namespace)", "types": ["Ingress", "Egress"],
            "ingress": deny, "egress": deny,
        });
        let with = [
            resources,
            vec![object("Tier", "first", json!({"order": -1})), object("GlobalNetworkPolicy", "no", first)],
        ]
        .concat();

        for entry in verdicts(&document(&pods(&labels), &with, &json!([]))) {
            let is_pod = |name: &str| name.starts_with("a/") || name.starts_with("b/");
            let on_host = entry.from == "node/n1" && ["a/p0", "b/p1", "a/p2"].contains(&entry.to.as_str());
            if (is_pod(&entry.from) || is_pod(&entry.to)) && !on_host {
                prop_assert_eq!(entry.verdict, ProbeVerdict::Deny, "{:?}", entry);
            }
        }
    }

    #[test]
    fn staged_policies_change_nothing(labels in labels(), resources in resources(true), staged in spec(true)) {
        let with = [resources.clone(), vec![object("StagedGlobalNetworkPolicy", "s", staged)]].concat();

        prop_assert_eq!(
            verdicts(&document(&pods(&labels), &resources, &json!([]))),
            verdicts(&document(&pods(&labels), &with, &json!([])))
        );
    }

    #[test]
    fn policy_without_addresses_is_the_same_for_both_families(labels in labels(), resources in resources(false)) {
        let all = verdicts(&document(&pods(&labels), &resources, &json!([])));

        for pair in all.chunks(2) {
            prop_assert_eq!(pair[0].family + pair[1].family, 10);
            prop_assert_eq!(&pair[0].decisions, &pair[1].decisions);
        }
    }

    /// Whatever was there before: what is there now decides.
    #[test]
    fn a_history_of_changes_equals_a_fresh_start(
        before in labels(), after in labels(),
        old in resources(true), new in resources(true),
    ) {
        let relabel: Vec<Value> = pods(&after)
            .iter()
            .map(|pod| json!({
                "pod": format!("{}/{}", pod["namespace"].as_str().unwrap(), pod["name"].as_str().unwrap()),
                "labels": pod["labels"],
            }))
            .collect();
        let delete: Vec<Value> = old
            .iter()
            .map(|object| json!({"kind": object["kind"], "name": object["metadata"]["name"]}))
            .collect();
        let steps = json!([
            {"delete": delete, "deletePods": ["a/p0"]},
            {"createPods": [pods(&before)[0]], "apply": new, "relabel": relabel, "probes": probes()},
        ]);

        prop_assert_eq!(
            later(verdicts(&document(&pods(&before), &old, &steps)), 2),
            verdicts(&document(&pods(&after), &new, &json!([])))
        );
    }
}
