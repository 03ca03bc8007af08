//! What the kernel has of a pod's interface, against what it should have.
//!
//! Nothing is mended here: what is outside the pod is, at the next pass; what is inside is the pod's own affair.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{
    Family, InterfaceName, PodName,
    constant::{POD_GATEWAY_V4, POD_GATEWAY_V6, WORKLOAD_MAC},
    family::host_net,
    plan::PodInterface,
    pod::Limits,
};

use super::{PodError, PodTarget, alias, inside, is_workload, open, settings_hold, shaper};
use crate::{
    address::{self, family_number, put_address},
    link,
    netlink::{self, Attributes, Message, NetlinkError, Protocol, Received, Socket, u32_ne},
    sysctl,
};

/// Attributes of routes and neighbours (linux/rtnetlink.h, linux/neighbour.h).
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_DEVICE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const NEIGHBOUR_ADDRESS: u16 = 1;
const NEIGHBOUR_MAC: u16 = 2;

/// Bytes of `struct rtmsg` and of `struct ndmsg`.
const ROUTE_HEADER: usize = 12;
const NEIGHBOUR_HEADER: usize = 12;

/// `RTM_F_FIB_MATCH` of linux/rtnetlink.h: the table's entry is wanted, not a route made of it.
const TABLE_ENTRY: u32 = 0x2000;

impl PodTarget {
    /// Returns each difference between a pod's interface in the kernel and what it should be, in words.
    ///
    /// # Errors
    /// The kernel cannot be asked, or the pod's namespace cannot be entered.
    pub fn examine(&mut self, pod: &PodName, row: &PodInterface) -> Result<Vec<String>, PodError> {
        let Some(link) = self.link(&row.host)? else {
            return Ok(vec![format!("the host has no {}", row.host)]);
        };
        let mut found = Vec::new();
        let mut expect = |holds: bool, what: String| found.extend((!holds).then_some(what));
        let host = &row.host;
        expect(is_workload(&link), format!("{host} is no veth"));
        expect(link.is_up(), format!("{host} is down"));
        let (mtu, wanted) = (link.mtu, row.mtu);
        expect(mtu == wanted, format!("{host} has MTU {mtu}, not {wanted}"));
        let has_mac = link.mac == Some(WORKLOAD_MAC);
        expect(has_mac, format!("{host} has another MAC address"));
        expect(
            link.alias == alias(pod),
            format!("{host} is not named for {pod}"),
        );
        expect(
            settings_hold(host),
            format!("settings of {host} were changed"),
        );
        for address in &row.addresses {
            let leads = self.leads_to(address.addr(), link.index)?;
            expect(leads, format!("no route leads to {address} by {host}"));
        }
        let limits = self.limits_hold(&link, row.limits)?;
        expect(limits, format!("the limits of {host} were changed"));

        let namespace = open(&row.netns)?;
        let within = inside::enter(&namespace, || within(row, link.index));
        found.extend(within.map_err(PodError::Inside)?);

        Ok(found)
    }

    /// Returns whether the kernel sends packets to the address by the link, for the address's own sake.
    fn leads_to(&mut self, address: IpAddr, index: u32) -> Result<bool, PodError> {
        let family = Family::of(address);
        let mut header = [0; ROUTE_HEADER];
        header[0] = family_number(family);
        header[1] = family.bits();
        header[8..12].copy_from_slice(&TABLE_ENTRY.to_ne_bytes());
        let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
        put_address(&mut request, ROUTE_DESTINATION, address);
        let answer = self
            .socket
            .get(request, Route::read)
            .map_err(|error| PodError::Links(Box::new(error)))?;

        Ok(answer.is_ok_and(|route| {
            route.is_some_and(|route| {
                route.destination == host_net(address) && route.device == Some(index)
            })
        }))
    }

    fn limits_hold(&mut self, link: &link::Link, limits: Limits) -> Result<bool, PodError> {
        let kinds = shaper::kinds(&mut self.socket, link.index)?;
        let is = |kind: &str| kinds.iter().any(|found| found == kind);
        let Some(device) = shaper::device(&link.name) else {
            return Ok(limits.is_none());
        };
        let shaping = match self.link(&device)? {
            Some(device) => {
                let kinds = shaper::kinds(&mut self.socket, device.index)?;
                device.is_up() && kinds.iter().any(|kind| kind == "tbf")
            }
            None => false,
        };

        Ok(is("tbf") == limits.ingress.is_some()
            && is("clsact") == limits.egress.is_some()
            && shaping == limits.egress.is_some())
    }
}

/// A route, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    destination: IpNet,
    device: Option<u32>,
    gateway: Option<IpAddr>,
}

/// A neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Neighbour {
    device: u32,
    address: IpAddr,
    mac: Option<[u8; 6]>,
    is_permanent: bool,
}

