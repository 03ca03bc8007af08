//! `meshd guard`: closes a booting machine before its network is up.
//!
//! The agent leaves its last good guard and the `unreachable` routes behind it in a file.
//! `meshd-guard.service` runs this command before any interface is configured, so that a machine
//! that was closed when it went down is closed when it comes up.
//!
//! Where that file cannot be read (damaged, or of another version), the machine starts shut instead of
//! open: it forwards nothing, and reaches none of the networks that a second, simpler file names.

use std::{
    collections::BTreeSet,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use dataplane::Dataplane;
use ipnet::{IpNet, Ipv4Net};
use model::{
    Family, Moment, Plan, PublicKey, Table,
    constant::{ROUTE_PROTOCOL, TUNNEL_MARK, TUNNEL_RULE_PRIORITY, TUNNEL_TABLE},
    nft::{
        Chain, ChainKey, ChainKind, Element, Hook, HookPoint, NftFamily, Policy, SetKey, SetKind,
    },
    plan::{Route, RouteKey, RouteVia, RuleKey},
};
use serde::{Deserialize, Serialize};

use crate::stored::{self, Unreadable};

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

/// Nothing in a set sorts before it.
const FIRST_NET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// What to do about a file that cannot be read.
const REMEDY: &str = "the agent writes it anew once it is in sync with the store";

/// What closes a machine, as kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastGood {
    sets: Vec<(SetKey, SetKind)>,
    elements: Vec<(SetKey, Element)>,
    chains: Vec<(ChainKey, Chain)>,
    routes: Vec<(RouteKey, Route)>,
    rules: Vec<RuleKey>,
}

/// The pools' networks, as kept in a file beside that every version of meshd reads.
#[derive(Clone, Debug, Default, PartialEq)]
struct Networks(BTreeSet<IpNet>);

impl LastGood {
    /// Takes the closing parts of a plan.
    ///
    /// Chains on devices stay out: the devices are not there yet at boot, and the postrouting
    /// chain closes devices that nobody has seen. Routes through devices stay out for the same reason.
    /// So do pods' addresses and policy: no pod is there before its agent, and without its policy it is closed.
    pub(crate) fn of(plan: &Plan) -> Self {
        let closing = |route: &Route| matches!(route.via, RouteVia::Unreachable | RouteVia::Throw);
        let on_devices = |chain: &Chain| {
            let point = chain.hook.as_ref().map(|hook| &hook.point);
            matches!(point, Some(HookPoint::Ingress(_) | HookPoint::Egress(_)))
        };

        let sets = plan.nft_sets.rows().iter();
        let sets: Vec<(SetKey, SetKind)> = sets
            .filter(|(key, _)| key.is_guards())
            .map(|(key, kind)| (key.clone(), *kind))
            .collect();
        let chains = plan.nft_chains.rows().iter();

        Self {
            elements: sets
                .iter()
                .filter(|(_, kind)| !is_of_pods(kind))
                .flat_map(|(key, _)| elements(plan, key))
                .collect(),
            sets,
            chains: chains
                .filter(|(key, chain)| key.is_guards() && !key.is_of_pods() && !on_devices(chain))
                .map(|(key, chain)| (key.clone(), chain.clone()))
                .collect(),
            routes: pairs(&plan.routes)
                .into_iter()
                .filter(|(_, r)| closing(r))
                .collect(),
            rules: plan.rules.rows().keys().cloned().collect(),
        }
    }

    /// Writes both files, each whole: first the networks, which every version of meshd reads.
    pub(crate) fn save(&self, state: &Path) -> anyhow::Result<()> {
        self.networks()
            .save(state)
            .and_then(|()| stored::write(&file(state), VERSION, self))
            .context("could not write the last good guard")
    }

    /// Reads the file; `None` when no agent has left one.
    pub(crate) fn load(state: &Path) -> Result<Option<Self>, Unreadable> {
        stored::read(&file(state), VERSION, REMEDY)
    }

