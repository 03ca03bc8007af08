//! Passes over the whole plan, in the order that never leaves a route without its guard.

mod removal;

pub use self::removal::{Owned, RemovalError};

use std::{collections::BTreeMap, path::PathBuf};

use model::{
    InterfaceName, Moment, Plan, PodName,
    conflict::Conflict,
    pass::{DeviceBackend, IncompleteRow},
    plan::{PodInterface, RowKey},
    resource::mesh_configuration::Backend as Choice,
};
use tokio::sync::mpsc;

use crate::{
    AddressTarget, KernelEvent, KeySource, NftKey, NftTarget, OpeningTarget, Outcome, Ownership,
    PeerStatistics, PeerTarget, PodError, PodTarget, Reconciler, RouteTarget, RuleTarget,
    SysctlTarget, TunnelError, TunnelTarget, WatchError, events,
    events::{RulesetWatch, Watched},
    netlink::NetlinkError,
    nft,
    wireguard::{Implementations, Kernel, Userspace},
};

/// Where a dataplane finds what is not the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The tunnel service's socket.
    pub supervisor: PathBuf,
    /// The folder of the devices' UAPI sockets.
    pub uapi: PathBuf,
    /// Whether other programs may change our nftables tables.
    pub ownership: Ownership,
    /// The file that says what firewalld has of ours. It need not outlive a boot.
    pub firewalld: PathBuf,
    /// Which WireGuard this machine uses where the plan leaves it open.
    pub wireguard: Choice,
}

/// Keeps the machine equal to the plan.
pub struct Dataplane {
    config: Config,
    nft: Reconciler<NftTarget>,
    sysctls: Reconciler<SysctlTarget>,
    pods: Reconciler<PodTarget>,
    tunnels: Reconciler<TunnelTarget>,
    addresses: Reconciler<AddressTarget>,
    peers: Reconciler<PeerTarget>,
    routes: Reconciler<RouteTarget>,
    rules: Reconciler<RuleTarget>,
    openings: Reconciler<OpeningTarget>,
    watched: Watched,
}

/// One part of the machine, kept by one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Our nftables tables.
    Nft,
    /// Values under `/proc/sys`.
    Sysctls,
    /// Pods' veth pairs.
    Pods,
    /// WireGuard devices.
    Tunnels,
    /// Addresses on devices of ours.
    Addresses,
    /// WireGuard peers.
    Peers,
    /// Routes.
    Routes,
    /// Policy routing rules.
    Rules,
    /// Rules and zones' members in other firewalls' extension points.
    Openings,
}

/// What a pass came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The plan's generation that the pass saw.
    pub generation: u64,
    /// What was refused: the component's name and why. What comes after it waits.
    pub failures: BTreeMap<String, String>,
    /// Rows that wait for what they stand on, each once.
    pub incomplete: Vec<IncompleteRow>,
    /// What carries each tunnel device that is there.
    pub backends: BTreeMap<InterfaceName, DeviceBackend>,
    /// What somebody else has where it belongs to us, each once.
    pub conflicts: Vec<Conflict>,
    /// When to come back although nothing changes.
    pub retry_at: Option<Moment>,
}

/// Why a dataplane could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not reach the kernel")]
pub struct OpenError(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);

impl From<NetlinkError> for OpenError {
    fn from(error: NetlinkError) -> Self {
        Self(Box::new(error))
    }
}

impl Component {
    /// Every component, in the order in which their sets are applied.
    pub const ALL: [Self; 9] = [
        Self::Nft,
        Self::Sysctls,
        Self::Pods,
        Self::Tunnels,
        Self::Addresses,
        Self::Peers,
        Self::Routes,
        Self::Rules,
        Self::Openings,
    ];

    /// Returns the name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nftables",
            Self::Sysctls => "sysctls",
            Self::Pods => "pods",
            Self::Tunnels => "tunnels",
            Self::Addresses => "addresses",
            Self::Peers => "peers",
            Self::Routes => "routes",
            Self::Rules => "rules",
            Self::Openings => "openings",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            supervisor: PathBuf::from("/run/meshd/wire.sock"),
            uapi: PathBuf::from("/var/run/wireguard"),
            ownership: Ownership::default(),
            firewalld: PathBuf::from("/run/meshd/firewalld"),
            wireguard: Choice::default(),
        }
    }
}

