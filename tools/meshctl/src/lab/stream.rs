//! `meshctl lab stream`: a connection that is never silent, and what became of it.

use std::{
    net::IpAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use lab::{
    Netns, Report, Site, Stream, poll_until,
    spec::{PodName, Protocol, Span},
};

/// How long one line of progress stands for.
const LINE: Duration = Duration::from_secs(1);

/// Time between two records.
const TICK: Duration = Duration::from_millis(1);

/// Bytes in every record of the stream, so that a capture can be searched for them.
const CANARY: lab::Canary = *b"meshctl-stream-1";

/// Carries a numbered record each millisecond from one end to another and back, and tells gaps and resets.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab stream default/a default/c --for 10s\n  meshctl lab stream default/a n2 --for 5s --udp\n\nExit status: 0 no reset and no gap past --most, 1 failed, 3 otherwise."
)]
pub(crate) struct Args {
    /// The near end: NAMESPACE/POD, a node or an outside host.
    from: String,

    /// The far end.
    to: String,

    /// End after so long, such as 10s.
    #[arg(long = "for", value_name = "TIME", default_value = "5s")]
    span: Span,

    /// The longest time without bytes that is no failure.
    #[arg(long, value_name = "TIME", default_value = "200ms")]
    most: Span,

    /// Datagrams instead of a connection.
    #[arg(long)]
    udp: bool,

    /// Say nothing until the end.
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut site = super::attach(asked)?;
    let (near, _) = end(&mut site, &args.from)?;
    let (far, address) = end(&mut site, &args.to)?;
    let protocol = if args.udp {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    let stream = Stream::between(&near, &far, protocol, address, CANARY, TICK)?;
    let began = Instant::now();
    while began.elapsed() < args.span.0 {
        let next = began + args.span.0.min(began.elapsed() + LINE);
        // The stream runs by itself; this only waits until it is time for a line.
        poll_until(next, || false);
        if !args.quiet {
            show(began.elapsed(), &stream.report());
        }
    }
    let report = stream.report();
    if args.quiet {
        show(began.elapsed(), &report);
    }
    let whole = report.resets == 0 && report.wrong == 0 && report.longest_gap <= args.most.0;

    Ok(if whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// The namespace and the first address of what a name means.
fn end(site: &mut Site, name: &str) -> anyhow::Result<(Arc<Netns>, IpAddr)> {
    let (netns, addresses) = if name.contains('/') {
        let pod: PodName = name.parse().map_err(anyhow::Error::msg)?;
        let pod = site.pod(&pod)?;
        (pod.netns.clone(), pod.addresses.clone())
    } else {
        let host = site.host(name)?.clone();
        (site.state().place(&host.name).netns, host.addresses())
    };
    let address = addresses
        .first()
        .copied()
        .with_context(|| format!("{name} has no address"))?;

    Ok((site.space(&netns)?, address))
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn show(at: Duration, report: &Report) {
    let Report {
        echoed,
        resets,
        longest_gap,
        ..
    } = report;
    println!(
        "{:>6.1} s  {echoed:>7} records back, {resets} resets, longest silence {} ms",
        at.as_secs_f64(),
        longest_gap.as_millis()
    );
}
