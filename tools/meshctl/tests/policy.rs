//! `meshctl policy`: what people and their build servers get.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says where; the program itself is run"
)]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

const TOPOLOGY: &str = "\
apiVersion: meshd.dev/v1
kind: PolicyTest
metadata: {name: shop}
topology:
  namespaces: [{name: shop}]
  nodes: [{name: n1, interfaces: {eth0: [192.0.2.1]}}]
  pods:
    - {namespace: shop, name: api, labels: {app: api}, addresses: [10.65.0.1]}
    - {namespace: shop, name: db, labels: {app: db}, addresses: [10.65.0.2]}
resourceFiles: [policies/*.yaml]
";

const POLICY: &str = "\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {namespace: shop, name: db}
spec: {selector: app == 'db', ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'api'}}]}
";

#[test]
fn a_file_that_holds_is_said_to_hold() {
    let folder = folder("probes: [{from: shop/api, to: shop/db, port: 5432, expect: Allow}]");

    let said = test(folder.path(), &[]);

    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert_eq!(text(&said.stdout), "1 test, 1 verdict: all as expected\n");
}

#[test]
fn a_verdict_that_differs_is_shown_with_who_decided_it() {
    let folder = folder(
        "probes:\n  - {from: shop/db, to: shop/api, port: 80, expect: Allow}\n  - {from: 203.0.113.9, to: shop/db, protocol: UDP, port: 53, expect: Allow}\n",
    );

    let said = test(folder.path(), &[]);

    assert_eq!(said.status.code(), Some(3), "{said:?}");
    let shown = text(&said.stdout);
    let row: Vec<&str> = shown.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(
        row.join(" "),
        "1 203.0.113.9 shop/db UDP/53 IPv4 Allow Deny ingress shop/db default end of tier default"
    );
    assert!(
        shown.ends_with("1 test, 2 verdicts: 1 not as expected\n"),
        "{shown}"
    );
}

#[test]
fn a_resource_that_is_refused_fails_the_test() {
    let folder = folder("probes: [{from: shop/api, to: shop/db, port: 80, expect: Allow}]");
    let bad = POLICY.replace("action: Allow", "action: Alow");
    fs::write(
        folder.path().join("policies/z.yaml"),
        bad.replace("name: db", "name: bad"),
    )
    .unwrap();

    let said = test(folder.path(), &[]);

    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let shown = text(&said.stdout);
    assert!(
        shown.contains("refused: NetworkPolicy shop/bad: spec.ingress[0].action"),
        "{shown}"
    );
    assert!(
        shown.ends_with("1 test, 1 verdict: 1 resource refused\n"),
        "{shown}"
    );
}

#[test]
fn what_cannot_be_used_is_named_and_the_others_are_tested() {
    let folder = folder("probes: [{from: shop/api, to: shop/db, port: 80, expect: Allow}]");
    let typo = folder.path().join("typo.yaml");
    fs::write(&typo, TOPOLOGY.replace("topology", "topologie")).unwrap();

    let said = test(folder.path(), &[typo.to_str().unwrap(), "missing.yaml"]);

    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let shown = text(&said.stdout);
    assert!(shown.contains("typo.yaml: cannot be used"), "{shown}");
    assert!(shown.contains("topologie"), "{shown}");
    assert!(
        shown.contains("missing.yaml: cannot be used: cannot read missing.yaml: No such file"),
        "{shown}"
    );
    assert!(
        shown.ends_with("3 tests, 1 verdict: 2 tests unusable\n"),
        "{shown}"
    );
}

#[test]
fn a_pattern_that_matches_no_file_is_no_success() {
    let folder = folder("probes: [{from: shop/api, to: shop/db, port: 80, expect: Allow}]");
    fs::remove_dir_all(folder.path().join("policies")).unwrap();

    let said = test(folder.path(), &[]);

    assert_eq!(said.status.code(), Some(1), "{said:?}");
}

#[test]
fn build_servers_and_programs_read_the_same_results() {
    let folder = folder(
        "probes:\n  - {from: shop/api, to: shop/db, port: 80, expect: Allow}\n  - {from: shop/api, to: shop/db, port: 80, expect: Deny}\n",
    );
    let junit = folder.path().join("junit.xml");

    let said = test(
        folder.path(),
        &["-o", "json", "--junit", junit.to_str().unwrap()],
    );

    assert_eq!(said.status.code(), Some(3), "{said:?}");
    let xml = fs::read_to_string(junit).unwrap();
    assert!(
        xml.contains("tests=\"2\" failures=\"1\" errors=\"0\""),
        "{xml}"
    );
    assert!(
        xml.contains("<failure message=\"expected Deny, found Allow: NetworkPolicy shop/db rule 0 (tier default) at ingress of shop/db\"/>"),
        "{xml}"
    );
    let answer: Value = serde_json::from_slice(&said.stdout).unwrap();
    let one = &answer["tests"][0];
    assert_eq!(one["failures"].as_array().unwrap().len(), 1);
    assert_eq!(
        one["verdicts"][0]["decisions"][1]["policy"],
        "NetworkPolicy shop/db"
    );
}

#[test]
fn programs_ask_on_standard_input() {
    let document = json!({
        "apiVersion": "meshd.dev/v1", "kind": "PolicyTest",
        "topology": {
            "namespaces": [{"name": "shop"}],
            "nodes": [{"name": "n1"}],
            "pods": [{"namespace": "shop", "name": "a", "addresses": ["10.65.0.1"]},
                     {"namespace": "shop", "name": "b", "addresses": ["10.65.0.2"]}],
        },
        "resources": [{"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
                       "metadata": {"name": "bad"}, "spec": {"order": "high"}}],
        "probes": [{"from": "shop/a", "to": "shop/b", "protocol": "TCP", "port": 80, "expect": "Deny"}],
    });

    let said = eval(&document.to_string());

    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let answer: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(answer["verdicts"][0]["verdict"], "Allow");
    assert_eq!(answer["verdicts"][0]["decisions"][1]["profile"], "kns.shop");
    assert_eq!(answer["errors"][0]["resource"], "GlobalNetworkPolicy bad");
    assert_eq!(answer["errors"][0]["field"], "spec.order");
    assert_eq!(eval("{\"kind\": \"PolicyTest\"}").status.code(), Some(1));
    assert_eq!(eval("").status.code(), Some(1));
}

/// A folder with one policy and a test that ends so.
fn folder(probes: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    fs::write(folder.path().join("policies/db.yaml"), POLICY).unwrap();
    fs::write(
        folder.path().join("shop.yaml"),
        format!("{TOPOLOGY}{probes}"),
    )
    .unwrap();

    folder
}

fn test(folder: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["policy", "test"])
        .arg(folder.join("shop.yaml"))
        .args(more)
        .output()
        .unwrap()
}

fn eval(document: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["policy", "eval"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(document.as_bytes())
        .unwrap();

    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
