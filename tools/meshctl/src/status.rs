//! `meshctl status`: where this node stands.

use std::{fmt::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use model::status::Status;

use crate::agent;

/// How many incomplete rows people are shown.
const ROWS_SHOWN: usize = 20;

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

/// A pod in trouble is named, and does not make the node one that is not ready.
fn is_ready(status: &Status) -> bool {
    let is_pending = !status.converged && status.incomplete.is_empty();

    status.in_sync && status.ready && !is_pending
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
    let machine = match (status.converged, status.ready, status.incomplete.len()) {
        (true, ..) => "matches the plan".to_owned(),
        (false, true, rows @ 1..) => format!("matches the plan, but for {rows} of its rows"),
        (false, ..) => "does not match the plan yet".to_owned(),
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
            "Device       {} ({}: {}), port {}, MTU {}, {addresses}",
            device.name, device.backend, device.backend_reason, device.port, device.mtu
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
    for missing in status.incomplete.iter().take(ROWS_SHOWN) {
        let label = if missing.essential {
            "Missing"
        } else {
            "Incomplete"
        };
        writeln!(text, "{label:12} {}: {}", missing.row, missing.reason)?;
    }
    let more = status.incomplete.len().saturating_sub(ROWS_SHOWN);
    if more > 0 {
        writeln!(text, "             and {more} more")?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::{
        Phase,
        status::{DeviceStatus, Encryption, IncompleteStatus},
    };

    use super::*;

    #[test]
    fn a_dead_pod_is_named_and_leaves_the_node_ready() {
        let mut status = status();
        status.converged = false;
        status.incomplete = vec![row("pod default/a", "its namespace is gone", false)];

        let text = render(&status).unwrap();

        assert!(is_ready(&status));
        assert!(
            text.contains("Machine      matches the plan, but for 1 of its rows\n"),
            "{text}"
        );
        assert!(
            text.contains("Incomplete   pod default/a: its namespace is gone\n"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_device_makes_the_node_not_ready_and_says_why() {
        let mut status = status();
        let why = "this kernel has no WireGuard";
        (status.converged, status.ready) = (false, false);
        status.incomplete = vec![row("device wireguard.cali", why, true)];
        let device = &mut status.encryption.devices[0];
        (device.backend, device.backend_reason) = ("none".into(), why.into());

        let text = render(&status).unwrap();

        assert!(!is_ready(&status));
        assert!(text.contains("does not match the plan yet"), "{text}");
        assert!(
            text.contains("Missing      device wireguard.cali: this kernel"),
            "{text}"
        );
        assert!(
            text.contains("wireguard.cali (none: this kernel has no WireGuard), port 51820"),
            "{text}"
        );
    }

    fn row(row: &str, reason: &str, essential: bool) -> IncompleteStatus {
        IncompleteStatus {
            row: row.into(),
            reason: reason.into(),
            essential,
        }
    }

    fn status() -> Status {
        let device = DeviceStatus {
            name: "wireguard.cali".into(),
            backend: "meshwire".into(),
            backend_reason: "the kernel has no WireGuard".into(),
            key: model::PublicKey::new([1; 32]).unwrap(),
            port: 51820,
            mtu: 1440,
            addresses: vec![],
        };

        Status {
            node: "n1".parse().unwrap(),
            version: "0".into(),
            store_connected: true,
            in_sync: true,
            ready: true,
            converged: true,
            failures: BTreeMap::new(),
            incomplete: vec![],
            encryption: Encryption {
                wanted: true,
                mode: "Strict".into(),
                phase: Phase::Enforced,
                members_ready: 1,
                members: 1,
                summary: "Enforced".into(),
                devices: vec![device],
            },
            addresses: vec![],
            blocks: vec![],
            pods: vec![],
            peers: BTreeMap::new(),
            conditions: BTreeMap::new(),
        }
    }
}