    /// Returns the networks that nobody reaches but through the tunnel. Members' own addresses are none:
    /// the way to them, and to the server, stays.
    fn networks(&self) -> Networks {
        let closed = |(key, route): &(RouteKey, Route)| {
            let is_closed = route.via == RouteVia::Unreachable && key.table == TUNNEL_TABLE;
            is_closed.then_some(key.destination)
        };

        Networks(self.routes.iter().filter_map(closed).collect())
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
    match LastGood::load(&args.state) {
        Ok(None) => {
            tracing::info!("No agent has left a guard; nothing to restore");
            Ok(())
        }
        Ok(Some(last)) => {
            install(last.plan())?;
            tracing::info!("The last good guard is in place");
            Ok(())
        }
        Err(unreadable) => shut(&args.state, unreadable),
    }
}

/// Closes the machine without its last good guard: what an agent encrypted must not go out bare
/// because a file cannot be read.
fn shut(state: &Path, unreadable: Unreadable) -> anyhow::Result<()> {
    let networks = Networks::load(state);
    let known = match &networks {
        Ok(networks) => networks.0.clone(),
        Err(_) => BTreeSet::new(),
    };
    install(closed(&known))?;

    let error = anyhow::Error::new(unreadable);
    match networks {
        Ok(networks) => Err(error.context(format!(
            "this machine forwards nothing and reaches none of {} networks until its agent runs",
            networks.0.len()
        ))),
        Err(other) => Err(error.context(format!(
            "this machine forwards nothing until its agent runs; what it sends to pods itself is not closed ({other:#})"
        ))),
    }
}

/// Returns a plan that forwards nothing and reaches none of these networks.
fn closed(networks: &BTreeSet<IpNet>) -> Plan {
    let mut plan = Plan {
        generation: 1,
        ..Plan::default()
    };
    let key = ChainKey {
        table: NftFamily::Inet,
        name: "shut".into(),
    };
    let hook = Hook {
        point: HookPoint::Forward,
        priority: 0,
        kind: ChainKind::Filter,
        policy: Policy::Drop,
    };
    let chain = Chain {
        hook: Some(hook),
        rules: Vec::new().into(),
    };
    plan.nft_chains.set(key, chain);
    for network in networks {
        let family = Family::of_net(network);
        let key = RouteKey {
            table: TUNNEL_TABLE,
            destination: *network,
            metric: match family {
                Family::V4 => 0,
                Family::V6 => 1024,
            },
        };
        let route = Route {
            via: RouteVia::Unreachable,
            source: None,
            mtu: None,
            protocol: ROUTE_PROTOCOL,
        };
        plan.routes.set(key, route);
        let rule = RuleKey {
            family,
            priority: TUNNEL_RULE_PRIORITY,
            source: None,
            without_mark: Some(TUNNEL_MARK),
            table: TUNNEL_TABLE,
        };
        plan.rules.set(rule, ());
    }

    plan
}

fn install(mut plan: Plan) -> anyhow::Result<()> {
    let mut dataplane = Dataplane::new(dataplane::Config::default(), |_: &PublicKey| None)
        .context("could not open the kernel's sockets")?;
    let report = dataplane.apply(&mut plan, Moment::START);
    if let Some((target, reason)) = report.failures.first_key_value() {
        bail!("could not restore the guard: {target}: {reason}");
    }

    Ok(())
}

impl Networks {
    /// The first line of the file. The lines after it, one network each, are for every version.
    const HEADER: &str = "meshd-networks 1";

    fn save(&self, state: &Path) -> io::Result<()> {
        let lines: Vec<String> = self.0.iter().map(IpNet::to_string).collect();
        let text = format!("{}\n{}\nend\n", Self::HEADER, lines.join("\n"));

        keyring::write_private(&networks_file(state), text.as_bytes())
    }

    /// Reads the file; none there, or one that is not whole, is an error: then nothing is known.
    fn load(state: &Path) -> anyhow::Result<Self> {
        let path = networks_file(state);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("could not read {}", path.display()))?;
        let body = text
            .strip_prefix(Self::HEADER)
            .and_then(|rest| rest.strip_suffix("\nend\n"))
            .with_context(|| format!("{} is damaged", path.display()))?;
        let networks = body.lines().filter(|line| !line.is_empty());
        let networks: Result<_, _> = networks.map(str::parse).collect();

        Ok(Self(networks.with_context(|| {
            format!("{} is damaged", path.display())
        })?))
    }
}

/// Returns a set's elements, without a look at those of others.
fn elements(plan: &Plan, set: &SetKey) -> impl Iterator<Item = (SetKey, Element)> {
    let first = (set.clone(), Element::Net(FIRST_NET.into()));
    let elements = plan.nft_elements.rows().range(first..);

    elements
        .map(|(row, ())| row)
        .take_while(move |(key, _)| key == set)
        .cloned()
}

