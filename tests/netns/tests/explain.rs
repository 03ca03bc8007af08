//! What `meshctl why` says is what packets do, and what it proposes opens what was asked for and nothing else.
//!
//! ```text
//! ┌─ n1 ────────────────────┐        ┌─ n2 ───────┐
//! │ shop/api                │────────│ web/back   │     web/back may not speak to shop/api, until it may
//! │ meshd agent --record F  │        └────────────┘
//! └─────────────────────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::Duration,
};

use lab::{Document, End, Family, Lab, Pod, Probe, Program, Receiver, Service};
use netns::{Mesh, await_fact, programs};
use serde_json::{Value, json};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a packet may take that nobody stops.
const USUAL: Duration = Duration::from_secs(2);

/// TCP's protocol number (IANA).
const TCP: u8 = 6;

/// The example that people copy.
const PAGE: &str = include_str!("../../../docs/policy-test.md");

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: api}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: front}}}], ports: [{port: 8080}]}]
";

fn shop() -> Mesh {
    let pod = |namespace, name, app| json!({"namespace": namespace, "name": name, "labels": {"app": app}});
    let document: Document = serde_json::from_value(json!({
        "apiVersion": "meshd.dev/v1", "kind": "Lab", "metadata": {"name": "explain"},
        "spec": {
            "networks": [{"name": "lan", "cidrs": ["192.0.2.0/24"]}],
            "server": {"networks": ["lan"]},
            "nodes": [
                {"name": "n1", "networks": ["lan"], "pods": [pod("shop", "api", "api")]},
                {"name": "n2", "networks": ["lan"], "pods": [pod("web", "back", "back")]},
            ],
            "resources": [
                {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "pods"}, "spec": {"cidr": "10.65.0.0/16"}},
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "web"}},
            ],
        },
    }))
    .unwrap();

    Mesh::of(document)
}

fn passes(from: &Pod, to: &Pod, port: u16) -> bool {
    let to_address = SocketAddr::new(to.address(Family::V4), port);
    let _receiver = Receiver::start(&to.netns(), to_address, TCP).unwrap();
    let probe = Probe {
        netns: from.netns(),
        from: SocketAddr::new(from.address(Family::V4), 0),
        to: to_address,
        protocol: TCP,
    };

    probe.send(USUAL).unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program is what is tested here"
)]
fn meshctl(arguments: &[&str]) -> Output {
    let program = programs().join("meshctl");

    Command::new(program).args(arguments).output().unwrap()
}

/// Asks the agent of a node.
fn why(node: &lab::Node, packet: [&str; 2], more: &[&str]) -> String {
    let program = programs().join("meshctl");
    let mut arguments = vec!["why", packet[0], packet[1]];
    arguments.extend(more);

    node.run(program.to_str().unwrap(), &arguments)
}

fn parsed(text: &str) -> Value {
    let mut answers: Value = serde_json::from_str(text).unwrap();

    answers[0].take()
}

const PACKET: [&str; 2] = ["web/back", "shop/api:8080"];

#[test]
fn what_why_proposes_opens_the_connection_and_nothing_else() {
    let mesh = shop();
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let (api, back) = (mesh.pod("shop/api"), mesh.pod("web/back"));
    let folder = Folder::new();
    let file = folder.0.join("agent.jsonl");
    let mut agent = recorded(&n1, &file);
    assert!(passes(&back, &api, 8080));

    mesh.apply(POLICY);
    mesh.wait();
    assert!(!passes(&back, &api, 8080));
    let told = parsed(&why(&n1, PACKET, &["-o", "json"]));
    assert_eq!(told["verdict"], "Deny");
    let changes = json!(["label pod web/back role=front"]);
    assert_eq!(told["flips"][0]["changes"], changes);
    assert_eq!(told["way"]["of"], "answer");

    mesh.apply(&why(&n1, PACKET, &["-o", "yaml"]));
    mesh.wait();
    assert!(passes(&back, &api, 8080));
    assert!(!passes(&back, &api, 8081));

    mesh.enable();
    assert!(passes(&back, &api, 8080));
    the_way_is_the_kernel_s(&n2, &back, &api);
    let live = parsed(&why(&n1, PACKET, &["-o", "json"]));
    mesh.disable();
    agent.kill().unwrap();
    agent.wait().unwrap();
    a_recording_tells_the_same(&file, &live);
    n1.restart(Service::Agent);
}

/// Has a node's agent record what it hears.
fn recorded(node: &lab::Node, file: &Path) -> Child {
    node.kill(Service::Agent);
    let arguments = ["agent", "--record", file.to_str().unwrap()];
    let agent = Program::new(&programs().join("meshd"), arguments);
    let log = file.with_extension("log");
    let agent = agent.start(&node.place(), &log).unwrap();
    await_fact("the recorded agent answers", PATIENCE, || {
        let status = node.try_ask("/v1/status");
        let status = status.map_err(|error| format!("{error:?}"))?;
        let is_ready = status["ready"] == true;
        is_ready.then_some(()).ok_or_else(|| status.to_string())
    });

    agent
}

