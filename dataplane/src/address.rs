//! Addresses on devices of ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use model::{Change, Family, InterfaceName};

use crate::{
    Absent, OpenError, Target,
    link::{self, Links},
    netlink::{Attributes, Message, NetlinkError, Protocol, Received, Refusal, Socket, flag},
};

/// Bytes of `struct ifaddrmsg` (linux/if_addr.h).
const HEADER: usize = 8;

/// Attributes of an address (linux/if_addr.h).
mod attribute {
    /// The address; the other end's where a link is point-to-point.
    pub(super) const ADDRESS: u16 = 1;
    /// The address on this side.
    pub(super) const LOCAL: u16 = 2;
    /// Flags in 32 bits.
    pub(super) const FLAGS: u16 = 8;
}

/// No duplicate address detection (`IFA_F_NODAD`): the address is usable at once.
const NO_DAD: u32 = 0x02;

/// No route to the subnet by itself (`IFA_F_NOPREFIXROUTE`): routes are the plan's.
const NO_PREFIX_ROUTE: u32 = 0x200;

/// Keeps addresses on the devices that are ours.
pub struct AddressTarget {
    socket: Socket,
    devices: BTreeSet<InterfaceName>,
}

/// Why addresses could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The kernel could not be asked.
    #[error("could not list addresses")]
    List(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A device could not be looked up.
    #[error("could not find device {0}")]
    Device(InterfaceName, #[source] io::Error),
    /// The kernel could not be told.
    #[error("could not send addresses")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused one.
    #[error("address {address} on {device}: {reason}")]
    Refused {
        /// The device.
        device: InterfaceName,
        /// The address.
        address: IpNet,
        /// The kernel's reason.
        reason: String,
    },
}

type Key = (InterfaceName, IpNet);

impl AddressTarget {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            devices: BTreeSet::new(),
        })
    }

    /// Says which devices' addresses are all ours.
    pub fn own(&mut self, devices: impl IntoIterator<Item = InterfaceName>) {
        self.devices = devices.into_iter().collect();
    }

    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Builds the request for a change; `Err` is what is missing.
    fn request(&self, change: &Change<Key, ()>) -> Result<Result<Message, String>, AddressError> {
        let (Change::Set((device, address), ()) | Change::Unset((device, address))) = change;
        if matches!(change, Change::Set(..)) && !self.devices.contains(device) {
            return Ok(Err(format!("device {device} is not ours")));
        }
        let index = link::index_of(&self.socket, device)
            .map_err(|error| AddressError::Device(device.clone(), error))?;
        let Some(index) = index else {
            return Ok(Err(format!("device {device} is not there")));
        };
        let (kind, flags) = match change {
            Change::Set(..) => (libc::RTM_NEWADDR, flag::CREATE | flag::REPLACE),
            Change::Unset(..) => (libc::RTM_DELADDR, 0),
        };
        let mut message = Message::new(kind, flags, &header(address, index));
        put_address(&mut message, attribute::LOCAL, address.addr());
        put_address(&mut message, attribute::ADDRESS, address.addr());
        if matches!(change, Change::Set(..)) {
            message.put_u32(attribute::FLAGS, NO_DAD | NO_PREFIX_ROUTE);
        }

        Ok(Ok(message))
    }
}

impl Target for AddressTarget {
    type Key = Key;
    type Row = ();
    type Error = AddressError;

    fn observe(&mut self) -> Result<BTreeMap<Key, ()>, AddressError> {
        let wrong = |error: NetlinkError| AddressError::List(Box::new(error));
        let links = Links::list(&mut self.socket).map_err(wrong)?;
        let addresses = list(&mut self.socket, None).map_err(wrong)?;

        Ok(addresses
            .into_iter()
            .filter(|found| !is_link_local(found.address))
            .filter_map(|found| {
                Some((
                    (links.by_index(found.index)?.name.clone(), found.address),
                    (),
                ))
            })
            .filter(|((device, _), ())| self.devices.contains(device))
            .collect())
    }

    fn apply(&mut self, changes: &[Change<Key, ()>]) -> Result<Vec<Absent<Key>>, AddressError> {
        let (mut requests, mut sent, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes {
            match (self.request(change)?, change) {
                (Ok(request), _) => {
                    requests.push(request);
                    sent.push(change);
                }
                (Err(reason), Change::Set(key, ())) => {
                    absent.push(Absent {
                        key: key.clone(),
                        reason,
                    });
                }
                (Err(_), Change::Unset(_)) => {}
            }
        }
        let refusals = self
            .socket
            .batch(requests)
            .map_err(|error| AddressError::Send(Box::new(error)))?;
        for refusal in refusals {
            judge(sent[refusal.index], &refusal)?;
        }

        Ok(absent)
    }
}

/// Decides whether a refusal matters: what should go may be gone already.
fn judge(change: &Change<Key, ()>, refusal: &Refusal) -> Result<(), AddressError> {
    let ((device, address), harmless) = match change {
        Change::Set(key, ()) => (key, refusal.errno == libc::EEXIST),
        Change::Unset(key) => (key, refusal.is_absence()),
    };
    if harmless {
        return Ok(());
    }

    Err(AddressError::Refused {
        device: device.clone(),
        address: *address,
        reason: refusal.to_string(),
    })
}

/// An address and the link it is on.
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) address: IpNet,
}

/// Lists every address of the socket's namespace, or of one of its links.
pub(crate) fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Found>, NetlinkError> {
    let mut header = [0; HEADER];
    header[4..].copy_from_slice(&link.unwrap_or(0).to_ne_bytes());
    let request = Message::new(libc::RTM_GETADDR, 0, &header);

    socket.dump(request, read)
}

/// Reads an `RTM_NEWADDR`.
fn read(message: &Received<'_>) -> Option<Found> {
    let header = message.payload.get(..HEADER)?;
    let attributes = Attributes::new(message.payload.get(HEADER..)?);
    let bytes = attributes
        .find(attribute::LOCAL)
        .or(attributes.find(attribute::ADDRESS))?;
    let address = crate::netlink::address(bytes)?;

    Some(Found {
        index: crate::netlink::u32_ne(&header[4..8])?,
        address: IpNet::new(address, header[1]).ok()?,
    })
}

/// Builds a `struct ifaddrmsg`.
pub(crate) fn header(address: &IpNet, index: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = family_number(Family::of_net(address));
    header[1] = address.prefix_len();
    header[4..].copy_from_slice(&index.to_ne_bytes());

    header
}

/// Returns the kernel's number of a family (`AF_INET`, `AF_INET6`).
pub(crate) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Appends an address attribute.
pub(crate) fn put_address(message: &mut Message, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => message.put(kind, &address.octets()),
        IpAddr::V6(address) => message.put(kind, &address.octets()),
    }
}

/// Returns whether an address is one that the kernel gives a link by itself.
pub(crate) fn is_link_local(address: IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
