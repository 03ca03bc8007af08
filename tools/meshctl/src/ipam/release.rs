//! `meshctl ipam release`: addresses given back by hand.

use std::{net::IpAddr, process::ExitCode};

use cni_ipam::{Release, Released, release_addresses, release_handle};
use jiff::Timestamp;
use store::{Store, drive};

use super::records::{self, Steps};

/// Gives addresses back, whoever holds them. A pod that still uses one loses it to the next.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Args {
    /// These addresses; may be repeated.
    #[arg(long)]
    ip: Vec<IpAddr>,

    /// Whatever this handle holds.
    #[arg(long)]
    handle: Option<String>,
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
pub(super) async fn run(store: &dyn Store, args: Args) -> anyhow::Result<ExitCode> {
    let (rules, now) = (records::rules(store).await?, Timestamp::now());
    let released: Released = match args.handle {
        Some(handle) => drive(&Steps(store), release_handle(handle, rules, now)).await??,
        None => {
            let pools = records::pools(store).await?;
            let any = |address| Release {
                address,
                handle: None,
                sequence_number: None,
            };
            let releases = args.ip.into_iter().map(any).collect();
            let operation = release_addresses(releases, pools, rules, now);
            drive(&Steps(store), operation).await??
        }
    };
    for address in &released.freed {
        println!("{address} released");
    }
    for address in &released.unallocated {
        println!("{address} was not assigned");
    }
    for (address, why) in &released.kept {
        println!("{address} stays: {why}");
    }

    Ok(if released.kept.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
