//! Network namespaces that live as long as their story.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{attempt, run, run_with};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name that no other story has, at most 15 bytes long.
pub fn unique(prefix: &str) -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{}x{number}", std::process::id())
}

/// A network namespace with its loopback interface up.
pub struct Space {
    name: String,
}

impl Space {
    /// Makes one.
    #[expect(clippy::new_without_default, reason = "making one has effects")]
    pub fn new() -> Self {
        let name = unique("wst");
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        Self { name }
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip` in here.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    /// Any program in here.
    pub fn exec(&self, line: &str) -> String {
        self.exec_with(line, "")
    }

    /// The same, with standard input.
    pub fn exec_with(&self, line: &str, input: &str) -> String {
        run_with(&format!("ip netns exec {} {line}", self.name), input)
    }

    /// Any program in here, which may fail.
    ///
    /// # Errors
    /// What it said.
    pub fn attempt(&self, line: &str) -> Result<String, String> {
        attempt(&format!("ip netns exec {} {line}", self.name), "")
    }

    /// `nft -f -` in here.
    pub fn nft(&self, script: &str) {
        self.exec_with("nft -f -", script);
    }

    /// Sets kernel parameters in here, `a.b=1 c.d=2`.
    pub fn sysctl(&self, settings: &str) {
        self.exec(&format!("sysctl -qw {settings}"));
    }

    /// Whether so many echo requests are answered, one after the other, each within a second.
    pub fn pings(&self, arguments: &str) -> bool {
        self.attempt(&format!("ping -n -q -W 1 {arguments}"))
            .is_ok()
    }

    /// Runs `work` on a thread inside.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside, for good.
    fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("it exists");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("stories are told as root");
    }

    /// Whether a device is in here.
    pub fn has_link(&self, name: &str) -> bool {
        attempt(&format!("ip -n {} link show {name}", self.name), "").is_ok()
    }

    /// Joins two with a cable: `ours` here, `theirs` there, both up.
    pub fn cable(&self, ours: &str, other: &Self, theirs: &str) {
        self.ip(&format!(
            "link add {ours} type veth peer name {theirs} netns {}",
            other.name
        ));
        self.ip(&format!("link set {ours} up"));
        other.ip(&format!("link set {theirs} up"));
    }

    /// Adds an address that can be used at once.
    pub fn address(&self, device: &str, address: &str) {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {device}{nodad}"));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Err(error) = attempt(&format!("ip netns del {}", self.name), "")
            && !std::thread::panicking()
        {
            panic!("{}: {error}", self.name);
        }
    }
}
