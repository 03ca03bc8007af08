//! `meshctl lab` as a person types it: what it prints, how it exits, what it leaves (nothing).
//!
//! ```text
//! up ─▶ status, env, exec, ping, stream, capture, pod ─▶ down
//! ```
//!
//! Needs root, and the programs `meshd` and `meshwire` beside `meshctl`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

static LABS: AtomicU32 = AtomicU32::new(0);

/// A lab that is taken down, whatever becomes of the test.
struct Lab {
    name: String,
}

impl Lab {
    fn up(arguments: &[&str]) -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            name: format!("cli{}x{number}", std::process::id()),
        };
        let output = lab.run(&[&["up"], arguments].concat());
        assert_eq!(code(&output), 0, "{output:?}");
        lab
    }

    fn run(&self, arguments: &[&str]) -> Output {
        meshctl(&[&["lab", "--lab", &self.name], arguments].concat())
    }

    /// What a command prints that succeeds.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.says(&["status", "-o", "json"])).unwrap()
    }

    /// Network namespaces that bear its name.
    fn spaces(&self) -> usize {
        let names = std::fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten();
        names
            .filter(|name| name.file_name().to_string_lossy().starts_with(&self.name))
            .count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.run(&["down", &self.name]);
        if !std::thread::panicking() {
            assert_eq!(code(&output), 0, "{output:?}");
            assert_eq!(self.spaces(), 0, "namespaces are left");
            assert!(
                !Path::new("/run/meshd-lab").join(&self.name).exists(),
                "its folder is left"
            );
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the program under test")]
fn meshctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command
        .args(arguments)
        .env_remove("MESHD_LAB")
        .env_remove("MESHD_NETNS")
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn status_is_the_json_that_programs_rely_on() {
    let lab = Lab::up(&["three-nodes", "--plain"]);
    let status = lab.status();
    let name = &lab.name;
    assert_eq!(status["name"], Value::from(name.as_str()));
    assert_eq!(
        status["nodes"][0],
        serde_json::json!({"name": "n1", "netns": format!("{name}-n1"), "addresses": ["192.0.2.1"]})
    );
    assert_eq!(
        status["pods"][0],
        serde_json::json!({
            "namespace": "default", "name": "a", "node": "n1",
            "netns": format!("{name}-n1-default.a"), "addresses": ["10.65.0.2"],
        })
    );
    assert_eq!(status["outside"][0]["addresses"][1], "203.0.113.9");
}

#[test]
fn exec_enters_nodes_pods_and_outside_hosts_and_passes_their_exit_status_on() {
    let lab = Lab::up(&["three-nodes", "--plain"]);
    for (target, address) in [
        ("n2", "192.0.2.2"),
        ("default/c", "10.65.1.2"),
        ("internet", "203.0.113.9"),
    ] {
        let said = lab.says(&["exec", target, "--", "ip", "-4", "-o", "address"]);
        assert!(said.contains(address), "{target}: {said}");
    }
    assert_eq!(
        code(&lab.run(&["exec", "n1", "--", "sh", "-c", "exit 7"])),
        7
    );
    let nobody = lab.run(&["exec", "nobody", "--", "true"]);
    assert_eq!(
        (
            code(&nobody),
            stderr(&nobody).contains("no host called nobody")
        ),
        (1, true)
    );
}

#[test]
fn pods_are_added_echo_and_are_deleted() {
    let lab = Lab::up(&["dual-stack", "--plain"]);
    let said = lab.says(&[
        "pod",
        "add",
        "n2",
        "web/fresh",
        "--listen",
        "TCP/80",
        "--label",
        "app=web",
    ]);
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["10.65.1.3", "fd00:65::103"]
    );
    lab.says(&["ping", "default/a", "web/fresh"]);
    let script = "exec 3<>/dev/tcp/10.65.1.3/80; echo hello >&3; read -r answer <&3; echo $answer";
    assert_eq!(
        lab.says(&["exec", "default/a", "--", "bash", "-c", script]),
        "hello\n"
    );
    let elsewhere = lab.run(&["pod", "delete", "n1", "web/fresh"]);
    assert_eq!(code(&elsewhere), 1, "{elsewhere:?}");
    lab.says(&["pod", "delete", "n2", "web/fresh"]);
    let silent = lab.run(&["ping", "default/a", "10.65.1.3", "--timeout", "300ms"]);
    assert_eq!(code(&silent), 3, "{silent:?}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_and_nothing_is_built() {
    let file = std::env::temp_dir().join(format!("meshctl-lab-{}.yaml", std::process::id()));
    let text = "apiVersion: meshd.dev/v1\nkind: Lab\nmetadata: {name: wrong}\nspec:\n  networks: [{name: lan, cidrs: [192.0.2.0/24]}]\n  nodes: [{name: n1, networks: [wan]}]\n";
    std::fs::write(&file, text).unwrap();
    let output = meshctl(&["lab", "up", file.to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("document 1: spec.nodes[0].networks[0]: no network is called wan")
    );
    assert!(!Path::new("/run/meshd-lab/wrong").exists());
    std::fs::remove_file(file).unwrap();
    assert_eq!(code(&meshctl(&["lab", "frobnicate"])), 2);
}

#[test]
fn a_lab_is_built_once_and_a_bad_line_works_by_a_process_of_its_own() {
    let lab = Lab::up(&["lossy", "--plain"]);
    let again = meshctl(&["lab", "up", "lossy", "--plain", "--name", &lab.name]);
    assert_eq!(
        (code(&again), stderr(&again).contains("is up already")),
        (1, true)
    );
    lab.says(&["ping", "n1", "n2", "--timeout", "5s"]);
}

#[test]
fn the_whole_mesh_comes_up_is_spoken_to_and_is_sealed_on_demand() {
    let lab = Lab::up(&["three-nodes"]);
    let environment = lab.says(&["env"]);
    let store = |arguments: &str| {
        let script = format!("eval \"$1\"; exec \"$2\" {arguments}");
        let program = env!("CARGO_BIN_EXE_meshctl");
        #[expect(clippy::disallowed_methods, reason = "a person's shell")]
        let output = Command::new("bash")
            .args(["-c", &script, "bash", &environment, program])
            .output()
            .unwrap();
        assert_eq!(code(&output), 0, "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for node in ["n1", "n2", "n3"] {
        assert!(store("get nodes").contains(node));
    }
    lab.says(&["wait"]);
    let open = lab.run(&["capture", "n1", "--for", "200ms", "--quiet", "--sealed"]);
    assert_eq!(code(&open), 3, "nothing is sealed yet: {open:?}");
    let felix = "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {wireguardEnabled: true}";
    store(&format!("apply -f - <<< '{felix}'"));
    lab.says(&["wait"]);
    let enforced = || store("get nodes").matches("Enforced").count() == 3;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    assert!(
        ::lab::poll_until(deadline, enforced),
        "{}",
        store("get nodes")
    );
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            lab.run(&[
                "stream",
                "default/a",
                "default/c",
                "--for",
                "3s",
                "-q",
                "--most",
                "1s",
            ])
        });
        let sealed = || code(&lab.run(&["capture", "n1", "--for", "300ms", "-q", "--sealed"])) == 0;
        assert!(::lab::poll_until(deadline, sealed), "never sealed");
        let output = stream.join().unwrap();
        assert_eq!(code(&output), 0, "{output:?}");
    });
}
