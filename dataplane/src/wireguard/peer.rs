//! WireGuard peers, changed one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use model::{Change, InterfaceName, PublicKey, plan::Peer};
use wire::uapi::{Configuration, Status};
use wire_core::{AllowedIpChange, PeerChange, PeerUpdate};

use super::{Backend, BackendError, TunnelError};
use crate::{Absent, Target};

/// Peers in one request: keeps a device's lock short.
const PEERS_PER_REQUEST: usize = 500;

/// Where an endpoint is not known.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Keeps the peers of the plan's devices.
pub struct PeerTarget {
    backend: Box<dyn Backend>,
    devices: BTreeSet<InterfaceName>,
    /// What the devices have, as far as we know.
    held: BTreeMap<Key, Held>,
    /// The endpoints that we gave: the plan's, not where the peer has roamed to since.
    given: BTreeMap<Key, SocketAddr>,
}

/// A peer as a device has it.
#[derive(Clone, Debug)]
struct Held {
    peer: Peer,
    has_endpoint: bool,
    has_talked: bool,
}

/// A peer's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatistics {
    /// The device.
    pub device: InterfaceName,
    /// The peer.
    pub peer: PublicKey,
    /// Where it is now.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed, since the Unix epoch.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it, UDP payload.
    pub received: u64,
    /// Bytes sent to it, UDP payload.
    pub sent: u64,
}

type Key = (InterfaceName, PublicKey);

impl PeerTarget {
    /// Creates a target over an implementation.
    pub fn new(backend: Box<dyn Backend>) -> Self {
        Self {
            backend,
            devices: BTreeSet::new(),
            held: BTreeMap::new(),
            given: BTreeMap::new(),
        }
    }

    /// Says whose peers are ours: all of these devices'.
    pub fn own(&mut self, devices: impl IntoIterator<Item = InterfaceName>) {
        self.devices = devices.into_iter().collect();
    }

    /// Reads every peer's counters, endpoint and last handshake. Devices that are away have none.
    pub fn statistics(&mut self) -> Result<Vec<PeerStatistics>, TunnelError> {
        let mut statistics = Vec::new();
        for (device, status) in self.read()? {
            statistics.extend(of_device(&device, &status));
        }

        Ok(statistics)
    }

    fn read(&mut self) -> Result<Vec<(InterfaceName, Status)>, TunnelError> {
        let mut read = Vec::new();
        for device in &self.devices {
            match self.backend.read(device) {
                Ok(Some(status)) => read.push((device.clone(), status)),
                Ok(None) | Err(BackendError::Away(_)) => {}
                Err(error) => return Err(TunnelError::Read(device.to_string(), error)),
            }
        }

        Ok(read)
    }

    /// Returns what a peer should be told, or nothing.
    fn update(&self, key: &Key, wanted: &Peer) -> Option<PeerUpdate> {
        let held = self.held.get(key);
        let keepalive = held.map(|held| held.peer.keepalive);
        let had = held.map(|held| &held.peer.allowed_ips);
        let update = PeerUpdate {
            endpoint: self.needs_endpoint(key, wanted).then_some(wanted.endpoint),
            persistent_keepalive: (keepalive != Some(wanted.keepalive)).then_some(wanted.keepalive),
            allowed_ips: wanted
                .allowed_ips
                .iter()
                .filter(|net| had.is_none_or(|had| !had.contains(net)))
                .map(|net| AllowedIpChange::Add(*net))
                .collect(),
            ..PeerUpdate::default()
        };
        let says_something = held.is_none()
            || update.endpoint.is_some()
            || update.persistent_keepalive.is_some()
            || !update.allowed_ips.is_empty();

        says_something.then_some(update)
    }

    /// An endpoint is given to who has none, when the plan has another than before, and after a restart
    /// to who has never been talked to. Else roaming is WireGuard's.
    fn needs_endpoint(&self, key: &Key, wanted: &Peer) -> bool {
        match (self.held.get(key), self.given.get(key)) {
            (None, _) => true,
            (Some(held), _) if !held.has_endpoint => true,
            (Some(_), Some(given)) => *given != wanted.endpoint,
            (Some(held), None) => !held.has_talked && held.peer.endpoint != wanted.endpoint,
        }
    }

    /// Returns the allowed IPs that a peer has and should not have.
    fn surplus(&self, key: &Key, wanted: &Peer) -> Option<PeerUpdate> {
        let had = &self.held.get(key)?.peer.allowed_ips;
        let removed: Vec<_> = had
            .difference(&wanted.allowed_ips)
            .map(|net| AllowedIpChange::Remove(*net))
            .collect();

        (!removed.is_empty()).then(|| PeerUpdate {
            allowed_ips: removed,
            ..PeerUpdate::default()
        })
    }

