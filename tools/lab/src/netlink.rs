//! A routing socket (rtnetlink): devices, addresses, routes and neighbours of one namespace.
//!
//! One request, one answer; the lab needs no more.

use std::{io, net::IpAddr, os::fd::RawFd};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The largest single answer; the kernel's dumps come in chunks of at most 32 KiB.
const ANSWER: usize = 64 * 1024;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// A routing socket of one network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// One end of a pair of devices.
#[derive(Debug)]
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
    /// The namespace it is born in, as a descriptor; none: this socket's.
    pub(crate) netns: Option<RawFd>,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hop {
    /// The destination is on the link itself.
    Link,
    /// A next hop on the link.
    Via(IpAddr),
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The index of a device.
    pub(crate) fn index(&mut self, name: &str) -> io::Result<u32> {
        let mut query = LinkMessage::default();
        query
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let answer = self.ask(RouteNetlinkMessage::GetLink(query), NLM_F_REQUEST)?;
        let Some(RouteNetlinkMessage::NewLink(link)) = answer.into_iter().next() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        Ok(link.header.index)
    }

    /// Makes a bridge that forwards everything and says nothing itself, and brings it up.
    pub(crate) fn add_bridge(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes.push(LinkAttribute::Mtu(mtu));
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Bridge,
            )]));
        up(&mut link);
        self.acknowledged(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Makes a pair of connected devices, both down.
    pub(crate) fn add_veth(
        &mut self,
        near: &VethEnd<'_>,
        far: &VethEnd<'_>,
        mtu: u32,
    ) -> io::Result<()> {
        let peer = InfoData::Veth(InfoVeth::Peer(far.message(mtu)));
        let mut link = near.message(mtu);
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)];
        link.attributes.push(LinkAttribute::LinkInfo(info));
        self.acknowledged(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Removes a device.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        self.acknowledged(RouteNetlinkMessage::DelLink(link), 0)
    }

    /// Brings a device up.
    pub(crate) fn set_up(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        up(&mut link);
        self.acknowledged(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Takes a device down.
    pub(crate) fn set_down(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        link.header.change_mask = LinkFlags::Up;
        self.acknowledged(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Sets a device's MTU.
    pub(crate) fn set_mtu(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        link.attributes.push(LinkAttribute::Mtu(mtu));
        self.acknowledged(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Puts a device on a bridge and brings it up.
    pub(crate) fn plug(&mut self, name: &str, bridge: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        link.attributes
            .push(LinkAttribute::Controller(self.index(bridge)?));
        up(&mut link);
        self.acknowledged(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Gives a device an address, without waiting for duplicates.
    pub(crate) fn add_address(&mut self, device: &str, address: IpNet) -> io::Result<()> {
        let message = self.address(device, address)?;
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.acknowledged(RouteNetlinkMessage::NewAddress(message), flags)
    }

    /// Takes an address from a device.
    pub(crate) fn delete_address(&mut self, device: &str, address: IpNet) -> io::Result<()> {
        let message = self.address(device, address)?;
        self.acknowledged(RouteNetlinkMessage::DelAddress(message), 0)
    }

    fn address(&mut self, device: &str, address: IpNet) -> io::Result<AddressMessage> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = self.index(device)?;
        if address.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message
            .attributes
            .push(AddressAttribute::Local(address.addr()));
        message
            .attributes
            .push(AddressAttribute::Address(address.addr()));
        Ok(message)
    }

    /// Adds a route to the main table, or replaces the one to the same destination.
    pub(crate) fn add_route(&mut self, to: IpNet, hop: Hop, device: &str) -> io::Result<()> {
        let message = self.route(to, hop, device)?;
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.acknowledged(RouteNetlinkMessage::NewRoute(message), flags)
    }

    /// Removes a route from the main table; one that is not there is no error.
    pub(crate) fn delete_route(&mut self, to: IpNet, hop: Hop, device: &str) -> io::Result<()> {
        let message = self.route(to, hop, device)?;
        match self.acknowledged(RouteNetlinkMessage::DelRoute(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    fn route(&mut self, to: IpNet, hop: Hop, device: &str) -> io::Result<RouteMessage> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(to.addr()),
            destination_prefix_length: to.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: match hop {
                Hop::Link => RouteScope::Link,
                Hop::Via(_) => RouteScope::Universe,
            },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        if to.prefix_len() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(to.network().into()));
        }
        if let Hop::Via(via) = hop {
            message.attributes.push(RouteAttribute::Gateway(via.into()));
        }
        message
            .attributes
            .push(RouteAttribute::Oif(self.index(device)?));
        Ok(message)
    }

    /// Writes down, for good, which Ethernet address an IP address has.
    pub(crate) fn add_neighbour(&mut self, device: &str, ip: IpAddr, mac: Mac) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = self.index(device)?;
        message.header.state = NeighbourState::Permanent;
        let address = match ip {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message
            .attributes
            .push(NeighbourAttribute::Destination(address));
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.acknowledged(RouteNetlinkMessage::NewNeighbour(message), flags)
    }

    /// The names of all devices.
    pub(crate) fn devices(&mut self) -> io::Result<Vec<String>> {
        let query = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answer = self.ask(query, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut names = Vec::new();
        for message in answer {
            let RouteNetlinkMessage::NewLink(link) = message else {
                continue;
            };
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    fn acknowledged(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .map(drop)
    }

    /// Sends a request and collects what comes back until the kernel says that this was all.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut collected = Vec::new();
        let mut buffer = Vec::with_capacity(ANSWER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            if self.collect(&buffer, flags, &mut collected)? {
                return Ok(collected);
            }
        }
    }

    /// Takes the messages of one datagram; true once the answer is complete.
    fn collect(
        &self,
        mut bytes: &[u8],
        flags: u16,
        collected: &mut Vec<RouteNetlinkMessage>,
    ) -> io::Result<bool> {
        while !bytes.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                .map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            bytes = bytes.get(length..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = &message.payload {
                return error.code.map_or(Ok(true), |_| Err(error.to_io()));
            }
            if matches!(message.payload, NetlinkPayload::Done(_)) {
                return Ok(true);
            }
            if let NetlinkPayload::InnerMessage(inner) = message.payload {
                collected.push(inner);
            }
            if flags & (NLM_F_ACK | NLM_F_DUMP) == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl VethEnd<'_> {
    fn message(&self, mtu: u32) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes
            .push(LinkAttribute::IfName(self.name.to_owned()));
        link.attributes.push(LinkAttribute::Mtu(mtu));
        if let Some(mac) = self.mac {
            link.attributes.push(LinkAttribute::Address(mac.to_vec()));
        }
        if let Some(netns) = self.netns {
            link.attributes.push(LinkAttribute::NetNsFd(netns));
        }
        link
    }
}

fn up(link: &mut LinkMessage) {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
