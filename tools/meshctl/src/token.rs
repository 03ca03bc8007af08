//! `meshctl token`: one-time tokens that admit hosts to the mesh.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use jiff::{Span, SpanRelativeTo, Timestamp};
use model::NodeName;
use serde_json::json;
use store::{Client, Credential, TokenEntry, TokenRequest};

/// Makes, lists and removes join tokens.
///
/// A token admits one host, once. The server keeps only its hash: it is shown when it is made, and
/// never again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl token create\n  meshctl token create --node edge-7 --ttl 15m\n  meshctl token create --node edge-7 --replace     hands the name to another host\n  meshctl token list"
)]
pub(crate) struct Args {
    /// The administrator's credential [default: the server's on its host, else ~/.config/meshd/config.yaml].
    #[arg(long, env = "MESHD_CONFIG", global = true)]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a token, and prints it on the last line.
    Create {
        /// The only name that may join with it [default: any name that is not in use].
        #[arg(long)]
        node: Option<NodeName>,

        /// How long it may be used, as in 15m, 1h or 7d; at most 30d.
        #[arg(long, default_value = "1h", value_parser = parse_ttl)]
        ttl: Duration,

        /// Admit a name that is in use: the present host's certificates and claims end.
        #[arg(long)]
        replace: bool,

        /// How to print it.
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Lists tokens that have not been forgotten.
    List {
        /// How to print them.
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Removes a token, used or not.
    Delete {
        /// The token's ID.
        id: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = args.config.unwrap_or_else(Credential::default_path);
    let client = Client::new(Credential::load(&path)?)?;
    match args.command {
        Command::Create {
            node,
            ttl,
            replace,
            output,
        } => {
            create(&client, TokenRequest { node, ttl, replace }, output).await?;
        }
        Command::List { output } => list(&client, output).await?,
        Command::Delete { id } => client.delete_token(&id).await?,
    }

    Ok(ExitCode::SUCCESS)
}

async fn create(client: &Client, request: TokenRequest, output: Output) -> anyhow::Result<()> {
    let (token, expires, servers) = client.create_token(request).await?;
    let text = token.reveal();
    match output {
        Output::Json => say(&json!({
            "id": token.id(), "token": *text, "expires": expires, "servers": servers,
        })
        .to_string()),
        Output::Text => {
            say(&format!(
                "Good until {expires}, once. On the host that is to join:"
            ));
            for server in &servers {
                say(&format!("  meshd join {server} --token TOKEN"));
            }
            say(&text);
        }
    }

    Ok(())
}

async fn list(client: &Client, output: Output) -> anyhow::Result<()> {
    let tokens = client.tokens().await?;
    match output {
        Output::Json => say(&serde_json::to_string(&tokens)?),
        Output::Text => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header(["ID", "NODE", "REPLACE", "EXPIRES", "STATE"]);
            let now = Timestamp::now();
            table.add_rows(tokens.iter().map(|token| row(token, now)));
            say(&table.to_string());
        }
    }

    Ok(())
}

fn row(token: &TokenEntry, now: Timestamp) -> [String; 5] {
    let state = match &token.used_by {
        Some(node) => format!("used by {node}"),
        None if token.expires <= now => "expired".to_owned(),
        None => "open".to_owned(),
    };
    let node = token
        .node
        .as_ref()
        .map_or_else(|| "any new".to_owned(), ToString::to_string);

    [
        token.id.clone(),
        node,
        token.replace.to_string(),
        token.expires.to_string(),
        state,
    ]
}

/// Reads a length of time: `15m`, `1h`, `1h30m`, `7d`.
fn parse_ttl(text: &str) -> anyhow::Result<Duration> {
    let span: Span = text
        .parse()
        .context("expected a length of time such as 15m, 1h or 7d")?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours())?;

    Duration::try_from(length).context("expected a positive length of time")
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_read_as_people_write_it() {
        for (text, seconds) in [("15m", 900), ("1h", 3600), ("1h30m", 5400), ("7d", 604_800)] {
            assert_eq!(
                parse_ttl(text).unwrap(),
                Duration::from_secs(seconds),
                "{text}"
            );
        }
        for text in ["", "5", "-1h", "soon"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }
}
