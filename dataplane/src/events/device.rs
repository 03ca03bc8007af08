//! WireGuard devices, which send no notifications: looked at, and told of by the tunnel service.
//!
//! The kernel says nothing of its devices at all. A look reads all of a device; its price sets how
//! often there is one, so that looking takes half a percent of a core for as long as a change by
//! somebody else is still undone within about a second. The tunnel service says when somebody
//! configures a device of its own: those are looked at then, and hardly ever otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use model::{InterfaceName, PublicKey, pass::Implementation, plan::Tunnel};
use wire::{
    event::Event,
    supervise::{Client, ClientError, Events},
    uapi::Status,
};

use crate::{
    Component,
    wireguard::{Fingerprint, Implementations},
};

/// How often a tunnel service that is away is looked for.
const RECONNECT: Duration = Duration::from_millis(500);

/// How often a device is looked at. At most one part in [`SHARE`] of the time is spent on it, unless
/// that meant to look so rarely that a removed peer is not back within about a second.
const INTERVAL: Duration = Duration::from_millis(400);
const LONGEST_INTERVAL: Duration = Duration::from_millis(900);
const SHARE: u32 = 200;

/// The same where peers of the kernel's were just set: their first handshakes are waited for.
const EAGER_INTERVAL: Duration = Duration::from_millis(50);
const EAGER_SHARE: u32 = 10;

/// The least time between two turns: during a pass there is no look, although it is due.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// The same while the tunnel service tells of every configuration.
const TOLD_INTERVAL: Duration = Duration::from_secs(30);

/// How long after a change first handshakes are waited for.
const EAGERNESS: Duration = Duration::from_secs(10);

/// Watches the devices of the plan.
pub(super) struct DeviceWatch {
    implementations: Implementations,
    supervisor: PathBuf,
    events: Option<Events>,
    /// The service tells of configurations too; one of an earlier version does not.
    tells: bool,
    tried: Option<Instant>,
    next_look: Instant,
    /// A device that was just looked at is not looked at again before this, whoever configures it.
    next_look_at_most: Instant,
    /// What the last pass left, and until when handshakes are waited for since.
    expected: Looks,
    eager_until: Instant,
    /// How the devices looked when they last were not as expected.
    reported: Option<Looks>,
    /// The last handshake of each peer that was told of.
    told: BTreeMap<(InterfaceName, PublicKey), Duration>,
    handshakes: BTreeSet<(InterfaceName, PublicKey)>,
    drift: BTreeSet<Component>,
}

/// How each device looks.
pub(super) type Looks = BTreeMap<InterfaceName, Look>;

/// A device as far as only the plan may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    key: Option<[u8; 32]>,
    port: u16,
    mark: u32,
    peers: Fingerprint,
}

impl DeviceWatch {
    pub(super) fn new(implementations: Implementations, supervisor: PathBuf) -> Self {
        Self {
            implementations,
            supervisor,
            events: None,
            tells: false,
            tried: None,
            next_look: Instant::now(),
            next_look_at_most: Instant::now(),
            expected: Looks::new(),
            eager_until: Instant::now(),
            reported: None,
            told: BTreeMap::new(),
            handshakes: BTreeSet::new(),
            drift: BTreeSet::new(),
        }
    }

    /// Returns how long there is nothing to do.
    pub(super) fn until_look(&self) -> Duration {
        if self.expected.is_empty() {
            return LONGEST_INTERVAL;
        }
        let look = self.next_look.saturating_duration_since(Instant::now());
        let awaits_service = self.events.is_none() && !self.is_all_in_kernel();
        let service = if awaits_service { RECONNECT } else { look };

        look.min(service).max(LEAST_WAIT)
    }

    fn is_all_in_kernel(&self) -> bool {
        let place = |device| self.implementations.place(device);

        self.expected
            .keys()
            .all(|device| place(device) == Some(Implementation::Kernel))
    }

    /// Returns whether every change of a device by somebody else is told of.
    fn is_told(&self) -> bool {
        let place = |device| self.implementations.place(device);
        let mut devices = self.expected.keys();

        self.tells
            && self.events.is_some()
            && devices.all(|device| place(device) == Some(Implementation::Meshwire))
    }

    /// Returns what becomes readable when the tunnel service has something to say.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Looks at the devices, if it is time; `None` if it is not.
    pub(super) fn look(&mut self, expected: &Looks) -> Option<Looks> {
        if expected.is_empty() {
            self.events = None;
            self.reported = None;
            self.expected.clear();
            return None;
        }
        if self.expected != *expected {
            self.expected.clone_from(expected);
            self.eager_until = Instant::now() + EAGERNESS;
            self.next_look = self.next_look.min(Instant::now() + EAGER_INTERVAL);
        }
        self.listen();
        if Instant::now() < self.next_look {
            return None;
        }

        let started = Instant::now();
        let (mut looks, mut awaits) = (Looks::new(), false);
        for device in expected.keys() {
            if let Some(status) = self.status(device) {
                awaits |= self.note_handshakes(device, &status);
                looks.insert(device.clone(), Look::of(&status));
            }
        }
        let pause = self.pause(started, awaits);
        self.next_look_at_most = Instant::now() + pause;
        self.next_look = if self.is_told() {
            Instant::now() + TOLD_INTERVAL
        } else {
            self.next_look_at_most
        };

        Some(looks)
    }

