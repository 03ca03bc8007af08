//! `meshctl policy`: what policy decides about packets, and what applies to whom.

use std::process::ExitCode;

mod eval;
pub(crate) mod file;
mod junit;
mod live;
mod show;
mod test;

/// Tests policy, and says who decides.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl policy test shop.yaml\n  meshctl policy test policies/*.yaml --junit report.xml\n  meshctl policy test shop.yaml --live\n  meshctl policy show shop/api-1\n  meshctl policy eval <shop.json | jq '.verdicts[] | select(.verdict == \"Deny\")'\n\nExit status: 0 as expected, 1 failed, 2 usage, 3 a verdict differs."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Test(test::Args),
    Show(show::Args),
    /// Reads one policy test as JSON on standard input and writes its verdicts as JSON.
    ///
    /// Succeeds if it could evaluate, whatever the verdicts. docs/policy-test.md describes both.
    Eval,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Test(args) => test::run(&args),
        Command::Show(args) => show::run(args),
        Command::Eval => eval::run(),
    }
}
