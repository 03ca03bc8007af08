//! `meshd agent`: sources, brain and hands in one loop.
//!
//! ```text
//! store ──┐                      ┌──▶ dataplane (level: the plan)
//! kernel ─┼─Event─▶ World ───────┤
//! pods ───┘   ▲                  └──▶ executor (edge: actions) ──┐
//!             └──────── ActionDone, PlanApplied ◀────────────────┘
//! ```
//!
//! One task owns the brain and the dataplane; everybody else sends it messages. It decides nothing.

mod api;
mod cni;
mod connection;
mod executor;
mod held;
mod ipam;
mod metrics;
mod pods;
mod question;
mod recording;
mod shell;
mod web;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ::cni::Tombstones;
use anyhow::{Context, bail};
use dataplane::Dataplane;
use keyring::{PrivateKey, Slot, Vault};
use meshd_core::World;
use model::{PublicKey, resource::mesh_configuration::Backend};
use serde::{Deserialize, de::IntoDeserializer};
use store::{Client, Credential, Identity};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

pub(crate) use self::pods::PodFile;
use self::{recording::Recorder, shell::Shell};

/// Runs the agent of this member until it is told to stop.
///
/// Stopping it changes nothing on the machine: routes, tunnels and guard stay, and the next agent
/// takes them over.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshd agent\n  meshd agent --record /tmp/agent.jsonl     then: meshctl replay /tmp/agent.jsonl\n\nEnvironment: MESHD_LOG (filter), MESHD_LOG_FORMAT=json."
)]
pub(crate) struct Args {
    /// This member's credential, as `meshd join` wrote it.
    #[arg(
        long,
        env = "MESHD_CONFIG",
        default_value = "/var/lib/meshd/config.yaml"
    )]
    config: PathBuf,

    /// Where keys and state are kept.
    #[arg(long, env = "MESHD_STATE", default_value = "/var/lib/meshd")]
    state: PathBuf,

    /// The local API's socket.
    #[arg(long, env = "MESHD_SOCKET", default_value = "/run/meshd/meshd.sock")]
    socket: PathBuf,

    /// The socket of `meshwire --supervise`.
    #[arg(
        long,
        env = "MESHD_WIRE_SOCKET",
        default_value = "/run/meshd/wire.sock"
    )]
    wire_socket: PathBuf,

    /// What `Auto` means on this machine: `Kernel` or `Userspace`, where its kernel's WireGuard is not to be used.
    #[arg(
        long,
        env = "MESHD_BACKEND",
        default_value = "Auto",
        value_parser = backend
    )]
    backend: Backend,

    /// Where Prometheus metrics are served.
    #[arg(long, default_value = "127.0.0.1:9091")]
    metrics: SocketAddr,

    /// Where /readiness and /liveness are served.
    #[arg(long, default_value = "127.0.0.1:9099")]
    health: SocketAddr,

    /// Write what is heard and decided to this file, or to its end, for `meshctl replay`.
    #[arg(long, env = "MESHD_RECORD")]
    record: Option<PathBuf>,
}

/// Reads a backend by its name in `MeshConfiguration`.
fn backend(text: &str) -> Result<Backend, serde::de::value::Error> {
    Backend::deserialize(text.into_deserializer())
}

/// This node's private keys, by their public halves.
fn key_source(keys: Vec<PrivateKey>) -> impl dataplane::KeySource {
    move |public: &PublicKey| {
        let key = keys.iter().find(|key| key.public() == *public)?;

        Some(dataplane::PrivateKey::new(Zeroizing::new(*key.expose())))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let outcome = runtime.block_on(agent(args));
    runtime.shutdown_timeout(Duration::from_secs(1));

    outcome
}

async fn agent(args: Args) -> anyhow::Result<()> {
    let credential = Credential::load(&args.config).context(if args.config.exists() {
        "no usable credential; restore it, or move it away and join with a --replace token"
    } else {
        "no credential; join first: meshd join URL --token T"
    })?;
    let Identity::Node(node) = credential.identity().clone() else {
        bail!("{} is not a member's credential", args.config.display());
    };
    let vault = Vault::open(args.state.join("keys"))?;
    let keys = vec![
        vault.tunnel_key(Slot::First)?,
        vault.tunnel_key(Slot::Second)?,
    ];
    let public = keys.iter().map(PrivateKey::public).collect::<Vec<_>>();
    let config = meshd_core::Config::new(node.clone());
    let recorder = args
        .record
        .as_deref()
        .map(|path| Recorder::open(path, &config))
        .transpose()?;
    let hands = dataplane::Config {
        supervisor: args.wire_socket,
        wireguard: args.backend,
        ..Default::default()
    };
    let dataplane =
        Dataplane::new(hands, key_source(keys)).context("could not open the kernel's sockets")?;
    let client = Client::new(credential).context("could not use the credential")?;
    let renewing = client.clone();

    let tombstones = Tombstones::at(args.state.join("cni"));
    let (asks, questions) = api::channel();
    let shell = Shell::new(
        node,
        World::new(config),
        dataplane,
        client,
        recorder,
        args.state,
    )?;
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for signals")?;
    tokio::select! {
        outcome = shell.run(public, questions) => outcome,
        () = renewing.keep_renewed(&args.config) => Ok(()),
        outcome = api::serve(&args.socket, asks.clone()) => outcome,
        outcome = cni::replay(tombstones, asks.clone()) => outcome,
        outcome = web::serve(args.metrics, args.health, asks) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
