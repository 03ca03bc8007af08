//! `meshwire`: a WireGuard tunnel in userspace.
//!
//! Two ways to run it:
//!
//! * `meshwire IFNAME` makes one device and serves it until the interface, its UAPI socket or the process is ended.
//! * `meshwire --supervise SOCKET` makes devices for whoever asks over SOCKET, and keeps them when the asker dies.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tracing_subscriber::EnvFilter;
use wire::daemon::{self, Output, Readiness, Termination};
use wire::device::{Device, Options, Report, SocketLoss};
use wire::event::Event;
use wire::supervise::{SOCKET, Service, Settings};
use wire::tun::{DEFAULT_MTU, Offload};
use wire::uapi;

/// A WireGuard tunnel in userspace.
#[derive(Parser)]
#[command(
    name = "meshwire",
    version,
    after_help = "Examples:\n  \
        meshwire wg0                 a device like any userspace WireGuard's; configure it with wg(8)\n  \
        meshwire --foreground wg0    the same, without going to the background\n  \
        meshwire --supervise         the service that meshd asks for devices\n\n\
        Environment:\n  \
        LOG_LEVEL    silent, error, warn, info, debug (or verbose), trace, or a filter of tracing;\n               \
        default: error in the background (discarded unless set), info in the foreground"
)]
struct Arguments {
    /// Name of the interface to make.
    #[arg(required_unless_present = "supervise", conflicts_with = "supervise")]
    interface: Option<String>,

    /// Stay in the foreground.
    #[arg(short, long)]
    foreground: bool,

    /// Serve SOCKET instead: make devices for whoever asks there (always in the foreground).
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = SOCKET)]
    supervise: Option<PathBuf>,

    /// MTU of the interface in bytes, until somebody changes it.
    #[arg(long, default_value_t = DEFAULT_MTU, value_parser = clap::value_parser!(u32).range(68..=65_535))]
    mtu: u32,

    /// The most segmentation offload to use.
    #[arg(long, value_enum, default_value_t = Offload::Udp)]
    offload: Offload,

    /// Directory of the UAPI sockets; wg(8) looks only into the default.
    #[arg(long, value_name = "DIRECTORY", env = "MESHWIRE_UAPI_DIRECTORY", default_value = uapi::DIRECTORY)]
    uapi_directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let background = !arguments.foreground && arguments.supervise.is_none();
    let readiness = if background {
        daemon::detach().context("cannot go to the background")?
    } else {
        Readiness::nobody_waits()
    };
    log(background);
    let termination = Termination::catch().context("cannot catch signals")?;
    match arguments.supervise.clone() {
        Some(socket) => supervise(arguments, socket, &termination),
        None => standalone(arguments, readiness, &termination),
    }
}

fn standalone(
    arguments: Arguments,
    readiness: Readiness,
    termination: &Termination,
) -> anyhow::Result<()> {
    let options = Options {
        name: arguments.interface.context("an interface name is needed")?,
        mtu: arguments.mtu,
        offload: arguments.offload,
        uapi_directory: arguments.uapi_directory,
        socket_loss: SocketLoss::End,
    };
    let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("cannot make an eventfd")?);
    let device = Device::start(&options, tell(Arc::clone(&ended)))
        .with_context(|| format!("cannot start {}", options.name))?;
    let output = if std::env::var_os("LOG_LEVEL").is_some() {
        Output::KeepErrors
    } else {
        Output::Discard
    };
    readiness
        .announce(output)
        .context("cannot leave the foreground")?;
    while !device.has_ended() {
        let mut ready = [
            PollFd::new(termination, PollFlags::IN),
            PollFd::new(&*ended, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) if ready[0].revents().is_empty() => (),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => (),
            Err(errno) => return Err(errno).context("cannot wait for the end"),
        }
    }
    Ok(())
}

/// Raises `ended` at the end of the device; the rest is for the log.
fn tell(ended: Arc<rustix::fd::OwnedFd>) -> Report {
    Arc::new(move |event| {
        tracing::debug!(?event, "event");
        if matches!(event, Event::DeviceEnded { .. })
            && let Err(errno) = rustix::io::write(&*ended, &1u64.to_ne_bytes())
        {
            tracing::error!(%errno, "cannot tell the main thread");
        }
    })
}

fn supervise(
    arguments: Arguments,
    socket: PathBuf,
    termination: &Termination,
) -> anyhow::Result<()> {
    use std::os::fd::AsFd;
    let settings = Settings {
        socket: socket.clone(),
        uapi_directory: arguments.uapi_directory,
        offload: arguments.offload,
    };
    let service = Service::bind(settings).context("cannot start the service")?;
    tracing::info!(socket = %socket.display(), "serving");
    service.run(termination.as_fd())?;
    tracing::info!("ending");
    Ok(())
}

/// Logs to standard error, at the level that `LOG_LEVEL` names.
fn log(background: bool) {
    let level = std::env::var("LOG_LEVEL").ok();
    let filter = match level.as_deref() {
        Some("silent") => "off",
        Some("verbose") => "debug",
        Some(other) => other,
        None if background => "error",
        None => "info",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
