//! WireGuard devices, which send no notifications: looked at, and told of by the tunnel service.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use model::{InterfaceName, PublicKey};
use wire::{
    event::Event,
    supervise::{Client, Events},
    uapi::{self, Status},
};

use crate::Component;

/// How often a tunnel service that is away is looked for.
const RECONNECT: Duration = Duration::from_millis(500);

/// How often a device is looked at. At most one part in [`SHARE`] of the time is spent on it, unless
/// that meant to look so rarely that a removed peer is not back within a second.
const INTERVAL: Duration = Duration::from_millis(400);
const LONGEST_INTERVAL: Duration = Duration::from_millis(800);
const SHARE: u32 = 10;

/// Watches the devices of the plan.
pub(super) struct DeviceWatch {
    supervisor: PathBuf,
    uapi: PathBuf,
    events: Option<Events>,
    tried: Option<Instant>,
    next_look: Instant,
    /// How the devices looked last.
    looked: Option<BTreeMap<InterfaceName, Look>>,
    /// The last handshake of each peer that was told of.
    told: BTreeMap<(InterfaceName, PublicKey), Duration>,
    handshakes: BTreeSet<(InterfaceName, PublicKey)>,
    drift: BTreeSet<Component>,
}

/// A device as far as only the plan may change it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    key: Option<[u8; 32]>,
    port: u16,
    mark: u32,
    peers: BTreeMap<[u8; 32], (u16, BTreeSet<IpNet>)>,
}

impl DeviceWatch {
    pub(super) fn new(supervisor: PathBuf, uapi: PathBuf) -> Self {
        Self {
            supervisor,
            uapi,
            events: None,
            tried: None,
            next_look: Instant::now(),
            looked: None,
            told: BTreeMap::new(),
            handshakes: BTreeSet::new(),
            drift: BTreeSet::new(),
        }
    }

    /// Returns what becomes readable when the tunnel service has something to say.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Looks at the devices, if it is time; `None` if it is not.
    pub(super) fn look(
        &mut self,
        devices: &BTreeSet<InterfaceName>,
    ) -> Option<BTreeMap<InterfaceName, Look>> {
        if devices.is_empty() {
            self.events = None;
            self.looked = None;
            return None;
        }
        self.listen();
        if Instant::now() < self.next_look {
            return None;
        }

        let started = Instant::now();
        let mut looks = BTreeMap::new();
        for device in devices {
            if let Some(status) = self.status(device) {
                self.note_handshakes(device, &status);
                looks.insert(device.clone(), Look::new(&status));
            }
        }
        let pause = (started.elapsed() * SHARE).clamp(INTERVAL, LONGEST_INTERVAL);
        self.next_look = Instant::now() + pause;

        Some(looks)
    }

    /// Compares a look with the last one. Whoever changed the devices, a pass or somebody else, the
    /// next pass looks for itself; where it finds nothing to do, the look after it is the same.
    pub(super) fn judge(
        &mut self,
        looks: Option<BTreeMap<InterfaceName, Look>>,
    ) -> BTreeSet<Component> {
        let mut drift = std::mem::take(&mut self.drift);
        if looks.is_some() && looks != self.looked {
            drift.extend([Component::Tunnels, Component::Peers]);
            self.looked = looks;
        }

        drift
    }

    /// Returns the devices that the tunnel service has; none where it is away.
    pub(super) fn service_devices(&self) -> BTreeSet<InterfaceName> {
        match Client::connect(&self.supervisor).and_then(|mut client| client.list()) {
            Ok(devices) => devices
                .into_iter()
                .filter_map(|each| each.name.parse().ok())
                .collect(),
            Err(error) => {
                tracing::debug!(%error, "The tunnel service is away");
                BTreeSet::new()
            }
        }
    }

    pub(super) fn take_handshakes(&mut self) -> BTreeSet<(InterfaceName, PublicKey)> {
        std::mem::take(&mut self.handshakes)
    }

    /// Hears what the tunnel service has to say. Whenever it comes or goes, its devices are suspect.
    fn listen(&mut self) {
        if self.events.is_none() && self.tried.is_none_or(|at| at.elapsed() >= RECONNECT) {
            self.tried = Some(Instant::now());
            match Client::connect(&self.supervisor).and_then(Client::events) {
                Ok(events) => {
                    self.events = Some(events);
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
            Event::DeviceCreated { .. }
            | Event::HandshakeAbandoned { .. }
            | Event::EndpointChanged { .. }
            | Event::SessionExpired { .. } => {}
        }
    }

    fn note_handshakes(&mut self, device: &InterfaceName, status: &Status) {
        for peer in &status.peers {
            let at = peer.last_handshake.unwrap_or_default();
            let Ok(public) = PublicKey::new(peer.public_key.0) else {
                continue;
            };
            let key = (device.clone(), public);
            if !at.is_zero() && self.told.get(&key) != Some(&at) {
                self.told.insert(key.clone(), at);
                self.handshakes.insert(key);
            }
        }
    }

    fn status(&self, device: &InterfaceName) -> Option<Status> {
        let status =
            uapi::Client::connect(&self.uapi, device.as_str()).and_then(|mut client| client.get());
        if let Err(error) = &status {
            tracing::trace!(%device, %error, "A device could not be looked at");
        }

        status.ok()
    }
}

impl Look {
    fn new(status: &Status) -> Self {
        let peers = status.peers.iter().map(|peer| {
            let allowed = peer.allowed_ips.iter().copied().collect();

            (peer.public_key.0, (peer.persistent_keepalive, allowed))
        });

        Self {
            key: status.public_key.map(|key| key.0),
            port: status.listen_port,
            mark: status.fwmark,
            peers: peers.collect(),
        }
    }
}
