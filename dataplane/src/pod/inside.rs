//! The inner end of a pod's pair: everything that must be done in the pod's own namespace.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    thread,
};

use ipnet::IpNet;
use model::{
    Family, InterfaceName,
    constant::{POD_GATEWAY_V4, POD_GATEWAY_V6, WORKLOAD_MAC},
    plan::PodInterface,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    address::{self, family_number, put_address},
    link,
    netlink::{Message, NetlinkError, Protocol, Refusal, Socket, flag},
    sysctl::{self, SysctlError},
};

/// Attributes of an address and of a neighbour (linux/if_addr.h, linux/neighbour.h).
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_FLAGS: u16 = 8;
const NEIGHBOUR_ADDRESS: u16 = 1;
const NEIGHBOUR_MAC: u16 = 2;

/// Attributes of a route (linux/rtnetlink.h).
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_DEVICE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;

/// `IFA_F_NODAD`: usable at once.
const NO_DAD: u32 = 0x02;

/// Why the inner end could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// No thread could be had to enter the namespace with.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
    /// The namespace could not be entered.
    #[error("could not enter the namespace")]
    Enter(#[source] io::Error),
    /// The kernel could not be asked or told.
    #[error("could not speak to the kernel")]
    Netlink(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The interface is not in the namespace.
    #[error("there is no {0}")]
    NoDevice(InterfaceName),
    /// A setting could not be made.
    #[error("could not set up the interface")]
    Setting(#[source] SysctlError),
    /// The kernel refused a step.
    #[error("could not {0}: {1}")]
    Refused(&'static str, String),
}

/// Does something inside, on a thread that enters the namespace and ends there.
pub(super) fn enter<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> Result<T, InsideError> + Send,
) -> Result<T, InsideError> {
    let enter_and_work = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| InsideError::Enter(error.into()))?;

        work()
    };

    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("pod-namespace".to_owned())
            .spawn_scoped(scope, enter_and_work)
            .map_err(InsideError::Thread)?;

        worker
            .join()
            .unwrap_or_else(|_| Err(InsideError::Thread(io::Error::other("the thread panicked"))))
    })
}

/// Returns the index that an inner end's other end has outside; `None` where there is no such pair.
pub(super) fn other_end(inside: &InterfaceName) -> Result<Option<u32>, InsideError> {
    let mut socket = Socket::open(Protocol::Route).map_err(netlink)?;
    let link = link::get(&mut socket, inside).map_err(netlink)?;

    Ok(link.and_then(|link| link.other_end))
}

/// Settings before the link is up, so that it never learns from an advertisement; then addresses,
/// neighbours and routes. What is there already is left alone.
pub(super) fn set_up(
    row: &PodInterface,
    gateway_v6: Option<Ipv6Addr>,
    is_new: bool,
) -> Result<(), InsideError> {
    let mut socket = Socket::open(Protocol::Route).map_err(netlink)?;
    let link = link::get(&mut socket, &row.inside)
        .map_err(netlink)?
        .ok_or_else(|| InsideError::NoDevice(row.inside.clone()))?;
    settings(&row.inside, gateway_v6.is_some())?;
    // Afterwards it is the pod's own affair.
    if is_new {
        forwarding(row.forwards)?;
    }

    let has_mac = row.mac.is_none() || row.mac == link.mac;
    if link.mtu != row.mtu || !link.is_up() || !has_mac {
        send(
            &mut socket,
            "bring the interface up",
            vec![up(link.index, row.mtu, row.mac)],
        )?;
    }
    loopback(&mut socket)?;
    addresses(&mut socket, link.index, row)?;
    if row.addresses.iter().any(|net| net.addr().is_ipv4()) {
        gateway(&mut socket, link.index, POD_GATEWAY_V4.into())?;
    }
    if let Some(gateway_v6) = gateway_v6 {
        gateway(&mut socket, link.index, gateway_v6.into())?;
    }

    Ok(())
}

/// A pod learns nothing from advertisements; one with IPv6 addresses has IPv6, at once.
fn settings(inside: &InterfaceName, has_v6: bool) -> Result<(), InsideError> {
    let all = [
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("disable_ipv6", "0"),
    ];
    let wanted = if has_v6 { &all[..] } else { &all[..1] };
    for (name, value) in wanted {
        let key = format!("net/ipv6/conf/{inside}/{name}");
        // Without IPv6 in the kernel there is nothing to set; an address is then refused later.
        let is_there = sysctl::write(&key, value).map_err(InsideError::Setting)?;
        tracing::trace!(key, is_there, "Setting inside a pod");
    }

    Ok(())
}

/// A namespace begins with what the host's first one has, which forwards.
fn forwarding(forwards: bool) -> Result<(), InsideError> {
    let value = if forwards { "1" } else { "0" };
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let is_there = sysctl::write(key, value).map_err(InsideError::Setting)?;
        tracing::trace!(key, is_there, "Setting inside a pod");
    }

    Ok(())
}

/// A pod talks to itself by the loopback.
fn loopback(socket: &mut Socket) -> Result<(), InsideError> {
    let name = "lo".parse().expect("a name of two letters");
    match link::get(socket, &name).map_err(netlink)? {
        Some(link) if !link.is_up() => send(
            socket,
            "bring the loopback up",
            vec![up(link.index, link.mtu, None)],
        ),
        Some(_) | None => Ok(()),
    }
}