impl Config {
    /// Opens what this machine has of WireGuard, in the calling thread's network namespace.
    fn implementations(&self) -> Result<Implementations, OpenError> {
        let userspace = Userspace::new(self.supervisor.clone(), self.uapi.clone());

        Ok(Implementations::new(
            Kernel::open()?,
            userspace,
            self.wireguard,
        ))
    }
}

impl Dataplane {
    /// Returns what differs between a pod's interface in the kernel and its row, in words; see
    /// [`PodTarget::examine`].
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn examine_pod(
        &mut self,
        pod: &PodName,
        row: &PodInterface,
    ) -> Result<Vec<String>, PodError> {
        self.pods.target_mut().examine(pod, row)
    }

    /// Opens the sockets, in the calling thread's network namespace. Changes nothing yet.
    pub fn new(config: Config, keys: impl KeySource + 'static) -> Result<Self, OpenError> {
        Ok(Self {
            nft: reconciler(Component::Nft, NftTarget::open(config.ownership)?),
            sysctls: reconciler(Component::Sysctls, SysctlTarget::new()),
            pods: reconciler(Component::Pods, PodTarget::open()?),
            tunnels: reconciler(
                Component::Tunnels,
                TunnelTarget::open(config.implementations()?, Box::new(keys))?,
            ),
            addresses: reconciler(Component::Addresses, AddressTarget::open()?),
            peers: reconciler(Component::Peers, PeerTarget::new(config.implementations()?)),
            routes: reconciler(Component::Routes, RouteTarget::open()?),
            rules: reconciler(Component::Rules, RuleTarget::open()?),
            openings: reconciler(
                Component::Openings,
                OpeningTarget::open(config.firewalld.clone())?,
            ),
            watched: Watched::default(),
            config,
        })
    }

    /// Brings the machine up to date with the plan, as far as it lets us.
    ///
    /// First every set in the plan's order, then every unset in the opposite order. A failure ends the
    /// pass there: what comes later waits until it is mended.
    pub fn apply(&mut self, plan: &mut Plan, now: Moment) -> Report {
        let mut report = Report {
            generation: plan.generation,
            ..Report::default()
        };
        self.tell_context(plan);

        self.watched.begin(plan);
        if self.apply_sets(plan, now, &mut report) {
            self.apply_unsets(now, &mut report);
        }
        let risen = self.tunnels.target_mut().take_risen();
        self.peers.target_mut().greet(risen);
        self.watched
            .end(plan, &self.peers.target_mut().fingerprints());
        report.incomplete = self.incomplete();
        report.backends = self.tunnels.target_mut().backends();
        report.conflicts = self.conflicts();
        report.retry_at = self.retry_at();

        report
    }

    /// Takes less memory, after a pass that brought in much.
    pub fn compact(&mut self) {
        self.nft.target_mut().compact();
    }

    /// Distrusts a component: the next pass looks at what is there.
    pub fn distrust(&mut self, component: Component) {
        match component {
            Component::Nft => self.nft.distrust(),
            Component::Sysctls => self.sysctls.distrust(),
            Component::Pods => self.pods.distrust(),
            Component::Tunnels => self.tunnels.distrust(),
            Component::Addresses => self.addresses.distrust(),
            Component::Peers => self.peers.distrust(),
            Component::Routes => self.routes.distrust(),
            Component::Rules => self.rules.distrust(),
            Component::Openings => self.openings.distrust(),
        }
    }

    /// Starts to watch the kernel and the devices; the thread ends when the receiver is dropped.
    ///
    /// The first event is the underlay as it is now. On [`KernelEvent::Drift`] call
    /// [`distrust`](Self::distrust), then [`apply`](Self::apply).
    pub fn events(&mut self) -> Result<mpsc::Receiver<KernelEvent>, WatchError> {
        let generations = self.nft.target_mut().generations();
        let owner = self.nft.target_mut().port();
        let ports = [
            owner,
            self.pods.target_mut().port(),
            self.tunnels.target_mut().port(),
            self.addresses.target_mut().port(),
            self.routes.target_mut().port(),
            self.rules.target_mut().port(),
            self.openings.target_mut().port(),
        ];

        events::watch(
            ports.into(),
            RulesetWatch::open(owner, generations)
                .map_err(|error| WatchError::Listen(Box::new(error)))?,
            self.watched.clone(),
            self.config
                .implementations()
                .map_err(|error| WatchError::Listen(Box::new(error)))?,
            self.config.supervisor.clone(),
            self.openings.target_mut().firewalld().clone(),
        )
    }

