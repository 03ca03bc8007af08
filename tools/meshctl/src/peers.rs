//! `meshctl peers`: who this node talks to, and why not.

use std::{path::PathBuf, process::ExitCode};

use comfy_table::{ContentArrangement, Table, presets};
use model::{
    Family,
    status::{PeerState, PeerStatus},
};

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
    let unreachable = peers.iter().any(is_unreachable);

    Ok(if unreachable {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns whether nothing gets to a peer in some family.
fn is_unreachable(peer: &PeerStatus) -> bool {
    let mut states = peer.families.values().chain([&peer.state]);

    states.any(|state| *state == PeerState::Unreachable)
}

/// Returns a peer's state; where its families differ, that of each.
fn state(peer: &PeerStatus) -> String {
    if peer.state != PeerState::Partly {
        return format!("{:?}", peer.state);
    }
    let families = peer.families.iter();
    let families = families.map(|(family, state)| match family {
        Family::V4 => format!("IPv4 {state:?}"),
        Family::V6 => format!("IPv6 {state:?}"),
    });

    format!("Partly ({})", families.collect::<Vec<_>>().join(", "))
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
            state(peer),
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
    fn a_peer_whose_families_differ_shows_both_and_fails_where_one_is_cut_off() {
        let mut peer = PeerStatus {
            node: "n2".parse().unwrap(),
            state: PeerState::Partly,
            families: [
                (Family::V4, PeerState::Encrypted),
                (Family::V6, PeerState::PlainPermitted),
            ]
            .into(),
            reason: None,
            phase: model::Phase::Enforced,
            key: None,
            key_age_seconds: None,
            endpoint: None,
            handshake_age_seconds: None,
            received_bytes: 0,
            sent_bytes: 0,
            allowed_ips: vec![],
        };

        assert_eq!(state(&peer), "Partly (IPv4 Encrypted, IPv6 PlainPermitted)");
        assert!(!is_unreachable(&peer));
        peer.families.insert(Family::V6, PeerState::Unreachable);
        assert!(is_unreachable(&peer));
    }

    #[test]
    fn ages_and_sizes_read_as_people_say_them() {
        assert_eq!(age_text(61), "61 s");
        assert_eq!(age_text(300), "5 min");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
