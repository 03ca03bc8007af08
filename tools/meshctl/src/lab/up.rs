//! `meshctl lab up` and `down`.

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::Context;
use lab::{Builtin, Document, Owner, Site, builtins};

/// Builds a lab from a file, or one that comes with the program.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab up three-nodes\n  meshctl lab up my-lab.yaml --name second\n  meshctl lab up two-subnets --plain\n  meshctl lab up three-nodes --runtime containerd"
)]
pub(crate) struct UpArgs {
    /// A file of kind Lab, or the name of a built-in lab (`meshctl lab list --builtin`).
    #[arg(value_name = "FILE|NAME")]
    file: String,

    /// Another name than the file's.
    #[arg(long)]
    name: Option<lab::spec::Label>,

    /// Namespaces, links, pods and plain routes only: no mesh.
    #[arg(long)]
    plain: bool,

    /// Who makes the pods: the lab itself, or a containerd on every node (`lab` or `containerd`).
    #[arg(long, conflicts_with = "plain")]
    runtime: Option<lab::spec::Runtime>,
}

/// Takes a lab down, or what is left of one.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab down\n  meshctl lab down three-nodes\n  meshctl lab down --all"
)]
pub(crate) struct DownArgs {
    /// Which lab; not needed where only one runs.
    name: Option<String>,

    /// Every lab there is.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// Runs `meshctl lab up`.
pub(crate) fn up(args: &UpArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut document = document(&args.file)?;
    if let Some(name) = &args.name {
        document.metadata.name = name.clone();
    } else if let Some(name) = asked {
        document.metadata.name = name.parse().map_err(anyhow::Error::msg)?;
    }
    document.spec.mesh &= !args.plain;
    if let Some(runtime) = args.runtime {
        document.spec.runtime = runtime;
    }
    let begin = Instant::now();
    let progress =
        &mut |step: &str| say(&format!("{:>6.1} s  {step}", begin.elapsed().as_secs_f64()));
    let site = Site::up(document, Owner::Nobody, super::hands()?, progress)?;
    let state = site.state();
    let nodes = state
        .layout
        .hosts
        .iter()
        .filter(|host| host.role == lab::Role::Node)
        .count();
    say(&format!(
        "{:>6.1} s  lab {} is up: {nodes} nodes, {} pods",
        begin.elapsed().as_secs_f64(),
        site.name(),
        state.pods.len()
    ));
    Ok(ExitCode::SUCCESS)
}

/// A file where there is one of that name, else a built-in lab.
fn document(file_or_name: &str) -> anyhow::Result<Document> {
    let path = Path::new(file_or_name);
    match Builtin::named(file_or_name) {
        Some(builtin) if !path.exists() => Ok(builtin.document()?),
        None if !path.exists() => {
            let names: Vec<&str> = builtins().iter().map(|builtin| builtin.name).collect();
            anyhow::bail!(
                "{file_or_name} is neither a file nor one of {}",
                names.join(", ")
            )
        }
        Some(_) | None => Ok(Document::read(path)?),
    }
}

/// Runs `meshctl lab down`.
pub(crate) fn down(args: &DownArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let names = match (&args.name, args.all) {
        (_, true) => lab::names().context("the labs cannot be listed")?,
        (Some(name), false) => vec![name.clone()],
        (None, false) => vec![super::name(asked)?],
    };
    for name in names {
        lab::remove(&name)?;
        say(&format!("lab {name} is gone"));
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "progress is for the person who waits")]
fn say(line: &str) {
    eprintln!("{line}");
}