    /// Reads every peer's counters, endpoint and last handshake from the devices of the plan.
    pub fn statistics(&mut self) -> Result<Vec<PeerStatistics>, TunnelError> {
        self.peers.target_mut().statistics()
    }

    /// Returns how often each counted rule of ours matched: chain, comment, packets, bytes.
    pub fn counters(&mut self) -> Result<Vec<nft::Counter>, nft::NftError> {
        self.nft.target_mut().counters()
    }

    /// Gives targets what they must know of the plan besides their own table.
    fn tell_context(&mut self, plan: &Plan) {
        let devices: Vec<_> = plan.tunnels.rows().keys().cloned().collect();
        self.peers.target_mut().own(devices);
        self.nft.target_mut().set_in_sync(plan.in_sync);
    }

    /// Returns whether the half came to its end.
    fn apply_sets(&mut self, plan: &mut Plan, now: Moment, report: &mut Report) -> bool {
        let in_sync = plan.in_sync;
        let mut nft = nft::Rows {
            sets: &mut plan.nft_sets,
            elements: &mut plan.nft_elements,
            chains: &mut plan.nft_chains,
        };

        report.note(Component::Nft, self.nft.set(&mut nft, in_sync, now))
            && report.note(
                Component::Sysctls,
                self.sysctls.set(&mut plan.sysctls, in_sync, now),
            )
            && report.note(Component::Pods, self.pods.set(&mut plan.pods, in_sync, now))
            && report.note(
                Component::Tunnels,
                self.tunnels.set(&mut plan.tunnels, in_sync, now),
            )
            && self.follow_devices(plan, now, report)
            && report.note(
                Component::Addresses,
                self.addresses.set(&mut plan.addresses, in_sync, now),
            )
            && report.note(
                Component::Peers,
                self.peers.set(&mut plan.peers, in_sync, now),
            )
            && report.note(
                Component::Routes,
                self.routes.set(&mut plan.routes, in_sync, now),
            )
            && report.note(
                Component::Rules,
                self.rules.set(&mut plan.rules, in_sync, now),
            )
            && report.note(
                Component::Openings,
                self.openings.set(&mut plan.openings, in_sync, now),
            )
    }

    /// What stands on devices stands on ours alone.
    fn follow_devices(&mut self, plan: &mut Plan, now: Moment, report: &mut Report) -> bool {
        let strangers = self.tunnels.target_mut().strangers();
        let devices = plan.tunnels.rows().keys();
        let ours = devices.filter(|name| !strangers.contains(*name));
        self.addresses.target_mut().own(ours.cloned());
        self.routes.target_mut().shun(strangers);

        self.follow_new_device(plan, now, report)
    }

    /// A device that was just made has lost what stood on an earlier one, and has settings to be made
    /// that were missing a moment ago.
    fn follow_new_device(&mut self, plan: &mut Plan, now: Moment, report: &mut Report) -> bool {
        if !self.tunnels.target_mut().take_created() {
            return true;
        }
        self.addresses.distrust();
        self.peers.distrust();
        self.routes.distrust();
        self.sysctls.distrust();

        report.note(
            Component::Sysctls,
            self.sysctls.set(&mut plan.sysctls, plan.in_sync, now),
        )
    }

    fn apply_unsets(&mut self, now: Moment, report: &mut Report) {
        let _ended = report.note(Component::Openings, self.openings.unset(now))
            && report.note(Component::Rules, self.rules.unset(now))
            && report.note(Component::Routes, self.routes.unset(now))
            && report.note(Component::Peers, self.peers.unset(now))
            && report.note(Component::Addresses, self.addresses.unset(now))
            && report.note(Component::Tunnels, self.tunnels.unset(now))
            && report.note(Component::Pods, self.pods.unset(now))
            && report.note(Component::Sysctls, self.sysctls.unset(now))
            && report.note(Component::Nft, self.nft.unset(now));
    }

