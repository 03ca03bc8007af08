//! Documents as people write them, right and wrong.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::ObjectKey;

const POOL: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.65.0.0/16, natOutgoing: true}
";

#[test]
fn a_pool_gets_calicos_defaults() {
    let pool = one(POOL);

    assert_eq!(
        pool.body["spec"],
        json!({
            "cidr": "10.65.0.0/16", "natOutgoing": true, "blockSize": 26, "ipipMode": "Never",
            "vxlanMode": "Never", "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"],
            "assignmentMode": "Automatic",
        })
    );
}

#[test]
fn documents_lists_and_json_are_read_with_their_positions() {
    let yaml = format!(
        "# comment\n---\n{POOL}---\n---\n\
         {{apiVersion: v1, kind: List, items: [\n\
         {{apiVersion: v1, kind: Namespace, metadata: {{name: a}}}},\n\
         {{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {{anything: [1]}}}}]}}\n"
    );
    let documents = parse("all.yaml", &yaml).unwrap();
    let read: Vec<_> = documents
        .iter()
        .map(|document| {
            (
                document.object.key().to_string(),
                document.position.to_string(),
            )
        })
        .collect();
    assert_eq!(
        read,
        [
            ("IPPool pods", "all.yaml, document 1"),
            ("Namespace a", "all.yaml, document 3, item 1"),
            ("Pod default/p", "all.yaml, document 3, item 2"),
        ]
        .map(|(key, position)| (key.to_owned(), position.to_owned()))
    );

    let json = serde_json::to_string_pretty(&one(POOL)).unwrap();
    let twice = parse("-", &format!("{json}\n{json}")).unwrap();
    assert_eq!(twice[1].object, one(POOL));
    assert_eq!(twice[1].position.to_string(), "standard input, document 2");
}

#[test]
fn objects_as_older_clusters_store_them_are_read() {
    let pool = one(r#"
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: pods
  annotations: {projectcalico.org/metadata: '{"labels":{"tier":"gold"},"creationTimestamp":null}'}
spec: {cidr: 10.65.0.0/16}
"#);

    assert_eq!(pool.api_version, "projectcalico.org/v3");
    assert_eq!(pool.metadata.labels["tier"], "gold");
    assert!(pool.metadata.annotations.is_empty());
}

#[test]
fn every_error_of_a_file_is_reported_with_document_field_and_what_was_expected() {
    let text = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: a}
spec: {cidr: 10.65.0.0/16, blocksize: 26}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: b}
spec: {cidr: 10.66.0.0/16, blockSize: 12}
---
apiVersion: meshd.dev/v1
kind: MeshConfiguration
metadata: {name: mine}
";
    let errors: Vec<_> = parse("pools.yaml", text)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();

    assert_eq!(
        errors,
        [
            "pools.yaml, document 1: spec.blocksize: unknown field; did you mean blockSize?",
            "pools.yaml, document 2: spec.blockSize: expected a number from 20 to 32, found 12",
            "pools.yaml, document 3: metadata.name: expected default, the only MeshConfiguration \
             there is, found \"mine\"",
        ]
    );
}

#[test]
fn a_wrong_head_is_one_error() {
    for (right, wrong, error) in [
        (
            "kind: IPPool",
            "kind: Widget",
            "kind: expected one of Node, ",
        ),
        (
            "projectcalico.org/v3",
            "v1",
            "apiVersion: expected projectcalico.org/v3 or crd.projectcalico.org/v1 for kind IPPool",
        ),
        (
            "{name: pods}",
            "{}",
            "metadata.name: expected a text, found nothing",
        ),
        (
            "name: pods",
            "name: Pods",
            "metadata.name: expected lower-case",
        ),
        (
            "name: pods",
            "name: pods, namespace: a",
            "metadata.namespace: expected none",
        ),
        (
            "name: pods",
            "name: pods, lables: {}",
            "metadata.lables: unknown field; did you mean labels?",
        ),
        (
            "name: pods",
            "name: pods, labels: {a b: c}",
            "metadata.labels.a b: expected a key",
        ),
        (
            "name: pods",
            "name: pods, labels: {a: '-'}",
            "metadata.labels.a: expected at most 63",
        ),
        (
            "name: pods",
            "name: pods, labels: {a: 1}",
            "metadata.labels.a: expected a text, found 1",
        ),
        ("spec:", "spce:", "spce: unknown field; did you mean spec?"),
    ] {
        assert_one_error(&POOL.replace(right, wrong), error);
    }
}

