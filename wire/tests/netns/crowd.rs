//! A thousand peers at one device, all at once.
//!
//! ```text
//!  ┌─ crowd: one process ──────────────────┐       ┌─ server ──────────────────┐
//!  │ 10.200.0.0 … 10.200.3.231, a socket   │───────│ 192.0.2.2     10.5.0.2    │
//!  │ and a protocol core of its own each   │       │ meshwire, a UDP echo      │
//!  └───────────────────────────────────────┘       └───────────────────────────┘
//! ```

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wire_core::{
    AllowedIpChange, DATA_OVERHEAD, Event, Message, Now, Outbound, Payload, PeerChange, PeerId,
    PeerOutcome, PeerUpdate, PrivateKey, PublicKey, Tunnel, Verdict, padded_length,
};

use crate::command::run_with;
use crate::namespace::Namespace;
use crate::tunnel::{Make, Tunnel as Device};
use crate::wait::PATIENCE;

const PEERS: u16 = 1000;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 2);
const ECHO: u16 = 7;
/// What one peer with a session may cost the device, in bytes.
const COST: u64 = 8 << 10;

fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a clock"),
    }
}

/// One of the crowd.
struct Member {
    tunnel: Tunnel,
    socket: UdpSocket,
    server: PeerId,
    inner: Ipv4Addr,
    connected: bool,
    /// Answers that came back.
    echoes: usize,
}

fn private_key(number: u16) -> PrivateKey {
    let mut key = [0x40; 32];
    key[8..10].copy_from_slice(&number.to_be_bytes());
    PrivateKey::new(key)
}

fn inner(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 64, high, low)
}

impl Member {
    /// Begins a handshake with the server at once.
    fn new(number: u16, server: PublicKey) -> Self {
        let [high, low] = number.to_be_bytes();
        let socket =
            UdpSocket::bind((Ipv4Addr::new(10, 200, high, low), 51820)).expect("an address");
        socket.set_nonblocking(true).expect("an option");
        let mut seed = [7; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        let mut tunnel = Tunnel::new(seed);
        tunnel.set_private_key(Some(private_key(number)), now());
        let update = PeerUpdate {
            endpoint: Some("192.0.2.2:51820".parse().expect("an address")),
            allowed_ips: vec![AllowedIpChange::Add(
                "10.5.0.2/32".parse().expect("a network"),
            )],
            ..PeerUpdate::default()
        };
        let PeerOutcome::Configured(server) =
            tunnel.configure_peer(server, PeerChange::Upsert(update), now())
        else {
            panic!("a new peer");
        };
        Self {
            tunnel,
            socket,
            server,
            inner: inner(number),
            connected: false,
            echoes: 0,
        }
    }

    /// Takes what has come, does what is due, and sends what there is to send.
    fn turn(&mut self) {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            self.receive(&mut buffer[..length], from);
        }
        if self
            .tunnel
            .poll_timeout()
            .is_some_and(|due| due <= Instant::now())
        {
            self.tunnel.handle_timeout(now());
        }
        while let Some(transmit) = self.tunnel.poll_transmit() {
            self.socket
                .send_to(&transmit.datagram, transmit.destination.remote)
                .expect("sent");
        }
        while let Some(event) = self.tunnel.poll_event() {
            self.connected |= matches!(event, Event::HandshakeCompleted { .. });
        }
    }

    fn receive(&mut self, datagram: &mut [u8], from: SocketAddr) {
        let Ok(Message::Data { receiver, .. }) = Message::classify(datagram) else {
            // Refusals are part of a storm: who is held back tries again.
            let _: Result<_, _> = self.tunnel.handle_handshake(from.into(), datagram, now());
            return;
        };
        let session = self
            .tunnel
            .session(receiver, now())
            .expect("a session of ours");
        let opened = session.open(datagram).expect("authentic");
        let payload = opened.payload.clone();
        let mut verdicts = Vec::new();
        self.tunnel
            .received(&session, from.into(), &[opened], &mut verdicts, now());
        if let (Payload::Packet { range, .. }, Verdict::Deliver) = (payload, verdicts[0]) {
            let packet = &datagram[range];
            assert_eq!(
                packet[16..20],
                self.inner.octets(),
                "somebody else's packet"
            );
            assert_eq!((packet.len(), packet[9]), (32, 17), "an echo");
            assert_eq!(packet[28..], self.inner.octets(), "somebody else's echo");
            self.echoes += 1;
        }
    }

    /// Asks the server for an echo of its own address.
    fn ask(&mut self) {
        let packet = datagram(self.inner);
        let padded = padded_length(packet.len(), 1420);
        let mut sealed = vec![0; padded + DATA_OVERHEAD];
        sealed[16..16 + packet.len()].copy_from_slice(&packet);
        let Outbound::Seal(mut batch) =
            self.tunnel.send(self.server, 1, sealed.len() as u64, now())
        else {
            panic!("a session");
        };
        let to = batch.endpoint().remote;
        batch.seal(&mut sealed).expect("sealed");
        self.socket.send_to(&sealed, to).expect("sent");
    }
}

