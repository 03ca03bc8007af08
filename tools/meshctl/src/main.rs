//! `meshctl`: the command line of meshd.

mod agent;
mod apply;
mod column;
mod config;
mod connection;
mod delete;
mod describe;
mod get;
mod input;
mod ipam;
mod lab;
mod peers;
mod policy;
mod replay;
mod selection;
mod status;
mod token;
mod why;

use std::{
    io::{ErrorKind, Write},
    process::{ExitCode, exit},
};

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Looks into meshd, changes what it does, and builds labs.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 ok, 1 failed, 2 usage, 3 verdict differs or not ready."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Args),
    Peers(peers::Args),
    Get(get::Args),
    Apply(apply::Args),
    Delete(delete::Args),
    Describe(describe::Args),
    Config(config::Args),
    Ipam(ipam::Args),
    Policy(policy::Args),
    Why(why::Args),
    Replay(replay::Args),
    Token(token::Args),
    Lab(lab::Args),
    #[command(hide = true)]
    LabEcho(lab::hand::EchoArgs),
    #[command(hide = true)]
    LabLink(lab::hand::LinkArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Status(args) => wait_for(status::run(args)),
        Command::Peers(args) => wait_for(peers::run(args)),
        Command::Get(args) => wait_for(get::run(args)),
        Command::Apply(args) => wait_for(apply::run(args)),
        Command::Delete(args) => wait_for(delete::run(args)),
        Command::Describe(args) => wait_for(describe::run(args)),
        Command::Config(args) => wait_for(config::run(args)),
        Command::Ipam(args) => wait_for(ipam::run(args)),
        Command::Token(args) => wait_for(token::run(args)),
        Command::Policy(args) => policy::run(args),
        Command::Why(args) => why::run(args),
        Command::Replay(args) => replay::run(&args),
        // No runtime for these: entering namespaces is for a process with one thread.
        Command::Lab(args) => lab::run(args),
        Command::LabEcho(args) => lab::hand::echo(&args),
        Command::LabLink(args) => lab::hand::link(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            match error.is::<selection::Usage>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Runs a command that speaks to somebody: from the network namespace that `MESHD_NETNS` names, where it
/// is set (`meshctl lab env` does).
fn wait_for<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    if let Ok(netns) = std::env::var("MESHD_NETNS") {
        let place = ::lab::Place {
            netns,
            mounts: None,
        };
        place
            .enter_network()
            .with_context(|| format!("MESHD_NETNS: {} cannot be entered", place.netns))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .context("the runtime cannot be started")?
        .block_on(command)
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a command that failed"
)]
fn report(error: &anyhow::Error) {
    eprintln!("meshctl: {error:#}");
}

/// Writes a line of the answer. Ends the program when whoever reads it has gone (`| head`).
fn say(text: &str) {
    if let Err(error) = writeln!(std::io::stdout().lock(), "{text}") {
        exit(i32::from(error.kind() != ErrorKind::BrokenPipe));
    }
}

/// Writes a line beside the answer.
#[expect(
    clippy::print_stderr,
    reason = "what a person should know, apart from what a program reads"
)]
fn warn(text: &str) {
    eprintln!("meshctl: {text}");
}
