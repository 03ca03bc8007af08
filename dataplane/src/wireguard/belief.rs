//! What a device has, as far as we know: read once, then kept with each change.
//!
//! A device sends no word when somebody else changes its peers, so it is looked at from time to time.
//! The look is compared with what is believed here by a [`Fingerprint`], which costs nothing to keep.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;
use model::{PublicKey, plan::Peer};
use wire::uapi::Status;

/// Where an endpoint is not known.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A device's peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Belief {
    peers: BTreeMap<PublicKey, Held>,
    /// Whose each allowed IP is.
    owners: BTreeMap<IpNet, PublicKey>,
    fingerprint: Fingerprint,
    /// The endpoints that we gave: the plan's, not where the peer has roamed to since.
    given: BTreeMap<PublicKey, SocketAddr>,
}

/// A peer as a device has it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) peer: Peer,
    pub(super) has_endpoint: bool,
    pub(super) has_talked: bool,
}

/// Keys, keepalives and allowed IPs of all peers, whatever their order: the sum of one hash for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    /// Reads it off a whole device.
    pub(crate) fn of(status: &Status) -> Self {
        let mut sum = Self::default();
        for peer in &status.peers {
            let key = peer.public_key.as_bytes();
            sum.add(&(key, peer.persistent_keepalive));
            for net in &peer.allowed_ips {
                sum.add(&(key, net.trunc()));
            }
        }

        sum
    }

    fn add(&mut self, part: &impl Hash) {
        self.0 = self.0.wrapping_add(hash(part));
    }

    fn take(&mut self, part: &impl Hash) {
        self.0 = self.0.wrapping_sub(hash(part));
    }
}

fn hash(part: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    part.hash(&mut hasher);

    hasher.finish()
}

impl Belief {
    /// Begins with what a device says of itself. Endpoints that we gave are remembered across looks.
    pub(super) fn of(status: &Status, former: Option<Self>) -> Self {
        let mut belief = Self::default();
        for peer in &status.peers {
            // A key that is zero cannot be a peer's.
            let Ok(key) = PublicKey::new(peer.public_key.0) else {
                continue;
            };
            belief.put(key, Held::of(peer));
        }
        belief.given = former.map(|former| former.given).unwrap_or_default();
        belief.given.retain(|key, _| belief.peers.contains_key(key));

        belief
    }

    /// Returns a peer.
    pub(super) fn get(&self, key: &PublicKey) -> Option<&Held> {
        self.peers.get(key)
    }

    /// Returns every peer.
    pub(super) fn peers(&self) -> impl Iterator<Item = (&PublicKey, &Held)> {
        self.peers.iter()
    }

    /// Returns whose an allowed IP is.
    pub(super) fn owner(&self, net: &IpNet) -> Option<PublicKey> {
        self.owners.get(net).copied()
    }

    /// Returns the endpoint that we gave to a peer.
    pub(super) fn given(&self, key: &PublicKey) -> Option<SocketAddr> {
        self.given.get(key).copied()
    }

    /// Returns the print of all peers.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Learns that a peer was set: what it got, others have lost.
    pub(super) fn set(&mut self, key: PublicKey, peer: Peer) {
        let has_talked = self.get(&key).is_some_and(|held| held.has_talked);
        self.given.insert(key, peer.endpoint);
        let held = Held {
            peer,
            has_endpoint: true,
            has_talked,
        };
        self.put(key, held);
    }

    /// Learns that a peer was removed.
    pub(super) fn remove(&mut self, key: &PublicKey) {
        self.given.remove(key);
        self.take_out(key);
    }

    /// Notes that an allowed IP was given to a peer, and thereby taken from another.
    fn give(&mut self, net: IpNet, key: PublicKey) {
        let Some(loser) = self.owners.insert(net, key).filter(|owner| *owner != key) else {
            return;
        };
        if let Some(held) = self.peers.get_mut(&loser)
            && held.peer.allowed_ips.remove(&net)
        {
            self.fingerprint.take(&(loser.as_bytes(), net));
        }
    }