/// An IPv4 packet with a UDP datagram to the echo server that carries the sender's address.
fn datagram(from: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0; 32];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 32]);
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&SERVER.octets());
    let sum = packet[..20]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..26].copy_from_slice(&[0x10, 0, 0, ECHO as u8, 0, 12]);
    packet[28..].copy_from_slice(&from.octets());
    packet
}

/// Serves all members until `done` holds for each.
fn until_all(what: &str, members: &mut [Member], done: impl Fn(&Member) -> bool) {
    let deadline = Instant::now() + 4 * PATIENCE;
    loop {
        members.iter_mut().for_each(Member::turn);
        let missing = members.iter().filter(|member| !done(member)).count();
        if missing == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: {missing} of {PEERS} wait in vain"
        );
        let mut ready: Vec<_> = members
            .iter()
            .map(|member| PollFd::new(&member.socket, PollFlags::IN))
            .collect();
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        poll(&mut ready, Some(&patience)).expect("polled");
    }
}

fn configuration() -> String {
    let mut text = String::from("[Interface]\nListenPort = 51820\n");
    for number in 0..PEERS {
        let key = STANDARD.encode(private_key(number).public_key().as_bytes());
        write!(
            text,
            "[Peer]\nPublicKey = {key}\nAllowedIPs = {}/32\n",
            inner(number)
        )
        .expect("a string");
    }
    text
}

/// Echoes datagrams until it is told to end.
fn echo(socket: &UdpSocket, end: &AtomicBool) {
    let patience = Some(Duration::from_millis(50));
    socket.set_read_timeout(patience).expect("a timeout");
    let mut buffer = [0; 64];
    while !end.load(Ordering::SeqCst) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).expect("sent");
        }
    }
}

#[test]
#[expect(
    clippy::print_stderr,
    reason = "figures, for who asks with --nocapture"
)]
fn a_thousand_peers_that_come_at_once_all_get_in_and_get_their_own_packets() {
    let (server, crowd) = (Namespace::new(), Namespace::new());
    server.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        crowd.name
    ));
    for (namespace, number) in [(&crowd, 1), (&server, 2)] {
        namespace.ip(&format!("addr add 192.0.2.{number}/24 dev eth0"));
        namespace.ip("link set eth0 up");
    }
    crowd.ip("route add local 10.200.0.0/16 dev lo");
    server.ip("route add 10.200.0.0/16 via 192.0.2.1");
    let device = Device::start(&server, Make::Meshwire);
    server.ip(&format!("addr add {SERVER}/24 dev {}", device.name));
    server.ip(&format!("link set {} up", device.name));
    server.ip(&format!("route add 10.64.0.0/16 dev {}", device.name));
    let empty = device.resident();
    let begin = Instant::now();
    let key: [u8; 32] = STANDARD
        .decode(&device.public_key)
        .unwrap()
        .try_into()
        .unwrap();
    run_with(
        &format!("wg addconf {} /dev/stdin", device.name),
        &configuration(),
    );
    let programmed = begin.elapsed();

    let mut members: Vec<Member> = crowd.inside(|| {
        (0..PEERS)
            .map(|number| Member::new(number, PublicKey(key)))
            .collect()
    });
    let begin = Instant::now();
    until_all("handshakes", &mut members, |member| member.connected);
    let connected = begin.elapsed();
    let socket = server.inside(|| UdpSocket::bind((SERVER, ECHO)).unwrap());
    let end = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&end);
    let echoes = std::thread::spawn(move || echo(&socket, &seen));
    // A burst of a thousand answers is longer than the device's queue: who gets none asks again.
    let deadline = Instant::now() + 3 * PATIENCE;
    while members.iter().any(|member| member.echoes == 0) {
        assert!(Instant::now() < deadline, "echoes");
        members
            .iter_mut()
            .filter(|member| member.echoes == 0)
            .for_each(Member::ask);
        let begin = Instant::now();
        until_all("a while", &mut members, |_| {
            begin.elapsed() > Duration::from_millis(200)
        });
    }
    end.store(true, Ordering::SeqCst);
    echoes.join().unwrap();

    let grown = (device.resident() - empty) << 10;
    assert!(
        grown < COST * u64::from(PEERS),
        "{} bytes a peer",
        grown / u64::from(PEERS)
    );
    eprintln!(
        "{PEERS} peers: programmed in {programmed:.1?}, all connected {connected:.1?} after they began at once, \
         {} bytes of memory each",
        grown / u64::from(PEERS)
    );
}
