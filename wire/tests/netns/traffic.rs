//! What goes through a tunnel, and whether it came out the same.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::namespace::Namespace;
use crate::wait::PATIENCE;

/// Bytes that no shift, loss or exchange leaves unnoticed: a different one at (nearly) every place.
pub(crate) struct Pattern {
    state: u64,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            *byte = self.state.to_le_bytes()[3];
        }
    }
}

/// UDP datagrams of each of `sizes` bytes go from `client` to `address` in `server` and come back unchanged.
pub(crate) fn echo(
    client: &Namespace,
    server: &Namespace,
    address: IpAddr,
    sizes: impl IntoIterator<Item = usize>,
) {
    let answering = server.inside(|| UdpSocket::bind((address, 0)).expect("the server's address"));
    answering
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    let to = answering.local_addr().expect("it is bound");
    let asking = client.inside(|| {
        let any: SocketAddr = if address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0; 8], 0).into()
        };
        let socket = UdpSocket::bind(any).expect("any address");
        socket.connect(to).expect("a route into the tunnel");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    });
    let mut pattern = Pattern::new(7);
    for size in sizes {
        let mut sent = vec![0; size];
        pattern.fill(&mut sent);
        let mut buffer = vec![0; 65_536];
        asking.send(&sent).expect("sent");
        let (length, from) = answering
            .recv_from(&mut buffer)
            .unwrap_or_else(|error| panic!("{size} bytes did not arrive at {to}: {error}"));
        assert!(buffer[..length] == sent, "{size} bytes changed on the way");
        answering.send_to(&buffer[..length], from).expect("sent");
        let length = asking
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{size} bytes did not come back from {to}: {error}"));
        assert!(buffer[..length] == sent, "{size} bytes changed coming back");
    }
}

/// Whether a datagram gets from `client` to `address` in `server` within `patience`; it is sent again and again.
pub(crate) fn reaches(
    client: &Namespace,
    server: &Namespace,
    address: IpAddr,
    patience: Duration,
) -> bool {
    let listening = server.inside(|| UdpSocket::bind((address, 0)).expect("the server's address"));
    let to = listening.local_addr().expect("it is bound");
    let sending = client.inside(|| {
        let any: SocketAddr = if address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0; 8], 0).into()
        };
        UdpSocket::bind(any).expect("any address")
    });
    listening
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a timeout");
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        // While a route is missing this fails, which is an answer too.
        let _: std::io::Result<usize> = sending.send_to(b"anybody?", to);
        if listening.recv(&mut [0; 16]).is_ok() {
            return true;
        }
    }
    false
}

/// `bytes` go over TCP from `client` to `address` in `server`, and as many back at the same time; both are checked
/// byte for byte.
pub(crate) fn bulk(client: &Namespace, server: &Namespace, address: IpAddr, bytes: usize) {
    std::thread::scope(|scope| {
        let listener = server.inside(|| TcpListener::bind((address, 0)).expect("an address"));
        let to = listener.local_addr().expect("it is bound");
        scope.spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            exchange(&stream, bytes, 1, 2);
        });
        let stream =
            client.inside(|| TcpStream::connect_timeout(&to, PATIENCE).expect("connected"));
        exchange(&stream, bytes, 2, 1);
    });
}

/// Sends one pattern while it receives another.
pub(crate) fn exchange(stream: &TcpStream, bytes: usize, out: u64, into: u64) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    std::thread::scope(|scope| {
        scope.spawn(|| send(stream, bytes, out));
        receive(stream, bytes, into);
    });
}

fn send(mut stream: &TcpStream, bytes: usize, seed: u64) {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(buffer.len());
        pattern.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length]).expect("written");
        left -= length;
    }
}

fn receive(mut stream: &TcpStream, bytes: usize, seed: u64) {
    let mut pattern = Pattern::new(seed);
    let (mut got, mut expected) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut left = bytes;
    while left > 0 {
        let room = left.min(got.len());
        let length = stream.read(&mut got[..room]).expect("read");
        assert!(length > 0, "the stream ended {left} bytes early");
        pattern.fill(&mut expected[..length]);
        assert!(
            got[..length] == expected[..length],
            "bytes changed within {length} bytes, {left} before the end"
        );
        left -= length;
    }
}
