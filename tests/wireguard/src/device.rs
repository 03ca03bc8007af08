//! WireGuard devices of any make.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::command::command;
use crate::space::unique;
use crate::{Space, attempt, run, run_with, until};

/// Who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// Ours, in user space.
    Meshwire,
    /// The kernel's.
    Kernel,
}

/// A private key and its public half, as `wg` writes them.
#[derive(Clone)]
pub struct Keys {
    /// The private key.
    pub private: String,
    /// The public key.
    pub public: String,
}

impl Keys {
    /// New ones.
    pub fn generate() -> Self {
        let private = run("wg genkey").trim().to_owned();
        let public = run_with("wg pubkey", &private).trim().to_owned();
        Self { private, public }
    }
}

/// A device. Its packets outside leave from the namespace that it was born in, wherever it is moved.
pub struct Device {
    /// Its name, which no other device of this run has.
    pub name: String,
    /// Who made it.
    pub make: Make,
    /// Its keys, once [`Device::set_keys`] was called.
    pub keys: Keys,
    home: String,
    child: Option<Child>,
}

impl Device {
    /// Makes one in `space`: without a key, down.
    pub fn bare(make: Make, space: &Space) -> Self {
        let name = unique("ws");
        let child = match make {
            Make::Kernel => {
                space.ip(&format!("link add {name} type wireguard"));
                None
            }
            Make::Meshwire => Some(meshwire(space, &name)),
        };
        let (private, public) = (String::new(), String::new());
        Self {
            name,
            make,
            keys: Keys { private, public },
            home: space.name().to_owned(),
            child,
        }
    }

    /// Makes one with a new key that listens on `port` once it is up.
    pub fn new(make: Make, space: &Space, port: u16) -> Self {
        let mut device = Self::bare(make, space);
        device.set_keys(&Keys::generate());
        device.wg(&format!("listen-port {port}"));
        device
    }

    /// Gives it a private key.
    pub fn set_keys(&mut self, keys: &Keys) {
        self.wg_with("private-key /dev/stdin", &keys.private);
        self.keys = keys.clone();
    }

    /// Moves it into another namespace.
    pub fn move_to(&mut self, space: &Space) {
        run(&format!(
            "ip -n {} link set {} netns {}",
            self.home,
            self.name,
            space.name()
        ));
        space.name().clone_into(&mut self.home);
    }

    /// `ip` where it is.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.home))
    }

    /// Gives it addresses and sets it up.
    pub fn up(&self, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("addr add {address} dev {}{nodad}", self.name));
        }
        self.ip(&format!("link set {} up", self.name));
    }

    /// `wg set`.
    pub fn wg(&self, arguments: &str) {
        self.wg_with(arguments, "");
    }

    /// `wg set`, with a secret on its standard input.
    pub fn wg_with(&self, arguments: &str, input: &str) {
        run_with(
            &format!(
                "ip netns exec {} wg set {} {arguments}",
                self.home, self.name
            ),
            input,
        );
    }

    /// `wg VERB NAME …`, with input.
    ///
    /// # Errors
    /// What it complains of.
    pub fn verb(&self, verb: &str, rest: &str, input: &str) -> Result<String, String> {
        attempt(
            &format!("ip netns exec {} wg {verb} {} {rest}", self.home, self.name),
            input,
        )
    }

    /// `wg show NAME WHAT`.
    pub fn show(&self, what: &str) -> String {
        self.verb("show", what, "")
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// What `wg show NAME WHAT` says of the peer with this key.
    pub fn of_peer(&self, what: &str, public: &str) -> Option<String> {
        let text = self.show(what);
        let line = text.lines().find(|line| line.starts_with(public))?;
        Some(line[public.len()..].trim().to_owned())
    }

    /// Where it believes the other to be.
    pub fn endpoint(&self, other: &Self) -> Option<String> {
        self.of_peer("endpoints", &other.keys.public)
    }

    /// Bytes received from and sent to the other.
    pub fn transfer(&self, other: &Self) -> (u64, u64) {
        let text = self
            .of_peer("transfer", &other.keys.public)
            .expect("a peer");
        let (received, sent) = text.split_once('\t').expect("two numbers");
        (
            received.parse().expect("a number"),
            sent.parse().expect("a number"),
        )
    }

    /// Seconds since the epoch of the last handshake with the other; 0: never.
    pub fn handshake(&self, other: &Self) -> u64 {
        self.of_peer("latest-handshakes", &other.keys.public)
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else {
            // It may have gone with a namespace.
            let _: Result<String, String> =
                attempt(&format!("ip -n {} link del {}", self.home, self.name), "");
            return;
        };
        let pid = rustix::process::Pid::from_child(child);
        if rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok() {
            let _: std::io::Result<_> = child.wait();
        }
    }
}

fn meshwire(space: &Space, name: &str) -> Child {
    let log = std::env::temp_dir().join(format!("{name}.log"));
    let output = std::fs::File::create(&log).expect("a folder for temporary files");
    let mut child = command("ip")
        .args(["netns", "exec", space.name()])
        .arg(program("meshwire"))
        .args(["--foreground", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .expect("ip is installed");
    until("wg can talk to it", || {
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        assert!(
            !ended,
            "meshwire ended: {}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        attempt(&format!("wg show {name}"), "").is_ok()
    });
    // It holds the file as long as it writes to it.
    let _: std::io::Result<()> = std::fs::remove_file(log);
    child
}

/// A program of ours: in `$MESHD_BIN_DIR`, or beside the folder of this test.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("MESHD_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("a running test is a file");
            let deps = test.parent().expect("it is in a folder");
            deps.parent()
                .expect("which is in the target folder")
                .to_owned()
        },
        PathBuf::from,
    );
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is not there: build it with `cargo build -p wire`",
        program.display()
    );
    program
}
