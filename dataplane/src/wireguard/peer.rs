//! WireGuard peers, changed one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use ipnet::IpNet;
use model::{Change, InterfaceName, PublicKey, plan::Peer};
use wire::uapi::{Configuration, Status};
use wire_core::{AllowedIpChange, PeerChange, PeerUpdate};

use super::{BackendError, Fingerprint, Implementations, TunnelError, belief::Belief};
use crate::{Absent, Target};

/// Peers in one request: keeps a device's lock short.
const PEERS_PER_REQUEST: usize = 500;

/// Keeps the peers of the plan's devices. A change costs what it says, however many peers there are.
pub struct PeerTarget {
    implementations: Implementations,
    devices: BTreeSet<InterfaceName>,
    /// What the devices have, as far as we know.
    beliefs: BTreeMap<InterfaceName, Belief>,
    /// Peers that no handshake was ever completed with, as of the last look.
    silent: BTreeMap<InterfaceName, Vec<PublicKey>>,
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
    /// Creates a target over the machine's implementations.
    pub fn new(implementations: Implementations) -> Self {
        Self {
            implementations,
            devices: BTreeSet::new(),
            beliefs: BTreeMap::new(),
            silent: BTreeMap::new(),
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

    /// Returns what each device is believed to have.
    pub(crate) fn fingerprints(&self) -> BTreeMap<InterfaceName, Fingerprint> {
        let beliefs = self.beliefs.iter();

        beliefs
            .map(|(device, belief)| (device.clone(), belief.fingerprint()))
            .collect()
    }

    /// Begins the handshakes that nothing else begins: with every peer of these devices, which lost
    /// their sessions, and with those that the last look found silent. The kernel gives a peer up after
    /// 90 seconds (`MAX_TIMER_HANDSHAKES` of its messages.h) until there is a packet for it.
    pub(crate) fn greet(&mut self, risen: impl IntoIterator<Item = InterfaceName>) {
        let mut greeted = std::mem::take(&mut self.silent);
        for device in risen {
            if let Some(belief) = self.beliefs.get(&device) {
                let everyone = belief.peers().map(|(key, _)| *key);
                greeted.insert(device, everyone.collect());
            }
        }
        for (device, keys) in greeted {
            self.greet_peers(&device, &keys);
        }
    }

    fn greet_peers(&mut self, device: &InterfaceName, keys: &[PublicKey]) {
        let Some(belief) = self.beliefs.get(device) else {
            return;
        };
        let held = keys.iter().filter_map(|key| {
            let held = belief.get(key)?;
            held.has_endpoint
                .then(|| (wire_key(key), held.peer.keepalive))
        });
        let peers: Vec<_> = held.collect();
        if peers.is_empty() {
            return;
        }
        if let Err(error) = self.implementations.greet(device, &peers) {
            tracing::warn!(%device, %error, "Peers could not be greeted; a packet will do it");
        }
    }

    fn read(&mut self) -> Result<Vec<(InterfaceName, Status)>, TunnelError> {
        let mut read = Vec::new();
        for device in &self.devices {
            match self.implementations.read(device) {
                Ok(Some(status)) => read.push((device.clone(), status)),
                Ok(None) | Err(BackendError::Away(_)) => {}
                Err(error) => return Err(TunnelError::Read(device.to_string(), error)),
            }
        }

        Ok(read)
    }

    /// Changes one device: first who gets something, then who loses something, so that what moves
    /// between peers is never with nobody.
    fn write(
        &mut self,
        device: &InterfaceName,
        changes: &[&Change<Key, Peer>],
    ) -> Result<(), BackendError> {
        let belief = self.beliefs.entry(device.clone()).or_default();
        let told = requests(belief, changes);
        let mut told = told.into_iter().peekable();
        while told.peek().is_some() {
            let peers = told.by_ref().take(PEERS_PER_REQUEST).collect();
            let configuration = Configuration {
                peers,
                ..Configuration::default()
            };
            self.implementations.write(device, &configuration)?;
        }

        Ok(())
    }
}

/// Returns what a device must be told, and believes from now on that it was.
fn requests(
    belief: &mut Belief,
    changes: &[&Change<Key, Peer>],
) -> Vec<(wire_core::PublicKey, PeerChange)> {
    let mut told = Vec::new();
    let (mut lost, mut removed) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Set((_, key), peer) => {
                let update = update(belief, key, peer).map(PeerChange::Upsert);
                told.extend(update.map(|update| (wire_key(key), update)));
                lost.extend(surplus(belief, key, peer).map(|nets| (*key, nets)));
                belief.set(*key, peer.clone());
            }
            Change::Unset((_, key)) => {
                removed.push((wire_key(key), PeerChange::Remove));
                belief.remove(key);
            }
        }
    }
    // What another peer was given meanwhile is nobody's to lose.
    for (key, nets) in lost {
        let nets = nets.into_iter().filter(|net| belief.owner(net).is_none());
        let changes: Vec<_> = nets.map(AllowedIpChange::Remove).collect();
        if !changes.is_empty() {
            let update = PeerUpdate {
                allowed_ips: changes,
                ..PeerUpdate::default()
            };
            told.push((wire_key(&key), PeerChange::Update(update)));
        }
    }
    told.extend(removed);

