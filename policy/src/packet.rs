//! A packet that opens a connection, and the way it goes.

use std::net::IpAddr;

use model::{Family, NodeName, PodName, policy::Protocol};

/// A packet that opens a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub from: Place,
    /// Who is to get it, behind every translation.
    pub to: Place,
    /// What it says, behind every translation of its destination.
    pub header: Header,
    /// The translation of its destination on the way, if there is one.
    pub translation: Option<Translation>,
}

/// Where a packet begins or ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A pod with a network of its own.
    Pod(PodName),
    /// A process of a node, or a pod that uses its node's network.
    Node(NodeName),
    /// Any other machine.
    Outside,
}

/// What rules can see of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address, of the same family.
    pub destination: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// Source and destination port, where the protocol has ports.
    pub ports: Option<Ports>,
    /// ICMP type and code, where the protocol is ICMP or ICMPv6.
    pub icmp: Option<IcmpHeader>,
}

/// A packet's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The sender's.
    pub source: u16,
    /// The receiver's.
    pub destination: u16,
}

/// A packet's ICMP or ICMPv6 type and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpHeader {
    /// The type.
    pub kind: u8,
    /// The code.
    pub code: u8,
}

/// Destination NAT on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The address that it was sent to.
    pub address: IpAddr,
    /// The port that it was sent to.
    pub port: u16,
    /// The node that translates.
    pub at: Translator,
}

/// Which node translates a packet's destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translator {
    /// The first node on its way: services, seen from members.
    First,
    /// The last node on its way: node ports, external addresses.
    Last,
}

impl Header {
    /// Returns the family.
    pub fn family(&self) -> Family {
        Family::of(self.destination)
    }

    /// Returns the header of an answer.
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ports: self.ports.map(|ports| Ports {
                source: ports.destination,
                destination: ports.source,
            }),
            icmp: self.icmp.map(IcmpHeader::answer),
            ..*self
        }
    }

    /// Returns the header before a translation.
    pub fn before(&self, translation: &Translation) -> Self {
        Self {
            destination: translation.address,
            ports: self.ports.map(|ports| Ports {
                destination: translation.port,
                ..ports
            }),
            ..*self
        }
    }
}

impl IcmpHeader {
    /// Pairs of question and answer of ICMP (RFC 792: echo, timestamp) and ICMPv6 (RFC 4443: echo; RFC 4620: node
    /// information).
    const ANSWERS: [(u8, u8); 4] = [(8, 0), (13, 14), (128, 129), (139, 140)];

    /// Returns what answers it; what nothing answers stays as it is.
    fn answer(self) -> Self {
        let pair = Self::ANSWERS.into_iter().find_map(|(question, answer)| {
            let is_question = self.kind == question;
            let is_answer = self.kind == answer;

            match (is_question, is_answer) {
                (true, _) => Some(answer),
                (false, true) => Some(question),
                (false, false) => None,
            }
        });

        Self {
            kind: pair.unwrap_or(self.kind),
            ..self
        }
    }
}

/// Returns whether the kernel tells from a lone answer that it never saw the question: it does for TCP, SCTP and ICMP,
/// and takes any other packet for the first of a connection.
pub(crate) const fn has_memory(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::TCP | Protocol::SCTP | Protocol::ICMP | Protocol::ICMPV6
    )
}