#[test]
fn a_wrong_pool_is_one_error() {
    for (spec, error) in [
        (
            "{cidr: 10.65.0.1/16}",
            "spec.cidr: expected a network without host bits",
        ),
        (
            "{cidr: 10.65.0.0/16, ipipMode: Sometimes}",
            "spec.ipipMode: expected Never, Always or CrossSubnet, found \"Sometimes\"",
        ),
        (
            "{cidr: 10.65.0.0/16, natOutgoing: yes}",
            "spec.natOutgoing: expected true or false, found \"yes\"",
        ),
        (
            "{cidr: 10.65.0.0/16, nodeSelector: 'has('}",
            "spec.nodeSelector: at character 5: expected a label",
        ),
        (
            "{cidr: 10.65.0.0/16, nodeSelector: 'global()'}",
            "spec.nodeSelector: expected a selector without global()",
        ),
        (
            "{cidr: 10.65.0.0/16, ipipMode: Always, vxlanMode: Always}",
            "spec.vxlanMode: expected Never",
        ),
        (
            "{cidr: 'fd00::/64', ipipMode: Always}",
            "spec.ipipMode: expected Never",
        ),
        (
            "{cidr: 169.254.0.0/20}",
            "spec.cidr: expected a network that does not overlap 169.254.0.0/16",
        ),
        (
            "{cidr: 10.65.0.0/16, allowedUses: [Tunnel, LoadBalancer]}",
            "spec.allowedUses: expected LoadBalancer alone",
        ),
        (
            "{cidr: 10.65.0.0/30}",
            "spec.cidr: expected a network of /26 or larger",
        ),
    ] {
        assert_one_error(&calico("IPPool", "p", spec), error);
    }
}

#[test]
fn a_wrong_field_of_any_kind_is_one_error() {
    for (kind, name, spec, error) in [
        (
            "Node",
            "n1",
            "{bgp: {ipv4Address: 192.0.2.1/40}}",
            "spec.bgp.ipv4Address: expected an",
        ),
        (
            "Node",
            "n1",
            "{bgp: {ipv6Address: 192.0.2.1/24}}",
            "spec.bgp.ipv6Address: expected an IPv6",
        ),
        (
            "Node",
            "n1",
            "{wireguard: {interfaceIPv4Address: 10.0.0.0/32}}",
            "spec.wireguard.interfaceIPv4Address: expected an address",
        ),
        (
            "FelixConfiguration",
            "default",
            "{wireguardEnabled: 'true'}",
            "spec.wireguardEnabled: expected true or false, found \"true\"",
        ),
        (
            "FelixConfiguration",
            "default",
            "{wireguardMtu: 1400}",
            "spec.wireguardMtu: unknown field; did you mean wireguardMTU?",
        ),
        (
            "FelixConfiguration",
            "default",
            "{wireguardListeningPort: 0}",
            "spec.wireguardListeningPort: expected a number from 1 to 65535, found 0",
        ),
        (
            "FelixConfiguration",
            "default",
            "{routeRefreshInterval: 90}",
            "spec.routeRefreshInterval: ",
        ),
        (
            "FelixConfiguration",
            "default",
            "{wireguardKeepAlive: 20h}",
            "spec.wireguardKeepAlive: ",
        ),
        (
            "FelixConfiguration",
            "default",
            "{nodeSelector: 'has(a)'}",
            "spec.nodeSelector: expected no",
        ),
        (
            "FelixConfiguration",
            "gpu",
            "{}",
            "spec.nodeSelector: expected a selector",
        ),
        (
            "IPAMBlock",
            "10-65-0-64-26",
            "{cidr: 10.65.0.64/26, allocations: [], unallocated: []}",
            "spec.allocations: expected 64 entries",
        ),
    ] {
        assert_one_error(&calico(kind, name, spec), error);
    }
}

#[test]
fn a_text_that_is_no_document_is_one_error() {
    for (text, error) in [
        ("{\"a\": 1, \"a\": 2}", "the key \"a\" stands twice"),
        ("a: 1\na: 2\n", "the key \"a\" stands twice"),
        ("[1, 2]", "kind: expected an object"),
        ("a: [", "did not find expected node content"),
        ("[*0]0", "unknown anchor"),
        ("a: !tag 1", "invalid type: enum"),
        ("a: .inf", "a number that is infinite"),
        ("? [a]\n: b\n", "a key that is no text"),
        ("{\"a\": ", "EOF"),
    ] {
        assert_one_error(text, error);
    }
}

