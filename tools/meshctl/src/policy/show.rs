//! `meshctl policy show ENDPOINT`: what applies to an endpoint, in order, and why.

use std::{fmt::Write, path::PathBuf, process::ExitCode};

use anyhow::bail;
use model::policy::Direction;
use policy::explain::{self, Otherwise, PointView, PolicyView, StagedEffect, View};

use super::file;
use crate::{agent, replay, say, status::Output, wait_for};

/// Shows what applies to an endpoint: tiers and policies in the order in which they are asked, the selector by which
/// each selects it, the profiles behind them, and what staged policies would change.
///
/// ENDPOINT is NAMESPACE/POD, host/NODE, or host/NODE/INTERFACE (`*` for the one of every interface).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl policy show shop/api-1\n  meshctl policy show host/n1 -o json\n  meshctl policy show shop/api-1 --replay agent.jsonl\n  meshctl policy show shop/api-1 --in shop.yaml       of a policy test\n\nExit status: 0 shown, 1 failed, 2 usage."
)]
pub(crate) struct Args {
    /// The endpoint.
    endpoint: String,

    /// The agent's socket.
    #[arg(long, env = "MESHD_SOCKET", default_value = "/run/meshd/meshd.sock")]
    socket: PathBuf,

    /// Ask what an agent knew that was recorded (`meshd agent --record FILE`), at the end of its last run.
    #[arg(long, value_name = "FILE", conflicts_with = "test")]
    replay: Option<PathBuf>,

    /// Or so many seconds after its start.
    #[arg(long, value_name = "SECONDS", requires = "replay")]
    until: Option<f64>,

    /// Ask about the cluster of a policy test, before its steps.
    #[arg(long = "in", value_name = "FILE")]
    test: Option<PathBuf>,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let views = ask(&args)?;
    match args.output {
        Output::Json => say(&serde_json::to_string_pretty(&views)?),
        Output::Table => views.iter().for_each(|view| say(&render(view))),
    }

    Ok(ExitCode::SUCCESS)
}

fn ask(args: &Args) -> anyhow::Result<Vec<View>> {
    if let Some(path) = &args.test {
        let cases = file::read(path)?;
        let [case] = &cases[..] else {
            bail!(
                "{}: one policy test is expected, there are {}",
                path.display(),
                cases.len()
            );
        };
        let cluster = case.test.cluster(&case.sources)?;

        return Ok(explain::show(&cluster, &args.endpoint)?);
    }
    if let Some(file) = &args.replay {
        let (world, now) = replay::world(file, args.until)?;
        return Ok(world.inquire(world.peers(now)).show(&args.endpoint)?);
    }
    let path = format!("/v1/endpoint/{}", escaped(&args.endpoint));

    wait_for(async move { agent::get(&args.socket, &path).await })
}

/// Writes a name as part of a path (RFC 3986, section 2.1).
fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'/' => {
                text.push(char::from(byte));
            }
            // Writing to a String does not fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}

fn render(view: &View) -> String {
    let mut text = String::new();
    let interface = view
        .interface
        .as_ref()
        .map(|name| format!(", interface {name}"))
        .unwrap_or_default();
    line(
        &mut text,
        0,
        &format!("{} on {}{interface}", view.endpoint, view.node),
    );
    let addresses = view.addresses.iter().map(ToString::to_string);
    let labels = view
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    line(&mut text, 1, &format!("addresses  {}", list(addresses)));
    line(&mut text, 1, &format!("labels     {}", list(labels)));
    for point in &view.points {
        one_point(&mut text, point);
    }
    for effect in &view.staged {
        staged(&mut text, effect);
    }

    text
}

fn one_point(text: &mut String, point: &PointView) {
    let is_asked = !point.tiers.is_empty() || !point.profiles.is_empty();
    let way = match point.direction {
        Direction::Ingress => "what comes in",
        Direction::Egress => "what goes out",
    };
    let name = point.point.as_str();
    let name = if ["ingress", "egress"].contains(&name) {
        name.to_owned()
    } else {
        format!("{name}, {way}")
    };
    let otherwise = match (point.otherwise, is_asked) {
        (Otherwise::Deny, true) => "",
        (Otherwise::Deny, false) => ": everything is denied",
        (Otherwise::Continue, false) => return,
        (Otherwise::Continue, true) => " (what nobody decides goes on)",
    };
    line(text, 1, &format!("{name}{otherwise}"));
    for tier in &point.tiers {
        let end = match tier.default_action {
            Some(action) => format!("default action {action:?}"),
            None => "not asked: its policies for this endpoint are staged".to_owned(),
        };
        line(
            text,
            2,
            &format!("tier {} (order {}), {end}", tier.tier, order(tier.order)),
        );
        for policy in &tier.policies {
            line(text, 3, &one_policy(policy));
        }
    }
    if !point.profiles.is_empty() {
        let is_reached = !point
            .tiers
            .iter()
            .any(|tier| tier.default_action == Some(model::policy::TierAction::Deny));
        let note = if is_reached {
            ""
        } else {
            " (only behind a Pass: a tier above ends with Deny)"
        };
        line(
            text,
            2,
            &format!("profiles {}{note}", list(point.profiles.iter().cloned())),
        );
    }
}

fn one_policy(policy: &PolicyView) -> String {
    let staged = policy
        .staged
        .map(|action| format!("STAGED {action:?} "))
        .unwrap_or_default();
    let rules = match policy.rules {
        1 => "1 rule".to_owned(),
        count => format!("{count} rules"),
    };

    format!(
        "{staged}{} (order {}), {rules}, selects {}",
        policy.policy,
        order(policy.order),
        policy.selector
    )
}

fn staged(text: &mut String, effect: &StagedEffect) {
    line(
        text,
        1,
        &format!(
            "staged {} ({:?}): of {} packets tried, {} would have another verdict",
            effect.policy, effect.action, effect.tried, effect.differ
        ),
    );
    for shift in &effect.shifts {
        let port = shift
            .port
            .map(|port| format!(" {port}"))
            .unwrap_or_default();
        line(
            text,
            2,
            &format!(
                "{} -> {} {}{port}: {} now, {} then",
                shift.from,
                shift.to,
                shift.protocol,
                shift.now.as_str(),
                shift.then.as_str()
            ),
        );
    }
    if effect.differ > effect.shifts.len() {
        line(
            text,
            2,
            &format!("and {} more", effect.differ - effect.shifts.len()),
        );
    }
}

fn order(order: Option<f64>) -> String {
    order.map_or_else(|| "none: last".to_owned(), |order| order.to_string())
}

fn list(entries: impl Iterator<Item = String>) -> String {
    let text = entries.collect::<Vec<_>>().join(", ");

    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

fn line(text: &mut String, depth: usize, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{:width$}{line}", "", width = 2 * depth);
}
