//! Asking the kernel which way packets would go.

use model::Family;

use super::{Way, packet::Packet};
use crate::{
    address::{family_number, put_address},
    netlink::{Attributes, Message, NetlinkError, Received, Socket, u32_ne},
};

/// Bytes of `struct rtmsg` (linux/rtnetlink.h).
const HEADER: usize = 12;

/// The answer names the table in which the route was found (`RTM_F_LOOKUP_TABLE`); IPv6 always does.
const NAME_TABLE: u32 = 0x1000;

/// Attributes (`RTA_*` of linux/rtnetlink.h).
mod attribute {
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const SOURCE: u16 = 2;
    pub(super) const IIF: u16 = 3;
    pub(super) const OIF: u16 = 4;
    pub(super) const TABLE: u16 = 15;
    pub(super) const MARK: u16 = 16;
}

/// Where packets would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Out of the device with this index, by a route of this table.
    Route { device: u32, table: u32 },
    /// Nowhere: by a rule, a route, or for want of one.
    Refused,
}

/// By which device packets come in, or to which they are bound, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Neither is known.
    Any,
    /// They come in by it.
    In(u32),
    /// Their socket is bound to it.
    Out(u32),
}

/// Asks for the way of a packet; `None` where the answer names no device.
pub(super) fn answer(
    socket: &mut Socket,
    way: &Way,
    packet: &Packet,
    by: By,
) -> Result<Option<Answer>, NetlinkError> {
    let family = Family::of(way.to);
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    header[1] = family.bits();
    header[3] = packet.class();
    if family == Family::V4 {
        header[8..].copy_from_slice(&NAME_TABLE.to_ne_bytes());
    }
    if way.from.is_some() {
        header[2] = family.bits();
    }
    let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
    put_address(&mut request, attribute::DESTINATION, way.to);
    if let Some((source, _)) = way.from {
        put_address(&mut request, attribute::SOURCE, source);
    }
    match by {
        By::Any => {}
        By::In(index) => request.put_u32(attribute::IIF, index),
        By::Out(index) => request.put_u32(attribute::OIF, index),
    }
    packet.put(&mut request);
    if way.mark != 0 {
        request.put_u32(attribute::MARK, way.mark);
    }

    Ok(match socket.get(request, read)? {
        Ok(route) => route,
        Err(_) => Some(Answer::Refused),
    })
}

fn read(message: &Received<'_>) -> Option<Answer> {
    let header = message.payload.get(..HEADER)?;
    let attributes = Attributes::new(message.payload.get(HEADER..)?);
    let number = |kind| attributes.find(kind).and_then(u32_ne);

    Some(Answer::Route {
        device: number(attribute::OIF)?,
        table: number(attribute::TABLE).unwrap_or(u32::from(header[4])),
    })
}
