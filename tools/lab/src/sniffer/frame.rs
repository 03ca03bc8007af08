//! What a frame carries: its layers, the addresses of each, and the innermost transport. Pure.
//!
//! ```text
//! Ethernet ─▶ VLAN* ─▶ IPv4 | IPv6 ─▶ options, fragments ─▶ IPIP ─▶ IP …
//!                                                       ├─▶ GRE ─▶ IP | Ethernet …
//!                                                       ├─▶ UDP/4789 (VXLAN) ─▶ Ethernet …
//!                                                       └─▶ UDP, TCP, ICMP, SCTP, …
//! ```
//!
//! A frame that ends too early is read as far as it goes: what is known of it stays known.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The most layers that are looked into; a frame with more is no packet of anybody's.
const MAX_DEPTH: usize = 16;

/// The most extension headers of one packet that are looked behind.
const MAX_EXTENSIONS: usize = 16;

/// UDP port of VXLAN (RFC 7348).
const VXLAN: u16 = 4789;

/// One layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// An IEEE 802.1Q tag.
    Vlan,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Part of a fragmented packet.
    Fragment,
    /// VXLAN, with an Ethernet frame inside.
    Vxlan,
    /// Generic Routing Encapsulation.
    Gre,
}

/// The innermost thing that was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    /// A UDP datagram.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// What follows the header, as far as it was captured.
        payload: &'a [u8],
    },
    /// A TCP segment.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// An ICMP or ICMPv6 message.
    Icmp,
    /// ARP.
    Arp,
    /// The later part of a fragmented packet.
    Rest,
    /// Another IP protocol, by its number.
    Protocol(u8),
    /// No IP at all, or nothing that could be read.
    Unknown,
}

/// A frame, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its layers, outermost first.
    pub layers: Vec<Layer>,
    /// Source and destination of every IP layer, outermost first.
    pub ends: Vec<(IpAddr, IpAddr)>,
    /// What is innermost.
    pub transport: Transport<'a>,
}

/// Whether an untagged frame's own IP packet is a piece of a larger one.
pub(super) fn is_fragment(frame: &[u8]) -> bool {
    /// Next header of IPv6 that says so (RFC 8200 §4.5), where no other header comes before.
    const FRAGMENT: u8 = 44;
    let field = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    match field(12) {
        // More of them follow, or it begins elsewhere than at zero.
        Some(0x0800) => field(20).is_some_and(|flags| flags & 0x3fff != 0),
        Some(0x86dd) => frame.get(20) == Some(&FRAGMENT),
        Some(_) | None => false,
    }
}

/// Reads an Ethernet frame.
pub fn read(frame: &[u8]) -> Packet<'_> {
    let mut packet = Packet {
        layers: Vec::new(),
        ends: Vec::new(),
        transport: Transport::Unknown,
    };
    // Whatever ends too early leaves the packet as far as it was read.
    let _: Option<()> = packet.ethernet(frame);
    packet
}

impl<'a> Packet<'a> {
    fn ethernet(&mut self, frame: &'a [u8]) -> Option<()> {
        self.ethertype(be16(frame, 12)?, frame.get(14..)?)
    }

    fn ethertype(&mut self, ethertype: u16, bytes: &'a [u8]) -> Option<()> {
        if self.layers.len() >= MAX_DEPTH {
            return None;
        }
        match ethertype {
            0x8100 | 0x88a8 | 0x9100 => {
                self.layers.push(Layer::Vlan);
                self.ethertype(be16(bytes, 2)?, bytes.get(4..)?)
            }
            0x0800 | 0x86dd => self.ip(bytes),
            0x6558 => self.ethernet(bytes),
            0x0806 => {
                self.transport = Transport::Arp;
                Some(())
            }
            _ => None,
        }
    }

    /// By its version field, whatever the layer below says.
    fn ip(&mut self, bytes: &'a [u8]) -> Option<()> {
        if self.layers.len() >= MAX_DEPTH {
            return None;
        }
        self.transport = Transport::Unknown;
        match bytes.first()? >> 4 {
            4 => self.ipv4(bytes),
            6 => self.ipv6(bytes),
            _ => None,
        }
    }

    fn ipv4(&mut self, bytes: &'a [u8]) -> Option<()> {
        let header = usize::from(bytes.first()? & 0xf) * 4;
        let address = |at| Some(IpAddr::V4(Ipv4Addr::from(be32(bytes, at)?)));
        self.layers.push(Layer::Ipv4);
        self.ends.push((address(12)?, address(16)?));
        let fragment = be16(bytes, 6)?;
        if fragment & 0x3fff != 0 {
            self.layers.push(Layer::Fragment);
        }
        if fragment & 0x1fff != 0 {
            self.transport = Transport::Rest;
            return Some(());
        }
        self.protocol(*bytes.get(9)?, bytes.get(header.max(20)..)?, MAX_EXTENSIONS)
    }

