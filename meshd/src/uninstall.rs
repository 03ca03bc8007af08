//! `meshd uninstall`: takes everything of ours off this machine, and nothing else.
//!
//! ```text
//! agent ends ─▶ firewalls ─▶ rules ─▶ routes ─▶ tunnels ─▶ pods' interfaces ─▶ guard ─▶ settings ─▶ services ─▶ files
//! ```
//!
//! **Invariant:** the guard goes when nothing is left that it guards: pods lose their interfaces
//! first, so that none of their packets leaves in plaintext while the rest is taken away.

mod process;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use cni::Tombstones;
use dataplane::{Component, Dataplane};
use model::{Moment, PublicKey};
use store::Credential;

use self::process::AgentProcess;
use crate::{
    agent::PodFile,
    former::FormerSettings,
    plugin::{self, Places},
    service,
};

/// What describes the machine as it is; useless once meshd is gone from it.
const KERNEL_FILES: [&str; 4] = ["guard.json", "networks", "pods.json", "settings.json"];

/// What makes this host a member. Kept, so that it can be one again.
const MEMBER_FILES: [&str; 4] = [
    "config.yaml",
    "keys/wireguard.key",
    "keys/wireguard-second.key",
    "identity/joining.key",
];

/// Folders of ours in that of the state; each goes when it is empty.
const FOLDERS: [&str; 3] = ["keys", "identity", "cni"];

/// Takes meshd off this host: devices, routes, rules, tables, settings, services.
///
/// Keys and credential stay, so that the host can be a member again; --purge removes them too. The
/// server's folder, the programs and everybody else's rules stay in any case.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshd uninstall --dry-run     lists what would go\n  meshd uninstall\n  meshd uninstall --purge       and never was a member\n\nThen, where an administrator's credential is: meshctl delete node NAME"
)]
pub(crate) struct Args {
    /// List what would go, and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Stop a running agent, and take the interfaces of pods that still run.
    #[arg(long)]
    force: bool,

    /// Remove this host's keys and credential too.
    #[arg(long)]
    purge: bool,

    /// Where keys and state are kept.
    #[arg(long, env = "MESHD_STATE", default_value = "/var/lib/meshd")]
    state: PathBuf,

    /// The agent's socket.
    #[arg(long, env = "MESHD_SOCKET", default_value = "/run/meshd/meshd.sock")]
    socket: PathBuf,

    /// The socket of `meshwire --supervise`.
    #[arg(
        long,
        env = "MESHD_WIRE_SOCKET",
        default_value = "/run/meshd/wire.sock"
    )]
    wire_socket: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut dataplane = open(args)?;
    let former = FormerSettings::open(&args.state);
    if args.dry_run {
        return list(args, &mut dataplane, former);
    }

    end_agent(args)?;
    refuse_running_pods(args)?;
    dataplane
        .remove_all(Moment::START)
        .context("not everything could be removed; what still stands is guarded; run it again")?;
    let former = former.context("the network is clean; its settings are not put back")?;
    former.restore()?;
    service::remove()?;
    for file in Places::usual().installed()? {
        plugin::remove(&file)?;
    }
    remove_files(args)?;
    assert_clean(&mut dataplane)?;
    farewell(args);

    Ok(())
}

fn open(args: &Args) -> anyhow::Result<Dataplane> {
    let config = dataplane::Config {
        supervisor: args.wire_socket.clone(),
        ..Default::default()
    };

    Dataplane::new(config, |_: &PublicKey| None).context("could not open the kernel's sockets")
}

/// Lists what would go.
fn list(
    args: &Args,
    dataplane: &mut Dataplane,
    former: Result<FormerSettings, crate::stored::Unreadable>,
) -> anyhow::Result<()> {
    if let Some(agent) = AgentProcess::find(&args.socket)? {
        say(&format!("agent      process {}", agent.id()));
    }
    for owned in dataplane.owned()? {
        say(&format!("{:<10} {}", owned.component.name(), owned.name));
    }
    for (key, now, then) in former?.changed()? {
        say(&format!("setting    {key}: {now}, was {then}"));
    }
    for file in service::own_files() {
        say(&format!("unit       {}", file.display()));
    }
    for file in Places::usual().installed()? {
        say(&format!("plugin     {}", file.display()));
    }
    for file in files(args).into_iter().filter(|file| file.exists()) {
        say(&format!("file       {}", file.display()));
    }

    Ok(())
}

