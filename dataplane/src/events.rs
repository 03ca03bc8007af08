//! What happens to the machine behind our back, and what it looks like.
//!
//! ```text
//! netlink groups: link, addr, route, rule, netconf ───────────┐
//! the ruleset's generation; nftables where others may ────────┤
//! tunnel service: handshakes, devices that end ───────────────┼─▶ one thread ─▶ KernelEvent
//! firewalld: its zones ───────────────────────────────────────┤
//! from time to time: sysctls, peers of each device ───────────┘
//! ```
//!
//! Notifications that our own sockets caused are passed over; where the kernel does not say who
//! caused one, the look that follows finds nothing to do, and so it ends there. When a socket
//! overruns, everything is distrusted.

mod device;
mod firewall;
mod listener;
mod ruleset;
mod surrounding;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use model::{
    InterfaceName, Plan, PublicKey,
    conflict::Surroundings,
    event::{Link as Underlay, LinkKind},
    firewall::Firewalls,
};
use tokio::sync::mpsc::{self, error::TrySendError};

pub(crate) use self::ruleset::RulesetWatch;
use self::{
    device::{DeviceWatch, Look, Looks},
    firewall::FirewallWatch,
    listener::Listener,
    surrounding::SurroundingWatch,
};
use crate::{
    Component,
    foreign::{Firewalld, Ways},
    netlink::NetlinkError,
    sysctl,
    wireguard::{Fingerprint, Implementations},
};

/// How long the thread sleeps at most, and how often it reads the settings that the kernel says nothing of:
/// what somebody changes there is undone within a second.
const TICK: Duration = Duration::from_millis(700);

/// How often everything is looked at although nothing was reported.
const AUDIT: Duration = Duration::from_secs(60);

/// How often at most a component is said to have drifted: somebody may change what is ours without a pause.
const PACE: Duration = Duration::from_millis(20);

/// How many events may wait; what does not fit is put together and sent later.
const CAPACITY: usize = 64;