    fn put(&mut self, key: PublicKey, held: Held) {
        self.take_out(&key);
        self.fingerprint.add(&(key.as_bytes(), held.peer.keepalive));
        for net in &held.peer.allowed_ips {
            self.give(*net, key);
            self.fingerprint.add(&(key.as_bytes(), *net));
        }
        self.peers.insert(key, held);
    }

    fn take_out(&mut self, key: &PublicKey) {
        let Some(held) = self.peers.remove(key) else {
            return;
        };
        self.fingerprint
            .take(&(key.as_bytes(), held.peer.keepalive));
        for net in &held.peer.allowed_ips {
            self.fingerprint.take(&(key.as_bytes(), *net));
            if self.owners.get(net) == Some(key) {
                self.owners.remove(net);
            }
        }
    }
}

impl Held {
    fn of(peer: &wire::uapi::Peer) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Random changes, and a device that is read whole after each: its twin.
    #[test]
    fn what_is_believed_is_what_a_device_says_after_the_same_changes() {
        let mut random = 7u64;
        let mut draw = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        let (mut belief, mut device) = (Belief::default(), Device::default());

        for _ in 0..2000 {
            let key = key(u8::try_from(draw(5)).unwrap() + 1);
            if draw(4) == 0 {
                belief.remove(&key);
                device.0.remove(&key);
            } else {
                let keepalive = u16::try_from(draw(2)).unwrap();
                let nets = (0..draw(4)).map(|_| net(u8::try_from(draw(6)).unwrap()));
                let peer = Peer {
                    endpoint: NOWHERE,
                    keepalive,
                    allowed_ips: nets.collect(),
                };
                belief.set(key, peer.clone());
                device.set(key, peer);
            }

            let status = device.status();
            assert_eq!(belief.fingerprint(), Fingerprint::of(&status));
            for (key, peer) in &device.0 {
                assert_eq!(belief.get(key).map(|held| &held.peer), Some(peer));
                for net in &peer.allowed_ips {
                    assert_eq!(belief.owner(net), Some(*key));
                }
            }
        }
    }

    #[test]
    fn a_print_tells_an_allowed_ip_that_changed_hands() {
        let mut device = Device::default();
        let peer = |nets: &[u8]| Peer {
            endpoint: NOWHERE,
            keepalive: 0,
            allowed_ips: nets.iter().map(|n| net(*n)).collect(),
        };
        device.set(key(1), peer(&[1]));
        device.set(key(2), peer(&[2]));
        let before = Fingerprint::of(&device.status());

        device.set(key(1), peer(&[2]));
        device.set(key(2), peer(&[1]));

        assert_ne!(Fingerprint::of(&device.status()), before);
    }

    /// Peers as a device keeps them: who is given an allowed IP has it alone.
    #[derive(Default)]
    struct Device(BTreeMap<PublicKey, Peer>);

    impl Device {
        fn set(&mut self, key: PublicKey, peer: Peer) {
            for other in self.0.values_mut() {
                other
                    .allowed_ips
                    .retain(|net| !peer.allowed_ips.contains(net));
            }
            self.0.insert(key, peer);
        }

        fn status(&self) -> Status {
            let peers = self.0.iter().map(|(key, peer)| wire::uapi::Peer {
                public_key: wire_core::PublicKey(*key.as_bytes()),
                has_preshared_key: false,
                endpoint: None,
                last_handshake: None,
                sent_bytes: 0,
                received_bytes: 0,
                persistent_keepalive: peer.keepalive,
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
            });

            Status {
                peers: peers.collect(),
                ..Status::default()
            }
        }
    }

    fn key(seed: u8) -> PublicKey {
        PublicKey::new([seed; 32]).unwrap()
    }

    fn net(n: u8) -> IpNet {
        IpNet::new(Ipv4Addr::new(10, 0, n, 0).into(), 24).unwrap()
    }
}