const fn is_of_pods(kind: &SetKind) -> bool {
    matches!(kind, SetKind::InterfaceAddresses(_))
}

fn file(state: &Path) -> PathBuf {
    state.join("guard.json")
}

fn networks_file(state: &Path) -> PathBuf {
    state.join("networks")
}

fn pairs<K: Ord + Clone, V: Clone + PartialEq>(table: &Table<K, V>) -> Vec<(K, V)> {
    table
        .rows()
        .iter()
        .map(|(key, row)| (key.clone(), row.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use model::constant::SOURCE_TABLE;

    use super::*;

    #[test]
    fn a_guard_is_read_as_it_was_written_and_its_networks_beside() {
        let folder = tempfile::tempdir().unwrap();
        let pools: BTreeSet<IpNet> = ["10.65.0.0/16", "fd00:65::/112"]
            .map(|net| net.parse().unwrap())
            .into();
        let mut plan = closed(&pools);
        let member = RouteKey {
            table: SOURCE_TABLE,
            destination: "192.0.2.2/32".parse().unwrap(),
            metric: 1024,
        };
        let route = Route {
            via: RouteVia::Unreachable,
            source: None,
            mtu: None,
            protocol: ROUTE_PROTOCOL,
        };
        plan.routes.set(member, route);
        let last = LastGood::of(&plan);

        last.save(folder.path()).unwrap();

        assert_eq!(LastGood::load(folder.path()).unwrap(), Some(last));
        assert_eq!(Networks::load(folder.path()).unwrap(), Networks(pools));
    }

    #[test]
    fn a_boot_restores_what_closes_and_deletes_nothing() {
        let pools = BTreeSet::from(["10.65.0.0/16".parse().unwrap()]);
        let mut wanted = closed(&pools);
        for name in ["barrier", "from_pod"] {
            let key = ChainKey {
                table: NftFamily::Inet,
                name: name.into(),
            };
            let chain = Chain {
                hook: None,
                rules: Vec::new().into(),
            };
            wanted.nft_chains.set(key, chain);
        }
        for (name, net) in [
            ("other", "10.1.0.0/16"),
            ("space4", "10.65.0.0/16"),
            ("zoo", "10.2.0.0/16"),
        ] {
            let key = SetKey {
                table: NftFamily::Inet,
                name: name.into(),
            };
            wanted.nft_sets.set(key.clone(), SetKind::Nets(Family::V4));
            let element = Element::Net(net.parse().unwrap());
            wanted.nft_elements.set((key, element), ());
        }

        let plan = LastGood::of(&wanted).plan();

        let chains = plan.nft_chains.rows().keys();
        assert_eq!(chains.map(|key| &key.name).collect::<Vec<_>>(), ["barrier"]);
        let elements = plan.nft_elements.rows().keys();
        let elements = elements.map(|(set, _)| &set.name);
        assert_eq!(elements.collect::<Vec<_>>(), ["space4"]);
        assert_eq!(plan.routes.rows(), wanted.routes.rows());
        assert_eq!(plan.rules.rows(), wanted.rules.rows());
        assert!(!plan.in_sync);
    }

    #[test]
    fn networks_that_are_cut_anywhere_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let pools = BTreeSet::from(["10.65.0.0/16".parse().unwrap()]);
        Networks(pools).save(folder.path()).unwrap();
        let path = networks_file(folder.path());
        let whole = fs::read_to_string(&path).unwrap();

        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Networks::load(folder.path()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_shut_machine_forwards_nothing_and_reaches_no_pool() {
        let pools = BTreeSet::from(["10.65.0.0/16".parse().unwrap()]);

        let plan = closed(&pools);

        let hooks = plan
            .nft_chains
            .rows()
            .values()
            .filter_map(|chain| chain.hook.clone());
        let drops = |hook: Hook| hook.point == HookPoint::Forward && hook.policy == Policy::Drop;
        assert!({ hooks }.any(drops));
        assert!(
            plan.routes
                .rows()
                .values()
                .all(|route| route.via == RouteVia::Unreachable)
        );
        assert_eq!(plan.routes.rows().len(), 1);
        assert_eq!(plan.rules.rows().len(), 1);
        assert!(!plan.in_sync, "it deletes nothing");
    }
}