fn the_way_is_the_kernel_s(node: &lab::Node, from: &Pod, to: &Pod) {
    let told = parsed(&why(node, PACKET, &["-o", "json", "--expect", "allow"]));
    let way = &told["way"];
    assert_eq!(way["of"], "packet");
    assert_eq!(way["route"]["device"], "tunnel");
    assert_eq!(way["peer"]["node"], "n1");
    assert!(way["peer"]["handshakeAgeSeconds"].is_u64(), "{told}");
    let [from, to] = [from, to].map(|pod| pod.address(Family::V4).to_string());
    let input = host_interface(node, "web/back");
    let arguments = ["-o", "route", "get", &to, "from", &from, "iif", &input];
    let kernel = node.run("ip", &arguments);
    let device = way["route"]["via"]["Device"].as_str().unwrap();
    assert!(kernel.contains(&format!("dev {device}")), "{kernel}");
}

fn a_recording_tells_the_same(file: &Path, live: &Value) {
    let mut arguments = vec!["why", PACKET[0], PACKET[1], "-o", "json", "--replay"];
    arguments.push(file.to_str().unwrap());
    let replayed = meshctl(&arguments);
    let replayed = parsed(&String::from_utf8_lossy(&replayed.stdout));
    for what in ["verdict", "steps", "flips", "source", "destination"] {
        assert_eq!(replayed[what], live[what], "{what}");
    }
}

fn host_interface(node: &lab::Node, pod: &str) -> String {
    let status = node.ask("/v1/status");
    let pods = status["pods"].as_array().unwrap();
    let (namespace, name) = pod.split_once('/').unwrap();
    let name = json!({"namespace": namespace, "name": name});
    let own = pods
        .iter()
        .find(|own| own["pod"] == pod || own["pod"] == name);
    let own = own.unwrap_or_else(|| panic!("no {pod} in {status}"));

    own["interface"].as_str().unwrap().to_owned()
}

#[test]
fn the_example_of_the_documentation_holds_for_real_packets_and_a_lie_is_found() {
    let (_, rest) = PAGE.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```\n").unwrap();
    let example = example.replace("resourceFiles: [policies/*.yaml]\n", "");
    let folder = Folder::new();
    let file = folder.0.join("shop.yaml");
    let test = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let said = meshctl(&[
            "policy",
            "test",
            file.to_str().unwrap(),
            "--live",
            "-o",
            "json",
        ]);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let found: Value = serde_json::from_str(&text).unwrap_or_default();
        (said.status.code(), found["tests"][0].clone())
    };

    let (code, found) = test(&example);
    assert_eq!(code, Some(0), "{found:#}");
    let verdicts = found["verdicts"].as_array().unwrap();
    let verdict = |verdict: &str| {
        verdicts
            .iter()
            .filter(|one| one["verdict"] == verdict)
            .count()
    };
    assert_eq!(
        (verdict("Allow"), verdict("Deny"), &found["unsent"]),
        (1, 5, &json!([]))
    );

    let lie = example.replacen("expect: Deny", "expect: Allow", 1);
    let (code, found) = test(&lie);
    assert_eq!(code, Some(3), "{found:#}");
    assert!(!found["failures"].as_array().unwrap().is_empty());
}

/// The prober is told apart from what it measures: nftables drops one protocol after another, without any agent.
#[test]
fn a_packet_counts_as_arrived_exactly_where_the_kernel_lets_it_through() {
    let lab = Lab::plain("dual-stack");
    let pods = lab.pods();
    let (from, to) = (&pods[0], &pods[1]);
    let answered = |family: Family, protocol: u8| {
        let port = if protocol == 1 || protocol == 58 {
            0
        } else {
            9
        };
        let to_address = SocketAddr::new(to.address(family), port);
        let _receiver = Receiver::start(&to.netns(), to_address, protocol).unwrap();
        let probe = Probe {
            netns: from.netns(),
            from: SocketAddr::new(from.address(family), 0),
            to: to_address,
            protocol,
        };
        probe.send(Duration::from_millis(500)).unwrap()
    };
    let cases = [
        (Family::V4, 1),
        (Family::V6, 58),
        (Family::V4, TCP),
        (Family::V6, TCP),
        (Family::V4, 17),
        (Family::V6, 17),
        (Family::V4, 132),
        (Family::V6, 132),
        (Family::V4, 136),
        (Family::V6, 112),
    ];
    for (family, protocol) in cases {
        assert!(answered(family, protocol), "{family:?} {protocol}");
    }
    for (family, protocol) in cases {
        let word = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let rules = format!(
            "table inet story {{ chain in {{ type filter hook input priority 0; \
             meta nfproto {word} meta l4proto {protocol} {} drop; }}; }}",
            if protocol == 58 {
                "icmpv6 type echo-request"
            } else {
                ""
            }
        );
        to.run("nft", &[&rules]);
        assert!(!answered(family, protocol), "{family:?} {protocol}");
        to.run("nft", &["delete", "table", "inet", "story"]);
    }
}

/// A folder of one story.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("meshd-explain-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();

        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind it harms nobody.
        let _ = std::fs::remove_dir_all(Path::new(&self.0));
    }
}
