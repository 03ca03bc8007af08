//! What a lab leaves running for itself: echo servers and user-space links. Not for people.

use std::{net::IpAddr, process::ExitCode};

use lab::{Echo, spec::Listen};

/// Echoes in the namespace it was started in.
#[derive(Debug, clap::Args)]
pub(crate) struct EchoArgs {
    /// The namespace's addresses, for UDP.
    #[arg(long = "address")]
    addresses: Vec<IpAddr>,

    /// What it listens on.
    listens: Vec<Listen>,
}

/// Carries the frames of one network of a lab.
#[derive(Debug, clap::Args)]
pub(crate) struct LinkArgs {
    /// The lab.
    lab: String,

    /// The network.
    network: String,
}

/// Serves until it is ended.
pub(crate) fn echo(args: &EchoArgs) -> anyhow::Result<ExitCode> {
    Echo::start_here(&args.addresses, &args.listens)?.join();
    Ok(ExitCode::FAILURE)
}

/// Serves until it is ended.
pub(crate) fn link(args: &LinkArgs) -> anyhow::Result<ExitCode> {
    lab::serve_link(&args.lab, &args.network)?.join();
    Ok(ExitCode::FAILURE)
}