/// Adds the pod's addresses and takes away those that an earlier row gave it.
fn addresses(socket: &mut Socket, index: u32, row: &PodInterface) -> Result<(), InsideError> {
    let found = address::list(socket, Some(index)).map_err(netlink)?;
    let stale = found.iter().filter(|found| {
        found.index == index
            && !address::is_link_local(found.address)
            && !row.addresses.contains(&found.address)
    });
    let removals = stale.map(|found| address_request(libc::RTM_DELADDR, 0, &found.address, index));
    let removals: Vec<Message> = removals.collect();
    if !removals.is_empty() {
        send(socket, "take an address away", removals)?;
    }

    let additions = row
        .addresses
        .iter()
        .map(|net| address_request(libc::RTM_NEWADDR, flag::CREATE | flag::REPLACE, net, index));

    send(socket, "add an address", additions.collect())
}

fn address_request(kind: u16, flags: u16, net: &IpNet, index: u32) -> Message {
    let mut message = Message::new(kind, flags, &address::header(net, index));
    put_address(&mut message, ADDRESS_LOCAL, net.addr());
    if kind == libc::RTM_NEWADDR {
        message.put_u32(ADDRESS_FLAGS, NO_DAD);
    }

    message
}

/// Makes the gateway reachable without asking for it, then the way out. The gateway's MAC address is
/// the host end's, which never changes: a pod needs no ARP and no neighbour discovery.
fn gateway(socket: &mut Socket, index: u32, gateway: IpAddr) -> Result<(), InsideError> {
    send(
        socket,
        "add the gateway's neighbour entry",
        vec![neighbour(index, gateway)],
    )?;
    if gateway.is_ipv4() {
        // IPv6 needs no such route: the gateway's address is link-local.
        send(
            socket,
            "add the route to the gateway",
            vec![route(index, gateway, None)],
        )?;
    }
    let everywhere = match Family::of(gateway) {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };

    send(
        socket,
        "add the default route",
        vec![route(index, everywhere, Some(gateway))],
    )
}

/// Builds a permanent neighbour entry (`struct ndmsg`, `NUD_PERMANENT`).
fn neighbour(index: u32, gateway: IpAddr) -> Message {
    let mut header = [0; 12];
    header[0] = family_number(Family::of(gateway));
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    let flags = flag::CREATE | flag::REPLACE;
    let mut message = Message::new(libc::RTM_NEWNEIGH, flags, &header);
    put_address(&mut message, NEIGHBOUR_ADDRESS, gateway);
    message.put(NEIGHBOUR_MAC, &WORKLOAD_MAC);

    message
}

/// Builds a route to one address on the link, or by a gateway to everywhere (`struct rtmsg`).
fn route(index: u32, destination: IpAddr, gateway: Option<IpAddr>) -> Message {
    let family = Family::of(destination);
    let mut header = [0; 12];
    header[0] = family_number(family);
    header[1] = if gateway.is_some() { 0 } else { family.bits() };
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = libc::RTPROT_BOOT;
    header[6] = if gateway.is_some() {
        libc::RT_SCOPE_UNIVERSE
    } else {
        libc::RT_SCOPE_LINK
    };
    header[7] = libc::RTN_UNICAST;
    let flags = flag::CREATE | flag::REPLACE;
    let mut message = Message::new(libc::RTM_NEWROUTE, flags, &header);
    match gateway {
        Some(gateway) => put_address(&mut message, ROUTE_GATEWAY, gateway),
        None => put_address(&mut message, ROUTE_DESTINATION, destination),
    }
    message.put_u32(ROUTE_DEVICE, index);

    message
}

fn up(index: u32, mtu: u32, mac: Option<[u8; 6]>) -> Message {
    let header = link::header(index, link::up_flag(), link::up_flag());
    let mut message = Message::new(libc::RTM_NEWLINK, 0, &header);
    message.put_u32(link::attribute::MTU, mtu);
    if let Some(mac) = mac {
        message.put(link::attribute::ADDRESS, &mac);
    }

    message
}

/// Builds the request that gives a host end the pods' IPv6 gateway address.
pub(super) fn link_local_request(index: u32) -> Message {
    let net = IpNet::new_assert(POD_GATEWAY_V6.into(), 64);

    address_request(libc::RTM_NEWADDR, flag::CREATE | flag::REPLACE, &net, index)
}

fn send(
    socket: &mut Socket,
    step: &'static str,
    requests: Vec<Message>,
) -> Result<(), InsideError> {
    let refusals = socket.batch(requests).map_err(netlink)?;

    match refusals
        .iter()
        .find(|refusal| refusal.errno != libc::EEXIST)
    {
        None => Ok(()),
        Some(refusal) => Err(refused(step, refusal)),
    }
}

fn refused(step: &'static str, refusal: &Refusal) -> InsideError {
    InsideError::Refused(step, refusal.to_string())
}

pub(super) fn netlink(error: NetlinkError) -> InsideError {
    InsideError::Netlink(Box::new(error))
}
