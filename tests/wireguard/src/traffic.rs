//! What goes through a tunnel, and whether it came out the same.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::Space;
use crate::wait::PATIENCE;

/// Bytes that no shift, loss or exchange leaves unnoticed.
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            // Marsaglia's xorshift64.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = self.0.to_le_bytes()[3];
        }
    }
}

/// A UDP socket in `space` bound to `address`, or to any address of its family.
fn socket(space: &Space, address: SocketAddr) -> UdpSocket {
    space.inside(|| UdpSocket::bind(address).expect("an address of its own"))
}

fn any(like: IpAddr) -> SocketAddr {
    if like.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0; 8], 0).into()
    }
}

/// UDP datagrams of each of `sizes` bytes go to `address` and come back unchanged; each is sent again where it or its
/// answer is lost.
pub fn echo(client: &Space, server: &Space, address: &str, sizes: impl IntoIterator<Item = usize>) {
    let address: IpAddr = address.parse().expect("an address");
    let answering = socket(server, (address, 0).into());
    let to = answering.local_addr().expect("it is bound");
    let asking = socket(client, any(address));
    for side in [&answering, &asking] {
        side.set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a timeout");
    }
    for size in sizes {
        let mut sent = vec![0; size];
        Pattern(size as u64 | 1 << 40).fill(&mut sent);
        let came = || once(&asking, &answering, to, &sent);
        assert!(
            crate::until_within(PATIENCE, came),
            "{size} bytes do not go to {to} and back"
        );
    }
}

/// One datagram there and back; false where it is lost.
fn once(asking: &UdpSocket, answering: &UdpSocket, to: SocketAddr, sent: &[u8]) -> bool {
    let mut buffer = vec![0; 65_536];
    // A route that is missing for the moment counts as a loss.
    if asking.send_to(sent, to).is_err() {
        return false;
    }
    let Ok((length, from)) = answering.recv_from(&mut buffer) else {
        return false;
    };
    if buffer[..length] != *sent || answering.send_to(&buffer[..length], from).is_err() {
        return false;
    }
    asking
        .recv(&mut buffer)
        .is_ok_and(|length| buffer[..length] == *sent)
}

/// Whether one of the datagrams that `client` sends to `address` again and again arrives within `patience`.
pub fn reaches(client: &Space, server: &Space, address: &str, patience: Duration) -> bool {
    let address: IpAddr = address.parse().expect("an address");
    let listening = socket(server, (address, 0).into());
    let to = listening.local_addr().expect("it is bound");
    let sending = socket(client, any(address));
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

/// So many TCP connections at once, on each of which `bytes` go and as many come back; all checked byte for byte.
pub fn tcp(client: &Space, server: &Space, address: &str, connections: usize, bytes: usize) {
    let address: IpAddr = address.parse().expect("an address");
    let listener = server.inside(|| TcpListener::bind((address, 0)).expect("an address"));
    let to = listener.local_addr().expect("it is bound");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::scope(|scope| {
                for _ in 0..connections {
                    let (stream, _) = listener.accept().expect("a connection");
                    scope.spawn(move || exchange(&stream, bytes, 1, 2));
                }
            });
        });
        client.inside(|| {
            std::thread::scope(|scope| {
                for _ in 0..connections {
                    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connected");
                    scope.spawn(move || exchange(&stream, bytes, 2, 1));
                }
            });
        });
    });
}

/// Sends one pattern while it receives another.
fn exchange(stream: &TcpStream, bytes: usize, out: u64, into: u64) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    std::thread::scope(|scope| {
        scope.spawn(|| send(stream, bytes, out));
        receive(stream, bytes, into);
    });
}

fn send(mut stream: &TcpStream, bytes: usize, seed: u64) {
    let mut pattern = Pattern(seed | 1 << 50);
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
    let mut pattern = Pattern(seed | 1 << 50);
    let (mut got, mut expected) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut left = bytes;
    while left > 0 {
        let room = left.min(got.len());
        let length = stream.read(&mut got[..room]).expect("read");
        assert!(length > 0, "the stream ended {left} bytes early");
        pattern.fill(&mut expected[..length]);
        assert!(
            got[..length] == expected[..length],
            "bytes changed, {left} before the end"
        );
        left -= length;
    }
}