    fn ipv6(&mut self, bytes: &'a [u8]) -> Option<()> {
        let address = |at: usize| {
            let bytes: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        };
        self.layers.push(Layer::Ipv6);
        self.ends.push((address(8)?, address(24)?));
        self.protocol(*bytes.get(6)?, bytes.get(40..)?, MAX_EXTENSIONS)
    }

    /// What follows an IP header or extension header; `left` more extensions are looked behind.
    fn protocol(&mut self, protocol: u8, bytes: &'a [u8], left: usize) -> Option<()> {
        self.transport = Transport::Protocol(protocol);
        let left = left.checked_sub(1)?;
        match protocol {
            // Hop-by-hop options, routing, destination options (RFC 8200 §4).
            0 | 43 | 60 => {
                let length = (usize::from(*bytes.get(1)?) + 1) * 8;
                self.protocol(*bytes.first()?, bytes.get(length..)?, left)
            }
            44 => self.fragment(bytes, left),
            // Authentication header (RFC 4302 §2.2).
            51 => {
                let length = (usize::from(*bytes.get(1)?) + 2) * 4;
                self.protocol(*bytes.first()?, bytes.get(length..)?, left)
            }
            4 | 41 => self.ip(bytes),
            47 => self.gre(bytes),
            6 => {
                let (source, destination) = (be16(bytes, 0)?, be16(bytes, 2)?);
                self.transport = Transport::Tcp {
                    source,
                    destination,
                };
                Some(())
            }
            17 => self.udp(bytes),
            1 | 58 => {
                self.transport = Transport::Icmp;
                Some(())
            }
            _ => Some(()),
        }
    }

    /// The IPv6 fragment header (RFC 8200 §4.5).
    fn fragment(&mut self, bytes: &'a [u8], left: usize) -> Option<()> {
        self.layers.push(Layer::Fragment);
        if be16(bytes, 2)? & 0xfff8 != 0 {
            self.transport = Transport::Rest;
            return Some(());
        }
        self.protocol(*bytes.first()?, bytes.get(8..)?, left)
    }

    /// Generic Routing Encapsulation, with its optional fields (RFC 2784, RFC 2890).
    fn gre(&mut self, bytes: &'a [u8]) -> Option<()> {
        self.layers.push(Layer::Gre);
        let flags = be16(bytes, 0)?;
        let optional = [0x8000, 0x2000, 0x1000]
            .iter()
            .filter(|flag| flags & **flag != 0)
            .count();
        self.ethertype(be16(bytes, 2)?, bytes.get(4 + optional * 4..)?)
    }

    fn udp(&mut self, bytes: &'a [u8]) -> Option<()> {
        let (source, destination) = (be16(bytes, 0)?, be16(bytes, 2)?);
        let payload = bytes.get(8..)?;
        self.transport = Transport::Udp {
            source,
            destination,
            payload,
        };
        if destination != VXLAN {
            return Some(());
        }
        self.layers.push(Layer::Vxlan);
        self.ethernet(payload.get(8..)?)
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl fmt::Display for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = match self.transport {
            Transport::Udp {
                source,
                destination,
                ..
            }
            | Transport::Tcp {
                source,
                destination,
            } => Some((source, destination)),
            Transport::Icmp
            | Transport::Arp
            | Transport::Rest
            | Transport::Protocol(_)
            | Transport::Unknown => None,
        };
        for (index, (source, destination)) in self.ends.iter().enumerate() {
            let inside = if index == 0 { "" } else { " [" };
            match ports.filter(|_| index + 1 == self.ends.len()) {
                Some((from, to)) => write!(f, "{inside}{source}:{from} > {destination}:{to}")?,
                None => write!(f, "{inside}{source} > {destination}")?,
            }
        }
        write!(f, "{}", "]".repeat(self.ends.len().saturating_sub(1)))?;
        match self.transport {
            Transport::Udp { .. } => f.write_str(" UDP"),
            Transport::Tcp { .. } => f.write_str(" TCP"),
            Transport::Icmp => f.write_str(" ICMP"),
            Transport::Arp => f.write_str("ARP"),
            Transport::Rest => f.write_str(" fragment"),
            Transport::Protocol(number) => write!(f, " protocol {number}"),
            Transport::Unknown => f.write_str("not IP"),
        }
    }
}
