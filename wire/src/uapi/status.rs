//! What a device answers to `get=1`, parsed. Secrets are passed over: whoever asks for the state does not need them.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use wire_core::{PrivateKey, PublicKey};

use super::{Errno, parse_key, parse_public_key};

/// A device as UAPI tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The public half of its private key.
    pub public_key: Option<PublicKey>,
    /// The UDP port; 0: none yet.
    pub listen_port: u16,
    /// The mark on outer packets; 0 is none.
    pub fwmark: u32,
    /// Its peers, in the device's order.
    pub peers: Vec<Peer>,
}

/// A peer as UAPI tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its key.
    pub public_key: PublicKey,
    /// Whether it has a preshared key.
    pub has_preshared_key: bool,
    /// Where it is, if known.
    pub endpoint: Option<SocketAddr>,
    /// Wall time since the Unix epoch.
    pub last_handshake: Option<Duration>,
    /// UDP payload bytes sent to it.
    pub sent_bytes: u64,
    /// UDP payload bytes received from it.
    pub received_bytes: u64,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Its allowed IPs.
    pub allowed_ips: Vec<IpNet>,
}

impl Status {
    /// Takes the lines of an answer, up to but without `errno`. Unknown keys are passed over, as the protocol asks.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Errno> {
        let (key, value) = line.split_once('=').ok_or(Errno::PROTOCOL)?;
        if key == "public_key" {
            self.peers.push(Peer::new(parse_public_key(value)?));
            return Ok(());
        }
        if let Some(peer) = self.peers.last_mut() {
            return peer.line(key, value);
        }
        match key {
            "private_key" => {
                let key = PrivateKey::new(*parse_key(value)?);
                self.public_key = Some(key.public_key());
            }
            "listen_port" => self.listen_port = number(value)?,
            "fwmark" => self.fwmark = number(value)?,
            _ => (),
        }
        Ok(())
    }
}

impl Peer {
    const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            has_preshared_key: false,
            endpoint: None,
            last_handshake: None,
            sent_bytes: 0,
            received_bytes: 0,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        }
    }

    fn line(&mut self, key: &str, value: &str) -> Result<(), Errno> {
        match key {
            "preshared_key" => {
                self.has_preshared_key = parse_key(value)?.iter().any(|byte| *byte != 0);
            }
            "endpoint" => self.endpoint = Some(number(value)?),
            "last_handshake_time_sec" => self.add_handshake(Duration::from_secs(number(value)?)),
            "last_handshake_time_nsec" => self.add_handshake(Duration::from_nanos(number(value)?)),
            "tx_bytes" => self.sent_bytes = number(value)?,
            "rx_bytes" => self.received_bytes = number(value)?,
            "persistent_keepalive_interval" => self.persistent_keepalive = number(value)?,
            "allowed_ip" => self.allowed_ips.push(number(value)?),
            _ => (),
        }
        Ok(())
    }

    /// Seconds and nanoseconds come apart; zero of both means never.
    fn add_handshake(&mut self, part: Duration) {
        let sum = self.last_handshake.unwrap_or_default().saturating_add(part);
        self.last_handshake = (!sum.is_zero()).then_some(sum);
    }
}

fn number<N: std::str::FromStr>(value: &str) -> Result<N, Errno> {
    value.parse().map_err(|_| Errno::PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_the_device_and_its_peers() {
        let lines = [
            "private_key=4800000000000000000000000000000000000000000000000000000000000040",
            "listen_port=51820",
            "something_new=1",
            "public_key=0101010101010101010101010101010101010101010101010101010101010101",
            "preshared_key=0000000000000000000000000000000000000000000000000000000000000000",
            "last_handshake_time_sec=3",
            "last_handshake_time_nsec=5",
            "allowed_ip=10.0.0.0/8",
            "public_key=0202020202020202020202020202020202020202020202020202020202020202",
            "last_handshake_time_sec=0",
            "endpoint=192.0.2.1:7",
        ];
        let mut status = Status::default();
        for line in lines {
            status.line(line).unwrap();
        }
        assert_eq!((status.listen_port, status.peers.len()), (51820, 2));
        assert!(status.public_key.is_some() && !status.peers[0].has_preshared_key);
        assert_eq!(status.peers[0].last_handshake, Some(Duration::new(3, 5)));
        assert_eq!(status.peers[1].last_handshake, None);
        assert_eq!(
            status.peers[1].endpoint,
            Some("192.0.2.1:7".parse().unwrap())
        );
    }
}
