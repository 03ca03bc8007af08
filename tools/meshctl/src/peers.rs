//! `meshctl peers`: who this node talks to, and why not.

use std::{path::PathBuf, process::ExitCode};

use comfy_table::{ContentArrangement, Table, presets};
use model::status::{PeerState, PeerStatus};

use crate::{agent, status::Output};

/// Shows every other member of the mesh as this node sees it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl peers\n  meshctl peers -o json | jq '.[] | select(.state != \"Encrypted\")'\n\nExit status: 0 no peer is unreachable, 1 no agent, 3 some are."
)]
pub(crate) struct Args {
    /// The agent's socket.
    #[arg(long, env = "MESHD_SOCKET", default_value = "/run/meshd/meshd.sock")]
    socket: PathBuf,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let peers: Vec<PeerStatus> = agent::get(&args.socket, "/v1/peers").await?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&peers)?),
        Output::Table => println!("{}", table(&peers)),
    }
    let unreachable = peers
        .iter()
        .any(|peer| peer.state == PeerState::Unreachable);

    Ok(if unreachable {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    })
}

fn table(peers: &[PeerStatus]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "NODE",
        "STATE",
        "PHASE",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
        "ENDPOINT",
        "KEY AGE",
        "KEY",
        "REASON",
    ]);
    for peer in peers {
        let key = peer.key.map(|key| key.to_string());
        table.add_row([
            peer.node.to_string(),
            format!("{:?}", peer.state),
            format!("{:?}", peer.phase),
            peer.handshake_age_seconds
                .map_or("never".to_owned(), |age| age_text(age) + " ago"),
            bytes(peer.received_bytes),
            bytes(peer.sent_bytes),
            peer.endpoint
                .map_or("–".to_owned(), |endpoint| endpoint.to_string()),
            peer.key_age_seconds.map_or("–".to_owned(), age_text),
            key.map_or("–".to_owned(), |key| key[..8].to_owned() + "…"),
            peer.reason.clone().unwrap_or_default(),
        ]);
    }

    table
}

/// Returns seconds as people say them.
fn age_text(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Returns a number of bytes with a binary prefix.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{count} B");
    }

    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_read_as_people_say_them() {
        assert_eq!(age_text(61), "61 s");
        assert_eq!(age_text(300), "5 min");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
