//! Protocols that the kernel does not speak, or of which one packet is enough.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, write},
    net::{
        Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recvfrom, sendto,
        socket_with,
    },
};

use super::{Probe, ProbeError, family, until_answered};
use crate::netns::Netns;

/// IANA protocol numbers.
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// What a packet of a protocol without ports says.
const WORDS: &[u8] = b"does this get there";

/// What the answer says.
const ANSWER: &[u8] = b"it does";

/// SCTP's chunks that open an association (RFC 9260, sections 3.3.2 and 3.3.3).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// The tag that our end of an association asks to be spoken to with.
const TAG: [u8; 4] = *b"mesh";

/// A thread that answers packets of one protocol at one address and port; dropping it ends it.
#[derive(Debug)]
pub struct RawReceiver {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl RawReceiver {
    pub(super) fn start(netns: &Netns, to: SocketAddr, protocol: u8) -> Result<Self, ProbeError> {
        let failed = |source: io::Error| ProbeError::Receiver {
            protocol,
            to,
            source,
        };
        let socket = netns.run(|| open(to.ip(), protocol))?;
        let socket = socket.map_err(|error| failed(error.into()))?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|error| failed(error.into()))?);
        let theirs = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("answer".to_owned())
            .spawn(move || {
                if let Err(error) = serve(&socket, &theirs, to, protocol) {
                    tracing::warn!(%error, "packets are not answered any more");
                }
            })
            .map_err(failed)?;

        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for RawReceiver {
    fn drop(&mut self) {
        if let Err(error) = write(&*self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "a receiver cannot be stopped");
            return;
        }
        let thread = self.thread.take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a receiver's thread panicked");
        }
    }
}

/// Sends the packet that opens a connection until it is answered.
pub(super) fn is_answered(probe: &Probe, deadline: Instant) -> Result<bool, Errno> {
    let socket = open(probe.from.ip(), probe.protocol)?;
    connect(&socket, &SocketAddr::new(probe.to.ip(), 0))?;
    let question = question(probe);
    let is_answer = |heard: &[u8]| {
        let said = payload(probe.to.ip(), heard);
        is_from(probe.protocol, said, probe.to.port(), probe.from.port())
            && says(probe.protocol, said, INIT_ACK, ANSWER)
    };

    until_answered(&socket, &question, deadline, is_answer)
}

fn open(address: IpAddr, protocol: u8) -> Result<OwnedFd, Errno> {
    let number = std::num::NonZero::new(u32::from(protocol)).ok_or(Errno::INVAL)?;
    let socket = socket_with(
        family(address),
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(Protocol::from_raw(number)),
    )?;
    bind(&socket, &SocketAddr::new(address, 0))?;

    Ok(socket)
}

fn serve(socket: &OwnedFd, stop: &OwnedFd, to: SocketAddr, protocol: u8) -> Result<(), Errno> {
    let mut heard = [0; 2048];
    loop {
        let mut ready = [
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if !ready[1].revents().is_empty() {
            return Ok(());
        }
        let (length, from) = match recvfrom(socket, &mut heard, RecvFlags::empty()) {
            Ok((length, _, Some(from))) => (length, from),
            Ok((_, _, None)) | Err(Errno::AGAIN | Errno::CONNREFUSED) => continue,
            Err(error) => return Err(error),
        };
        let said = payload(to.ip(), &heard[..length.min(heard.len())]);
        let (Some(source), Ok(from)) = (source_port(protocol, said), SocketAddr::try_from(from))
        else {
            continue;
        };
        if !is_from(protocol, said, source, to.port()) || !says(protocol, said, INIT, WORDS) {
            continue;
        }
        let answer = answer(protocol, said, to, SocketAddr::new(from.ip(), source));
        let back = SocketAddr::new(from.ip(), 0);
        match sendto(socket, &answer, SendFlags::empty(), &back) {
            // It is asked again.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::HOSTUNREACH | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the IPv4 header off, which raw sockets of that family leave on.
fn payload(address: IpAddr, heard: &[u8]) -> &[u8] {
    match (address, heard.first()) {
        (IpAddr::V4(_), Some(first)) => heard.get(usize::from(first & 0xf) * 4..).unwrap_or(&[]),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => heard,
    }
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, SCTP | UDP_LITE)
}

fn source_port(protocol: u8, said: &[u8]) -> Option<u16> {
    if !has_ports(protocol) {
        return Some(0);
    }
    let port = said.get(..2)?;

    Some(u16::from_be_bytes(port.try_into().ok()?))
}

fn is_from(protocol: u8, said: &[u8], source: u16, destination: u16) -> bool {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();

    !has_ports(protocol) || said.starts_with(&ports)
}

fn says(protocol: u8, said: &[u8], chunk: u8, words: &[u8]) -> bool {
    match protocol {
        SCTP => said.get(12) == Some(&chunk),
        UDP_LITE => said.get(8..) == Some(words),
        _ => said == words,
    }
}

fn question(probe: &Probe) -> Vec<u8> {
    match probe.protocol {
        SCTP => sctp(probe.from.port(), probe.to.port(), [0; 4], INIT),
        UDP_LITE => udp_lite(probe.from, probe.to, WORDS),
        _ => WORDS.to_vec(),
    }
}

fn answer(protocol: u8, asked: &[u8], from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    match protocol {
        SCTP => {
            let tag = asked.get(16..20).and_then(|tag| tag.try_into().ok());
            sctp(from.port(), to.port(), tag.unwrap_or_default(), INIT_ACK)
        }
        UDP_LITE => udp_lite(from, to, ANSWER),
        _ => ANSWER.to_vec(),
    }
}

/// An SCTP packet with the one chunk that opens an association, or answers that (RFC 9260, section 3).
fn sctp(source: u16, destination: u16, tag: [u8; 4], chunk: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend(tag);
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20]);
    packet.extend(TAG);
    packet.extend(65_535_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1_u32.to_be_bytes());
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);

    packet
}

/// The checksum of SCTP (RFC 9260, appendix A): CRC-32 of Castagnoli's polynomial, reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    });

    !crc
}

/// A UDP-Lite packet whose checksum covers all of it (RFC 3828, section 3).
fn udp_lite(from: SocketAddr, to: SocketAddr, words: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(words);
    let mut summed = Vec::new();
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(address) => summed.extend(address.octets()),
            IpAddr::V6(address) => summed.extend(address.octets()),
        }
    }
    let length = u32::try_from(packet.len()).unwrap_or_default();
    summed.extend(length.to_be_bytes());
    summed.extend([0, 0, 0, UDP_LITE]);
    summed.extend(&packet);
    let sum = match internet_checksum(&summed) {
        0 => u16::MAX,
        sum => sum,
    };
    packet[6..8].copy_from_slice(&sum.to_be_bytes());

    packet
}

/// The checksum of RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }

    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_sctp_is_that_of_the_standard() {
        // The check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_packet_that_opens_an_association_is_answered_with_the_tag_that_it_asks_for() {
        let asked = sctp(40_000, 9, [0; 4], INIT);
        let from = "10.0.0.2:9".parse().unwrap();
        let to = "10.0.0.1:40000".parse().unwrap();

        let answer = answer(SCTP, &asked, from, to);

        assert_eq!(answer[4..8], TAG);
        assert!(is_from(SCTP, &answer, 9, 40_000));
        assert!(says(SCTP, &answer, INIT_ACK, ANSWER));
        assert!(!says(SCTP, &asked, INIT_ACK, ANSWER));
    }
}