    /// Returns every row that waits, of every component.
    fn incomplete(&self) -> Vec<IncompleteRow> {
        let mut rows = Vec::new();
        let mut note = |row: RowKey, reason: &str| {
            rows.push(IncompleteRow {
                row,
                reason: reason.to_owned(),
            });
        };
        for (key, reason) in self.nft.absent() {
            note(nft_row(key), reason);
        }
        for (name, reason) in self.sysctls.absent() {
            note(RowKey::Sysctl(name.clone()), reason);
        }
        for (pod, reason) in self.pods.absent() {
            note(RowKey::Pod(pod.clone()), reason);
        }
        for (device, reason) in self.tunnels.absent() {
            note(RowKey::Tunnel(device.clone()), reason);
        }
        for ((device, net), reason) in self.addresses.absent() {
            note(RowKey::Address(device.clone(), *net), reason);
        }
        for ((device, key), reason) in self.peers.absent() {
            note(RowKey::Peer(device.clone(), *key), reason);
        }
        for (key, reason) in self.routes.absent() {
            note(RowKey::Route(key.clone()), reason);
        }
        for (key, reason) in self.rules.absent() {
            note(RowKey::Rule(key.clone()), reason);
        }
        for (opening, reason) in self.openings.absent() {
            note(RowKey::Opening(opening.clone()), reason);
        }

        rows
    }

    /// Returns what somebody else has, or keeps changing: what most depends on comes first.
    fn conflicts(&mut self) -> Vec<Conflict> {
        let mut rows = Vec::new();
        rows.extend(self.rules.contested().cloned().map(RowKey::Rule));
        rows.extend(self.nft.contested().map(nft_row));
        rows.extend(self.sysctls.contested().cloned().map(RowKey::Sysctl));
        rows.extend(self.pods.contested().cloned().map(RowKey::Pod));
        rows.extend(self.tunnels.contested().cloned().map(RowKey::Tunnel));
        let addresses = self.addresses.contested().cloned();
        rows.extend(addresses.map(|(device, net)| RowKey::Address(device, net)));
        let peers = self.peers.contested().cloned();
        rows.extend(peers.map(|(device, key)| RowKey::Peer(device, key)));
        rows.extend(self.routes.contested().cloned().map(RowKey::Route));
        rows.extend(self.openings.contested().cloned().map(RowKey::Opening));
        let contested = rows.into_iter().map(|row| Conflict::Contested { row });
        let devices = self.tunnels.target_mut().conflicts().cloned();

        devices.chain(contested).collect()
    }

    fn retry_at(&self) -> Option<Moment> {
        [
            self.nft.retry_at(),
            self.sysctls.retry_at(),
            self.pods.retry_at(),
            self.tunnels.retry_at(),
            self.addresses.retry_at(),
            self.peers.retry_at(),
            self.routes.retry_at(),
            self.rules.retry_at(),
            self.openings.retry_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl Report {
    /// Returns everything that is not as the plan says, by component or row. Empty: the machine matches
    /// the plan.
    pub fn troubles(&self) -> BTreeMap<String, String> {
        let incomplete = self.incomplete.iter();
        let incomplete = incomplete.map(|each| (each.row.to_string(), each.reason.clone()));

        self.failures
            .clone()
            .into_iter()
            .chain(incomplete)
            .collect()
    }

    /// Writes an outcome down; returns whether the pass may go on.
    fn note(&mut self, component: Component, outcome: Outcome) -> bool {
        let reason = match outcome {
            Outcome::Converged | Outcome::Incomplete(_) => return true,
            Outcome::Failed(reason) => reason,
        };
        self.failures.insert(component.name().to_owned(), reason);

        false
    }
}

fn nft_row(key: &NftKey) -> RowKey {
    match key {
        NftKey::Set(set) => RowKey::Set(set.clone()),
        NftKey::Element(set, element) => RowKey::Element(set.clone(), element.clone()),
        NftKey::Chain(chain) => RowKey::Chain(chain.clone()),
    }
}

fn reconciler<T: crate::Target>(component: Component, target: T) -> Reconciler<T> {
    Reconciler::new(component.name(), target)
}
