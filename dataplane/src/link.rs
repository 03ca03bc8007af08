//! Links, as the other targets need them: by name, by index, with what matters of them.

use std::{collections::BTreeMap, io};

use model::InterfaceName;
use rustix::{io::Errno, net::netdevice};

use crate::netlink::{Attributes, Message, NetlinkError, Received, Socket, text, u32_ne};

/// Bytes of `struct ifinfomsg` (linux/rtnetlink.h).
const HEADER: usize = 16;

/// Attributes of a link (linux/if_link.h).
pub(crate) mod attribute {
    /// Hardware address.
    pub(crate) const ADDRESS: u16 = 1;
    /// The other end's index.
    pub(crate) const OTHER_END: u16 = 5;
    /// Name.
    pub(crate) const NAME: u16 = 3;
    /// MTU.
    pub(crate) const MTU: u16 = 4;
    /// Index of the link that it is a part of.
    pub(crate) const MASTER: u16 = 10;
    /// Operational state, RFC 2863 §3.1.14.
    pub(crate) const OPERSTATE: u16 = 16;
    /// What kind it is, and the kind's own settings.
    pub(crate) const INFO: u16 = 18;
    /// A free text.
    pub(crate) const ALIAS: u16 = 20;
    /// File descriptor of the network namespace it moves to.
    pub(crate) const NAMESPACE_FD: u16 = 28;
    /// Inside `INFO`: the kind's name.
    pub(crate) const INFO_KIND: u16 = 1;
    /// Inside `INFO`: the kind's settings.
    pub(crate) const INFO_DATA: u16 = 2;
    /// Inside a veth's settings: the other end.
    pub(crate) const VETH_PEER: u16 = 1;
    /// Inside a VRF's settings: its routing table.
    pub(crate) const VRF_TABLE: u16 = 1;
}

/// Operational states in which packets flow (`IF_OPER_UNKNOWN`, `IF_OPER_UP` of linux/if.h).
const FLOWING: [u8; 2] = [0, 6];

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: InterfaceName,
    /// `IFF_*`.
    pub(crate) flags: u32,
    pub(crate) mtu: u32,
    /// The kind's name, as in `ip link add type KIND`.
    pub(crate) kind: Option<String>,
    pub(crate) alias: Option<String>,
    pub(crate) mac: Option<[u8; 6]>,
    /// The index of a veth's other end, in whichever namespace that is.
    pub(crate) other_end: Option<u32>,
    /// The index of the bridge, bond or VRF that it belongs to.
    pub(crate) master: Option<u32>,
    /// A VRF's routing table.
    pub(crate) vrf_table: Option<u32>,
    /// Administratively up and with carrier.
    pub(crate) flowing: bool,
}

/// The links of a namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links(BTreeMap<u32, Link>);

impl Links {
    /// Lists the links of the socket's namespace.
    pub(crate) fn list(socket: &mut Socket) -> Result<Self, NetlinkError> {
        let request = Message::new(libc::RTM_GETLINK, 0, &header(0, 0, 0));
        let links = socket.dump(request, Link::read)?;

        Ok(Self(
            links.into_iter().map(|link| (link.index, link)).collect(),
        ))
    }

    /// Returns the link with this index.
    pub(crate) fn by_index(&self, index: u32) -> Option<&Link> {
        self.0.get(&index)
    }

    /// Returns the link with this name.
    pub(crate) fn by_name(&self, name: &InterfaceName) -> Option<&Link> {
        self.0.values().find(|link| link.name == *name)
    }

    /// Returns every link.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }
}

impl Link {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(crate) fn read(message: &Received<'_>) -> Option<Self> {
        let index = u32_ne(message.payload.get(4..8)?)?;
        let flags = u32_ne(message.payload.get(8..12)?)?;
        let attributes = Attributes::new(message.payload.get(HEADER..)?);
        let read_text = |kind| attributes.find(kind).and_then(text).map(str::to_owned);
        let state = attributes
            .find(attribute::OPERSTATE)
            .and_then(|value| value.first());

        let info = attributes.nest(attribute::INFO);
        let kind = info.find(attribute::INFO_KIND).and_then(text);
        let is_vrf = kind == Some("vrf");
        let settings = info.nest(attribute::INFO_DATA);
        let vrf_table = settings.find(attribute::VRF_TABLE).and_then(u32_ne);

        Some(Self {
            index,
            name: read_text(attribute::NAME)?.parse().ok()?,
            flags,
            mtu: attributes.find(attribute::MTU).and_then(u32_ne)?,
            kind: kind.map(str::to_owned),
            alias: read_text(attribute::ALIAS),
            mac: attributes
                .find(attribute::ADDRESS)
                .and_then(|value| value.try_into().ok()),
            other_end: attributes.find(attribute::OTHER_END).and_then(u32_ne),
            master: attributes.find(attribute::MASTER).and_then(u32_ne),
            vrf_table: vrf_table.filter(|_| is_vrf),
            flowing: flags & up_flag() != 0 && state.is_none_or(|state| FLOWING.contains(state)),
        })
    }

    /// Returns whether it is administratively up.
    pub(crate) fn is_up(&self) -> bool {
        self.flags & up_flag() != 0
    }
}

/// Returns a link; `None` where there is no such link.
pub(crate) fn get(socket: &mut Socket, name: &InterfaceName) -> Result<Option<Link>, NetlinkError> {
    let mut request = Message::new(libc::RTM_GETLINK, 0, &header(0, 0, 0));
    request.put_text(attribute::NAME, name.as_str());

    match socket.get(request, Link::read)? {
        Ok(link) => Ok(link),
        Err(refusal) if refusal.is_absence() => Ok(None),
        Err(refusal) => Err(NetlinkError::Dump(refusal)),
    }
}

/// Returns a link's index; `None` where there is no such link.
pub(crate) fn index_of(socket: &Socket, name: &InterfaceName) -> io::Result<Option<u32>> {
    match netdevice::name_to_index(socket, name.as_str()) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Builds a `struct ifinfomsg` that sets `flags` under `mask`.
pub(crate) fn header(index: u32, flags: u32, mask: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());

    header
}

/// `IFF_UP`, as the kernel's unsigned field has it.
pub(crate) const fn up_flag() -> u32 {
    1
}
