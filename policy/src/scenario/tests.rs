use serde_json::json;

use super::*;

/// The example of docs/policy-test.md, as a program writes it.
fn shop() -> Value {
    json!({
        "apiVersion": "meshd.dev/v1", "kind": "PolicyTest", "metadata": {"name": "shop"},
        "topology": {
            "namespaces": [{"name": "shop", "labels": {"team": "web"}}],
            "serviceAccounts": [{"namespace": "shop", "name": "api", "labels": {"tier": "backend"}}],
            "nodes": [{"name": "n1", "interfaces": {"eth0": ["192.0.2.1", "2001:db8::1"]}, "labels": {"zone": "a"}}],
            "pods": [
                {
                    "namespace": "shop", "name": "api-1", "node": "n1", "serviceAccount": "api", "labels": {"app": "api"},
                    "addresses": ["10.65.0.2", "fd00:65::2"],
                    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                    "listens": ["TCP/8080", "UDP/53"], "hostNetwork": false,
                },
                {
                    "namespace": "shop", "name": "db-1", "labels": {"app": "db"}, "addresses": ["10.65.0.3"],
                    "ports": [{"name": "pg", "port": 5432}],
                },
            ],
            "services": [{
                "namespace": "shop", "name": "db", "clusterIPs": ["10.96.0.7"],
                "ports": [{"name": "pg", "port": 5432, "targetPort": "pg", "protocol": "TCP"}],
                "endpoints": ["shop/db-1"],
            }],
            "outside": [{"name": "internet", "addresses": ["203.0.113.9", "2001:db8:ffff::9"]}],
        },
        "resources": [
            {
                "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
                "metadata": {"namespace": "shop", "name": "api"},
                "spec": {"selector": "app == 'api'", "types": ["Egress"], "egress": [
                    {"action": "Allow", "protocol": "TCP", "destination": {"selector": "app == 'db'", "ports": ["pg"]}},
                ]},
            },
            {
                "apiVersion": "projectcalico.org/v3", "kind": "Tier",
                "metadata": {"name": "platform"}, "spec": {"order": 10},
            },
            {
                "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
                "metadata": {"name": "shop-hosts"},
                "spec": {"tier": "platform", "selector": "has(host)", "types": ["Ingress"]},
            },
            {
                "apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
                "metadata": {"name": "n1-eth0", "labels": {"host": "n1"}},
                "spec": {"node": "n1", "interfaceName": "eth0"},
            },
            {
                "apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
                "metadata": {"name": "default"}, "spec": {"failsafeInboundHostPorts": []},
            },
            {
                "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
                "metadata": {"name": "bad"}, "spec": {"order": "high"},
            },
        ],
        "probes": [
            {"from": "shop/api-1", "to": "shop/db-1", "family": 4, "protocol": "TCP", "port": 5432, "expect": "Allow"},
            {"from": "outside/internet", "to": "node/n1", "family": 4, "protocol": "TCP", "port": 22, "expect": "Deny"},
        ],
    })
}

fn report(document: &Value) -> Value {
    let report = PolicyTest::parse(document).unwrap().run(&[]).unwrap();

    serde_json::to_value(report).unwrap()
}

