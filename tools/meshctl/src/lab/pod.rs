//! `meshctl lab pod add` and `delete`.

use std::{net::IpAddr, process::ExitCode};

use lab::spec::{Label, Listen, Pod, PodName, Port, Protocol};

/// Starts and ends pods.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Add(AddArgs),
    Delete(DeleteArgs),
}

/// Starts a pod on a node and prints its addresses.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab pod add n1 default/web --label app=web --listen TCP/80\n  meshctl lab pod add n2 default/db --address 10.65.1.9 --port sql=5432/TCP"
)]
struct AddArgs {
    /// The node.
    node: String,

    /// The pod, NAMESPACE/NAME.
    pod: PodName,

    /// A label, KEY=VALUE; may be given several times.
    #[arg(long = "label", value_parser = pair)]
    labels: Vec<(String, String)>,

    /// An address it wants; may be given several times.
    #[arg(long = "address")]
    addresses: Vec<IpAddr>,

    /// What it echoes on, such as TCP/80; may be given several times.
    #[arg(long = "listen")]
    listens: Vec<Listen>,

    /// A named port, NAME=PORT[/PROTOCOL]; may be given several times.
    #[arg(long = "port", value_parser = port)]
    ports: Vec<Port>,

    /// The service account it runs as.
    #[arg(long, default_value = "default")]
    service_account: Label,
}

/// Ends pods.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  meshctl lab pod delete n1 default/web")]
struct DeleteArgs {
    /// The node.
    node: String,

    /// The pods, NAMESPACE/NAME.
    #[arg(required = true)]
    pods: Vec<PodName>,
}

/// Runs the command.
pub(crate) fn run(args: Args, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Add(args) => add(args, asked),
        Command::Delete(args) => delete(&args, asked),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the addresses are what the command is for"
)]
fn add(args: AddArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut pod = Pod::bare(args.pod);
    pod.labels = args.labels.into_iter().collect();
    pod.addresses = args.addresses;
    pod.listens = args.listens;
    pod.ports = args.ports;
    pod.service_account = args.service_account;
    for address in super::attach_alone(asked)?.add_pod(&args.node, pod)? {
        println!("{address}");
    }
    Ok(ExitCode::SUCCESS)
}

fn delete(args: &DeleteArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut site = super::attach_alone(asked)?;
    for name in &args.pods {
        let node = site.pod(name)?.node.clone();
        anyhow::ensure!(
            node.as_str() == args.node,
            "{name} runs on {node}, not on {}",
            args.node
        );
        site.delete_pod(name)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn port(text: &str) -> Result<Port, String> {
    let (name, rest) = text
        .split_once('=')
        .ok_or("expected NAME=PORT[/PROTOCOL]")?;
    let (port, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
    let listen: Listen = format!("{protocol}/{port}").parse()?;
    let protocol: Protocol = listen.protocol;
    Ok(Port {
        name: name.to_owned(),
        port: listen.port,
        protocol,
    })
}
