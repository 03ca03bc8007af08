//! `meshctl lab`: whole meshes in network namespaces on this machine.
//!
//! Nothing here needs a runtime, and `exec` must not have one: entering namespaces is for a process with
//! one thread.

use std::process::ExitCode;

use anyhow::{Context, bail};

mod capture;
mod exec;
pub(crate) mod hand;
mod ping;
mod pod;
mod service;
mod show;
mod stream;
mod up;

pub(crate) use show::held;

/// Builds and uses whole meshes in network namespaces on this machine (needs root).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab up three-nodes\n  meshctl lab ping default/a default/c\n  meshctl lab exec n1 -- meshctl status\n  eval \"$(meshctl lab env)\" && meshctl get nodes\n  meshctl lab capture n1 --for 2s --sealed\n  meshctl lab down\n\nExit status: 0 ok, 1 failed, 2 usage, 3 not ready or not sealed."
)]
pub(crate) struct Args {
    /// Which lab, where several run.
    #[arg(long, global = true, env = "MESHD_LAB", value_name = "NAME")]
    lab: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Up(up::UpArgs),
    Down(up::DownArgs),
    Wait(show::WaitArgs),
    Status(show::StatusArgs),
    List(show::ListArgs),
    /// Prints the variables that make meshctl speak to the lab's store, for eval.
    Env,
    Exec(exec::Args),
    Pod(pod::Args),
    Capture(capture::Args),
    Ping(ping::Args),
    Kill(service::KillArgs),
    Restart(service::RestartArgs),
    Stream(stream::Args),
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let lab = args.lab.as_deref();
    match args.command {
        Command::Up(args) => up::up(&args, lab),
        Command::Down(args) => up::down(&args, lab),
        Command::Wait(args) => show::wait(&args, lab),
        Command::Status(args) => show::status(&args, lab),
        Command::List(args) => show::list(&args),
        Command::Env => show::environment(lab),
        Command::Exec(args) => exec::run(&args, lab),
        Command::Pod(args) => pod::run(args, lab),
        Command::Capture(args) => capture::run(&args, lab),
        Command::Ping(args) => ping::run(&args, lab),
        Command::Kill(args) => service::kill(&args, lab),
        Command::Restart(args) => service::restart(&args, lab),
        Command::Stream(args) => stream::run(&args, lab),
    }
}

/// The lab that is meant: the one named, or the only one there is.
fn name(asked: Option<&str>) -> anyhow::Result<String> {
    if let Some(name) = asked {
        return Ok(name.to_owned());
    }
    let names = lab::names().context("the labs cannot be listed")?;
    match names.as_slice() {
        [] => bail!("no lab runs; `meshctl lab up three-nodes` starts one"),
        [only] => Ok(only.clone()),
        several => bail!(
            "several labs run: choose one with --lab ({})",
            several.join(", ")
        ),
    }
}

/// The lab that is meant, as it stands.
fn attach(asked: Option<&str>) -> anyhow::Result<lab::Site> {
    Ok(lab::Site::attach(&name(asked)?, hands()?)?)
}

/// The lab that is meant, to change it: waits while another command does.
fn attach_alone(asked: Option<&str>) -> anyhow::Result<lab::Site> {
    Ok(lab::Site::attach_alone(&name(asked)?, hands()?)?)
}

/// Echo servers and links of a lab are processes of this program.
fn hands() -> anyhow::Result<lab::Hands> {
    let own = std::env::current_exe().context("this program's own file is unknown")?;
    Ok(lab::Hands::Program(own))
}
