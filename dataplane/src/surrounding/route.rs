//! Routes of others in tables that are ours.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, conflict::ForeignRoute, constant::ROUTE_PROTOCOL};

use super::{probe::Answer, rule::protocol_name};
use crate::{
    address::family_number,
    link::Links,
    netlink::{self, Attributes, Message, NetlinkError, Received, Socket, u32_ne},
};

/// Bytes of `struct rtmsg` (linux/rtnetlink.h).
const HEADER: usize = 12;

/// Types of routes that lead somewhere, and that end the search in their table (`RTN_*`).
const UNICAST: u8 = 1;
const THROW: u8 = 9;

/// How many are named at most.
const NAMED: usize = 20;

/// Attributes (`RTA_*` of linux/rtnetlink.h).
mod attribute {
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const DEVICE: u16 = 4;
    pub(super) const METRIC: u16 = 6;
    pub(super) const TABLE: u16 = 15;
}

/// Lists the first of them.
pub(super) fn list(
    socket: &mut Socket,
    family: Family,
    table: u32,
    links: &Links,
) -> Result<Vec<ForeignRoute>, NetlinkError> {
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
    request.put_u32(attribute::TABLE, table);

    let listed = socket.dump(request, |message| read(message, table, links));
    match listed {
        // The kernel says so of a table that has never held a route.
        Err(NetlinkError::Dump(refusal)) if refusal.errno == libc::ENOENT => Ok(Vec::new()),
        listed => listed.map(|mut routes| {
            routes.truncate(NAMED);
            routes
        }),
    }
}

/// Looks an address up in a table as the kernel would, for packets about which it cannot be asked: the
/// longest network, of those the smallest metric. `suppress` is a rule's: networks up to that length do
/// not count.
pub(super) fn lookup(
    socket: &mut Socket,
    to: IpAddr,
    table: u32,
    suppress: Option<u32>,
) -> Result<Option<Answer>, NetlinkError> {
    let family = Family::of(to);
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
    request.put_u32(attribute::TABLE, table);
    let found = match socket.dump(request, |message| candidate(message, to, table)) {
        Err(NetlinkError::Dump(refusal)) if refusal.errno == libc::ENOENT => return Ok(None),
        found => found?,
    };
    let counts = |length: u8| suppress.is_none_or(|suppress| u32::from(length) > suppress);
    let best = found
        .into_iter()
        .min_by_key(|found| (u8::MAX - found.length, found.metric));

    Ok(best
        .filter(|best| counts(best.length))
        .and_then(|best| best.answer))
}

/// A route to an address.
struct Candidate {
    length: u8,
    metric: u32,
    /// `None`: the search goes on behind this table, or the route has no device of its own.
    answer: Option<Answer>,
}

fn candidate(message: &Received<'_>, to: IpAddr, table: u32) -> Option<Candidate> {
    let header = message.payload.get(..HEADER)?;
    let attributes = Attributes::new(message.payload.get(HEADER..)?);
    let number = |kind| attributes.find(kind).and_then(u32_ne);
    // A kernel that does not filter answers with every table's.
    let found = number(attribute::TABLE).unwrap_or(u32::from(header[4]));
    let destination = attributes
        .find(attribute::DESTINATION)
        .and_then(netlink::address);
    let covers = match destination {
        Some(destination) => IpNet::new(destination, header[1]).ok()?.contains(&to),
        None => header[1] == 0,
    };
    let device = number(attribute::DEVICE);

    (covers && found == table).then(|| Candidate {
        length: header[1],
        metric: number(attribute::METRIC).unwrap_or(0),
        answer: match header[7] {
            UNICAST => device.map(|device| Answer::Route { device, table }),
            THROW => None,
            _ => Some(Answer::Refused),
        },
    })
}

fn read(message: &Received<'_>, table: u32, links: &Links) -> Option<ForeignRoute> {
    let header = message.payload.get(..HEADER)?;
    if header[5] == ROUTE_PROTOCOL {
        return None;
    }
    let attributes = Attributes::new(message.payload.get(HEADER..)?);
    let default = match header[0] {
        2 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        10 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let destination = attributes.find(attribute::DESTINATION);
    let destination = destination.and_then(netlink::address).unwrap_or(default);
    let device = attributes.find(attribute::DEVICE).and_then(u32_ne);

    Some(ForeignRoute {
        table,
        destination: IpNet::new(destination, header[1]).ok()?,
        device: device.and_then(|index| Some(links.by_index(index)?.name.clone())),
        protocol: protocol_name(header[5]),
    })
}
