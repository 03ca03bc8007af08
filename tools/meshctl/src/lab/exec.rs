//! `meshctl lab exec`: a program inside a node, a pod or an outside host.

use std::process::ExitCode;

use anyhow::Context;
use lab::{Place, Program, Site, spec::PodName};

/// Runs a program inside a node, a pod or an outside host; its exit status is the command's.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab exec n1 -- wg show\n  meshctl lab exec default/a -- ping -c3 10.65.1.2\n  meshctl lab exec internet -- ip address"
)]
pub(crate) struct Args {
    /// NODE, NAMESPACE/POD, or an outside host.
    target: String,

    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let site = super::attach(asked)?;
    let place = place(&site, &args.target)?;
    let (file, arguments) = args.command.split_first().context("no program was given")?;
    let mut program = Program::new(file.as_ref(), arguments.iter().map(String::as_str));
    program
        .environment
        .push(("MESHD_LAB".to_owned(), site.name().to_owned()));
    drop(site);
    let failed = program.become_it(&place);
    Err(failed).with_context(|| format!("{file} cannot be run in {}", args.target))
}

/// The namespaces of what a name means.
pub(crate) fn place(site: &Site, target: &str) -> anyhow::Result<Place> {
    if target.contains('/') {
        let name: PodName = target.parse().map_err(anyhow::Error::msg)?;
        return Ok(Place {
            netns: site.pod(&name)?.netns.clone(),
            mounts: None,
        });
    }
    let host = site.host(target)?;
    Ok(site.state().place(&host.name))
}
