//! Network namespaces that live as long as their test.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{attempt, run};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test has, at most 15 bytes long.
pub(crate) fn unique(prefix: &str) -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{}x{number}", std::process::id())
}

/// A network namespace with its loopback interface up.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let name = unique("mwt");
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        Self { name }
    }

    /// `ip` in here.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    /// Any program in here.
    pub(crate) fn exec(&self, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.name))
    }

    /// `nft` in here, with a script.
    pub(crate) fn nft(&self, script: &str) -> String {
        crate::command::run_with(&format!("ip netns exec {} nft -f -", self.name), script)
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
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
    pub(crate) fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("it exists");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("tests run as root");
    }

    pub(crate) fn has_link(&self, name: &str) -> bool {
        attempt(&format!("ip -n {} link show {name}", self.name), "").is_ok()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = attempt(&format!("ip netns del {}", self.name), "")
            && !std::thread::panicking()
        {
            panic!("{}: {error}", self.name);
        }
    }
}
