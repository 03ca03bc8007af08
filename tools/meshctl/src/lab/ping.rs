//! `meshctl lab ping`: an echo between any two ends of a lab.

use std::{net::IpAddr, process::ExitCode, time::Duration};

use lab::{
    Ping, Site,
    spec::{PodName, Span},
};

/// Pings one end of the lab, or an address, from another.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab ping default/a default/c\n  meshctl lab ping n1 10.65.1.2 --count 5 --size 1400\n\nExit status: 0 every echo was answered, 3 one was not."
)]
pub(crate) struct Args {
    /// NODE, NAMESPACE/POD, or an outside host.
    from: String,

    /// The same, or an address.
    to: String,

    /// How many echoes, to each address.
    #[arg(long, default_value_t = 1)]
    count: u32,

    /// Bytes after the ICMP header.
    #[arg(long, default_value_t = 56)]
    size: usize,

    /// How long each may take.
    #[arg(long, default_value = "2s")]
    timeout: Span,
}

/// Runs `meshctl lab ping`.
pub(crate) fn run(args: &Args, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut site = super::attach(asked)?;
    let (netns, own) = end(&site, &args.from)?;
    let targets = match args.to.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => end(&site, &args.to)?.1,
    };
    let same = |to: &IpAddr| own.iter().any(|own| own.is_ipv4() == to.is_ipv4());
    let targets: Vec<IpAddr> = targets.into_iter().filter(same).collect();
    anyhow::ensure!(
        !targets.is_empty(),
        "{} and {} share no family",
        args.from,
        args.to
    );
    let space = site.space(&netns)?;
    let mut answered = true;
    for to in targets {
        for _ in 0..args.count {
            let ping = Ping {
                size: args.size,
                patience: args.timeout.0,
                ..Ping::new(to)
            };
            match ping.send(&space) {
                Ok(took) => print(&format!("{} > {to}: {:.3} ms", args.from, millis(took))),
                Err(error) => {
                    answered = false;
                    print(&format!(
                        "{} > {to}: {:#}",
                        args.from,
                        anyhow::Error::from(error)
                    ));
                }
            }
        }
    }
    Ok(if answered {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// The network namespace of what a name means, and its addresses.
fn end(site: &Site, name: &str) -> anyhow::Result<(String, Vec<IpAddr>)> {
    if name.contains('/') {
        let name: PodName = name.parse().map_err(anyhow::Error::msg)?;
        let pod = site.pod(&name)?;
        return Ok((pod.netns.clone(), pod.addresses.clone()));
    }
    let host = site.host(name)?;
    Ok((site.state().place(&host.name).netns, host.addresses()))
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn print(line: &str) {
    println!("{line}");
}
