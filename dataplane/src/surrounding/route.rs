//! Routes of others in tables that are ours.

use ipnet::IpNet;
use model::{Family, conflict::ForeignRoute, constant::ROUTE_PROTOCOL};

use super::rule::protocol_name;
use crate::{
    address::family_number,
    link::Links,
    netlink::{self, Attributes, Message, NetlinkError, Received, Socket, u32_ne},
};

/// Bytes of `struct rtmsg` (linux/rtnetlink.h).
const HEADER: usize = 12;

/// How many are named at most.
const NAMED: usize = 20;

/// Attributes (`RTA_*` of linux/rtnetlink.h).
mod attribute {
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const DEVICE: u16 = 4;
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
