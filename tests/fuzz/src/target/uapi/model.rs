//! What a request means, done the slow and obvious way: <https://www.wireguard.com/xplatform/>.

use std::{collections::BTreeMap, net::SocketAddr};

use ipnet::IpNet;
use wire_core::{PrivateKey, PublicKey, Tunnel};

use crate::target::{Broken, promise};

type Key = [u8; 32];

/// A device, as its requests left it.
#[derive(Clone, Default)]
pub(super) struct Model {
    private: Option<Key>,
    peers: BTreeMap<Key, Peer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Peer {
    preshared: Option<Key>,
    endpoint: Option<SocketAddr>,
    keepalive: u16,
    allowed: Vec<IpNet>,
}

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Get,
    Set,
}

impl Model {
    /// Takes a whole request or, where one of its lines is bad, nothing of it.
    pub(super) fn take(&mut self, lines: &[&[u8]]) -> Result<Taken, String> {
        let mut texts = Vec::new();
        for line in lines {
            texts.push(std::str::from_utf8(line).map_err(|_| "no text".to_owned())?);
        }
        match texts.split_first() {
            Some((&"get=1", [])) => return Ok(Taken::Get),
            Some((&"set=1", _)) => (),
            _ => return Err("neither get nor set".into()),
        }
        let mut next = self.clone();
        let mut pairs = Vec::new();
        for line in &texts[1..] {
            pairs.push(line.split_once('=').ok_or("no key=value")?);
        }
        let mut sections = pairs.split(|(key, _)| *key == "public_key");
        for (key, value) in sections.next().unwrap_or_default() {
            next.device_line(key, value)?;
        }
        // Of several private keys in one request, the last is the device's.
        if let Some(own) = next.own_key() {
            next.peers.remove(&own);
        }
        let keys = pairs.iter().filter(|(key, _)| *key == "public_key");
        for ((_, key), lines) in keys.zip(sections) {
            next.section(hex32(key)?, lines)?;
        }
        *self = next;
        Ok(Taken::Set)
    }

    /// All lines about one peer. `remove`, `update_only` and `replace_allowed_ips` say what becomes of the whole
    /// section, wherever they stand.
    fn section(&mut self, id: Key, lines: &[(&str, &str)]) -> Result<(), String> {
        // Somebody else's section, so that bad lines are found wherever they are not carried out.
        let mut elsewhere = Self::default();
        for (key, value) in lines {
            elsewhere.peer_line([0xee; 32], key, value)?;
        }
        let says = |word: &str| lines.iter().any(|(key, _)| *key == word);
        if self.own_key() == Some(id) || (says("update_only") && !self.peers.contains_key(&id)) {
            return Ok(());
        }
        if says("remove") {
            self.peers.remove(&id);
            return Ok(());
        }
        self.peers.entry(id).or_default();
        // What a section replaces again was never meant.
        let replaced = lines
            .iter()
            .rposition(|(key, _)| *key == "replace_allowed_ips")
            .unwrap_or(0);
        for (at, (key, value)) in lines.iter().enumerate() {
            if at >= replaced || *key != "allowed_ip" {
                self.peer_line(id, key, value)?;
            }
        }
        Ok(())
    }

    fn own_key(&self) -> Option<Key> {
        self.private
            .map(|key| *PrivateKey::new(key).public_key().as_bytes())
    }

