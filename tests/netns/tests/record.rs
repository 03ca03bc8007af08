//! What an agent heard, told to a fresh brain, leads to the same decisions.
//!
//! ```text
//! ┌─ n1 ─────────────────────┐   toggle on, a pod, agent killed and started, toggle off
//! │ meshd agent --record F   │──────────────────────────────────────────────▶ F
//! └──────────────────────────┘                       meshctl replay F: as recorded, or where not
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    time::Duration,
};

use lab::{End, Node, Program, Service};
use netns::{Encryption, Mesh, await_fact};
use serde_json::Value;

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_replay_decides_as_the_agent_did_and_finds_where_a_recording_was_changed() {
    let mesh = Mesh::builtin("dual-stack");
    let n1 = mesh.node("n1");
    let folder = Folder::new();
    let file = folder.0.join("agent.jsonl");
    n1.kill(Service::Agent);

    let mut agent = Recorded::start(&n1, &file);
    mesh.enable();
    mesh.add_pod("n1", "default/late");
    agent.kill();
    agent = Recorded::start(&n1, &file);
    mesh.await_summary("Enforced");
    mesh.disable();
    mesh.await_settled();
    let live = n1.ask("/v1/status");
    agent.kill();

    let said = replay(&file, &[]);
    let verdict = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{verdict}");
    assert!(verdict.starts_with("Replayed 2 runs"), "{verdict}");
    assert!(verdict.ends_with("as recorded\n"), "{verdict}");
    let replayed: Value = serde_json::from_slice(&said.stdout).unwrap();
    for what in [
        "encryption",
        "pods",
        "blocks",
        "addresses",
        "peers",
        "incomplete",
    ] {
        assert_eq!(replayed[what], live[what], "{what}");
    }
    let actions = replay(&file, &["--show", "actions"]);
    let actions = String::from_utf8_lossy(&actions.stdout).into_owned();
    for what in ["PublishNode", "AssignAddress", "AnswerPod"] {
        assert!(actions.contains(what), "no {what} in {actions}");
    }

    let whole = std::fs::read_to_string(&file).unwrap();
    for (what, tampered) in tampered(&whole) {
        std::fs::write(&file, tampered).unwrap();
        let said = replay(&file, &[]);
        let verdict = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(3), "{what}: {verdict}");
        assert!(
            verdict.contains("then it differs: line "),
            "{what}: {verdict}"
        );
    }

    n1.restart(Service::Agent);
    mesh.ask_for(Encryption::Off);
}

/// The recording without some of its events, and with a switch the other way.
fn tampered(whole: &str) -> Vec<(&'static str, String)> {
    let without = |what: &str| {
        let [gone, left]: [Vec<_>; 2] = [true, false].map(|is_gone| {
            let lines = whole.lines();
            lines
                .filter(|line| line.contains(what) == is_gone)
                .collect()
        });
        assert!(!gone.is_empty(), "{what} was not recorded");
        left.join("\n") + "\n"
    };
    let [on, off] = [
        r#""wireguard_enabled":true"#,
        r#""wireguard_enabled":false"#,
    ];
    assert!(whole.contains(on), "nothing was switched on");

    vec![
        ("without pods", without(r#"{"PodRequested""#)),
        ("without links", without(r#"{"Underlay""#)),
        ("switched the other way", whole.replace(on, off)),
    ]
}

/// An agent that the story starts, because it records.
struct Recorded {
    child: Child,
}

impl Recorded {
    fn start(node: &Node, file: &Path) -> Self {
        let arguments = ["agent", "--record", file.to_str().unwrap()];
        let program = Program::new(&built("meshd"), arguments);
        let log = file.with_extension("log");
        let child = program.start(&node.place(), &log).unwrap();
        await_fact("the recorded agent answers", PATIENCE, || {
            let status = node.try_ask("/v1/status").map_err(|e| format!("{e:?}"))?;
            let is_ready = status["ready"] == true;
            is_ready.then_some(()).ok_or_else(|| {
                format!(
                    "{status}\n{}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                )
            })
        });

        Self { child }
    }

    /// Without warning.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // It has ended already, unless the story failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A folder that goes when the story ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("meshd-record-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();

        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program is what is tested here"
)]
fn replay(file: &Path, arguments: &[&str]) -> Output {
    std::process::Command::new(built("meshctl"))
        .args(["replay", "-o", "json"])
        .arg(file)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The program beside this test's, as cargo lays them out.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.ancestors().nth(2).unwrap();

    folder.join(name)
}