#[test]
fn every_wireguard_setting_and_the_rest_of_felix_are_known() {
    let settings = calico(
        "FelixConfiguration",
        "default",
        "{wireguardEnabled: true, wireguardEnabledV6: false, wireguardListeningPort: 51820,
          wireguardListeningPortV6: 51821, wireguardRoutingRulePriority: 99,
          wireguardInterfaceName: wireguard.cali, wireguardInterfaceNameV6: wg-v6.cali,
          wireguardMTU: 0, wireguardMTUV6: 0, wireguardHostEncryptionEnabled: false,
          wireguardKeepAlive: 25s, wireguardThreadingEnabled: false,
          prometheusWireGuardMetricsEnabled: true, ipv6Support: true, bpfEnabled: false,
          bpfLogLevel: 'Off', logSeverityScreen: Info, nftablesMode: Auto, routeTableRanges: [{min: 1, max: 250}],
          failsafeInboundHostPorts: [{protocol: tcp, port: 22}], kubeNodePortRanges: ['30000:32767'],
          defaultEndpointToHostAction: ACCEPT, natPortRange: '1024:65535', reportingInterval: 0s}",
    );

    assert_eq!(one(&settings).body["spec"].as_object().unwrap().len(), 24);
}

#[test]
fn a_file_is_bounded() {
    let large = format!("{POOL}# {}", "x".repeat(FILE_MAX));
    assert!(
        parse("f", &large).unwrap_err()[0]
            .to_string()
            .contains("at most 16777216")
    );

    let object = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{a: {}}}\n",
        "x".repeat(OBJECT_MAX)
    );
    assert!(
        parse("f", &object).unwrap_err()[0]
            .to_string()
            .contains("at most 262144 bytes")
    );

    let laughs = (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
        format!("{text}a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1)
    });
    assert!(parse("f", &laughs).is_err());
    let deep = "[".repeat(100_000);
    assert!(parse("f", &deep).is_err());
    assert!(parse("f", &format!("{{\"a\":{deep}")).is_err());
}

#[test]
fn pools_neither_overlap_nor_change_their_range() {
    let old = [one(POOL)];
    let error = |text: String| validate(&one(&text), old.iter()).unwrap_err().to_string();

    assert_eq!(validate(&old[0], old.iter()), Ok(()));
    assert_eq!(
        error(calico("IPPool", "more", "{cidr: 10.65.128.0/17}")),
        "spec.cidr: expected a network that does not overlap pool pods (10.65.0.0/16), found \"10.65.128.0/17\""
    );
    assert!(error(POOL.replace("10.65", "10.66")).contains("the range of a pool cannot change"));
    assert!(
        error(POOL.replace("natOutgoing: true", "blockSize: 28"))
            .contains("cannot change, found 28")
    );
    assert_eq!(
        validate(
            &one(&calico("IPPool", "more", "{cidr: 10.66.0.0/16}")),
            old.iter()
        ),
        Ok(())
    );
}

