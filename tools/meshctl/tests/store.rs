//! The commands about the store, as a person types them, against a server on the loopback.
//!
//! ```text
//! meshctl ══ TLS ══ store::Server ── SQLite in a temporary folder
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;
use store::{Options, Server, ServerOptions};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
    sync::oneshot,
    time::timeout,
};

/// Longest wait for one command.
const PATIENCE: Duration = Duration::from_secs(30);

const POOL: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.65.0.0/16, natOutgoing: true}
";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_is_got_described_and_deleted() {
    let mesh = Mesh::new().await;

    let applied = mesh.apply(POOL).await;
    assert_eq!(
        (applied.code, applied.out.as_str()),
        (0, "IPPool pods created\n")
    );
    assert_eq!(mesh.apply(POOL).await.out, "IPPool pods unchanged\n");
    let table = mesh.run(&["get", "pools"]).await;
    assert_eq!(
        table.out,
        "NAME  CIDR          BLOCKS  NAT  STATE\npods  10.65.0.0/16  /26     yes  enabled\n"
    );
    let json: Value =
        serde_json::from_str(&mesh.run(&["get", "pools", "-o", "json"]).await.out).unwrap();
    assert_eq!(json["items"][0]["spec"]["blockSize"], 26);
    assert!(
        mesh.run(&["describe", "pool/pods"])
            .await
            .out
            .contains("  cidr: 10.65.0.0/16\n")
    );

    let exported = mesh.run(&["get", "pools", "-o", "yaml"]).await.out;
    assert_eq!(
        mesh.run(&["delete", "pool", "pods"]).await.out,
        "IPPool pods deleted\n"
    );
    assert_eq!(mesh.run(&["get", "pools"]).await.out, "nothing\n");
    let bare = exported
        .lines()
        .filter(|line| !line.trim_start().starts_with("resourceVersion"));
    let restored = mesh.apply(&bare.collect::<Vec<_>>().join("\n")).await;
    assert_eq!(restored.out, "IPPool pods created\n", "{}", restored.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_document_keeps_every_other_out() {
    let mesh = Mesh::new().await;
    let wrong = "apiVersion: v1\nkind: Namespace\nmetadata: {name: Shop}\n";

    let refused = mesh.apply(&format!("{POOL}---\n{wrong}")).await;

    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert_eq!(
        refused.err,
        "meshctl: nothing was stored:\n  standard input, document 2: metadata.name: \
         expected a lower-case DNS label, found \"Shop\"\n"
    );
    assert_eq!(mesh.run(&["get", "all", "-A"]).await.out, "nothing\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_tells_failure_from_misuse() {
    let mesh = Mesh::new().await;
    mesh.apply("apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: n1}\n")
        .await;
    mesh.apply(
        "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: gpu}\n\
         spec: {nodeSelector: all(), wireguardEnabled: true}\n",
    )
    .await;

    for (line, code, words) in [
        (
            "get pool nowhere",
            1,
            "meshctl: IPPool nowhere does not exist",
        ),
        ("delete pool nowhere", 1, "IPPool nowhere does not exist"),
        ("delete pool nowhere --ignore-not-found", 0, ""),
        ("get widgets", 2, "no kind is called \"widgets\""),
        ("get", 2, "required arguments were not provided"),
        ("get nodes -o poem", 2, "invalid value 'poem'"),
        ("get nodes -l has(", 2, "at character 5: expected a label"),
        ("apply -f /nowhere.yaml", 1, "cannot read /nowhere.yaml"),
        ("config n1", 0, ""),
        ("config", 2, "which node? Name it"),
        ("apply", 2, "what? Name a file"),
        ("delete pool", 2, "which pool? Name one or more"),
        (
            "--config /nowhere get nodes",
            2,
            "unexpected argument '--config'",
        ),
        (
            "get nodes --config /nowhere",
            1,
            "no store to speak to: /nowhere cannot be used",
        ),
    ] {
        let answer = mesh.run(&line.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(answer.code, code, "{line}: {}", answer.err);
        assert!(answer.err.contains(words), "{line}: {}", answer.err);
    }
    let settings = mesh.run(&["config", "n1"]).await.out;
    let line = settings
        .lines()
        .find(|line| line.starts_with("wireguardEnabled "))
        .unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>().join(" "),
        "wireguardEnabled true FelixConfiguration gpu"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_each_change_as_it_comes() {
    let mesh = Mesh::new().await;
    mesh.apply(POOL).await;
    let mut watch = mesh
        .command(&["get", "pools", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        (
            line["type"].as_str().unwrap().to_owned(),
            line["object"]["spec"]["natOutgoing"].clone(),
        )
    };

    assert_eq!(next().await, ("Applied".into(), true.into()));
    mesh.apply(&POOL.replace("true", "false")).await;
    assert_eq!(next().await, ("Applied".into(), false.into()));
    mesh.run(&["delete", "pool/pods"]).await;
    assert_eq!(next().await, ("Deleted".into(), Value::Null));
}

/// A server, and the credential of its administrator.
struct Mesh {
    credential: PathBuf,
    _stop: oneshot::Sender<()>,
    _folder: TempDir,
}

/// How a command ended.
struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Mesh {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = ServerOptions {
            data: folder.path().to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertise: vec![Ipv4Addr::LOCALHOST.into()],
            store: Options::default(),
        };
        let server = Server::start(options, Timestamp::now()).await.unwrap();
        let credential = server.admin_credential().to_owned();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.run(async move {
            // Ends when the sender is dropped, with the mesh.
            let _ = stopped.await;
        }));

        Self {
            credential,
            _stop: stop,
            _folder: folder,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command
            .args(arguments)
            .env("MESHD_CONFIG", &self.credential)
            .stdin(Stdio::null());
        command
    }

    async fn run(&self, arguments: &[&str]) -> Answer {
        let output = self.command(arguments).kill_on_drop(true).output();
        timeout(PATIENCE, output).await.unwrap().unwrap().into()
    }

    async fn apply(&self, text: &str) -> Answer {
        let mut command = self.command(&["apply", "-f", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
        timeout(PATIENCE, child.wait_with_output())
            .await
            .unwrap()
            .unwrap()
            .into()
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