    fn device_line(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "private_key" => {
                let key = hex32(value)?;
                self.private = (key != [0; 32]).then(|| *PrivateKey::new(key).expose());
            }
            "listen_port" => drop(decimal(value, u16::MAX.into())?),
            "fwmark" => drop(decimal(value, u32::MAX.into())?),
            "replace_peers" => {
                truth(value)?;
                self.peers.clear();
            }
            _ => return Err(format!("unknown key of a device: {key}")),
        }
        Ok(())
    }

    fn peer_line(&mut self, id: Key, key: &str, value: &str) -> Result<(), String> {
        let peer = self.peers.entry(id).or_default();
        match key {
            "remove" | "update_only" => truth(value)?,
            "preshared_key" => peer.preshared = Some(hex32(value)?).filter(|key| *key != [0; 32]),
            "endpoint" => peer.endpoint = Some(endpoint(value)?),
            "persistent_keepalive_interval" => {
                peer.keepalive = decimal(value, u16::MAX.into())? as u16;
            }
            "replace_allowed_ips" => {
                truth(value)?;
                peer.allowed.clear();
            }
            "allowed_ip" => self.allow(id, value)?,
            "protocol_version" if value == "1" => (),
            _ => return Err(format!("unknown key of a peer: {key}={value}")),
        }
        Ok(())
    }

    fn allow(&mut self, id: Key, value: &str) -> Result<(), String> {
        let (value, add) = match value.strip_prefix('-') {
            Some(value) => (value, false),
            None => (value, true),
        };
        let network: IpNet = value.parse().map_err(|_| "no network")?;
        let network = network.trunc();
        for (other, peer) in &mut self.peers {
            if add || *other == id {
                peer.allowed.retain(|owned| *owned != network);
            }
        }
        if add {
            self.peers.entry(id).or_default().allowed.push(network);
        }
        Ok(())
    }

    /// Compares with a tunnel, peer by peer.
    pub(super) fn compare(&self, tunnel: &Tunnel) -> Result<(), Broken> {
        let private = tunnel.private_key().map(|key| *key.expose());
        promise(private == self.private, || {
            "the private key is another".into()
        })?;
        let found: BTreeMap<Key, Peer> = tunnel
            .peers()
            .map(|peer| {
                let preshared =
                    (!peer.preshared_key.is_none()).then(|| *peer.preshared_key.expose());
                let allowed = peer.allowed_ips.iter().copied().collect();
                let endpoint = peer.endpoint.map(|endpoint| endpoint.remote);
                let keepalive = peer.persistent_keepalive;
                (
                    *peer.public_key.as_bytes(),
                    Peer {
                        preshared,
                        endpoint,
                        keepalive,
                        allowed,
                    },
                )
            })
            .collect();
        let mut wanted = self.peers.clone();
        wanted.values_mut().for_each(|peer| peer.allowed.sort());
        promise(found == wanted, || {
            format!("the peers are {found:#?}, and not {wanted:#?}")
        })?;
        self.compare_routes(tunnel)
    }

    /// Every address that a network begins or ends with goes to the longest that has it.
    fn compare_routes(&self, tunnel: &Tunnel) -> Result<(), Broken> {
        let all = || {
            self.peers
                .iter()
                .flat_map(|(key, peer)| peer.allowed.iter().map(move |net| (net, key)))
        };
        let probes = all().flat_map(|(net, _)| [net.network(), net.broadcast()]);
        for address in probes.take(64) {
            let owner = all()
                .filter(|(net, _)| net.contains(&address))
                .max_by_key(|(net, _)| net.prefix_len())
                .map(|(_, key)| PublicKey(*key));
            let found = tunnel.route(address).and_then(|peer| tunnel.peer_key(peer));
            promise(found == owner, || {
                format!("{address} goes to {found:?}, not to {owner:?}")
            })?;
        }
        Ok(())
    }
}

fn hex32(value: &str) -> Result<Key, String> {
    let bytes = hex::decode(value).map_err(|_| "no hexadecimal")?;
    Key::try_from(bytes).map_err(|_| "not 32 bytes".into())
}

fn decimal(value: &str, most: u64) -> Result<u64, String> {
    if value.is_empty() || !value.chars().all(|digit| digit.is_ascii_digit()) {
        return Err("no decimal number".into());
    }
    let significant = value.trim_start_matches('0');
    let number = if significant.is_empty() {
        Ok(0)
    } else {
        significant.parse()
    };
    match number {
        Ok(number) if number <= most => Ok(number),
        Ok(_) | Err(_) => Err("too large".into()),
    }
}

fn truth(value: &str) -> Result<(), String> {
    if value == "true" {
        Ok(())
    } else {
        Err("not true".into())
    }
}

fn endpoint(value: &str) -> Result<SocketAddr, String> {
    // The loopback device is the first of every namespace.
    let value = value.replace("%lo]", "%1]");
    let endpoint: SocketAddr = value.parse().map_err(|_| "no endpoint")?;
    let usable =
        endpoint.port() != 0 && !endpoint.ip().is_unspecified() && !endpoint.ip().is_multicast();
    if usable {
        Ok(endpoint)
    } else {
        Err("an endpoint that nobody has".into())
    }
}
