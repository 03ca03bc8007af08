//! `meshctl status`: where this node stands.

use std::{fmt::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use model::status::Status;

use crate::agent;

/// Shows what the agent of this machine does.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl status\n  meshctl status -o json | jq .encryption\n  meshctl lab exec n1 -- meshctl status\n\nExit status: 0 ready, 1 no agent, 3 not ready."
)]
pub(crate) struct Args {
    /// The agent's socket.
    #[arg(long, env = "MESHD_SOCKET", default_value = "/run/meshd/meshd.sock")]
    socket: PathBuf,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let status: Status = agent::get(&args.socket, "/v1/status").await?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Table => print!("{}", render(&status).context("could not print the status")?),
    }

    Ok(if is_ready(&status) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

fn is_ready(status: &Status) -> bool {
    status.in_sync && status.converged
}

pub(crate) fn render(status: &Status) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let store = if status.store_connected {
        "connected"
    } else {
        "away (what runs goes on)"
    };
    let sync = if status.in_sync {
        "in sync"
    } else {
        "not in sync yet"
    };
    let machine = if status.converged {
        "matches the plan"
    } else {
        "does not match the plan yet"
    };
    writeln!(
        text,
        "Node         {} (meshd {})",
        status.node, status.version
    )?;
    writeln!(text, "Store        {store}, {sync}")?;
    writeln!(text, "Machine      {machine}")?;
    let encryption = &status.encryption;
    writeln!(
        text,
        "Encryption   {} ({})",
        encryption.summary, encryption.mode
    )?;
    for device in &encryption.devices {
        let addresses = join(&device.addresses);
        writeln!(
            text,
            "Device       {} ({}), port {}, MTU {}, {addresses}",
            device.name, device.backend, device.port, device.mtu
        )?;
        writeln!(text, "             key {}", device.key)?;
    }
    writeln!(text, "Addresses    {}", join(&status.addresses))?;
    writeln!(text, "Blocks       {}", join(&status.blocks))?;
    let peers = status
        .peers
        .iter()
        .map(|(state, count)| format!("{count} {state}"));
    writeln!(text, "Peers        {}", join(&peers.collect::<Vec<_>>()))?;
    for pod in &status.pods {
        writeln!(
            text,
            "Pod          {} {} ({})",
            pod.pod,
            join(&pod.addresses),
            pod.interface
        )?;
    }
    for (target, reason) in &status.failures {
        writeln!(text, "Failing      {target}: {reason}")?;
    }
    for (condition, reason) in &status.conditions {
        writeln!(text, "Condition    {condition}: {reason}")?;
    }

    Ok(text)
}

fn join<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "–".to_owned();
    }

    items
        .iter()
        .map(T::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
