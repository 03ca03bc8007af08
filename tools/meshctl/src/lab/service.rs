//! `meshctl lab kill` and `meshctl lab restart`: the programs of a running lab.

use std::process::ExitCode;

use lab::Service;

/// Kills a program of a node without warning (signal 9).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  meshctl lab kill n1 agent\n  meshctl lab kill server server")]
pub(crate) struct KillArgs {
    /// The node, or `server`.
    host: String,

    /// The program.
    #[arg(value_enum)]
    service: Which,
}

/// Starts a program of a node again after it was killed, and waits until it is ready.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  meshctl lab restart n1 agent")]
pub(crate) struct RestartArgs {
    /// The node, or `server`.
    host: String,

    /// The program.
    #[arg(value_enum)]
    service: Which,
}

/// A program that the lab starts.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Which {
    /// `meshd agent`.
    Agent,
    /// `meshwire --supervise`.
    Wire,
    /// `meshd serve`.
    Server,
}

/// Runs `kill`.
pub(crate) fn kill(args: &KillArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    super::attach(asked)?.kill(&args.host, args.service.into())?;

    Ok(ExitCode::SUCCESS)
}

/// Runs `restart`.
pub(crate) fn restart(args: &RestartArgs, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    super::attach(asked)?.restart(&args.host, args.service.into())?;

    Ok(ExitCode::SUCCESS)
}

impl From<Which> for Service {
    fn from(which: Which) -> Self {
        match which {
            Which::Agent => Self::Agent,
            Which::Wire => Self::Wire,
            Which::Server => Self::Server,
        }
    }
}
