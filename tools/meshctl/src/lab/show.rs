//! `meshctl lab wait`, `status`, `list` and `env`: what runs, and where.

use std::{process::ExitCode, thread, time::Instant};

use anyhow::Context;
use comfy_table::{Table, presets};
use lab::{Host, Role, Site, State, builtins, server_place, spec::Span};
use meshd_core::WATCHED;
use model::status::Held;
use serde::Serialize;
use store::{Client, Credential, Store};

use crate::status::Output;

/// Waits until every agent has applied all that its store held when the call began.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 all have, 3 not in time (and who has not).")]
pub(crate) struct WaitArgs {
    /// How long.
    #[arg(long, default_value = "30s")]
    timeout: Span,
}

/// Shows the lab's nodes, pods and outside hosts.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab status\n  meshctl lab status -o json | jq -r '.pods[].addresses[]'"
)]
pub(crate) struct StatusArgs {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Lists the labs that run, or those that come with the program.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Those that come with the program.
    #[arg(long)]
    builtin: bool,
}

/// What `status -o json` prints.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    nodes: Vec<ShownHost<'a>>,
    pods: Vec<ShownPod<'a>>,
    outside: Vec<ShownHost<'a>>,
}

#[derive(Debug, Serialize)]
struct ShownHost<'a> {
    name: &'a str,
    netns: String,
    addresses: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownPod<'a> {
    namespace: &'a str,
    name: &'a str,
    node: &'a str,
    netns: &'a str,
    addresses: Vec<String>,
}

impl<'a> Shown<'a> {
    fn new(state: &'a State) -> Self {
        let hosts = |role: Role| {
            let hosts = state
                .layout
                .hosts
                .iter()
                .filter(move |host| host.role == role);
            hosts.map(|host| ShownHost::new(state, host)).collect()
        };
        let pods = state.pods.iter().map(|pod| ShownPod {
            namespace: pod.pod.namespace.as_str(),
            name: pod.pod.name.as_str(),
            node: pod.node.as_str(),
            netns: &pod.netns,
            addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        });
        let pods = pods.collect();
        Self {
            name: state.name(),
            nodes: hosts(Role::Node),
            pods,
            outside: hosts(Role::Outside),
        }
    }
}

impl<'a> ShownHost<'a> {
    fn new(state: &State, host: &'a Host) -> Self {
        let addresses = host.addresses().iter().map(ToString::to_string).collect();
        Self {
            name: host.name.as_str(),
            netns: state.place(&host.name).netns,
            addresses,
        }
    }
}

/// Runs `meshctl lab status`.
pub(crate) fn status(args: &StatusArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let state = State::read(&super::name(asked)?)?;
    let shown = Shown::new(&state);
    match args.output {
        Output::Json => print(&serde_json::to_string_pretty(&shown)?),
        Output::Table => print(&table(&state, &shown)),
    }
    Ok(ExitCode::SUCCESS)
}

fn table(state: &State, shown: &Shown<'_>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["WHAT", "NAME", "ADDRESSES", "RUNS"]);
    for host in &shown.nodes {
        let runs = programs(state, host.name);
        table.add_row(["node", host.name, &host.addresses.join(", "), &runs]);
    }
    for pod in &shown.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        table.add_row([
            "pod",
            &name,
            &pod.addresses.join(", "),
            &format!("on {}", pod.node),
        ]);
    }
    for host in &shown.outside {
        let runs = programs(state, host.name);
        table.add_row(["outside", host.name, &host.addresses.join(", "), &runs]);
    }
    format!("lab {}\n{}", shown.name, table.trim_fmt())
}

/// The programs of a host, each with its process, or the news that it has ended.
fn programs(state: &State, host: &str) -> String {
    let programs = state
        .programs
        .iter()
        .filter(|program| program.host.as_str() == host);
    let shown = programs.map(|program| {
        let alive = program.process.is_alive();
        let pid = if alive {
            program.process.pid.to_string()
        } else {
            "ended".to_owned()
        };
        format!("{} ({pid})", program.name)
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Runs `meshctl lab list`.
pub(crate) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    if args.builtin {
        for builtin in builtins() {
            print(&format!("{:<14} {}", builtin.name, builtin.description()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    for name in lab::names().context("the labs cannot be listed")? {
        print(&name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `meshctl lab env`.
pub(crate) fn environment(asked: Option<&str>) -> anyhow::Result<ExitCode> {
    for (name, value) in super::attach(asked)?.environment() {
        print(&format!("export {name}={value}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `meshctl lab wait`.
pub(crate) fn wait(args: &WaitArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let Span(patience) = args.timeout;
    let site = super::attach(asked)?;
    if !site.state().document.spec.mesh {
        return Ok(ExitCode::SUCCESS);
    }
    let begin = Instant::now();
    let held = serde_json::to_vec(&held(&site)?)?;
    let late = site.await_applied(&held, patience.saturating_sub(begin.elapsed()));
    for (node, reason) in &late {
        print(&format!("{node}: {reason}"));
    }
    Ok(if late.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// The version of every object that agents watch, as the lab's store holds it now.
pub(crate) fn held(site: &Site) -> anyhow::Result<Vec<Held>> {
    let (path, place) = (site.credential(), server_place(site));
    let credential =
        Credential::load(&path).with_context(|| format!("{} cannot be used", path.display()))?;
    let ask = || {
        // Its address is one of the lab's: on a thread of its own, which goes there for good.
        place
            .enter_network()
            .context("the server's namespace cannot be entered")?;
        list_all(credential)
    };

    thread::scope(|scope| scope.spawn(ask).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn list_all(credential: Credential) -> anyhow::Result<Vec<Held>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::new(credential)?;
        let mut held = Vec::new();
        for kind in WATCHED {
            let list = client
                .list(*kind)
                .await
                .with_context(|| format!("{kind} cannot be listed"))?;
            held.extend(list.objects.iter().map(|object| Held {
                key: object.key(),
                revision: object.revision().0,
            }));
        }
        Ok(held)
    })
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn print(line: &str) {
    println!("{line}");
}
