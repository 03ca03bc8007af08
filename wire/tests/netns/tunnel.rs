//! Running WireGuards of any make.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::command::{command, run, run_with};
use crate::namespace::{Namespace, unique};
use crate::wait::until;

/// Who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    Meshwire,
    /// Ours, packet by packet.
    MeshwirePlain,
    WireguardGo,
    Boringtun,
}

/// A WireGuard in the foreground, in a namespace.
pub(crate) struct Tunnel {
    pub(crate) name: String,
    pub(crate) public_key: String,
    child: Child,
}

impl Tunnel {
    /// Starts one; it has a key, and listens on 51820 once it is up.
    pub(crate) fn start(namespace: &Namespace, make: Make) -> Self {
        let name = unique("mw");
        let mut child = command("ip");
        child.args(["netns", "exec", &namespace.name]);
        match make {
            Make::Meshwire => child.args([env!("CARGO_BIN_EXE_meshwire"), "--foreground", &name]),
            Make::MeshwirePlain => child.args([
                env!("CARGO_BIN_EXE_meshwire"),
                "--foreground",
                "--offload",
                "none",
                &name,
            ]),
            Make::WireguardGo => child.args(["wireguard-go", "--foreground", &name]),
            Make::Boringtun => child.args([
                boringtun().to_str().expect("a path of text"),
                "--foreground",
                "--disable-drop-privileges",
                &name,
            ]),
        };
        let child = child
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ip is installed");
        let mut tunnel = Self {
            name,
            public_key: String::new(),
            child,
        };
        until("the UAPI socket", || socket(&tunnel.name).exists());
        until("wg can talk to it", || {
            crate::command::attempt(&format!("wg show {}", tunnel.name), "").is_ok()
        });
        let private_key = run("wg genkey");
        tunnel.public_key = run_with("wg pubkey", &private_key).trim().to_owned();
        tunnel.wg_with("private-key /dev/stdin listen-port 51820", &private_key);
        tunnel
    }

    /// `wg set`.
    pub(crate) fn wg(&self, arguments: &str) {
        self.wg_with(arguments, "");
    }

    /// `wg set`, with a secret on its standard input.
    pub(crate) fn wg_with(&self, arguments: &str, input: &str) {
        run_with(&format!("wg set {} {arguments}", self.name), input);
    }

    /// `wg show NAME WHAT`.
    pub(crate) fn show(&self, what: &str) -> String {
        run(&format!("wg show {} {what}", self.name))
    }

    /// What `wg show NAME WHAT` says about the peer with this key.
    pub(crate) fn show_peer(&self, what: &str, public_key: &str) -> Option<String> {
        let lines = self.show(what);
        let line = lines.lines().find(|line| line.starts_with(public_key))?;
        Some(line[public_key.len()..].trim().to_owned())
    }

    /// Seconds since the epoch of the last handshake with a peer; 0: never.
    pub(crate) fn last_handshake(&self, public_key: &str) -> u64 {
        self.show_peer("latest-handshakes", public_key)
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or(0)
    }

    /// Bytes received from and sent to a peer.
    pub(crate) fn transfer(&self, public_key: &str) -> (u64, u64) {
        let text = self.show_peer("transfer", public_key).expect("a peer");
        let (received, sent) = text.split_once('\t').expect("two numbers");
        (
            received.parse().expect("a number"),
            sent.parse().expect("a number"),
        )
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let ended = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        if ended.is_ok() {
            let _: std::io::Result<_> = self.child.wait();
        }
        // wireguard-go and boringtun leave theirs behind when they are ended by a signal.
        let _: std::io::Result<()> = std::fs::remove_file(socket(&self.name));
    }
}

pub(crate) fn socket(name: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{name}.sock"))
}

fn boringtun() -> PathBuf {
    let tools = std::env::var_os("MESHD_TOOLS").map_or_else(
        || {
            let home = std::env::var_os("HOME").expect("a home");
            PathBuf::from(home).join(".cache/meshd/tools")
        },
        PathBuf::from,
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools.join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join("boringtun-cli"))
        .find(|program| program.exists())
        .expect("boringtun-cli 0.7.1 is installed (tools/setup does it)")
}
