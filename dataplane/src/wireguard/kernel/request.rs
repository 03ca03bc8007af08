//! What the kernel's WireGuard is told: settings, and peers in parts that fit a message.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::InterfaceName;
use wire::uapi::Configuration;
use wire_core::{AllowedIpChange, PeerChange, PeerUpdate, PresharedKey, PublicKey};

use crate::netlink::{Family, Message};

/// `WG_CMD_GET_DEVICE`.
pub(super) const GET_DEVICE: u8 = 0;

/// `WG_CMD_SET_DEVICE`.
const SET_DEVICE: u8 = 1;

/// Attributes of a device (`WGDEVICE_A_*`).
pub(super) mod device {
    pub(crate) const NAME: u16 = 2;
    pub(crate) const PRIVATE_KEY: u16 = 3;
    pub(crate) const PUBLIC_KEY: u16 = 4;
    pub(crate) const LISTEN_PORT: u16 = 6;
    pub(crate) const MARK: u16 = 7;
    pub(crate) const PEERS: u16 = 8;
}

/// Attributes of a peer (`WGPEER_A_*`).
pub(super) mod peer {
    pub(crate) const PUBLIC_KEY: u16 = 1;
    pub(crate) const PRESHARED_KEY: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const ENDPOINT: u16 = 4;
    pub(crate) const KEEPALIVE: u16 = 5;
    pub(crate) const LAST_HANDSHAKE: u16 = 6;
    pub(crate) const RECEIVED: u16 = 7;
    pub(crate) const SENT: u16 = 8;
    pub(crate) const ALLOWED_IPS: u16 = 9;
}

/// What becomes of a peer (`WGPEER_F_*`).
mod fate {
    pub(super) const REMOVE: u32 = 1;
    pub(super) const REPLACE_ALLOWED_IPS: u32 = 2;
    pub(super) const UPDATE_ONLY: u32 = 4;
}

/// Attributes of an allowed IP (`WGALLOWEDIP_A_*`).
pub(super) mod allowed_ip {
    pub(crate) const FAMILY: u16 = 1;
    pub(crate) const ADDRESS: u16 = 2;
    pub(crate) const MASK: u16 = 3;
}

/// How many bytes of peers go in one message: the nest's length is said in 16 bits.
const PART: usize = 60_000;

/// The bytes of an allowed IP at most: its nest, family, address and mask.
const ALLOWED_IP: usize = 4 + 8 + 20 + 8;

/// The bytes of a message apart from its peers: headers, name, settings.
const FRAME: usize = 160;

/// A keepalive that is turned on for as long as it takes to read the message.
const AT_ONCE: u16 = 25;

/// Whom an allowed IP is given to when nobody shall have it, just before that peer is removed.
///
/// Before Linux 6.16 an allowed IP can only be taken from a peer with all its others, which then are
/// with nobody for a moment; giving it to another peer takes exactly this one. The key is the SHA-256
/// of `meshd: the peer of what is nobody's`: nobody has its private half.
const NOBODY: PublicKey = PublicKey([
    0xcf, 0xd9, 0x48, 0xd3, 0xd9, 0xae, 0x4b, 0x77, 0xaf, 0xf2, 0x30, 0x3e, 0xe3, 0x9b, 0x3f, 0xf2,
    0x39, 0x81, 0xa0, 0xa8, 0xe4, 0xe4, 0x42, 0x17, 0x0e, 0x62, 0x00, 0x7e, 0x34, 0x8f, 0x85, 0xc2,
]);

/// Writes one change as messages, in order, each small enough to be said.
pub(super) struct Writer<'a> {
    family: Family,
    device: String,
    done: Vec<Message>,
    /// Entries of peers that go together, and the bytes that they take.
    entries: Vec<Entry<'a>>,
    size: usize,
}