    told
}

/// Returns what a peer should be told, or nothing.
fn update(belief: &Belief, key: &PublicKey, wanted: &Peer) -> Option<PeerUpdate> {
    let held = belief.get(key);
    let keepalive = held.map(|held| held.peer.keepalive);
    let had = held.map(|held| &held.peer.allowed_ips);
    let update = PeerUpdate {
        endpoint: needs_endpoint(belief, key, wanted).then_some(wanted.endpoint),
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
fn needs_endpoint(belief: &Belief, key: &PublicKey, wanted: &Peer) -> bool {
    match (belief.get(key), belief.given(key)) {
        (None, _) => true,
        (Some(held), _) if !held.has_endpoint => true,
        (Some(_), Some(given)) => given != wanted.endpoint,
        (Some(held), None) => !held.has_talked && held.peer.endpoint != wanted.endpoint,
    }
}

/// Returns the allowed IPs that a peer has and should not have.
fn surplus(belief: &Belief, key: &PublicKey, wanted: &Peer) -> Option<Vec<IpNet>> {
    let had = &belief.get(key)?.peer.allowed_ips;
    let surplus: Vec<_> = had.difference(&wanted.allowed_ips).copied().collect();

    (!surplus.is_empty()).then_some(surplus)
}

impl Target for PeerTarget {
    type Key = Key;
    type Row = Peer;
    type Error = TunnelError;

    fn observe(&mut self) -> Result<BTreeMap<Key, Peer>, TunnelError> {
        let read = self.read()?;
        let mut former = std::mem::take(&mut self.beliefs);
        let mut rows = BTreeMap::new();
        for (device, status) in read {
            let belief = Belief::of(&status, former.remove(&device));
            for (key, held) in belief.peers() {
                let mut peer = held.peer.clone();
                if let (true, Some(given)) = (held.has_endpoint, belief.given(key)) {
                    peer.endpoint = given;
                }
                rows.insert((device.clone(), *key), peer);
            }
            let silent = belief.peers().filter(|(_, held)| !held.has_talked);
            let silent = silent.map(|(key, _)| *key).collect();
            self.silent.insert(device.clone(), silent);
            self.beliefs.insert(device, belief);
        }

        Ok(rows)
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
                Ok(()) => {}
                Err(error) => {
                    // What was written is not known; who comes back may have forgotten everything.
                    self.beliefs.remove(device);
                    let BackendError::Away(reason) = error else {
                        return Err(TunnelError::Write(device.clone(), error));
                    };
                    absent.extend(missing(&changes, &reason));
                }
            }
        }

        Ok(absent)
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
fn of_device(device: &InterfaceName, status: &Status) -> Vec<PeerStatistics> {
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