/// Something that the dataplane noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// The machine's links and addresses, whole. Sent at the start and whenever they change.
    Underlay(BTreeMap<InterfaceName, Underlay>),
    /// A component may no longer be what the plan says: distrust it and make a pass.
    Drift(Component),
    /// A handshake with a peer was completed, now or before we looked.
    Handshake {
        /// The device.
        device: InterfaceName,
        /// The peer.
        peer: PublicKey,
    },
    /// Other programs' packet filters, as far as they concern us. Sent when that changes.
    Firewalls(Firewalls),
    /// Other programs' rules, routes and network managers, as far as they concern us. Sent when that
    /// changes.
    Surroundings(Surroundings),
}

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The sockets could not be opened or subscribed.
    #[error("could not listen to the kernel")]
    Listen(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The thread could not be started.
    #[error("could not start the watching thread")]
    Thread(#[source] io::Error),
}

/// What a pass tells the watching thread.
#[derive(Clone, Default)]
pub(crate) struct Watched {
    /// Odd while a pass is under way; rises twice with each.
    epoch: Arc<AtomicU64>,
    expected: Arc<Mutex<Expected>>,
}

/// What should be found where the kernel sends no notifications.
#[derive(Clone, Default)]
struct Expected {
    sysctls: BTreeMap<String, String>,
    /// Which devices are tunnels, and how they look once a pass is over.
    devices: BTreeSet<InterfaceName>,
    looks: Looks,
    /// The tunnels' UDP ports.
    ports: BTreeMap<InterfaceName, u16>,
    /// The ways of packets, and the plan's generation that they are of.
    ways: Arc<crate::surrounding::Ways>,
    generation: u64,
}

impl Watched {
    /// Says that a pass begins, and which devices are tunnels from now on.
    pub(crate) fn begin(&self, plan: &Plan) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let mut expected = self.lock();
        if !expected.devices.iter().eq(plan.tunnels.rows().keys()) {
            expected.devices = plan.tunnels.rows().keys().cloned().collect();
        }
        let ports = || {
            plan.tunnels
                .rows()
                .iter()
                .map(|(name, row)| (name, row.port))
        };
        if !expected
            .ports
            .iter()
            .map(|(name, port)| (name, *port))
            .eq(ports())
        {
            expected.ports = ports().map(|(name, port)| (name.clone(), port)).collect();
        }
    }

    /// Says that a pass is over, and which settings and which peers it should have left.
    pub(crate) fn end(&self, plan: &Plan, peers: &BTreeMap<InterfaceName, Fingerprint>) {
        let looks = plan.tunnels.rows().iter().map(|(device, tunnel)| {
            let peers = peers.get(device).copied().unwrap_or_default();

            (device.clone(), Look::expected(tunnel, peers))
        });
        let looks = looks.collect();
        let mut expected = self.lock();
        expected.looks = looks;
        if expected.generation != plan.generation {
            expected.generation = plan.generation;
            expected.ways = Arc::new(crate::surrounding::Ways::of(plan));
        }
        if expected.sysctls != *plan.sysctls.rows() {
            expected.sysctls = plan.sysctls.rows().clone();
        }
        drop(expected);
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns the number of the last pass; `None` while one is under way.
    fn epoch(&self) -> Option<u64> {
        let epoch = self.epoch.load(Ordering::SeqCst);

        epoch.is_multiple_of(2).then_some(epoch)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Expected> {
        // What is in there is whole at every moment, whoever panicked.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread, in the calling thread's network namespace.
pub(crate) fn watch(
    own_ports: BTreeSet<u32>,
    ruleset: RulesetWatch,
    watched: Watched,
    implementations: Implementations,
    supervisor: PathBuf,
    firewalld: Firewalld,
) -> Result<mpsc::Receiver<KernelEvent>, WatchError> {
    let listener = Listener::open(own_ports, ruleset)
        .map_err(|error: NetlinkError| WatchError::Listen(Box::new(error)))?;
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let watch = Watch {
        listener,
        devices: DeviceWatch::new(implementations, supervisor),
        firewalls: FirewallWatch::open(firewalld)
            .map_err(|error: NetlinkError| WatchError::Listen(Box::new(error)))?,
        surroundings: SurroundingWatch::open()
            .map_err(|error: NetlinkError| WatchError::Listen(Box::new(error)))?,
        watched,
        pending: Pending::default(),
        sender,
        links: BTreeMap::new(),
        tunnels: BTreeSet::new(),
        audited: Instant::now(),
        read_sysctls: Instant::now(),
        told: BTreeMap::new(),
    };
    thread::Builder::new()
        .name("kernel-events".to_owned())
        .spawn(move || watch.run())
        .map_err(WatchError::Thread)?;

    Ok(receiver)
}

/// The thread.
struct Watch {
    listener: Listener,
    devices: DeviceWatch,
    firewalls: FirewallWatch,
    surroundings: SurroundingWatch,
    watched: Watched,
    pending: Pending,
    sender: mpsc::Sender<KernelEvent>,
    links: BTreeMap<InterfaceName, Underlay>,
    /// The plan's tunnel devices; before the first plan those of an earlier run, as the service has them.
    tunnels: BTreeSet<InterfaceName>,
    audited: Instant,
    read_sysctls: Instant,
    /// When each component was last said to have drifted.
    told: BTreeMap<Component, Instant>,
}

/// What is still to be told; equal things once.
#[derive(Default)]
struct Pending {
    underlay: Option<BTreeMap<InterfaceName, Underlay>>,
    drift: BTreeSet<Component>,
    handshakes: BTreeSet<(InterfaceName, PublicKey)>,
    firewalls: Option<Firewalls>,
    surroundings: Option<Surroundings>,
}

impl Watch {
    fn run(mut self) {
        self.tunnels = self.devices.devices();
        self.look_at_links();
        while !self.sender.is_closed() {
            self.rest();
            self.deliver();
            let patience = TICK.min(self.devices.until_look());
            let others = self.devices.descriptor().into_iter();
            let others = others.chain([self.firewalls.descriptor()]);
            self.listener.wait(others, patience);
            self.read_kernel();
            self.learn_tunnels();
            self.look_at_devices();
            self.look_at_sysctls();
            self.look_at_firewalls();
            self.look_at_surroundings();
            self.audit();
        }
    }

    fn read_kernel(&mut self) {
        let heard = self.listener.read(&self.tunnels);
        self.pending.drift.extend(heard.drift);
        if heard.rules_of_others {
            self.firewalls.expire();
        }
        if heard.links || heard.ways_of_others {
            self.surroundings.expire();
        }
        if heard.links {
            self.look_at_links();
        }
    }

    /// A device that becomes a tunnel is no underlay any more.
    fn learn_tunnels(&mut self) {
        let expected = self.watched.lock().devices.clone();
        if !expected.is_empty() && expected != self.tunnels {
            self.tunnels = expected;
            self.look_at_links();
        }
    }

    /// Reads links and addresses anew and tells where they differ.
    fn look_at_links(&mut self) {
        match self.listener.underlay(&self.tunnels) {
            Ok(links) => {
                if links != self.links {
                    self.links = links.clone();
                    self.pending.underlay = Some(links);
                }
            }
            Err(error) => {
                tracing::warn!(error = %error, "Could not list links; trying again at the next change");
            }
        }
    }

    fn look_at_devices(&mut self) {
        let Some(before) = self.watched.epoch() else {
            return;
        };
        let expected = self.watched.lock().looks.clone();
        let seen = self.devices.look(&expected);
        let undisturbed = self.watched.epoch() == Some(before);
        let drift = self.devices.judge(seen.filter(|_| undisturbed));
        self.pending.drift.extend(drift);
        self.pending
            .handshakes
            .extend(self.devices.take_handshakes());
    }

    fn look_at_sysctls(&mut self) {
        if self.read_sysctls.elapsed() < TICK || self.watched.epoch().is_none() {
            return;
        }
        self.read_sysctls = Instant::now();
        let expected = self.watched.lock().sysctls.clone();
        let differs = expected.iter().any(|(key, value)| {
            sysctl::read(key).is_ok_and(|found| found.is_some_and(|found| found != *value))
        });
        if differs {
            self.pending.drift.insert(Component::Sysctls);
        }
    }

    fn look_at_firewalls(&mut self) {
        let links = self.links.iter();
        let underlay = links.filter(|(_, link)| link.kind == LinkKind::Underlay && link.up);
        let addressed = underlay.clone();
        let addressed = addressed.filter(|(_, link)| !link.addresses.is_empty());
        let (tunnels, sample) = {
            let expected = self.watched.lock();
            (expected.ports.clone(), Arc::clone(&expected.ways))
        };
        let ways = Ways {
            tunnels,
            examples: sample.examples(),
            addressed: addressed.map(|(name, _)| name.clone()).collect(),
            underlay: underlay.map(|(name, _)| name.clone()).collect(),
        };
        let news = self.firewalls.look(ways);
        if news.openings_changed {
            self.pending.drift.insert(Component::Openings);
        }
        if news.firewalls.is_some() {
            self.pending.firewalls = news.firewalls;
        }
    }

    fn look_at_surroundings(&mut self) {
        let Some(before) = self.watched.epoch() else {
            return;
        };
        let ways = Arc::clone(&self.watched.lock().ways);
        let found = self.surroundings.look(ways);
        if self.watched.epoch() != Some(before) {
            self.surroundings.expire();
        }
        if found.is_some() {
            self.pending.surroundings = found;
        }
    }

    fn audit(&mut self) {
        if self.audited.elapsed() >= AUDIT {
            self.audited = Instant::now();
            self.pending.drift.extend(Component::ALL);
        }
    }

    /// While drift waits for its turn, what else comes is put together with it.
    fn rest(&self) {
        let drift = self.pending.drift.iter();
        if let Some(rest) = drift.map(|component| self.until_told(*component)).min() {
            thread::park_timeout(rest);
        }
    }

    /// Returns how long a component's drift waits for its turn. The guard's never waits.
    fn until_told(&self, component: Component) -> Duration {
        match self.told.get(&component) {
            Some(told) if component != Component::Nft => PACE.saturating_sub(told.elapsed()),
            Some(_) | None => Duration::ZERO,
        }
    }

    /// Sends what is pending, as far as there is room.
    fn deliver(&mut self) {
        if let Some(underlay) = self.pending.underlay.take()
            && let Some(KernelEvent::Underlay(back)) = self.send(KernelEvent::Underlay(underlay))
        {
            self.pending.underlay = Some(back);
        }
        if let Some(firewalls) = self.pending.firewalls.take()
            && let Some(KernelEvent::Firewalls(back)) = self.send(KernelEvent::Firewalls(firewalls))
        {
            self.pending.firewalls = Some(back);
        }
        if let Some(surroundings) = self.pending.surroundings.take()
            && let Some(KernelEvent::Surroundings(back)) =
                self.send(KernelEvent::Surroundings(surroundings))
        {
            self.pending.surroundings = Some(back);
        }
        self.deliver_drift();
        while let Some((device, peer)) = self.pending.handshakes.pop_first() {
            if let Some(KernelEvent::Handshake { device, peer }) =
                self.send(KernelEvent::Handshake { device, peer })
            {
                self.pending.handshakes.insert((device, peer));
                break;
            }
        }
    }

    fn deliver_drift(&mut self) {
        let drift = self.pending.drift.iter().copied();
        let due = drift.filter(|component| self.until_told(*component).is_zero());
        let due: Vec<_> = due.collect();
        for component in due {
            if self.send(KernelEvent::Drift(component)).is_some() {
                return;
            }
            self.pending.drift.remove(&component);
            self.told.insert(component, Instant::now());
        }
    }

    /// Returns the event where there was no room for it.
    fn send(&self, event: KernelEvent) -> Option<KernelEvent> {
        match self.sender.try_send(event) {
            Ok(()) | Err(TrySendError::Closed(_)) => None,
            Err(TrySendError::Full(event)) => Some(event),
        }
    }
}

/// Returns what kind of link this is, as far as the plan cares.
fn kind(name: &InterfaceName, is_loopback: bool, tunnels: &BTreeSet<InterfaceName>) -> LinkKind {
    use model::constant::{TUNNEL_DEVICE, TUNNEL_DEVICE_V6, WORKLOAD_PREFIX};

    /// Overlay devices of Calico: their outer packets are the underlay's.
    const OVERLAYS: [&str; 3] = ["vxlan.calico", "vxlan-v6.calico", "tunl0"];

    let text = name.as_str();
    if is_loopback {
        LinkKind::Loopback
    } else if text.starts_with(WORKLOAD_PREFIX) {
        LinkKind::Workload
    } else if tunnels.contains(name)
        || [TUNNEL_DEVICE, TUNNEL_DEVICE_V6].contains(&text)
        || OVERLAYS.contains(&text)
    {
        LinkKind::Tunnel
    } else {
        LinkKind::Underlay
    }
}