/// One entry of a message's list of peers.
struct Entry<'a> {
    key: PublicKey,
    flags: u32,
    preshared_key: Option<&'a PresharedKey>,
    endpoint: Option<SocketAddr>,
    keepalive: Option<u16>,
    allowed_ips: Vec<IpNet>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(family: Family, device: &InterfaceName) -> Self {
        Self {
            family,
            device: device.to_string(),
            done: Vec::new(),
            entries: Vec::new(),
            size: 0,
        }
    }

    /// Says what a configuration says of the device itself. `replace_peers` is never said.
    pub(super) fn settings(&mut self, configuration: &Configuration) {
        if configuration.private_key.is_none()
            && configuration.listen_port.is_none()
            && configuration.fwmark.is_none()
        {
            return;
        }
        let mut message = self.message(0);
        match &configuration.private_key {
            Some(Some(key)) => message.put(device::PRIVATE_KEY, key.expose()),
            Some(None) => message.put(device::PRIVATE_KEY, &[0; 32]),
            None => {}
        }
        if let Some(port) = configuration.listen_port {
            message.put_u16(device::LISTEN_PORT, port);
        }
        if let Some(mark) = configuration.fwmark {
            message.put_u32(device::MARK, mark);
        }
        self.done.push(message);
    }

    /// Says what becomes of a peer. One that gets an endpoint and a keepalive is greeted.
    pub(super) fn peer(&mut self, key: &PublicKey, change: &'a PeerChange) {
        match change {
            PeerChange::Remove => self.push(Entry::of(*key, fate::REMOVE)),
            PeerChange::Upsert(update) => self.update(*key, 0, update),
            PeerChange::Update(update) => self.update(*key, fate::UPDATE_ONLY, update),
        }
    }

    /// Turns a peer's keepalive on, which sends one at once, or begins a handshake where there is no
    /// session; then makes it what it should be.
    pub(super) fn greet(&mut self, key: &PublicKey, keepalive: u16) {
        for seconds in [0, AT_ONCE, keepalive] {
            self.push(Entry {
                keepalive: Some(seconds),
                ..Entry::of(*key, fate::UPDATE_ONLY)
            });
        }
    }

    pub(super) fn finish(mut self) -> Vec<Message> {
        self.flush();

        self.done
    }

    fn update(&mut self, key: PublicKey, flags: u32, update: &'a PeerUpdate) {
        let replaces = if update.replace_allowed_ips {
            fate::REPLACE_ALLOWED_IPS
        } else {
            0
        };
        let keepalive = update.persistent_keepalive;
        let is_greeted = update.endpoint.is_some() && keepalive == Some(0);
        self.push(Entry {
            preshared_key: update.preshared_key.as_ref(),
            endpoint: update.endpoint,
            keepalive: if is_greeted { Some(AT_ONCE) } else { keepalive },
            ..Entry::of(key, flags | replaces)
        });
        for change in &update.allowed_ips {
            match change {
                AllowedIpChange::Add(net) => self.allow(key, flags, net.trunc()),
                AllowedIpChange::Remove(net) => self.allow(NOBODY, 0, net.trunc()),
            }
        }
        let takes = |change: &AllowedIpChange| matches!(change, AllowedIpChange::Remove(_));
        if update.allowed_ips.iter().any(takes) {
            self.push(Entry::of(NOBODY, fate::REMOVE));
        }
        if is_greeted {
            self.push(Entry {
                keepalive: Some(0),
                ..Entry::of(key, fate::UPDATE_ONLY)
            });
        }
    }

    /// Gives an allowed IP to a peer, in the entry just written where that is its own.
    fn allow(&mut self, key: PublicKey, flags: u32, net: IpNet) {
        let last = self.entries.last();
        let continues =
            last.is_some_and(|entry| entry.key == key && entry.flags & fate::REMOVE == 0);
        if !continues || self.size + ALLOWED_IP > PART {
            self.push(Entry::of(key, flags));
        }
        if let Some(entry) = self.entries.last_mut() {
            entry.allowed_ips.push(net);
            self.size += ALLOWED_IP;
        }
    }

    fn push(&mut self, entry: Entry<'a>) {
        let size = entry.size();
        if self.size + size + ALLOWED_IP > PART {
            self.flush();
        }
        self.size += size;
        self.entries.push(entry);
    }

    fn flush(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        let entries = std::mem::take(&mut self.entries);
        let size = std::mem::take(&mut self.size);
        let mut message = self.message(size);
        message.nest(device::PEERS, |peers| {
            for entry in &entries {
                peers.nest(0, |message| entry.encode(message));
            }
        });
        self.done.push(message);
    }

    fn message(&self, peers: usize) -> Message {
        let mut message = self.family.secret_request(SET_DEVICE, FRAME + peers);
        message.put_text(device::NAME, &self.device);

        message
    }
}

