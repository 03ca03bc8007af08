//! `fuzz TARGET`: tries random input for as long as `MESHD_FUZZ_SECONDS` says; `fuzz TARGET FILE…` tries files again.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use fuzz::{Budget, driver, target};

/// Tries random input on what reads input from outside.
#[derive(Parser)]
struct Args {
    /// One of: handshake, data, uapi, record, node, request, manifest, configuration, lab.
    target: String,
    /// Inputs to try again; without any, the corpus and random ones.
    files: Vec<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let target = target::named(&args.target)
        .with_context(|| format!("there is no target {}", args.target))?;
    if args.files.is_empty() {
        let budget = Budget::from_environment();
        println!("{}: seed {}", target.name(), budget.seed);
        println!("{}", driver::run(&*target, budget)?.table());
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    for file in args.files {
        let input =
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        match driver::attempt(&*target, &input) {
            Ok((fate, cost)) => println!("{}: {:?}, {cost:?}", file.display(), fate.0),
            Err(promise) => {
                println!("{}: {promise}", file.display());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