#[test]
fn the_answer_is_the_one_that_programs_were_promised() {
    let answer = report(&shop());

    assert_eq!(
        answer["verdicts"],
        json!([
            {"step": 0, "probe": 0, "from": "shop/api-1", "to": "shop/db-1", "family": 4, "protocol": "TCP", "port": 5432,
             "verdict": "Allow", "decisions": [
                {"point": "egress", "endpoint": "shop/api-1", "verdict": "Allow", "tier": "default",
                 "policy": "NetworkPolicy shop/api", "rule": 0},
                {"point": "ingress", "endpoint": "shop/db-1", "verdict": "Allow", "profile": "kns.shop"}]},
            {"step": 0, "probe": 1, "from": "outside/internet", "to": "node/n1", "family": 4, "protocol": "TCP",
             "port": 22, "verdict": "Deny", "decisions": [
                {"point": "ingress", "endpoint": "node/n1 eth0", "verdict": "Deny", "tier": "platform",
                 "tierDefault": true}]},
        ])
    );
    let errors = answer["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0]["resource"], "GlobalNetworkPolicy bad");
    assert_eq!(errors[0]["field"], "spec.order");
}

#[test]
fn verdicts_stand_in_the_order_from_to_port_family() {
    let mut document = shop();
    document["probes"] = json!([
        {"from": ["outside/internet", "shop/db-1"], "to": ["shop/*"], "ports": ["TCP/1", "UDP/2"]},
    ]);

    let answer = report(&document);

    let asked: Vec<_> = answer["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let (from, to) = (one["from"].as_str().unwrap(), one["to"].as_str().unwrap());
            format!("{from} {to} {} {}", one["port"], one["family"])
        })
        .collect();
    assert_eq!(
        asked,
        [
            "outside/internet shop/api-1 1 4",
            "outside/internet shop/api-1 1 6",
            "outside/internet shop/api-1 2 4",
            "outside/internet shop/api-1 2 6",
            "outside/internet shop/db-1 1 4",
            "outside/internet shop/db-1 2 4",
            "shop/db-1 shop/api-1 1 4",
            "shop/db-1 shop/api-1 2 4",
        ]
    );
}

#[test]
fn a_service_with_endpoints_that_differ_is_mixed() {
    let mut document = shop();
    let pods = document["topology"]["pods"].as_array_mut().unwrap();
    pods.push(
        json!({"namespace": "shop", "name": "db-2", "addresses": ["10.65.0.4"],
        "ports": [{"name": "pg", "port": 5433}]}),
    );
    document["topology"]["services"][0]["endpoints"] = json!(["shop/db-1", "shop/db-2"]);
    document["probes"] = json!([
        {"from": "shop/api-1", "to": "service/shop/db", "protocol": "TCP", "port": 5432},
        {"from": "outside/internet", "to": "service/shop/db", "protocol": "TCP", "port": 5432},
    ]);

    let answer = report(&document);

    assert_eq!(answer["verdicts"].as_array().unwrap().len(), 2);
    assert_eq!(answer["verdicts"][0]["verdict"], "Mixed");
    assert_eq!(answer["verdicts"][0]["decisions"][0]["tierDefault"], true);
    assert_eq!(answer["verdicts"][1]["verdict"], "Allow");
}

