//! What is configured: key, MTU, peers, allowed IPs, up and down.
use crate::device::Device;
use crate::peer::Peer;
use crate::timer::Timer;
use crate::tunnel::{Link, Tunnel};
use crate::{
    AllowedIpChange, Endpoint, Now, PeerChange, PeerId, PeerOutcome, PeerStatus, PeerUpdate,
    PrivateKey, PublicKey, limit,
};
use ipnet::IpNet;

impl Tunnel {
    /// Sets or takes away our key. Sessions end, our own peer is removed, and every peer with an
    /// endpoint is greeted with a handshake, paced to 500 a second. The same key again changes
    /// nothing.
    pub fn set_private_key(&mut self, key: Option<PrivateKey>, now: Now) {
        if self.private_key() == key.as_ref() {
            return;
        }
        self.device.set_identity(key);
        self.doorkeeper.set_identity(self.device.identity.as_ref());
        if let Some(own) = self.public_key().and_then(|key| self.find_peer(&key)) {
            self.remove(own);
        }
        for id in self.roster.ids() {
            self.with_peer(id, |peer, device| peer.adopt_identity(device));
            self.greet(id, now);
        }
    }

    /// Our private key, for `wg showconf`.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.device
            .identity
            .as_ref()
            .map(|identity| &identity.private)
    }

    /// Our public key.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.device
            .identity
            .as_ref()
            .map(|identity| identity.public)
    }

    /// The interface's MTU, which the padding of waiting packets never exceeds; 1420 until set.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.device.mtu = mtu;
    }

    /// The interface came up: every peer with an endpoint is greeted with a handshake, paced to 500
    /// a second. A new tunnel is up.
    pub fn set_up(&mut self, now: Now) {
        if self.link == Link::Up {
            return;
        }
        self.link = Link::Up;
        for id in self.roster.ids() {
            self.greet(id, now);
        }
    }

    /// The interface went down: sessions, timers and waiting packets end, and nothing is sent or
    /// taken.
    pub fn set_down(&mut self) {
        self.link = Link::Down;
        for id in self.roster.ids() {
            self.with_peer(id, Peer::stop);
        }
        self.device.discard_transmits();
    }

    /// Answers initiations with cookies only. The tunnel also does so by itself while more than
    /// 512 handshake messages arrive within a second.
    pub fn set_under_load(&mut self, under_load: bool) {
        self.doorkeeper.set_under_load(under_load);
    }

    /// Creates, changes or removes a peer. A new peer with an endpoint is greeted with a
    /// handshake, paced to 500 a second over all peers.
    pub fn configure_peer(&mut self, key: PublicKey, change: PeerChange, now: Now) -> PeerOutcome {
        if self.public_key() == Some(key) {
            return PeerOutcome::OwnKey;
        }
        let known = self.find_peer(&key);
        match (change, known) {
            (PeerChange::Remove, Some(id)) => {
                self.remove(id);
                PeerOutcome::Removed
            }
            (PeerChange::Remove | PeerChange::Update(_), None) => PeerOutcome::Absent,
            (PeerChange::Upsert(update) | PeerChange::Update(update), Some(id)) => {
                self.update(id, update, now);
                PeerOutcome::Configured(id)
            }
            (PeerChange::Upsert(_), None) if self.roster.len() >= limit::PEERS => {
                PeerOutcome::TooMany
            }
            (PeerChange::Upsert(update), None) => {
                let id = self.roster.insert(|id| Peer::new(id, key, &self.device));
                self.update(id, update, now);
                PeerOutcome::Configured(id)
            }
        }
    }

    /// Removes all peers (UAPI `replace_peers`).
    pub fn remove_peers(&mut self) {
        for id in self.roster.ids() {
            self.remove(id);
        }
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus<'_>> {
        self.roster.iter().map(Peer::status)
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, id: PeerId) -> Option<PeerStatus<'_>> {
        self.roster.get(id).map(Peer::status)
    }

    /// The key of a peer.
    #[must_use]
    pub fn peer_key(&self, id: PeerId) -> Option<PublicKey> {
        self.roster.get(id).map(|peer| peer.public_key)
    }

    /// A peer by its key.
    #[must_use]
    pub fn find_peer(&self, key: &PublicKey) -> Option<PeerId> {
        self.roster.find(key)
    }

    /// Forgets at which of our addresses a peer reached us: the next packet to it leaves from one
    /// that the kernel chooses. For when sending failed because the address is gone.
    pub fn forget_local(&mut self, peer: PeerId) {
        self.with_peer(peer, |peer, _| peer.forget_local());
    }

    fn update(&mut self, id: PeerId, update: PeerUpdate, now: Now) {
        let first_endpoint = update.endpoint.is_some()
            && self
                .roster
                .get(id)
                .is_some_and(|peer| peer.endpoint.is_none());
        if update.replace_allowed_ips {
            self.release_allowed_ips(id);
        }
        for change in update.allowed_ips {
            match change {
                AllowedIpChange::Add(network) => self.assign(network, id),
                AllowedIpChange::Remove(network) => self.withdraw(network, id),
            }
        }
        self.with_peer(id, |peer, _| {
            if let Some(key) = update.preshared_key {
                peer.preshared_key = key;
            }
            if let Some(remote) = update.endpoint {
                peer.endpoint = Some(Endpoint::from(remote));
            }
        });
        if first_endpoint {
            self.greet(id, now);
        }
        if let Some(seconds) = update.persistent_keepalive {
            let link = self.link;
            self.with_peer(id, |peer, _| set_keepalive(peer, seconds, link, now));
        }
    }

    /// Gives a peer its turn to be greeted.
    fn greet(&mut self, id: PeerId, now: Now) {
        if self.link == Link::Down || self.device.identity.is_none() {
            return;
        }
        self.with_peer(id, |peer, device| {
            if peer.endpoint.is_some() && !peer.timers.is_set(Timer::Greeting) {
                peer.timers.set(Timer::Greeting, device.next_greeting(now));
            }
        });
    }

    fn assign(&mut self, network: IpNet, id: PeerId) {
        let network = network.trunc();
        let before = self
            .allowed
            .insert(network, id)
            .filter(|before| *before != id);
        if let Some(loser) = before.and_then(|before| self.roster.get_mut(before)) {
            loser.allowed_ips.remove(&network);
        }
        if let Some(peer) = self.roster.get_mut(id) {
            peer.allowed_ips.insert(network);
        }
    }

    fn withdraw(&mut self, network: IpNet, id: PeerId) {
        let network = network.trunc();
        let owned = self
            .roster
            .get_mut(id)
            .is_some_and(|peer| peer.allowed_ips.remove(&network));
        if owned {
            self.allowed.remove(network);
        }
    }

    fn release_allowed_ips(&mut self, id: PeerId) {
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        for network in std::mem::take(&mut peer.allowed_ips) {
            self.allowed.remove(network);
        }
    }

    fn remove(&mut self, id: PeerId) {
        self.release_allowed_ips(id);
        self.with_peer(id, |peer, device: &mut Device| peer.stop(device));
        self.roster.remove(id);
    }
}

/// Turned on, the first one is due at once, as in the kernel; unless a greeting is, which waits its
/// turn among many.
fn set_keepalive(peer: &mut Peer, seconds: u16, link: Link, now: Now) {
    let before = std::mem::replace(&mut peer.persistent_keepalive, seconds);
    if seconds == 0 {
        peer.timers.clear(Timer::PersistentKeepalive);
    } else if link == Link::Down || before != 0 {
        // The timer follows the traffic.
    } else if peer.timers.is_set(Timer::Greeting) {
        peer.traversed(now);
    } else {
        peer.timers.set(Timer::PersistentKeepalive, now.instant);
    }
}