    /// Returns how long to wait after a look that began then.
    fn pause(&self, started: Instant, awaits: bool) -> Duration {
        let took = started.elapsed();
        if awaits && started < self.eager_until {
            return (took * EAGER_SHARE).clamp(EAGER_INTERVAL, LONGEST_INTERVAL);
        }

        (took * SHARE).clamp(INTERVAL, LONGEST_INTERVAL)
    }

    /// Compares a look with what the last pass left. The same difference is told once: where a pass
    /// cannot mend it, the reconcilers' own retries and audits go on.
    pub(super) fn judge(&mut self, looks: Option<Looks>) -> BTreeSet<Component> {
        let mut drift = std::mem::take(&mut self.drift);
        let Some(looks) = looks else {
            return drift;
        };
        if looks == self.expected {
            self.reported = None;
        } else if self.reported.as_ref() != Some(&looks) {
            drift.extend([Component::Tunnels, Component::Peers]);
            self.reported = Some(looks);
        }

        drift
    }

    /// Returns our devices as this machine has them; of a tunnel service that is away, none.
    pub(super) fn devices(&mut self) -> BTreeSet<InterfaceName> {
        match self.implementations.list() {
            Ok(devices) => devices.into_keys().collect(),
            Err(error) => {
                tracing::warn!(%error, "The tunnel devices could not be listed");
                BTreeSet::new()
            }
        }
    }

    pub(super) fn take_handshakes(&mut self) -> BTreeSet<(InterfaceName, PublicKey)> {
        std::mem::take(&mut self.handshakes)
    }

    /// Hears what the tunnel service has to say. Whenever it comes or goes, its devices are suspect.
    fn listen(&mut self) {
        if self.is_all_in_kernel() {
            self.events = None;
            return;
        }
        if self.events.is_none() && self.tried.is_none_or(|at| at.elapsed() >= RECONNECT) {
            self.tried = Some(Instant::now());
            match self.subscribe() {
                Ok((events, tells)) => {
                    (self.events, self.tells) = (Some(events), tells);
                    self.suspect();
                }
                Err(error) => tracing::trace!(%error, "The tunnel service is away"),
            }
        }
        while let Some(events) = &mut self.events {
            match events.next(Some(Duration::ZERO)) {
                Ok(Some(event)) => self.hear(event),
                Ok(None) => return,
                Err(error) => {
                    tracing::info!(%error, "The tunnel service went away");
                    self.events = None;
                    self.suspect();
                }
            }
        }
    }

    /// Returns the service's events, and whether configurations are among them.
    fn subscribe(&self) -> Result<(Events, bool), ClientError> {
        match Client::connect(&self.supervisor)?.watch() {
            Err(ClientError::Refused(_)) => {
                Ok((Client::connect(&self.supervisor)?.events()?, false))
            }
            watched => Ok((watched?, true)),
        }
    }

    fn suspect(&mut self) {
        self.drift.extend([Component::Tunnels, Component::Peers]);
        self.next_look = Instant::now();
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::HandshakeCompleted { interface, peer } => {
                let (Ok(device), Ok(peer)) =
                    (interface.parse(), peer.to_string().parse::<PublicKey>())
                else {
                    return;
                };
                self.handshakes.insert((device, peer));
            }
            Event::DeviceEnded { .. } => self.suspect(),
            Event::Lost { .. } => self.next_look = Instant::now(),
            Event::Configured { .. } => {
                self.next_look = self.next_look.min(self.next_look_at_most);
            }
            Event::DeviceCreated { .. }
            | Event::HandshakeAbandoned { .. }
            | Event::EndpointChanged { .. }
            | Event::SessionExpired { .. } => {}
        }
    }

    /// Notes who was heard of since the last look; returns whether somebody of the kernel's never was.
    fn note_handshakes(&mut self, device: &InterfaceName, status: &Status) -> bool {
        let mut awaits = false;
        for peer in &status.peers {
            let at = peer.last_handshake.unwrap_or_default();
            awaits |= at.is_zero();
            let Ok(public) = PublicKey::new(peer.public_key.0) else {
                continue;
            };
            let key = (device.clone(), public);
            if !at.is_zero() && self.told.get(&key) != Some(&at) {
                self.told.insert(key.clone(), at);
                self.handshakes.insert(key);
            }
        }

        awaits && self.implementations.place(device) == Some(Implementation::Kernel)
    }

    fn status(&mut self, device: &InterfaceName) -> Option<Status> {
        let status = self.implementations.read(device);
        if let Err(error) = &status {
            tracing::trace!(%device, %error, "A device could not be looked at");
        }

        status.ok().flatten()
    }
}

impl Look {
    fn of(status: &Status) -> Self {
        Self {
            key: status.public_key.map(|key| key.0),
            port: status.listen_port,
            mark: status.fwmark,
            peers: Fingerprint::of(status),
        }
    }

    /// Returns how a device should look that the plan has so, with these peers.
    pub(super) fn expected(tunnel: &Tunnel, peers: Fingerprint) -> Self {
        Self {
            key: Some(*tunnel.key.as_bytes()),
            port: tunnel.port,
            mark: tunnel.mark,
            peers,
        }
    }
}
