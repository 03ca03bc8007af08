//! The program as a runtime calls it, in front of an agent that notes what it is asked.

#![expect(
    clippy::unwrap_used,
    reason = "what is unwrapped here is the test's own"
)]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime::Runtime};

/// An agent that answers everything alike.
struct Agent {
    folder: TempDir,
    heard: Arc<Mutex<Vec<(String, Value)>>>,
    _runtime: Option<Runtime>,
}

struct Said {
    is_error: bool,
    printed: Value,
}

impl Agent {
    /// No agent at all.
    fn none() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            heard: Arc::default(),
            _runtime: None,
        }
    }

    fn answering(status: u16, answer: &Value) -> Self {
        let mut agent = Self::none();
        let (heard, text) = (Arc::clone(&agent.heard), answer.to_string());
        let app = Router::new().fallback(move |uri: Uri, body: Bytes| {
            let (heard, text) = (Arc::clone(&heard), text.clone());
            async move {
                let subject = serde_json::from_slice(&body).unwrap();
                heard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((uri.path().to_owned(), subject));
                let status = StatusCode::from_u16(status).unwrap();
                (status, text).into_response() as Response
            }
        });
        let runtime = Runtime::new().unwrap();
        let listener = {
            let _entered = runtime.enter();
            UnixListener::bind(agent.socket()).unwrap()
        };
        runtime.spawn(async move { axum::serve(listener, app).await });
        agent._runtime = Some(runtime);

        agent
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("meshd.sock")
    }

    fn tombstones(&self) -> PathBuf {
        self.folder.path().join("tombstones")
    }

    fn heard(&self) -> Vec<(String, Value)> {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the program itself is what is tested"
    )]
    fn call(&self, variables: &[(&str, &str)], configuration: &Value) -> Said {
        let mut child = Command::new(env!("CARGO_BIN_EXE_meshd-cni"))
            .env_clear()
            .env("MESHD_SOCKET", self.socket())
            .env("MESHD_CNI_TOMBSTONES", self.tombstones())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin
            .write_all(configuration.to_string().as_bytes())
            .unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let printed = match output.stdout.as_slice() {
            b"" => Value::Null,
            text => serde_json::from_slice(text).unwrap(),
        };

        Said {
            is_error: !output.status.success(),
            printed,
        }
    }

    fn command(&self, command: &str, configuration: &Value) -> Said {
        let netns = self.folder.path().display().to_string();
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"),
        ];

        self.call(&variables, configuration)
    }
}

fn configuration(version: &str) -> Value {
    json!({"cniVersion": version, "name": "mesh", "type": "meshd"})
}

