//! A network namespace per test, and the programs that see into it.

mod sys;

use std::{
    panic::resume_unwind,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Runs a test in a network namespace of its own, which goes with its thread.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        sys::leave_network().expect("tests of the kernel need root");
        ip("link set lo up");
        test();
    };

    if let Err(panic) = thread::spawn(run).join() {
        resume_unwind(panic);
    }
}

/// Runs `ip` and returns what it says.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Runs `ip -j` and returns its array.
pub(crate) fn ip_json(arguments: &str) -> Vec<Value> {
    let text = run("ip", &format!("-j {arguments}"));
    if text.trim().is_empty() {
        return Vec::new();
    }

    serde_json::from_str(&text).unwrap()
}

/// Runs `nft` and returns what it says, one line a rule.
pub(crate) fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = attempt(program, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {errors}");

    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that may fail.
#[expect(clippy::disallowed_methods, reason = "the oracle of these tests are other programs")]
pub(crate) fn attempt(program: &str, arguments: &str) -> Output {
    Command::new(program).args(arguments.split_whitespace()).output().unwrap()
}

/// Makes a pair of devices, both up.
pub(crate) fn veth(name: &str, other: &str) {
    ip(&format!("link add {name} type veth peer name {other}"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {other} up"));
}

/// Waits until a condition holds, at most two seconds; returns how long it took.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(2), "waited in vain: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }

    started.elapsed()
}
