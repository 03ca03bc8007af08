//! What a test cannot do without.

use std::process::Command;

/// Something that not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// WireGuard.
    WireGuard,
    /// The queueing discipline that delays and loses.
    Netem,
    /// A clock that jumps over the time in which everybody sleeps.
    Warp,
}

impl Need {
    /// The words for it.
    fn words(self) -> &'static str {
        match self {
            Self::WireGuard => "a kernel with WireGuard",
            Self::Netem => "a kernel with netem",
            Self::Warp => "a clock that can be warped",
        }
    }

    fn is_met(self) -> bool {
        match self {
            Self::WireGuard => tried("ip link add probe type wireguard"),
            Self::Netem => tried("tc qdisc add dev lo root netem delay 1ms"),
            Self::Warp => {
                let arguments = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
                arguments.split_whitespace().any(|a| a == "time-travel")
            }
        }
    }
}

/// Fails the test, with the way to run it, where this machine lacks one of these.
pub fn need(what: &[Need]) {
    let lacking: Vec<&str> = what
        .iter()
        .filter(|need| !need.is_met())
        .map(|need| need.words())
        .collect();
    assert!(
        lacking.is_empty(),
        "this test needs {}: run it by `make test-kernel`",
        lacking.join(" and ")
    );
}

/// Whether a command succeeds in a network namespace that lasts no longer than it.
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel is asked by the distribution's own tools"
)]
fn tried(command: &str) -> bool {
    let output = Command::new("unshare")
        .arg("--net")
        .args(command.split_whitespace())
        .output();
    output.is_ok_and(|output| output.status.success())
}
