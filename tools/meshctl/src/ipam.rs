//! `meshctl ipam`: who has which address, what is wrong with the records, and what may be done about it.

mod check;
mod configure;
mod records;
mod release;
mod show;

use std::process::ExitCode;

use clap::Subcommand;

use crate::connection::Connection;

/// Looks into the addresses of pods and tunnels, and puts their records right.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl ipam show\n  meshctl ipam show --show-blocks\n  meshctl ipam show --ip 10.65.0.7\n  meshctl ipam check\n  meshctl ipam check --fix\n  meshctl ipam release --ip 10.65.0.7\n  meshctl ipam configure --strict-affinity true --max-blocks-per-host 4\n\nExit status: 0 ok, 1 failed, 2 usage, 3 check found something."
)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(show::Args),
    Check(check::Args),
    Release(release::Args),
    Configure(configure::Args),
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let store = args.connection.store()?;
    match args.command {
        Command::Show(args) => show::run(&*store, args).await,
        Command::Check(args) => check::run(&*store, args).await,
        Command::Release(args) => release::run(&*store, args).await,
        Command::Configure(args) => configure::run(&*store, args).await,
    }
}