impl Route {
    fn read(message: &Received<'_>) -> Option<Self> {
        let header = message.payload.get(..ROUTE_HEADER)?;
        let attributes = Attributes::new(&message.payload[ROUTE_HEADER..]);
        let any: IpAddr = match header[0] {
            2 => Ipv4Addr::UNSPECIFIED.into(),
            10 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let address = |kind| attributes.find(kind).and_then(netlink::address);
        let destination = address(ROUTE_DESTINATION).unwrap_or(any);

        Some(Self {
            destination: IpNet::new(destination, header[1]).ok()?,
            device: attributes.find(ROUTE_DEVICE).and_then(u32_ne),
            gateway: address(ROUTE_GATEWAY),
        })
    }
}

impl Neighbour {
    fn read(message: &Received<'_>) -> Option<Self> {
        let header = message.payload.get(..NEIGHBOUR_HEADER)?;
        let attributes = Attributes::new(&message.payload[NEIGHBOUR_HEADER..]);
        let mac = attributes.find(NEIGHBOUR_MAC);

        Some(Self {
            device: u32_ne(&header[4..8])?,
            address: netlink::address(attributes.find(NEIGHBOUR_ADDRESS)?)?,
            mac: mac.and_then(|value| value.try_into().ok()),
            is_permanent: netlink::u16_ne(&header[8..10])? == libc::NUD_PERMANENT,
        })
    }
}

/// What differs inside the pod.
fn within(row: &PodInterface, host: u32) -> Result<Vec<String>, inside::InsideError> {
    let mut socket = Socket::open(Protocol::Route).map_err(inside::netlink)?;
    let name = &row.inside;
    let Some(link) = link::get(&mut socket, name).map_err(inside::netlink)? else {
        return Ok(vec![format!("the pod has no {name}")]);
    };
    let mut found = Vec::new();
    let mut expect = |holds: bool, what: String| found.extend((!holds).then_some(what));
    let is_pair = link.other_end == Some(host);
    expect(
        is_pair,
        format!("{name} is not the other end of {}", row.host),
    );
    expect(link.is_up(), format!("{name} is down"));
    let (mtu, wanted) = (link.mtu, row.mtu);
    expect(mtu == wanted, format!("{name} has MTU {mtu}, not {wanted}"));
    let has_mac = row.mac.is_none() || row.mac == link.mac;
    expect(has_mac, format!("{name} has another MAC address"));
    let addresses = address::list(&mut socket, Some(link.index)).map_err(inside::netlink)?;
    let addresses = addresses.iter().filter(|found| found.index == link.index);
    let addresses: Vec<IpNet> = addresses.map(|found| found.address).collect();
    for address in &row.addresses {
        expect(
            addresses.contains(address),
            format!("{name} lacks {address}"),
        );
    }
    let strange = addresses
        .iter()
        .filter(|address| !address::is_link_local(**address) && !row.addresses.contains(address));
    for address in strange {
        expect(false, format!("{name} has {address}, which is not its own"));
    }
    for family in Family::BOTH {
        if row
            .addresses
            .iter()
            .any(|net| Family::of_net(net) == family)
        {
            found.extend(way_out(&mut socket, name, link.index, family).map_err(inside::netlink)?);
        }
    }
    found.extend(settings(name)?);

    Ok(found)
}

/// What differs of a family's way out: the default route and the gateway's neighbour entry.
fn way_out(
    socket: &mut Socket,
    name: &InterfaceName,
    index: u32,
    family: Family,
) -> Result<Vec<String>, NetlinkError> {
    let gateway: IpAddr = match family {
        Family::V4 => POD_GATEWAY_V4.into(),
        Family::V6 => POD_GATEWAY_V6.into(),
    };
    let mut header = [0; ROUTE_HEADER];
    header[0] = family_number(family);
    let request = Message::new(libc::RTM_GETROUTE, 0, &header);
    let routes = socket.dump(request, Route::read)?;
    let leads_out = routes.iter().any(|route| {
        route.destination.prefix_len() == 0
            && route.gateway == Some(gateway)
            && route.device == Some(index)
    });
    let mut header = [0; NEIGHBOUR_HEADER];
    header[0] = family_number(family);
    let request = Message::new(libc::RTM_GETNEIGH, 0, &header);
    let neighbours = socket.dump(request, Neighbour::read)?;
    let knows = neighbours.contains(&Neighbour {
        device: index,
        address: gateway,
        mac: Some(WORKLOAD_MAC),
        is_permanent: true,
    });
    let route = (!leads_out).then(|| format!("no default route by {gateway} on {name}"));
    let neighbour = (!knows).then(|| format!("{name} does not know its gateway {gateway}"));

    Ok(route.into_iter().chain(neighbour).collect())
}

fn settings(name: &InterfaceName) -> Result<Vec<String>, inside::InsideError> {
    let key = format!("net/ipv6/conf/{name}/accept_ra");
    let value = sysctl::read(&key).map_err(inside::InsideError::Setting)?;
    let changed = value.filter(|value| value != "0");

    Ok(changed
        .map(|value| format!("{key} is {value}"))
        .into_iter()
        .collect())
}
