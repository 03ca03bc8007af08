//! `meshd`: the agent of a member, and the embedded server.

mod agent;
mod former;
mod guard;
mod ipam;
mod join;
mod memory;
mod plugin;
mod serve;
mod service;
mod stored;
mod uninstall;

use std::{io::IsTerminal, process::ExitCode};

use clap::{Parser, Subcommand};

/// A WireGuard-encrypted overlay mesh for Kubernetes nodes, VMs and bare-metal hosts.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  meshd serve                       on one machine\n  meshd join https://192.0.2.1:7443 --token T   on every member\n  meshd agent                       what meshd.service runs"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Args),
    Cni(plugin::Args),
    Guard(guard::Args),
    Join(join::Args),
    Serve(serve::Args),
    Uninstall(uninstall::Args),
}

fn main() -> ExitCode {
    memory::set_up();
    let cli = Cli::parse();
    log();

    let outcome = match cli.command {
        Command::Agent(args) => agent::run(args),
        Command::Cni(args) => plugin::run(&args),
        Command::Guard(args) => guard::run(&args),
        Command::Join(args) => join::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Uninstall(args) => uninstall::run(&args),
    };

    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Logs to standard error: `MESHD_LOG` filters (default `info`), JSON when `MESHD_LOG_FORMAT=json`.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MESHD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("MESHD_LOG_FORMAT").is_some_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.init();
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a program that failed"
)]
fn report(error: &anyhow::Error) {
    eprintln!("meshd: {error:#}");
}