#[test]
fn what_is_wrong_with_a_document_is_named_by_its_path() {
    let probe = |field: &str, value: Value| {
        let mut document = shop();
        document["probes"][0][field] = value;
        document
    };
    let with = |path: &str, value: Value| {
        let mut document = shop();
        *document.pointer_mut(path).unwrap() = value;
        document
    };
    for (document, field) in [
        (probe("from", json!("shop/nobody")), "probes[0].from"),
        (probe("from", json!("service/shop/db")), "probes[0].from"),
        (probe("to", json!("shop/api-1/eth0/x")), "probes[0].to"),
        (probe("to", json!("nowhere/*")), "probes[0].to"),
        (probe("protocol", json!("TPC")), "probes[0].protocol"),
        (probe("port", json!(null)), "probes[0].port"),
        (probe("ports", json!(["TCP/1"])), "probes[0].ports"),
        (probe("family", json!(5)), "probes[0].family"),
        (probe("family", json!(6)), "probes[0]"),
        (probe("by", json!("somebody")), "probes[0].by"),
        (probe("by", json!("NetworkPolice shop/x")), "probes[0].by"),
        (
            with("/topology/pods/0/node", json!("n9")),
            "topology.pods[0].node",
        ),
        (
            with("/topology/pods/1/name", json!("api-1")),
            "topology.pods[1].name",
        ),
        (
            with("/topology/pods/0/listens", json!(["HTTP/80"])),
            "topology.pods[0].listens[0]",
        ),
        (
            with("/topology/services/0/endpoints", json!(["db"])),
            "topology.services[0].endpoints[0]",
        ),
        (
            with("/topology/nodes/0/interfaces", json!({"a/b": []})),
            "topology.nodes[0].interfaces",
        ),
    ] {
        let error = PolicyTest::parse(&document).unwrap().run(&[]).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn unknown_fields_and_other_kinds_are_refused() {
    for (path, value, field) in [
        (
            "/topology/pods/0/adresses",
            json!([]),
            "topology.pods[0].adresses",
        ),
        ("/probes/0/expected", json!("Deny"), "probes[0].expected"),
        (
            "/topology/nodes/0/interfaces/eth0/0",
            json!("192.0.2.256"),
            "topology.nodes[0].interfaces.eth0[0]",
        ),
        ("/probes/0/expect", json!("Drop"), "probes[0].expect"),
        ("/kind", json!("Lab"), "kind"),
        ("/apiVersion", json!("v1"), "apiVersion"),
    ] {
        let mut document = shop();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap();
        match key.parse::<usize>() {
            Ok(index) => parent[index] = value,
            Err(_) => parent[key] = value,
        }
        assert_eq!(PolicyTest::parse(&document).unwrap_err().field, field);
    }
}

#[test]
fn a_test_that_expects_nothing_is_none() {
    let mut document = shop();
    document["probes"][1]
        .as_object_mut()
        .unwrap()
        .remove("expect");
    let check = |document: &Value| PolicyTest::parse(document).unwrap().check();

    assert_eq!(check(&document).unwrap_err().field, "probes[1].expect");
    document["probes"] = json!([]);
    assert_eq!(check(&document).unwrap_err().field, "probes");
    assert_eq!(check(&shop()), Ok(()));
}

#[test]
fn who_is_to_decide_is_compared_too() {
    let differs = |probe: usize, expect: &str, by: &str| {
        let mut document = shop();
        document["probes"][probe]["expect"] = json!(expect);
        document["probes"][probe]["by"] = json!(by);
        let report = PolicyTest::parse(&document).unwrap().run(&[]).unwrap();
        report.verdicts[probe].difference.clone()
    };

    assert_eq!(differs(0, "Allow", "NetworkPolicy shop/api"), None);
    assert_eq!(differs(0, "Allow", "profile kns.shop"), None);
    assert_eq!(differs(1, "Deny", "tier platform"), None);
    assert_eq!(
        differs(0, "Deny", "none"),
        Some(Difference::Verdict("Deny"))
    );
    for (probe, expect, by) in [
        (0, "Allow", "NetworkPolicy shop/other"),
        (0, "Allow", "GlobalNetworkPolicy api"),
        (0, "Allow", "none"),
        (0, "Allow", "failsafe"),
        (1, "Deny", "tier default"),
        (1, "Deny", "none"),
        (1, "Deny", "GlobalNetworkPolicy shop-hosts"),
    ] {
        assert_eq!(differs(probe, expect, by), Some(Difference::By(by.into())));
    }
}

#[test]
fn a_refused_object_takes_no_effect_and_the_old_one_stays() {
    let mut document = shop();
    let mut worse = document["resources"][0].clone();
    worse["spec"]["egress"][0]["action"] = json!("allow it");
    document["steps"] = json!([{"apply": [worse], "probes": [document["probes"][0].clone()]}]);

    let report = PolicyTest::parse(&document).unwrap().run(&[]).unwrap();

    assert_eq!(report.errors.len(), 2);
    assert_eq!(report.errors[1].resource, "NetworkPolicy shop/api");
    assert_eq!(report.verdicts[2].verdict, ProbeVerdict::Allow);
    assert_eq!(report.verdicts[2].step, 1);
}

#[test]
fn lists_and_files_of_objects_are_taken_apart() {
    let mut document = shop();
    let resources = document["resources"].take();
    document["resources"] = json!([]);
    let test = PolicyTest::parse(&document).unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": resources});
    let source = |value| Source {
        value,
        position: "policies/all.yaml, document 1".into(),
    };

    let report = test
        .run(&[source(Ok(list)), source(Err("no YAML".into()))])
        .unwrap();

    let inline = PolicyTest::parse(&shop()).unwrap().run(&[]).unwrap();
    assert_eq!(report.verdicts, inline.verdicts);
    assert_eq!(report.errors.len(), 2);
    assert!(
        report
            .errors
            .iter()
            .any(|error| error.resource == "policies/all.yaml, document 1")
    );
}
