//! A tunnel with the least shell that a virtual network needs.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire_core::{
    AllowedIpChange, DATA_OVERHEAD, Event, HandshakeOutcome, Message, Now, Outbound, Payload,
    PeerChange, PeerId, PeerOutcome, PeerUpdate, PresharedKey, PrivateKey, PublicKey, Refusal,
    Tunnel, Verdict, padded_length,
};

pub(crate) const MTU: usize = 1420;

/// Something that speaks WireGuard at one address.
pub(crate) trait Host {
    /// A packet from its own machine.
    fn send(&mut self, packet: &[u8], now: Now);
    /// A datagram from the network.
    fn receive(&mut self, source: SocketAddr, datagram: &[u8], now: Now);
    fn handle_timeout(&mut self, now: Now);
    fn poll_timeout(&self) -> Option<Instant>;
    /// Datagrams to send since the last call.
    fn outgoing(&mut self) -> Vec<(SocketAddr, Vec<u8>)>;
    /// Packets for its machine since the last call.
    fn delivered(&mut self) -> Vec<Vec<u8>>;
}

/// One of our tunnels.
pub(crate) struct Node {
    pub(crate) tunnel: Tunnel,
    pub(crate) events: Vec<Event>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) handshakes: Vec<Result<HandshakeOutcome, Refusal>>,
    /// Packets that came within 2 s after their session had reached its age.
    pub(crate) expired: usize,
    /// Packets that found no room in the queue.
    pub(crate) overflown: usize,
    outgoing: Vec<(SocketAddr, Vec<u8>)>,
    delivered: Vec<Vec<u8>>,
}

pub(crate) fn private_key(number: u8) -> PrivateKey {
    PrivateKey::new([number; 32])
}

pub(crate) fn public_key(number: u8) -> PublicKey {
    private_key(number).public_key()
}

/// The address inside the tunnel that the peer with this key owns.
pub(crate) fn inner(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

/// Where the host with this key listens.
pub(crate) fn outer(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

/// An IPv4 packet with 8 bytes of payload and as many more as asked.
pub(crate) fn packet(from: u8, to: u8, payload: u64, more: usize) -> Vec<u8> {
    let length = 28 + more;
    let mut packet = vec![0xaa; length];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 0, 0, from]);
    packet[16..20].copy_from_slice(&[10, 0, 0, to]);
    packet[20..28].copy_from_slice(&payload.to_be_bytes());
    packet
}

impl Node {
    /// A node with a key and no peers.
    pub(crate) fn new(number: u8, now: Now) -> Self {
        Self::seeded(number, number, now)
    }

    /// The same with other randomness.
    pub(crate) fn seeded(number: u8, seed: u8, now: Now) -> Self {
        let mut tunnel = Tunnel::new([seed; 32]);
        tunnel.set_mtu(MTU);
        tunnel.set_private_key(Some(private_key(number)), now);
        Self {
            tunnel,
            events: Vec::new(),
            verdicts: Vec::new(),
            handshakes: Vec::new(),
            expired: 0,
            overflown: 0,
            outgoing: Vec::new(),
            delivered: Vec::new(),
        }
    }

    /// Adds a peer by its number, with its inner address; with its endpoint if it has one.
    pub(crate) fn add_peer(
        &mut self,
        number: u8,
        endpoint: Option<SocketAddr>,
        now: Now,
    ) -> PeerId {
        self.update_peer(
            number,
            PeerUpdate {
                endpoint,
                ..PeerUpdate::default()
            },
            now,
        );
        let allowed_ips = vec![AllowedIpChange::Add(inner(number).into())];
        self.update_peer(
            number,
            PeerUpdate {
                allowed_ips,
                ..PeerUpdate::default()
            },
            now,
        )
    }

    pub(crate) fn set_psk(&mut self, number: u8, key: [u8; 32], now: Now) {
        let preshared_key = Some(PresharedKey::new(key));
        self.update_peer(
            number,
            PeerUpdate {
                preshared_key,
                ..PeerUpdate::default()
            },
            now,
        );
    }

    pub(crate) fn set_keepalive(&mut self, number: u8, seconds: u16, now: Now) {
        let persistent_keepalive = Some(seconds);
        self.update_peer(
            number,
            PeerUpdate {
                persistent_keepalive,
                ..PeerUpdate::default()
            },
            now,
        );
    }

