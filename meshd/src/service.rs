//! Starting the services that a member needs, where systemd runs.

use std::{
    fs,
    path::Path,
    process::{Command, ExitStatus},
};

use anyhow::{Context, bail};

/// What a member runs: the tunnel first, then the agent; the guard at every boot.
const UNITS: [&str; 3] = ["meshwire.service", "meshd.service", "meshd-guard.service"];

/// Where units are looked for.
const UNIT_FOLDERS: [&str; 3] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];

/// Enables and starts the services, or says how to start them by hand.
pub(crate) fn start() -> anyhow::Result<()> {
    if !runs_this_host() {
        say("systemd does not run here. Start these yourself, in this order:");
        say("  meshwire --supervise /run/meshd/wire.sock");
        say("  meshd agent");
        return Ok(());
    }
    let missing: Vec<&str> = UNITS
        .into_iter()
        .filter(|unit| !is_installed(unit))
        .collect();
    if !missing.is_empty() {
        say(&format!(
            "These units are not installed: {}.",
            missing.join(", ")
        ));
        say(&format!(
            "Copy them from deploy/systemd, then: systemctl enable --now {}",
            UNITS.join(" ")
        ));
        return Ok(());
    }
    let status = systemctl(&["enable", "--now", UNITS[0], UNITS[1]])?;
    let boot = systemctl(&["enable", UNITS[2]])?;
    if !status.success() || !boot.success() {
        bail!(
            "systemctl could not start the services; see: systemctl status {}",
            UNITS.join(" ")
        );
    }
    say("meshwire and meshd run, and will after a reboot.");

    Ok(())
}

/// Returns whether systemd runs, and for this network: in a container or a lab it is somebody else's.
fn runs_this_host() -> bool {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();

    Path::new("/run/systemd/system").is_dir()
        && network("1").is_some_and(|first| network("self") == Some(first))
}

fn is_installed(unit: &str) -> bool {
    UNIT_FOLDERS
        .iter()
        .any(|folder| Path::new(folder).join(unit).exists())
}

#[expect(
    clippy::disallowed_methods,
    reason = "systemd's own tool is its interface to enable units"
)]
fn systemctl(arguments: &[&str]) -> anyhow::Result<ExitStatus> {
    Command::new("systemctl")
        .args(arguments)
        .status()
        .context("systemctl cannot be run")
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn say(line: &str) {
    println!("{line}");
}