fn attached() -> Value {
    json!({
        "interfaces": [{"name": "cali0"}, {"name": "eth0", "mtu": 1420, "sandbox": "/x"}],
        "ips": [{"address": "10.65.0.1/32", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    })
}

fn stones(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn an_attachment_goes_to_the_agent_and_its_answer_to_the_runtime() {
    let agent = Agent::answering(200, &attached());
    let said = agent.command("ADD", &configuration("0.4.0"));

    assert!(!said.is_error, "{}", said.printed);
    assert_eq!(said.printed["cniVersion"], "0.4.0");
    assert_eq!(said.printed["ips"][0]["version"], "4");
    let (path, subject) = agent.heard().remove(0);
    assert_eq!(path, "/v1/cni/add");
    assert_eq!(subject["key"]["container"], "c0ffee");
    assert_eq!(subject["pod"]["name"], "web");
}

#[test]
fn what_the_agent_refuses_is_told_in_the_specifications_form() {
    let refusal = json!({"code": 100, "msg": "shop/web is not known", "details": "apply it first"});
    let agent = Agent::answering(409, &refusal);
    let said = agent.command("ADD", &configuration("1.0.0"));

    assert!(said.is_error);
    let expected = json!({
        "cniVersion": "1.0.0", "code": 100, "msg": "shop/web is not known", "details": "apply it first",
    });
    assert_eq!(said.printed, expected);
    assert_eq!(
        agent.heard().len(),
        1,
        "nothing was made, nothing is undone"
    );
}

#[test]
fn without_an_agent_nothing_is_attached_and_a_removal_counts() {
    let agent = Agent::none();
    let said = agent.command("ADD", &configuration("1.1.0"));
    assert!(said.is_error);
    assert_eq!(said.printed["code"], 11);
    assert_eq!(stones(&agent.tombstones()), 0);
    let said = agent.command("STATUS", &configuration("1.1.0"));
    assert_eq!(said.printed["code"], 50);

    for _ in 0..2 {
        let said = agent.command("DEL", &configuration("1.1.0"));
        assert!(!said.is_error, "{}", said.printed);
        assert_eq!(said.printed, Value::Null);
    }
    assert_eq!(stones(&agent.tombstones()), 1);
    let left = cni::Tombstones::at(agent.tombstones()).list().unwrap();
    let left = left[0].attachment.as_ref().unwrap();
    assert_eq!(left.pod.as_ref().unwrap().to_string(), "shop/web");
}

#[test]
fn an_answer_that_is_not_understood_is_undone() {
    let agent = Agent::answering(200, &json!("?"));
    let said = agent.command("ADD", &configuration("1.1.0"));

    assert!(said.is_error);
    let paths: Vec<String> = agent.heard().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/v1/cni/add", "/v1/cni/del"]);
}

#[test]
fn an_agent_that_does_not_answer_in_time_finds_the_removal_later() {
    let agent = Agent::none();
    let listener = std::os::unix::net::UnixListener::bind(agent.socket()).unwrap();
    let mut network = configuration("1.1.0");
    network["policy_setup_timeout_seconds"] = json!(1);

    let said = agent.command("ADD", &network);

    drop(listener);
    assert!(said.is_error);
    assert_eq!(said.printed["code"], 11);
    assert_eq!(stones(&agent.tombstones()), 1);
}

#[test]
fn a_removal_that_cannot_be_noted_is_no_success() {
    let agent = Agent::none();
    std::fs::write(agent.tombstones(), "in the way").unwrap();

    let said = agent.command("DEL", &configuration("1.1.0"));

    assert!(said.is_error);
    assert_eq!(said.printed["code"], 5);
}

#[test]
fn a_check_is_asked_with_the_former_result_and_a_collection_with_the_survivors() {
    let agent = Agent::answering(200, &Value::Null);
    let mut network = configuration("1.1.0");
    assert_eq!(agent.command("CHECK", &network).printed["code"], 7);
    // A runtime that does not say what it still has asks for nothing.
    assert!(!agent.command("GC", &network).is_error);
    network["prevResult"] = attached();
    network["cni.dev/valid-attachments"] = json!([{"containerID": "c0ffee", "ifname": "eth0"}]);

    assert!(!agent.command("CHECK", &network).is_error);
    assert!(!agent.command("GC", &network).is_error);
    network["cni.dev/valid-attachments"] = Value::Null;
    assert!(!agent.command("GC", &network).is_error);

    let heard = agent.heard();
    assert_eq!(heard.len(), 3);
    assert_eq!(heard[0].1["result"]["ips"][0]["address"], "10.65.0.1/32");
    assert_eq!(heard[1].1["valid"][0]["container"], "c0ffee");
    assert_eq!(heard[2].1["valid"], json!([]));
}

#[test]
fn a_command_that_a_version_does_not_have_is_refused_in_that_version() {
    let agent = Agent::answering(200, &Value::Null);
    for (command, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "0.4.0")] {
        let said = agent.command(command, &configuration(version));
        assert!(said.is_error);
        assert_eq!(said.printed["code"], 1, "{command}");
        assert_eq!(said.printed["cniVersion"], version);
    }
    for strange in ["0.2.0", "1.2.0", "2.0.0", "x"] {
        let said = agent.command("ADD", &configuration(strange));
        assert_eq!(said.printed["code"], 1, "{strange}");
    }
    assert!(agent.heard().is_empty());
}

#[test]
fn the_versions_are_told_to_whoever_asks() {
    let said = Agent::none().call(
        &[("CNI_COMMAND", "VERSION")],
        &json!({"cniVersion": "0.9.9"}),
    );

    assert!(!said.is_error);
    let expected = json!({
        "cniVersion": "0.9.9", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    });
    assert_eq!(said.printed, expected);
}

#[test]
fn what_is_no_configuration_is_refused_before_anybody_is_asked() {
    let agent = Agent::answering(200, &Value::Null);
    for (input, code) in [(json!([]), 6), (json!("x"), 6), (json!({}), 1)] {
        assert_eq!(
            agent.command("ADD", &input).printed["code"],
            code,
            "{input}"
        );
    }
    let variables = [("CNI_COMMAND", "ADD")];
    assert_eq!(
        agent.call(&variables, &configuration("1.1.0")).printed["code"],
        4
    );
    assert!(agent.heard().is_empty());
}
