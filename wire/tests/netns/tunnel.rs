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
    /// The kernel's own, where the kernel has it.
    Kernel,
}

/// A WireGuard in the foreground, in a namespace.
pub(crate) struct Tunnel {
    pub(crate) name: String,
    pub(crate) public_key: String,
    /// How to run `wg` where it finds the tunnel: the kernel's it finds in its own namespace alone.
    wg: String,
    /// `None` is the kernel.
    child: Option<Child>,
}

impl Tunnel {
    /// Starts one; it has a key, and listens on 51820 once it is up.
    pub(crate) fn start(namespace: &Namespace, make: Make) -> Self {
        if make == Make::Kernel {
            return Self::in_kernel(namespace);
        }
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
            Make::Kernel => unreachable!("it is no program"),
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
            wg: "wg".to_owned(),
            child: Some(child),
        };
        until("the UAPI socket", || socket(&tunnel.name).exists());
        until("wg can talk to it", || {
            crate::command::attempt(&format!("wg show {}", tunnel.name), "").is_ok()
        });
        tunnel.make_key();
        tunnel
    }

    fn in_kernel(namespace: &Namespace) -> Self {
        let name = unique("mw");
        namespace.ip(&format!("link add {name} type wireguard"));
        let mut tunnel = Self {
            name,
            public_key: String::new(),
            wg: format!("ip netns exec {} wg", namespace.name),
            child: None,
        };
        tunnel.make_key();
        tunnel
    }

    fn make_key(&mut self) {
        let private_key = run("wg genkey");
        self.public_key = run_with("wg pubkey", &private_key).trim().to_owned();
        self.wg_with("private-key /dev/stdin listen-port 51820", &private_key);
    }

    /// `wg set`.
    pub(crate) fn wg(&self, arguments: &str) {
        self.wg_with(arguments, "");
    }

    /// `wg set`, with a secret on its standard input.
    pub(crate) fn wg_with(&self, arguments: &str, input: &str) {
        run_with(&format!("{} set {} {arguments}", self.wg, self.name), input);
    }

    /// `wg show NAME WHAT`.
    pub(crate) fn show(&self, what: &str) -> String {
        run(&format!("{} show {} {what}", self.wg, self.name))
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

    /// Its resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let id = self.child.as_ref().expect("a program").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Does something while the program stands still.
    pub(crate) fn stopped(&self, work: impl FnOnce()) {
        let child = self.child.as_ref().expect("a program");
        let stopped = Stopped(rustix::process::Pid::from_child(child));
        rustix::process::kill_process(stopped.0, rustix::process::Signal::STOP).expect("it runs");
        work();
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

/// Goes on when this is dropped: a stopped program could not be ended either.
struct Stopped(rustix::process::Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It can only have ended.
        let _: rustix::io::Result<()> =
            rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // The kernel's goes with its namespace.
        let Some(child) = &mut self.child else {
            return;
        };
        let pid = rustix::process::Pid::from_child(child);
        let ended = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        if ended.is_ok() {
            let _: std::io::Result<_> = child.wait();
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