    pub(crate) fn update_peer(&mut self, number: u8, update: PeerUpdate, now: Now) -> PeerId {
        let change = PeerChange::Upsert(update);
        let outcome = self.tunnel.configure_peer(public_key(number), change, now);
        let PeerOutcome::Configured(id) = outcome else {
            panic!("peer {number} was not configured: {outcome:?}");
        };
        id
    }

    pub(crate) fn peer(&self, number: u8) -> PeerId {
        self.tunnel
            .find_peer(&public_key(number))
            .expect("the peer was added")
    }

    /// Packets sealed for the peer that owns the destination, as the shell would send them.
    pub(crate) fn seal(&mut self, packets: &[Vec<u8>], to: PeerId, now: Now) {
        let sizes = packets
            .iter()
            .map(|p| padded_length(p.len(), MTU) + DATA_OVERHEAD);
        let bytes = sizes.clone().sum::<usize>() as u64;
        match self.tunnel.send(to, packets.len() as u32, bytes, now) {
            Outbound::Seal(mut batch) => {
                for (packet, size) in packets.iter().zip(sizes) {
                    let mut datagram = vec![0; size];
                    datagram[16..16 + packet.len()].copy_from_slice(packet);
                    batch.seal(&mut datagram).unwrap();
                    self.outgoing.push((batch.endpoint().remote, datagram));
                }
            }
            Outbound::Queue => {
                for packet in packets {
                    self.overflown += self.tunnel.queue(to, packet);
                }
            }
            Outbound::Drop(reason) => panic!("packet dropped: {reason:?}"),
        }
        self.drain();
    }

    fn open(&mut self, source: SocketAddr, receiver: u32, datagram: &[u8], now: Now) {
        let Some(session) = self.tunnel.session(receiver, now) else {
            self.expired +=
                usize::from(self.has_just_expired(receiver, now) && datagram.len() > 32);
            return;
        };
        let mut datagram = datagram.to_vec();
        let Ok(opened) = session.open(&mut datagram) else {
            return;
        };
        let arrivals = [opened];
        let mut verdicts = Vec::new();
        self.tunnel
            .received(&session, source.into(), &arrivals, &mut verdicts, now);
        if let (Payload::Packet { range, .. }, [Verdict::Deliver]) =
            (&arrivals[0].payload, verdicts.as_slice())
        {
            self.delivered.push(datagram[range.clone()].to_vec());
        }
        self.verdicts.append(&mut verdicts);
    }

    fn has_just_expired(&self, receiver: u32, now: Now) -> bool {
        let instant = now.instant - Duration::from_secs(2);
        self.tunnel
            .session(receiver, Now { instant, ..now })
            .is_some()
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.tunnel.poll_transmit() {
            self.outgoing
                .push((transmit.destination.remote, transmit.datagram));
        }
        while let Some(event) = self.tunnel.poll_event() {
            self.events.push(event);
        }
    }

    /// How many handshakes were completed since the last call.
    pub(crate) fn take_handshakes(&mut self) -> usize {
        let completed = |event: &Event| matches!(event, Event::HandshakeCompleted { .. });
        std::mem::take(&mut self.events)
            .iter()
            .filter(|event| completed(event))
            .count()
    }
}

impl Host for Node {
    fn send(&mut self, packet: &[u8], now: Now) {
        let destination = IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
        let peer = self
            .tunnel
            .route(destination)
            .expect("every destination has an owner");
        self.seal(&[packet.to_vec()], peer, now);
    }

    fn receive(&mut self, source: SocketAddr, datagram: &[u8], now: Now) {
        match Message::classify(datagram) {
            Ok(Message::Data { receiver, .. }) => self.open(source, receiver, datagram, now),
            Ok(Message::Initiation | Message::Response | Message::CookieReply) => {
                let taken = self.tunnel.handle_handshake(source.into(), datagram, now);
                self.handshakes.push(taken);
            }
            Err(_) => {}
        }
        self.drain();
    }

    fn handle_timeout(&mut self, now: Now) {
        self.tunnel.handle_timeout(now);
        self.drain();
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.tunnel.poll_timeout()
    }

    fn outgoing(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.drain();
        std::mem::take(&mut self.outgoing)
    }

    fn delivered(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.delivered)
    }
}
