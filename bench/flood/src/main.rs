//! `flood`: the load generator as a program. It prints what it sent as one line of JSON.
#![expect(
    clippy::print_stdout,
    reason = "its one line of output is what it is run for"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use flood::{Kind, Plan, Sources};
use ipnet::IpNet;

/// Floods a WireGuard of your own with what strangers may send.
#[derive(Parser)]
#[command(name = "flood", version)]
struct Arguments {
    /// The UDP address of the WireGuard.
    target: SocketAddr,

    /// Its public key, in base64.
    #[arg(long)]
    key: String,

    /// What is sent.
    #[arg(long, value_enum, default_value_t = Kind::Initiations)]
    kind: Kind,

    /// Datagrams per second.
    #[arg(long, default_value_t = 50_000)]
    rate: u32,

    /// For how long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// Forge sources out of this network, another for each datagram (root).
    #[arg(long)]
    forge: Option<IpNet>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let key = STANDARD
        .decode(&arguments.key)
        .context("the key is no base64")?;
    let plan = Plan {
        target: arguments.target,
        key: key
            .try_into()
            .map_err(|_| anyhow::anyhow!("the key has not 32 bytes"))?,
        kind: arguments.kind,
        sources: arguments.forge.map_or(Sources::Own, Sources::Forged),
        rate: arguments.rate,
    };
    let end = Instant::now() + Duration::try_from_secs_f64(arguments.seconds)?;
    let sent = flood::run(&plan, || Instant::now() < end)?;
    println!(
        "{{\"datagrams\": {}, \"seconds\": {:.3}, \"processor\": {:.3}}}",
        sent.datagrams,
        sent.elapsed.as_secs_f64(),
        sent.processor.as_secs_f64()
    );
    Ok(())
}
