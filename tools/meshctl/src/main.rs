//! `meshctl`: the command line of meshd.

mod agent;
mod lab;
mod peers;
mod replay;
mod status;
mod token;

use std::process::ExitCode;

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
        Command::Token(args) => wait_for(token::run(args)),
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
            ExitCode::FAILURE
        }
    }
}

/// Runs a command that speaks to somebody.
fn wait_for(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
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
