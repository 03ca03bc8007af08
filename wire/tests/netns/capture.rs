//! What an observer of the underlay has.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::namespace::Namespace;

/// Records the IPv4 packets of a namespace, on all its devices, until it is finished.
pub(crate) struct Capture {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    /// Records from now on.
    pub(crate) fn start(namespace: &Namespace) -> Self {
        let socket = namespace.inside(open);
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let thread = std::thread::spawn(move || record(&socket, &seen));
        Self { done, thread }
    }

    /// The UDP payloads that were sent to `destination`, in order.
    pub(crate) fn finish(self, destination: &str) -> Vec<Vec<u8>> {
        self.done.store(true, Ordering::SeqCst);
        let packets = self.thread.join().expect("no panic");
        let destination: SocketAddr = destination.parse().expect("an address");
        packets
            .iter()
            .filter_map(|packet| payload(packet, destination))
            .map(<[u8]>::to_vec)
            .collect()
    }
}

fn open() -> OwnedFd {
    // The protocol is in network byte order (packet(7)).
    let ipv4 = u32::from(libc::ETH_P_IP as u16).to_be() >> 16;
    let protocol = Protocol::from_raw(ipv4.try_into().expect("it is not zero"));
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(protocol),
    )
    .expect("tests run as root");
    let patience = Some(Duration::from_millis(20));
    set_socket_timeout(&socket, Timeout::Recv, patience).expect("a timeout");
    socket
}

fn record(socket: &OwnedFd, done: &AtomicBool) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 70_000];
    while let Some(length) = next(socket, &mut buffer, done) {
        packets.push(buffer[..length].to_vec());
    }
    packets
}

/// The next packet; `None`: there is none, and nobody waits for one.
fn next(socket: &OwnedFd, buffer: &mut [u8], done: &AtomicBool) -> Option<usize> {
    loop {
        if let Ok((length, _)) = recv(socket, &mut *buffer, RecvFlags::empty()) {
            return Some(length);
        }
        if done.load(Ordering::SeqCst) {
            return None;
        }
    }
}

fn payload(packet: &[u8], destination: SocketAddr) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    let port: [u8; 2] = packet.get(header + 2..header + 4)?.try_into().ok()?;
    let to = SocketAddr::from((address, u16::from_be_bytes(port)));
    (packet[9] == 17 && to == destination).then(|| packet.get(header + 8..))?
}
