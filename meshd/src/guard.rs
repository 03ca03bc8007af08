//! `meshd guard`: closes a booting machine before its network is up.
//!
//! The agent leaves its last good guard and the `unreachable` routes behind it in a file.
//! `meshd-guard.service` runs this command before any interface is configured, so that a machine
//! that was closed when it went down is closed when it comes up.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use dataplane::Dataplane;
use model::{
    Moment, Plan, PublicKey, Table,
    nft::{Chain, ChainKey, Element, HookPoint, SetKey, SetKind},
    plan::{Route, RouteKey, RouteVia, RuleKey},
};
use serde::{Deserialize, Serialize};

/// The version of the file.
const VERSION: u32 = 1;

/// Restores the last good guard and its unreachable routes, then ends.
#[derive(Debug, clap::Args)]
#[command(after_help = "Run by meshd-guard.service before the network is configured.")]
pub(crate) struct Args {
    /// Where the agent keeps its state.
    #[arg(long, env = "MESHD_STATE", default_value = "/var/lib/meshd")]
    state: PathBuf,
}

/// What closes a machine, as kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastGood {
    version: u32,
    sets: Vec<(SetKey, SetKind)>,
    elements: Vec<(SetKey, Element)>,
    chains: Vec<(ChainKey, Chain)>,
    routes: Vec<(RouteKey, Route)>,
    rules: Vec<RuleKey>,
}

impl LastGood {
    /// Takes the closing parts of a plan.
    ///
    /// Chains on devices stay out: the devices are not there yet at boot, and the postrouting
    /// chain closes devices that nobody has seen. Routes through devices stay out for the same reason.
    pub(crate) fn of(plan: &Plan) -> Self {
        let closing = |route: &Route| matches!(route.via, RouteVia::Unreachable | RouteVia::Throw);
        let on_devices = |chain: &Chain| {
            let point = chain.hook.as_ref().map(|hook| &hook.point);
            matches!(point, Some(HookPoint::Ingress(_) | HookPoint::Egress(_)))
        };

        Self {
            version: VERSION,
            sets: pairs(&plan.nft_sets),
            elements: plan.nft_elements.rows().keys().cloned().collect(),
            chains: pairs(&plan.nft_chains)
                .into_iter()
                .filter(|(_, c)| !on_devices(c))
                .collect(),
            routes: pairs(&plan.routes)
                .into_iter()
                .filter(|(_, r)| closing(r))
                .collect(),
            rules: plan.rules.rows().keys().cloned().collect(),
        }
    }

    /// Writes the file whole, by rename.
    pub(crate) fn save(&self, state: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self).context("could not write the last good guard")?;

        store::write_private(&file(state), &text).context("could not write the last good guard")
    }

    /// Reads the file; `None` when no agent has left one.
    pub(crate) fn load(state: &Path) -> anyhow::Result<Option<Self>> {
        let path = file(state);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("could not read the last good guard"),
        };
        let stored: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not readable", path.display()))?;
        if stored.version != VERSION {
            bail!(
                "{} has version {}, not {VERSION}",
                path.display(),
                stored.version
            );
        }

        Ok(Some(stored))
    }

    /// Returns a plan of nothing but the guard. Never in sync: it deletes nothing.
    fn plan(self) -> Plan {
        let mut plan = Plan {
            generation: 1,
            ..Plan::default()
        };
        self.sets
            .into_iter()
            .for_each(|(key, kind)| plan.nft_sets.set(key, kind));
        self.elements
            .into_iter()
            .for_each(|key| plan.nft_elements.set(key, ()));
        self.chains
            .into_iter()
            .for_each(|(key, chain)| plan.nft_chains.set(key, chain));
        self.routes
            .into_iter()
            .for_each(|(key, route)| plan.routes.set(key, route));
        self.rules
            .into_iter()
            .for_each(|key| plan.rules.set(key, ()));

        plan
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Some(last) = LastGood::load(&args.state)? else {
        tracing::info!("No agent has left a guard; nothing to restore");
        return Ok(());
    };
    let mut dataplane = Dataplane::new(dataplane::Config::default(), |_: &PublicKey| None)
        .context("could not open the kernel's sockets")?;
    let report = dataplane.apply(&mut last.plan(), Moment::START);
    if let Some((target, reason)) = report.failures.first_key_value() {
        bail!("could not restore the guard: {target}: {reason}");
    }
    tracing::info!("The last good guard is in place");

    Ok(())
}

fn file(state: &Path) -> PathBuf {
    state.join("guard.json")
}

fn pairs<K: Ord + Clone, V: Clone + PartialEq>(table: &Table<K, V>) -> Vec<(K, V)> {
    table
        .rows()
        .iter()
        .map(|(key, row)| (key.clone(), row.clone()))
        .collect()
}