    /// Changes one device: first who gets something, then who loses something, so that what moves
    /// between peers is never with nobody.
    fn write(
        &mut self,
        device: &InterfaceName,
        changes: &[&Change<Key, Peer>],
    ) -> Result<(), BackendError> {
        let mut told = Vec::new();
        for change in changes {
            if let Change::Set(key, peer) = change {
                let update = self.update(key, peer).map(PeerChange::Upsert);
                told.extend(update.map(|update| (wire_key(&key.1), update)));
            }
        }
        for change in changes {
            match change {
                Change::Set(key, peer) => {
                    let surplus = self.surplus(key, peer).map(PeerChange::Update);
                    told.extend(surplus.map(|update| (wire_key(&key.1), update)));
                }
                Change::Unset(key) => told.push((wire_key(&key.1), PeerChange::Remove)),
            }
        }

        let mut told = told.into_iter().peekable();
        while told.peek().is_some() {
            let peers = told.by_ref().take(PEERS_PER_REQUEST).collect();
            self.backend.write(
                device,
                &Configuration {
                    peers,
                    ..Configuration::default()
                },
            )?;
        }

        Ok(())
    }

    fn learn(&mut self, changes: &[&Change<Key, Peer>]) {
        for change in changes {
            match change {
                Change::Set(key, peer) => {
                    let has_talked = self.held.get(key).is_some_and(|held| held.has_talked);
                    let held = Held {
                        peer: peer.clone(),
                        has_endpoint: true,
                        has_talked,
                    };
                    self.held.insert(key.clone(), held);
                    self.given.insert(key.clone(), peer.endpoint);
                }
                Change::Unset(key) => {
                    self.held.remove(key);
                    self.given.remove(key);
                }
            }
        }
    }
}

impl Target for PeerTarget {
    type Key = Key;
    type Row = Peer;
    type Error = TunnelError;

    fn observe(&mut self) -> Result<BTreeMap<Key, Peer>, TunnelError> {
        self.held.clear();
        for (device, status) in self.read()? {
            for peer in &status.peers {
                // A key that is zero cannot be a peer's.
                let Ok(public) = PublicKey::new(peer.public_key.0) else {
                    continue;
                };
                self.held.insert((device.clone(), public), Held::new(peer));
            }
        }
        self.given.retain(|key, _| self.held.contains_key(key));

        Ok(self
            .held
            .iter()
            .map(|(key, held)| {
                let mut peer = held.peer.clone();
                if let (true, Some(given)) = (held.has_endpoint, self.given.get(key)) {
                    peer.endpoint = *given;
                }

                (key.clone(), peer)
            })
            .collect())
    }

    fn apply(&mut self, changes: &[Change<Key, Peer>]) -> Result<Vec<Absent<Key>>, TunnelError> {
        let mut by_device: BTreeMap<&InterfaceName, Vec<&Change<Key, Peer>>> = BTreeMap::new();
        for change in changes {
            let (Change::Set((device, _), _) | Change::Unset((device, _))) = change;
            by_device.entry(device).or_default().push(change);
        }

        let mut absent = Vec::new();
        for (device, changes) in by_device {
            match self.write(device, &changes) {
                Ok(()) => self.learn(&changes),
                Err(BackendError::Away(reason)) => {
                    // Whoever comes back may have forgotten everything.
                    self.held.retain(|(held, _), _| held != device);
                    self.given.retain(|(given, _), _| given != device);
                    absent.extend(missing(&changes, &reason));
                }
                Err(error) => return Err(TunnelError::Write(device.clone(), error)),
            }
        }

        Ok(absent)
    }
}

impl Held {
    fn new(peer: &wire::uapi::Peer) -> Self {
        Self {
            peer: Peer {
                endpoint: peer.endpoint.unwrap_or(NOWHERE),
                keepalive: peer.persistent_keepalive,
                allowed_ips: peer.allowed_ips.iter().map(IpNet::trunc).collect(),
            },
            has_endpoint: peer.endpoint.is_some(),
            has_talked: peer.last_handshake.is_some_and(|at| !at.is_zero()),
        }
    }
}

/// Says of rows to be set that they could not be; a peer of a device that is away is gone with it.
fn missing(changes: &[&Change<Key, Peer>], reason: &str) -> Vec<Absent<Key>> {
    changes
        .iter()
        .filter_map(|change| match change {
            Change::Set(key, _) => {
                let reason = format!("peers of {}: {reason}", key.0);
                Some(Absent {
                    key: key.clone(),
                    reason,
                })
            }
            Change::Unset(_) => None,
        })
        .collect()
}

/// Reads the counters of a device's peers.
pub(crate) fn of_device(device: &InterfaceName, status: &Status) -> Vec<PeerStatistics> {
    status
        .peers
        .iter()
        .filter_map(|peer| {
            Some(PeerStatistics {
                device: device.clone(),
                peer: PublicKey::new(peer.public_key.0).ok()?,
                endpoint: peer.endpoint,
                last_handshake: peer.last_handshake.filter(|at| !at.is_zero()),
                received: peer.received_bytes,
                sent: peer.sent_bytes,
            })
        })
        .collect()
}

fn wire_key(key: &PublicKey) -> wire_core::PublicKey {
    wire_core::PublicKey(*key.as_bytes())
}
