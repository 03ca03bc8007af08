//! `meshd serve`: the embedded server.

mod garbage;
mod lender;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{Router, routing::get};
use jiff::Timestamp;
use model::constant::SERVER_PORT;
use store::{Counters, Credential, Installed, Server, ServerOptions};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use self::lender::Authority;

/// Runs the store of a mesh, and its certificate authority.
///
/// The first start makes the CA and the administrator's credential, which is also copied to
/// ~/.config/meshd/config.yaml for meshctl, unless another mesh's is there.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshd serve\n  meshd serve --advertise 203.0.113.9      behind NAT\n\nThen: meshctl token create"
)]
pub(crate) struct Args {
    /// The database, the CA and the administrator's credential.
    #[arg(long, default_value = "/var/lib/meshd/server")]
    data: PathBuf,

    /// Where to listen [default: port 7443 of every address].
    #[arg(long)]
    listen: Option<SocketAddr>,

    /// An address under which members reach this server, if that is not one of the host's own; may be repeated.
    #[arg(long)]
    advertise: Vec<IpAddr>,

    /// Serve Prometheus metrics here [default: nowhere].
    #[arg(long)]
    metrics: Option<SocketAddr>,

    /// How long an address must look leaked before it is collected; at least the 90 seconds that a request may take.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    ipam_grace_seconds: u64,

    /// Leave ~/.config/meshd/config.yaml alone.
    #[arg(long)]
    no_user_config: bool,
}

/// Runs the command until a signal ends it.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;

    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let options = ServerOptions {
        data: args.data,
        listen: args.listen.unwrap_or_else(everywhere),
        advertise: args.advertise,
        store: store::Options::default(),
    };
    let server = Server::start(options, Timestamp::now()).await?;
    server.lend_by(Arc::new(Authority::default()));
    let grace = Duration::from_secs(args.ipam_grace_seconds);
    tokio::spawn(garbage::collect(server.store(), grace));
    tracing::info!(address = %server.address(), "serving");
    if !args.no_user_config {
        copy_credential(server.admin_credential())?;
    }
    if let Some(address) = args.metrics {
        serve_metrics(address, server.counters()).await?;
    }
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be awaited")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be awaited")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };

    Ok(server.run(stop).await?)
}

/// Returns the server's port on every address, of both families where the host has IPv6.
fn everywhere() -> SocketAddr {
    if Path::new("/proc/net/if_inet6").exists() {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, SERVER_PORT))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT))
    }
}

/// Copies the administrator's credential to where meshctl looks for it.
fn copy_credential(admin: &Path) -> anyhow::Result<()> {
    let Some(user) = Credential::user_path() else {
        return Ok(());
    };
    let credential = Credential::load(admin)?;
    match credential.install(&user) {
        Ok(Installed::Written) => tracing::info!(path = %user.display(), "meshctl is set up"),
        Ok(Installed::OtherMesh) => tracing::warn!(
            path = %user.display(),
            "the credential there is for another mesh and stays; use meshctl --config {}",
            admin.display()
        ),
        // The server runs without it.
        Err(error) => tracing::warn!(%error, "meshctl could not be set up"),
    }

    Ok(())
}

/// Serves what was refused so far in Prometheus' text format.
async fn serve_metrics(address: SocketAddr, counters: Counters) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("metrics cannot be served on {address}"))?;
    let router = Router::new().route("/metrics", get(async move || render(&counters)));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });

    Ok(())
}

fn render(counters: &Counters) -> String {
    let mut text = String::from("# TYPE meshd_server_denied_writes_total counter\n");
    for (reason, count) in counters.denied() {
        text.push_str(&format!(
            "meshd_server_denied_writes_total{{reason=\"{reason}\"}} {count}\n"
        ));
    }
    for (name, count) in [
        (
            "meshd_server_failed_handshakes_total",
            counters.failed_handshakes(),
        ),
        (
            "meshd_server_unauthenticated_total",
            counters.unauthenticated(),
        ),
        ("meshd_server_limited_total", counters.limited()),
    ] {
        text.push_str(&format!("# TYPE {name} counter\n{name} {count}\n"));
    }

    text
}
