//! Where packets of an address come from and go to: the machine itself, or one of its interfaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use model::{Family, InterfaceName};

use crate::{
    OpenError,
    address::{family_number, put_address},
    link::Links,
    netlink::{self, Attributes, Message, NetlinkError, Protocol, Received, Socket, u32_ne},
};

/// Bytes of `struct rtmsg` (linux/rtnetlink.h).
const HEADER: usize = 12;

/// The table of the machine's own addresses (`RT_TABLE_LOCAL`).
const LOCAL: u32 = 255;

/// Types of routes that end here (`RTN_LOCAL`, `RTN_BROADCAST`, `RTN_ANYCAST` of linux/rtnetlink.h).
const ENDS_HERE: [u8; 3] = [2, 3, 4];

/// Attributes (`RTA_*` of linux/rtnetlink.h).
mod attribute {
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const SOURCE: u16 = 2;
    pub(super) const INPUT: u16 = 3;
    pub(super) const OUTPUT: u16 = 4;
    pub(super) const TABLE: u16 = 15;
}

/// Answers where packets of an address come from and go to, as the kernel routes now.
///
/// What came in by one interface is taken to go back by it: a machine that answers by another way has its host
/// endpoints asked about that way.
pub struct Ways {
    socket: Socket,
    /// Listed when somebody first asks for a way: the kernel's lock on links may be held for long.
    links: Option<Links>,
    /// Single addresses of the machine, and whole networks that end here.
    own: BTreeSet<IpAddr>,
    own_nets: Vec<IpNet>,
    /// What has been asked: an address, and whether one of our pods was to send there.
    known: BTreeMap<(IpAddr, bool), Option<InterfaceName>>,
}

/// Why nothing can be said about ways.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// The links could not be listed.
    #[error("could not list links")]
    Links(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The machine's own addresses could not be listed.
    #[error("could not list the machine's own addresses")]
    Own(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A route could not be asked for.
    #[error("could not ask for a route")]
    Route(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Ways {
    /// Opens a socket in the calling thread's network namespace; knows nothing yet.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            links: None,
            own: BTreeSet::new(),
            own_nets: Vec::new(),
            known: BTreeMap::new(),
        })
    }

    /// Looks at the machine's own addresses anew, and forgets what it knew of ways.
    pub fn refresh(&mut self) -> Result<(), WayError> {
        self.known.clear();
        self.own.clear();
        self.own_nets.clear();
        self.links = None;
        for family in Family::BOTH {
            let nets =
                local(&mut self.socket, family).map_err(|error| WayError::Own(Box::new(error)))?;
            for net in nets {
                if net.prefix_len() == family.bits() {
                    self.own.insert(net.addr());
                } else {
                    self.own_nets.push(net);
                }
            }
        }

        Ok(())
    }

    /// Returns whether packets to an address end on this machine.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address) || self.own_nets.iter().any(|net| net.contains(&address))
    }

    /// Returns the interface by which packets go to an address; `None` where none is, or it cannot be told.
    ///
    /// `pod` is the sender, where it is one of ours: its address and its interface here.
    pub fn toward(
        &mut self,
        address: IpAddr,
        pod: Option<(IpAddr, &InterfaceName)>,
    ) -> Result<Option<InterfaceName>, WayError> {
        let key = (address, pod.is_some());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let found = if is_of_a_link(address) {
            None
        } else {
            let links = match self.links.take() {
                Some(links) => links,
                None => Links::list(&mut self.socket)
                    .map_err(|error| WayError::Links(Box::new(error)))?,
            };
            let found = ask(&mut self.socket, &links, address, pod);
            self.links = Some(links);
            found.map_err(|error| WayError::Route(Box::new(error)))?
        };
        self.known.insert(key, found.clone());

        Ok(found)
    }
}

/// Asks for the interface by which packets go to an address.
fn ask(
    socket: &mut Socket,
    links: &Links,
    address: IpAddr,
    pod: Option<(IpAddr, &InterfaceName)>,
) -> Result<Option<InterfaceName>, NetlinkError> {
    let bits = Family::of(address).bits();
    let sender = pod.and_then(|(source, name)| Some((source, links.by_name(name)?.index)));
    let mut header = [0; HEADER];
    header[0] = family_number(Family::of(address));
    header[1] = bits;
    header[2] = if sender.is_some() { bits } else { 0 };
    let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
    put_address(&mut request, attribute::DESTINATION, address);
    if let Some((source, index)) = sender {
        put_address(&mut request, attribute::SOURCE, source);
        request.put_u32(attribute::INPUT, index);
    }
    let output = |message: &Received<'_>| {
        let attributes = Attributes::new(message.payload.get(HEADER..)?);
        attributes.find(attribute::OUTPUT).and_then(u32_ne)
    };

    // A refusal says that there is no way.
    let index = socket.get(request, output)?.ok().flatten();

    Ok(index.and_then(|index| Some(links.by_index(index)?.name.clone())))
}

/// Returns whether an address means another machine on each link.
const fn is_of_a_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Lists what ends on this machine.
fn local(socket: &mut Socket, family: Family) -> Result<Vec<IpNet>, NetlinkError> {
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
    request.put_u32(attribute::TABLE, LOCAL);

    let listed = socket.dump(request, |message| {
        let header = message.payload.get(..HEADER)?;
        let attributes = Attributes::new(message.payload.get(HEADER..)?);
        let destination = attributes
            .find(attribute::DESTINATION)
            .and_then(netlink::address)?;
        let net = IpNet::new(destination, header[1]).ok()?;

        ENDS_HERE.contains(&header[7]).then_some(net)
    });
    match listed {
        // The kernel says so of a table that has never held a route.
        Err(NetlinkError::Dump(refusal)) if refusal.errno == libc::ENOENT => Ok(Vec::new()),
        listed => listed,
    }
}