impl Entry<'_> {
    fn of(key: PublicKey, flags: u32) -> Self {
        Self {
            key,
            flags,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            allowed_ips: Vec::new(),
        }
    }

    /// Returns the most bytes that it takes apart from its allowed IPs.
    fn size(&self) -> usize {
        /// Headers of the entry and of its list of allowed IPs; the key; flags and keepalive.
        const LEAST: usize = 4 + 4 + 36 + 8 + 8;

        let preshared_key = self.preshared_key.map_or(0, |_| 36);
        let endpoint = self.endpoint.map_or(0, |_| 32);

        LEAST + preshared_key + endpoint
    }

    fn encode(&self, message: &mut Message) {
        message.put(peer::PUBLIC_KEY, self.key.as_bytes());
        if self.flags != 0 {
            message.put_u32(peer::FLAGS, self.flags);
        }
        if let Some(key) = &self.preshared_key {
            message.put(peer::PRESHARED_KEY, key.expose());
        }
        if let Some(endpoint) = self.endpoint {
            message.put(peer::ENDPOINT, &encode_endpoint(endpoint));
        }
        if let Some(seconds) = self.keepalive {
            message.put_u16(peer::KEEPALIVE, seconds);
        }
        if !self.allowed_ips.is_empty() {
            message.nest(peer::ALLOWED_IPS, |nest| {
                for net in &self.allowed_ips {
                    nest.nest(0, |message| encode_allowed_ip(message, net));
                }
            });
        }
    }
}

fn encode_allowed_ip(message: &mut Message, net: &IpNet) {
    let (family, address) = match net.addr() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    message.put(allowed_ip::FAMILY, &short(family));
    message.put(allowed_ip::ADDRESS, &address);
    message.put(allowed_ip::MASK, &[net.prefix_len()]);
}

