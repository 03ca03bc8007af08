//! Frames made by hand, to plant leaks, to read, and to forge.
//!
//! Lengths and the IPv4 header's checksum are right, so that a host would take them; UDP goes without a
//! checksum. Addressed to nobody, unless [`to`] says otherwise.

use std::{io, net::IpAddr};

use crate::{
    netns::{Netns, NetnsError},
    sys,
};

/// Why a frame was not sent.
#[derive(Debug, thiserror::Error)]
pub enum ForgeError {
    /// The namespace could not be entered.
    #[error("the namespace to send from")]
    Netns(#[from] NetnsError),
    /// The device took no frame.
    #[error("{device} takes no frame")]
    Send {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Sends a frame by a device of a namespace, as its host would.
///
/// # Errors
/// [`ForgeError`].
pub fn send(netns: &Netns, device: &str, frame: &[u8]) -> Result<(), ForgeError> {
    let failed = |source| ForgeError::Send {
        device: device.to_owned(),
        source,
    };
    let index = netns.netlink().index(device).map_err(failed)?;
    let sent = netns.run(|| {
        let socket = sys::packet_socket(index)?;
        rustix::io::write(&socket, frame)?;
        Ok(())
    })?;
    sent.map_err(failed)
}

/// An Ethernet frame between nobody and nobody.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2; 12], &ethertype.to_be_bytes()[..], payload].concat()
}

/// An IP packet of the addresses' family.
///
/// # Panics
/// Where the addresses are no addresses of one family.
pub fn ip(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = match (source.parse(), destination.parse()) {
        (Ok(IpAddr::V4(s)), Ok(IpAddr::V4(d))) => {
            let [high, low] = length(20 + payload.len());
            let head = [0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
            let mut header = [&head[..], &s.octets(), &d.octets()].concat();
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum);
            header
        }
        (Ok(IpAddr::V6(s)), Ok(IpAddr::V6(d))) => {
            let [high, low] = length(payload.len());
            let head = [0x60, 0, 0, 0, high, low, protocol, 64];
            [&head[..], &s.octets(), &d.octets()].concat()
        }
        (source, destination) => {
            panic!("not two addresses of one family: {source:?} {destination:?}")
        }
    };
    [&header, payload].concat()
}

/// A length as headers have it; what is longer than a packet can be is cut to that.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// The Internet checksum (RFC 1071) over parts, each but the last of even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).expect("the loop folded it into sixteen bits");
    (!folded).to_be_bytes()
}

/// The frame, addressed to a device's Ethernet address.
pub fn to(mac: [u8; 6], frame: &[u8]) -> Vec<u8> {
    [&mac, &frame[6..]].concat()
}

/// The frame of an IP packet.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(ethertype(packet), packet)
}

/// The frame with an IEEE 802.1Q tag.
pub fn vlan(frame: &[u8], id: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &[0x81, 0], &id.to_be_bytes(), rest].concat()
}

/// A UDP datagram.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    [
        &source.to_be_bytes(),
        &destination.to_be_bytes(),
        &length(8 + payload.len()),
        &[0; 2][..],
        payload,
    ]
    .concat()
}

/// A UDP datagram to VXLAN's port with a frame inside.
pub fn vxlan(frame: &[u8]) -> Vec<u8> {
    udp(40_000, 4789, &[&[8, 0, 0, 0, 0, 16, 0, 0], frame].concat())
}

/// What follows the IP header of a GRE packet with a key.
pub fn gre(packet: &[u8]) -> Vec<u8> {
    [
        &[0x20, 0],
        &ethertype(packet).to_be_bytes()[..],
        &[0, 0, 0, 9],
        packet,
    ]
    .concat()
}

/// The packet as a later fragment of a larger one.
pub fn later_fragment(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if ethertype(&packet) == 0x0800 {
        packet[6..8].copy_from_slice(&100_u16.to_be_bytes());
        return packet;
    }
    let protocol = std::mem::replace(&mut packet[6], 44);
    let header = [protocol, 0, 3, 0x20, 0, 0, 0, 7];
    [&packet[..40], &header, &packet[40..]].concat()
}

fn ethertype(packet: &[u8]) -> u16 {
    if packet.first().is_some_and(|first| first >> 4 == 6) {
        0x86dd
    } else {
        0x0800
    }
}