/// An agent that runs would bring everything back.
fn end_agent(args: &Args) -> anyhow::Result<()> {
    let Some(agent) = AgentProcess::find(&args.socket)? else {
        return Ok(());
    };
    if !args.force {
        bail!(
            "the agent runs (process {}): stop it first (systemctl stop meshd), or use --force",
            agent.id()
        );
    }
    if !service::stop_agent()? {
        agent.end()?;
    }
    if let Some(another) = AgentProcess::find(&args.socket)? {
        bail!(
            "an agent runs again (process {}): stop whatever starts it",
            another.id()
        );
    }

    Ok(())
}

/// Pods lose their network with the mesh: that must be meant.
fn refuse_running_pods(args: &Args) -> anyhow::Result<()> {
    if args.force {
        return Ok(());
    }
    let pods = PodFile::open(args.state.join("pods.json"))?.alive();
    let names: Vec<String> = pods.iter().take(5).map(|pod| pod.pod.to_string()).collect();
    if names.is_empty() {
        return Ok(());
    }

    bail!(
        "{} pods still run here ({}{}) and would lose their network: drain this node first, or use --force",
        pods.len(),
        names.join(", "),
        if pods.len() > names.len() {
            ", …"
        } else {
            ""
        }
    )
}

fn remove_files(args: &Args) -> anyhow::Result<()> {
    for file in files(args) {
        keyring::remove_private(&file)
            .with_context(|| format!("cannot remove {}", file.display()))?;
    }
    for folder in FOLDERS.map(|folder| args.state.join(folder)) {
        remove_empty(&folder)?;
    }
    remove_empty(&args.state)?;
    if let Some(folder) = args.socket.parent() {
        remove_empty(folder)?;
    }

    Ok(())
}

fn files(args: &Args) -> Vec<PathBuf> {
    let member: &[&str] = if args.purge { &MEMBER_FILES } else { &[] };
    let mut files: Vec<PathBuf> = KERNEL_FILES
        .iter()
        .chain(member)
        .map(|file| args.state.join(file))
        .collect();
    // What a killed writer left.
    files.extend(files.clone().into_iter().map(|file| {
        let mut beside = file.into_os_string();
        beside.push(".new");
        PathBuf::from(beside)
    }));
    // Removals for an agent that will not come.
    let stones = Tombstones::at(args.state.join("cni"));
    files.extend(stones.list().into_iter().flatten().map(|stone| stone.path));
    files.push(args.socket.clone());

    files
}

/// Removes a folder where it is empty; what others put there keeps it.
fn remove_empty(folder: &Path) -> anyhow::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};

    match fs::remove_dir(folder) {
        Ok(()) => Ok(()),
        // A mount cannot be removed, only what is in it.
        Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotFound | ResourceBusy) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", folder.display())),
    }
}

/// Looks again: something may have brought a piece back.
fn assert_clean(dataplane: &mut Dataplane) -> anyhow::Result<()> {
    let left = dataplane.owned()?;
    let Some(first) = left.first() else {
        return Ok(());
    };
    if left
        .iter()
        .all(|owned| owned.component == Component::Tunnels)
    {
        bail!("the tunnel service still has {}: stop meshwire", first.name);
    }

    bail!(
        "{} things are there again, {} {} first: does another agent run?",
        left.len(),
        first.component.name(),
        first.name
    )
}

fn farewell(args: &Args) {
    say("Everything of meshd's is off this machine's network.");
    if args.wire_socket.exists() && !service::runs_this_host() {
        say("meshwire still runs, without a device: end it too.");
    }
    if let Ok(credential) = Credential::load(&args.state.join("config.yaml")) {
        let name = credential.identity().name();
        say(&format!(
            "Its peers still know {name}: meshctl delete node {name}"
        ));
    }
    if args.state.join("server").exists() {
        say("This machine runs the mesh's server too, which stays: its service, its folder.");
    }
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn say(line: &str) {
    println!("{line}");
}
