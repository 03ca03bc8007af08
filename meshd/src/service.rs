//! Starting the services that a member needs, where systemd runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context, bail};

/// The agent.
const AGENT: &str = "meshd.service";

/// What a member runs: the tunnel first, then the agent; the guard at every boot.
const UNITS: [&str; 3] = ["meshwire.service", AGENT, "meshd-guard.service"];

/// Where units are looked for: an administrator's folders, then the packages'.
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

/// Stops the agent, where systemd runs it; returns whether systemd did.
pub(crate) fn stop_agent() -> anyhow::Result<bool> {
    if !runs_this_host() || !is_installed(AGENT) {
        return Ok(false);
    }
    if !systemctl(&["stop", AGENT])?.success() {
        bail!("systemctl could not stop {AGENT}; see: systemctl status {AGENT}");
    }

    Ok(true)
}

/// Returns the unit files of a member that an administrator put there, as [`start`] says; those of a
/// package are the package's.
pub(crate) fn own_files() -> Vec<PathBuf> {
    let folders = UNIT_FOLDERS.iter().take(2);
    let files = folders.flat_map(|folder| UNITS.map(|unit| Path::new(folder).join(unit)));

    files.filter(|file| file.exists()).collect()
}

/// Stops and disables a member's services where systemd runs, and removes their unit files.
pub(crate) fn remove() -> anyhow::Result<()> {
    let systemd = runs_this_host();
    let installed: Vec<&str> = UNITS
        .into_iter()
        .filter(|unit| is_installed(unit))
        .collect();
    if systemd && !installed.is_empty() {
        let arguments = [&["disable", "--now"], installed.as_slice()].concat();
        if !systemctl(&arguments)?.success() {
            bail!("systemctl could not disable {}", installed.join(", "));
        }
    }
    // In a container or a lab the folders are the host's, and so are the units in them.
    if !systemd {
        return Ok(());
    }
    for file in own_files() {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    if !systemctl(&["daemon-reload"])?.success() {
        bail!("systemctl could not reload the units");
    }

    Ok(())
}

/// Returns whether systemd runs, and for this network: in a container or a lab it is somebody else's.
pub(crate) fn runs_this_host() -> bool {
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