/// Builds a `struct sockaddr_in` or `struct sockaddr_in6`.
fn encode_endpoint(endpoint: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    let port = endpoint.port().to_be_bytes();
    match endpoint {
        SocketAddr::V4(endpoint) => {
            bytes.extend(short(libc::AF_INET));
            bytes.extend(port);
            bytes.extend(endpoint.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(endpoint) => {
            bytes.extend(short(libc::AF_INET6));
            bytes.extend(port);
            bytes.extend(endpoint.flowinfo().to_be_bytes());
            bytes.extend(endpoint.ip().octets());
            bytes.extend(endpoint.scope_id().to_ne_bytes());
        }
    }

    bytes
}

/// Address families are numbers below 256.
fn short(family: i32) -> [u8; 2] {
    u16::try_from(family).unwrap_or_default().to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Attributes, messages};

    const FAMILY: Family = Family::numbered(30, 1);

    #[test]
    fn nothing_that_is_said_replaces_all_peers() {
        let everything = Configuration {
            private_key: Some(Some(wire_core::PrivateKey::new([1; 32]))),
            listen_port: Some(51820),
            fwmark: Some(7),
            replace_peers: true,
            peers: vec![(key(1), PeerChange::Upsert(PeerUpdate::default()))],
        };

        let said = said(&everything);

        assert_eq!(said.len(), 2);
        let has_flags = |message: &Vec<u8>| attributes(message).find(5).is_some();
        assert!(!said.iter().any(has_flags), "WGDEVICE_A_FLAGS");
    }

    #[test]
    fn an_allowed_ip_is_taken_without_a_moment_in_which_the_others_are_nobodys() {
        let taken = [net("10.0.0.0/26"), net("fd00::/122")];
        let update = PeerUpdate {
            allowed_ips: taken.map(AllowedIpChange::Remove).to_vec(),
            ..PeerUpdate::default()
        };

        let entries = entries(vec![(key(1), PeerChange::Update(update))]);

        let keys: Vec<_> = entries.iter().map(|entry| entry.key).collect();
        assert_eq!(keys, [key(1), NOBODY, NOBODY]);
        assert_eq!(entries[0].flags, fate::UPDATE_ONLY);
        assert_eq!((entries[1].flags, entries[1].allowed_ips), (0, 2));
        assert_eq!(entries[2].flags, fate::REMOVE);
    }

    #[test]
    fn a_message_is_never_longer_than_its_length_field_can_say() {
        let address = |n: u32| IpAddr::from(std::net::Ipv6Addr::from(u128::from(n) << 64));
        let nets = (0..4000u32).map(|n| IpNet::from(address(n)));
        let many = PeerUpdate {
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            preshared_key: Some(PresharedKey::new([9; 32])),
            persistent_keepalive: Some(0),
            allowed_ips: nets.map(AllowedIpChange::Add).collect(),
            ..PeerUpdate::default()
        };
        let mut peers = vec![(key(0), PeerChange::Upsert(many))];
        peers.extend((1..200).map(|n| {
            let one = PeerUpdate {
                endpoint: Some("192.0.2.1:51820".parse().unwrap()),
                persistent_keepalive: Some(0),
                allowed_ips: vec![AllowedIpChange::Add(net("10.0.0.0/26"))],
                ..PeerUpdate::default()
            };
            (key(n), PeerChange::Upsert(one))
        }));
        let configuration = Configuration {
            peers,
            ..Configuration::default()
        };

        let said = said(&configuration);

        assert!((3..6).contains(&said.len()), "{} messages", said.len());
        assert!(said.iter().all(|message| message.len() < 1 << 16));
        let entries: Vec<_> = said.iter().flat_map(|message| read(message)).collect();
        let nets: usize = entries.iter().map(|entry| entry.allowed_ips).sum();
        assert_eq!(nets, 4000 + 199);
    }

    #[test]
    fn who_gets_an_endpoint_is_greeted_and_keeps_the_keepalive_that_was_asked_for() {
        let new = |keepalive| {
            let update = PeerUpdate {
                endpoint: Some("192.0.2.1:51820".parse().unwrap()),
                persistent_keepalive: Some(keepalive),
                ..PeerUpdate::default()
            };
            let entries = entries(vec![(key(1), PeerChange::Upsert(update))]);
            let keepalives = entries.into_iter().map(|entry| entry.keepalive);
            keepalives.collect::<Vec<_>>()
        };

        assert_eq!(new(0), [Some(AT_ONCE), Some(0)]);
        assert_eq!(new(7), [Some(7)]);
    }

    /// An entry as the kernel reads it.
    struct Read {
        key: PublicKey,
        flags: u32,
        keepalive: Option<u16>,
        allowed_ips: usize,
    }

    fn entries(peers: Vec<(PublicKey, PeerChange)>) -> Vec<Read> {
        let configuration = Configuration {
            peers,
            ..Configuration::default()
        };

        said(&configuration)
            .iter()
            .flat_map(|message| read(message))
            .collect()
    }

    fn said(configuration: &Configuration) -> Vec<Vec<u8>> {
        let mut writer = Writer::new(FAMILY, &"wg.cali".parse().unwrap());
        writer.settings(configuration);
        for (key, change) in &configuration.peers {
            writer.peer(key, change);
        }
        let messages = writer.finish().into_iter();

        messages
            .map(|mut message| message.finish(1).expect("it can be said").to_vec())
            .collect()
    }

    fn read(message: &[u8]) -> Vec<Read> {
        let peers = attributes(message).nest(device::PEERS);

        peers
            .map(|(_, entry)| {
                let entry = Attributes::new(entry);
                let flags = entry.find(peer::FLAGS);
                let keepalive = entry.find(peer::KEEPALIVE);
                Read {
                    key: PublicKey(entry.find(peer::PUBLIC_KEY).unwrap().try_into().unwrap()),
                    flags: flags.map_or(0, |flags| u32::from_ne_bytes(flags.try_into().unwrap())),
                    keepalive: keepalive.map(|s| u16::from_ne_bytes(s.try_into().unwrap())),
                    allowed_ips: entry.nest(peer::ALLOWED_IPS).count(),
                }
            })
            .collect()
    }

    fn attributes(message: &[u8]) -> Attributes<'_> {
        Family::attributes(messages(message).next().unwrap().payload)
    }

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
}