#[test]
fn pools_blocks_and_members_addresses_keep_apart() {
    let old = [
        one(&calico(
            "IPPool",
            "p",
            "{cidr: 10.65.0.0/24, blockSize: 30}",
        )),
        one(&calico(
            "IPAMBlock",
            "10-65-9-0-30",
            "{cidr: 10.65.9.0/30, allocations: [null, null, null, null], unallocated: [0, 1, 2, 3]}",
        )),
        one(&mesh("AddressClaim", "192.0.2.1", "{node: n1}")),
        one(&mesh("KeyClaim", &"ab".repeat(32), "{node: n1}")),
    ];
    for (text, message) in [
        (
            calico("IPPool", "q", "{cidr: 10.65.9.0/24}"),
            "spec.blockSize: expected 30, as block 10.65.9.0/30 has, found 26",
        ),
        (
            calico("IPPool", "q", "{cidr: 192.0.0.0/16}"),
            "spec.cidr: expected a network without 192.0.2.1, an address of node n1",
        ),
        (
            calico(
                "IPAMBlock",
                "10-65-9-2-31",
                "{cidr: 10.65.9.2/31, allocations: [null, null], unallocated: [0, 1]}",
            ),
            "spec.cidr: expected a network that does not overlap block 10.65.9.0/30",
        ),
        (
            mesh("AddressClaim", "10.65.0.7", "{node: n1}"),
            "metadata.name: expected an address outside pool p",
        ),
        (
            mesh("AddressClaim", "192.0.2.1", "{node: n2}"),
            "spec.node: expected n1, who holds the claim",
        ),
        (
            mesh("KeyClaim", &"ab".repeat(32), "{node: n2}"),
            "spec.node: expected n1, who holds the claim",
        ),
    ] {
        let error = validate(&one(&text), old.iter()).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn a_pool_that_got_in_once_can_still_be_disabled() {
    let pool = "{cidr: 10.65.0.0/24, disabled: true}";
    let old = [
        one(&calico("IPPool", "p", "{cidr: 10.65.0.0/24}")),
        one(&calico(
            "IPAMBlock",
            "10-65-0-0-31",
            "{cidr: 10.65.0.0/31, allocations: [null, null], unallocated: [0, 1]}",
        )),
    ];

    assert_eq!(
        validate(&one(&calico("IPPool", "p", pool)), old.iter()),
        Ok(())
    );
    assert!(validate(&one(&calico("IPPool", "q", pool)), old.iter()).is_err());
}

#[test]
fn a_node_whose_record_is_of_a_later_version_can_still_be_labelled() {
    let node = calico("Node", "n1", "{}").replace(
        "{name: n1}",
        "{name: n1, labels: {a: b}, annotations: {meshd.dev/record: '{\"version\": 2}'}}",
    );

    assert_eq!(validate(&one(&node), [].into_iter()), Ok(()));
}

#[test]
fn objects_of_one_file_are_checked_beside_each_other() {
    let text = format!(
        "{POOL}---\n{}---\n{POOL}",
        calico("IPPool", "more", "{cidr: 10.65.128.0/17}")
    );
    let errors: Vec<_> = validate_all(&parse("f", &text).unwrap(), [].into_iter())
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();

    assert!(errors[0].starts_with("f, document 2: spec.cidr: expected a network that does not"));
    assert_eq!(
        errors[1],
        "f, document 3: metadata.name: IPPool pods stands in f, document 1 already"
    );
    assert_eq!(errors.len(), 2);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[-a:{}\\[\\]&*!|>'\"# \n\t0-9kindlst]{0,200}") {
        let _ = parse("f", &text);
    }

    #[test]
    fn no_slip_of_the_pen_makes_the_reader_panic(
        slips in prop::collection::vec(
            (any::<prop::sample::Index>(), "[-a:{}\\[\\]&*!|>'\"#% \n\t]{0,3}", 0usize..4),
            1..5,
        ),
    ) {
        let mut text = format!("{POOL}---\n{}", calico("Node", "n1", "{bgp: {ipv4Address: 192.0.2.1/24}}"));
        for (place, put_in, left_out) in slips {
            let start = place.index(text.len());
            let end = (start + left_out).min(text.len());
            text.replace_range(start..end, &put_in);
        }

        let _ = parse("f", &text);
    }

    #[test]
    fn what_is_written_is_read_back(blocks in 20u8..=26, nat: bool, third in 0u8..16) {
        let key = ObjectKey::cluster(Kind::IPPool, "p");
        let cidr = format!("10.{third}.0.0/16");
        let written = Object::new(&key, json!({"cidr": cidr, "blockSize": blocks, "natOutgoing": nat}));

        let yaml = serde_yaml_ng::to_string(&written).unwrap();
        let read = one(&yaml);

        for (field, value) in written.body["spec"].as_object().unwrap() {
            prop_assert_eq!(&read.body["spec"][field], value);
        }
        prop_assert_eq!(one(&serde_yaml_ng::to_string(&read).unwrap()), read);
    }
}

fn assert_one_error(text: &str, error: &str) {
    let errors = parse("f", text).expect_err(text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    let shown = errors[0].to_string();
    assert!(shown.starts_with("f, document 1: "), "{shown}");
    assert!(shown.contains(error), "{shown}\n instead of\n{error}");
}

fn one(text: &str) -> Object {
    let documents = parse("f", text).unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(documents.len(), 1);
    documents.into_iter().next().unwrap().object
}

fn calico(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn mesh(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: meshd.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}
