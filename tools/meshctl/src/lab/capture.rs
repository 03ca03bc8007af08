//! `meshctl lab capture`: what is on the underlay of a node, judged.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use lab::{Capture, Captured, Verdict, spec::Span};

/// How long one look lasts.
const LOOK: Duration = Duration::from_millis(100);

/// Shows every frame on a node's underlay devices, and whether it is ciphertext, plaintext or neither.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshctl lab capture n1 --count 20\n  meshctl lab capture n1 --for 2s --sealed\n\nExit status: 0 ok; with --sealed 3 where plaintext was seen, or no ciphertext, or frames were lost."
)]
pub(crate) struct Args {
    /// The node.
    node: String,

    /// End after so many frames.
    #[arg(long)]
    count: Option<u64>,

    /// End after so long, such as 2s.
    #[arg(long = "for", value_name = "TIME")]
    span: Option<Span>,

    /// Print no frames, only the sum of them.
    #[arg(short, long)]
    quiet: bool,

    /// Only ciphertext may pass between pods and members.
    #[arg(long)]
    sealed: bool,
}

/// The sum of what was seen.
#[derive(Debug, Default)]
struct Sum {
    frames: u64,
    wireguard: u64,
    plaintext: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args, asked: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut site = super::attach(asked)?;
    let host = site.host(&args.node)?.clone();
    let devices: Vec<&str> = host
        .devices
        .iter()
        .map(|device| device.name.as_str())
        .collect();
    let territory = site.territory();
    let netns = site.host_space(&host.name)?;
    let mut capture = Capture::start(&netns, &devices, territory)?;
    let begin = Instant::now();
    let mut sum = Sum::default();
    loop {
        for frame in capture.next(LOOK)? {
            sum.add(&frame);
            if !args.quiet {
                show(begin.elapsed(), &frame);
            }
            if args.count.is_some_and(|count| sum.frames >= count) {
                return end(args, &sum, capture.lost()?);
            }
        }
        if args.span.is_some_and(|Span(span)| begin.elapsed() >= span) {
            return end(args, &sum, capture.lost()?);
        }
    }
}

impl Sum {
    fn add(&mut self, frame: &Captured) {
        self.frames += 1;
        match frame.verdict {
            Verdict::WireGuard => self.wireguard += 1,
            Verdict::Leak(_) => self.plaintext += 1,
            Verdict::Other => {}
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn show(at: Duration, frame: &Captured) {
    let direction = if frame.sent { "out" } else { "in " };
    let verdict = match frame.verdict {
        Verdict::WireGuard => "WireGuard",
        Verdict::Leak(_) => "PLAINTEXT",
        Verdict::Other => "-",
    };
    println!(
        "{:>8.3} {} {direction} {verdict:<9} {:>5} {}",
        at.as_secs_f64(),
        frame.device,
        frame.length,
        frame.summary
    );
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn end(args: &Args, sum: &Sum, lost: u64) -> anyhow::Result<ExitCode> {
    let Sum {
        frames,
        wireguard,
        plaintext,
    } = sum;
    let other = frames - wireguard - plaintext;
    println!(
        "{frames} frames on {}: {wireguard} WireGuard, {plaintext} plaintext of pods, {other} other, {lost} not captured",
        args.node
    );
    let sealed = *plaintext == 0 && *wireguard > 0 && lost == 0;
    Ok(if args.sealed && !sealed {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    })
}
