//! Requests, read line by line.

use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use wire_core::{AllowedIpChange, PeerChange, PeerUpdate, PrivateKey, PublicKey};

use super::{Configuration, Errno, parse_key, parse_preshared_key, parse_public_key};

/// Longest line we take, in bytes; the longest that makes sense has 96.
pub(super) const LONGEST_LINE: usize = 256;
/// Most lines in one request: 2²⁰ peers, the kernel's limit, with a few lines each.
const MOST_LINES: usize = 1 << 23;

/// A whole request.
pub enum Request {
    /// `get=1`.
    Get,
    /// `set=1`.
    Set(Box<Configuration>),
}

/// Takes the lines of requests, and gives each request when its empty line has come.
///
/// After a bad line the rest of its request is passed over, so that the answer comes where the client waits for it.
#[derive(Default)]
pub struct Parser {
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Between,
    Get,
    Set(Box<Draft>),
    Refused(Errno),
}

/// A configuration in the making.
#[derive(Default)]
struct Draft {
    configuration: Configuration,
    peer: Option<PeerDraft>,
    lines: usize,
}

struct PeerDraft {
    key: PublicKey,
    remove: bool,
    update_only: bool,
    update: PeerUpdate,
}

impl Parser {
    /// Takes one line, without its line feed. Some: the request is complete, or refused.
    pub fn line(&mut self, line: &str) -> Option<Result<Request, Errno>> {
        let state = std::mem::take(&mut self.state);
        if line.is_empty() {
            return state.finish();
        }
        self.state = state.next(line).unwrap_or_else(State::Refused);
        None
    }

    /// Refuses the request in which something was that is not even a line of text.
    pub fn refuse(&mut self, errno: Errno) {
        if !matches!(self.state, State::Refused(_)) {
            self.state = State::Refused(errno);
        }
    }
}

impl State {
    fn next(self, line: &str) -> Result<Self, Errno> {
        match self {
            Self::Between => match line {
                "get=1" => Ok(Self::Get),
                "set=1" => Ok(Self::Set(Box::default())),
                _ => Err(Errno::PROTOCOL),
            },
            Self::Get => Err(Errno::PROTOCOL),
            Self::Set(mut draft) => {
                draft.line(line)?;
                Ok(Self::Set(draft))
            }
            Self::Refused(errno) => Err(errno),
        }
    }

    fn finish(self) -> Option<Result<Request, Errno>> {
        match self {
            // An empty line between requests means nothing.
            Self::Between => None,
            Self::Get => Some(Ok(Request::Get)),
            Self::Set(draft) => Some(Ok(Request::Set(Box::new(draft.finish())))),
            Self::Refused(errno) => Some(Err(errno)),
        }
    }
}

impl Draft {
    fn line(&mut self, line: &str) -> Result<(), Errno> {
        self.lines += 1;
        if self.lines > MOST_LINES {
            return Err(Errno::TOO_BIG);
        }
        let (key, value) = line.split_once('=').ok_or(Errno::PROTOCOL)?;
        if key == "public_key" {
            self.end_peer();
            self.peer = Some(PeerDraft::new(parse_public_key(value)?));
            return Ok(());
        }
        match &mut self.peer {
            Some(peer) => peer.line(key, value),
            None => self.device_line(key, value),
        }
    }

    fn device_line(&mut self, key: &str, value: &str) -> Result<(), Errno> {
        let configuration = &mut self.configuration;
        match key {
            "private_key" => {
                let bytes = parse_key(value)?;
                let none = bytes.iter().all(|byte| *byte == 0);
                configuration.private_key = Some((!none).then(|| PrivateKey::new(*bytes)));
            }
            "listen_port" => configuration.listen_port = Some(number(value)?),
            "fwmark" => configuration.fwmark = Some(number(value)?),
            "replace_peers" => configuration.replace_peers = only_true(value)?,
            _ => return Err(Errno::INVALID),
        }
        Ok(())
    }

    fn end_peer(&mut self) {
        let Some(peer) = self.peer.take() else {
            return;
        };
        let change = match (peer.remove, peer.update_only) {
            (true, _) => PeerChange::Remove,
            (false, true) => PeerChange::Update(peer.update),
            (false, false) => PeerChange::Upsert(peer.update),
        };
        self.configuration.peers.push((peer.key, change));
    }

    fn finish(mut self) -> Configuration {
        self.end_peer();
        self.configuration
    }
}

impl PeerDraft {
    fn new(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            update_only: false,
            update: PeerUpdate::default(),
        }
    }

    fn line(&mut self, key: &str, value: &str) -> Result<(), Errno> {
        let update = &mut self.update;
        match key {
            "remove" => self.remove = only_true(value)?,
            "update_only" => self.update_only = only_true(value)?,
            "preshared_key" => update.preshared_key = Some(parse_preshared_key(value)?),
            "endpoint" => update.endpoint = Some(endpoint(value)?),
            "persistent_keepalive_interval" => update.persistent_keepalive = Some(number(value)?),
            "replace_allowed_ips" => {
                update.replace_allowed_ips = only_true(value)?;
                update.allowed_ips.clear();
            }
            "allowed_ip" => update.allowed_ips.push(allowed_ip(value)?),
            "protocol_version" if value == "1" => (),
            _ => return Err(Errno::INVALID),
        }
        Ok(())
    }
}

/// A decimal number, digits only.
fn number<N: std::str::FromStr>(value: &str) -> Result<N, Errno> {
    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Errno::INVALID);
    }
    value.parse().map_err(|_| Errno::INVALID)
}

fn only_true(value: &str) -> Result<bool, Errno> {
    if value == "true" {
        Ok(true)
    } else {
        Err(Errno::INVALID)
    }
}

/// `[-]address/length`. Host bits are dropped, as the kernel does.
fn allowed_ip(value: &str) -> Result<AllowedIpChange, Errno> {
    let (value, change): (_, fn(IpNet) -> AllowedIpChange) = match value.strip_prefix('-') {
        Some(value) => (value, AllowedIpChange::Remove),
        None => (value, AllowedIpChange::Add),
    };
    let network: IpNet = value.parse().map_err(|_| Errno::INVALID)?;
    Ok(change(network.trunc()))
}

/// `192.0.2.1:51820`, `[2001:db8::1]:51820`, `[fe80::1%eth0]:51820` (or the interface's index after the `%`).
fn endpoint(value: &str) -> Result<SocketAddr, Errno> {
    let endpoint = match value.parse() {
        Ok(endpoint) => endpoint,
        Err(_) => scoped(value).ok_or(Errno::INVALID)?,
    };
    if endpoint.port() == 0 || endpoint.ip().is_unspecified() || endpoint.ip().is_multicast() {
        return Err(Errno::INVALID);
    }
    Ok(endpoint)
}

fn scoped(value: &str) -> Option<SocketAddr> {
    let (address, rest) = value.strip_prefix('[')?.split_once('%')?;
    let (device, port) = rest.split_once("]:")?;
    if !crate::tun::is_interface_name(device) {
        return None;
    }
    let socket: OwnedFd = crate::tun::control_socket().ok()?;
    let index = rustix::net::netdevice::name_to_index(&socket, device).ok()?;
    let port = number(port).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, port, 0, index).into())
}

#[cfg(test)]
mod tests;
