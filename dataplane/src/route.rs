//! Routes: ours are known by their protocol.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use model::{
    Change, Family, InterfaceName,
    constant::{
        ROUTE_PROTOCOL, SOURCE_TABLE, TUNNEL_TABLE, WORKLOAD_PREFIX, WORKLOAD_ROUTE_PROTOCOL,
    },
    plan::{Route, RouteKey, RouteVia},
};

use crate::{
    Absent, OpenError, Target,
    address::{family_number, put_address},
    link::{self, Links},
    netlink::{
        self, Attributes, Message, NetlinkError, Protocol, Received, Refusal, Socket, flag, u32_ne,
    },
};

/// Bytes of `struct rtmsg` (linux/rtnetlink.h).
const HEADER: usize = 12;

/// The routing table that every machine uses (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

/// The header's table where the real one stands in an attribute (`RT_TABLE_UNSPEC`).
const TABLE_IN_ATTRIBUTE: u8 = 0;

/// A route that the kernel keeps beside the one it was asked for (`RTM_F_CLONED`).
const CLONED: u32 = 0x200;

/// Scopes (`RT_SCOPE_*`).
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;

/// Types (`RTN_*`).
const UNICAST: u8 = 1;
const BLACKHOLE: u8 = 6;
const UNREACHABLE: u8 = 7;
const THROW: u8 = 9;

/// Attributes of a route (`RTA_*` of linux/rtnetlink.h).
mod attribute {
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const DEVICE: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const SOURCE: u16 = 7;
    pub(super) const METRICS: u16 = 8;
    pub(super) const TABLE: u16 = 15;
    /// Inside `METRICS`: the path's MTU (`RTAX_MTU`).
    pub(super) const METRIC_MTU: u16 = 2;
}

/// Keeps routes: those of protocol 80 in the main table and in our two, and in the main table those
/// of the workload protocol that lead to a workload interface.
pub struct RouteTarget {
    socket: Socket,
    /// The routes of ours in the kernel and their protocols: what may be removed.
    known: BTreeMap<RouteKey, u8>,
    /// Links of others that bear the name of a device of ours: no route leads there.
    strangers: BTreeSet<InterfaceName>,
}

/// Why routes could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel could not be asked.
    #[error("could not list routes")]
    List(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A device could not be looked up.
    #[error("could not find device {0}")]
    Device(InterfaceName, #[source] io::Error),
    /// The kernel could not be told.
    #[error("could not send routes")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused some.
    #[error("route {destination} in table {table}: {reason} ({count} refused)")]
    Refused {
        /// The first refused route's destination.
        destination: IpNet,
        /// Its table.
        table: u32,
        /// The kernel's reason.
        reason: String,
        /// How many were refused.
        count: usize,
    },
}

impl RouteTarget {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            known: BTreeMap::new(),
            strangers: BTreeSet::new(),
        })
    }

    /// Says which links bear the name of a device of ours and are somebody else's.
    pub(crate) fn shun(&mut self, strangers: BTreeSet<InterfaceName>) {
        self.strangers = strangers;
    }

    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Lists the routes of a table and a family.
    fn list(
        &mut self,
        family: Family,
        table: u32,
        links: &Links,
    ) -> Result<Vec<(RouteKey, Route)>, NetlinkError> {
        let mut header = [0; HEADER];
        header[0] = family_number(family);
        header[4] = TABLE_IN_ATTRIBUTE;
        let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
        request.put_u32(attribute::TABLE, table);

        let listed = self.socket.dump(request, |message| read(message, links));
        match listed {
            // The kernel says so of a table that has never held a route.
            Err(NetlinkError::Dump(refusal)) if refusal.errno == libc::ENOENT => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// Returns the index of the device that a route leads to, asking once per device.
    fn device(
        &self,
        via: &RouteVia,
        indexes: &mut BTreeMap<InterfaceName, Option<u32>>,
    ) -> Result<Egress, RouteError> {
        let RouteVia::Device(name) = via else {
            return Ok(Egress::Any);
        };
        if self.strangers.contains(name) {
            return Ok(Egress::Missing(name.clone()));
        }
        let index = match indexes.get(name) {
            Some(index) => *index,
            None => link::index_of(&self.socket, name)
                .map_err(|error| RouteError::Device(name.clone(), error))?,
        };
        indexes.insert(name.clone(), index);

        Ok(index.map_or_else(|| Egress::Missing(name.clone()), Egress::Device))
    }
}

impl RouteTarget {
    /// Makes the host's own IPv6 sockets look for their way again after a prefix got one in the
    /// tunnel's table.
    ///
    /// A connected IPv6 socket keeps the route it found (`sk_dst_cache`) until the node of *that*
    /// route's table changes (`fib6_node.fn_sernum`); a route that appears in a table which is
    /// looked up earlier does not count, unlike in IPv4. So the same prefix is touched in `main`:
    /// an `unreachable` of the worst metric comes and goes, behind the route that is wanted.
    ///
    /// Only for destinations inside the tunnel: WireGuard's own packets, to members' addresses, go by
    /// `main` and must never meet it.
    fn wake_sockets(&mut self, changes: &[Change<RouteKey, Route>]) -> Result<(), RouteError> {
        let touched = changes.iter().filter_map(|change| match change {
            Change::Set(
                key,
                Route {
                    via: RouteVia::Device(_),
                    ..
                },
            ) if key.table == TUNNEL_TABLE && matches!(key.destination, IpNet::V6(_)) => {
                Some(RouteKey {
                    table: MAIN_TABLE,
                    metric: u32::MAX,
                    ..key.clone()
                })
            }
            Change::Set(..) | Change::Unset(_) => None,
        });
        let requests = touched.flat_map(|key| {
            let route = Route {
                via: RouteVia::Unreachable,
                source: None,
                mtu: None,
                protocol: ROUTE_PROTOCOL,
            };
            [
                encode_set(&key, &route, None),
                encode_unset(&key, ROUTE_PROTOCOL),
            ]
        });
        let requests: Vec<_> = requests.collect();
        if requests.is_empty() {
            return Ok(());
        }
        let refusals = self
            .socket
            .batch(requests)
            .map_err(|error| RouteError::Send(Box::new(error)))?;
        if let Some(refusal) = refusals.iter().find(|refusal| !refusal.is_absence()) {
            tracing::warn!(%refusal, "The host's own connections may keep their former way");
        }

        Ok(())
    }

    fn learn(&mut self, changes: &[Change<RouteKey, Route>], absent: &[Absent<RouteKey>]) {
        for change in changes {
            match change {
                Change::Set(key, route) => {
                    self.known.insert(key.clone(), route.protocol);
                }
                Change::Unset(key) => {
                    self.known.remove(key);
                }
            }
        }
        for each in absent {
            self.known.remove(&each.key);
        }
    }
}

/// Where a route leaves.
enum Egress {
    /// By no device, or one that the kernel finds.
    Any,
    /// By the device with this index.
    Device(u32),
    /// By a device that is not there.
    Missing(InterfaceName),
}

impl Target for RouteTarget {
    type Key = RouteKey;
    type Row = Route;
    type Error = RouteError;

    fn observe(&mut self) -> Result<BTreeMap<RouteKey, Route>, RouteError> {
        let wrong = |error: NetlinkError| RouteError::List(Box::new(error));
        let links = Links::list(&mut self.socket).map_err(wrong)?;
        let mut routes = BTreeMap::new();
        for family in Family::BOTH {
            for table in [MAIN_TABLE, TUNNEL_TABLE, SOURCE_TABLE] {
                let listed = self.list(family, table, &links).map_err(wrong)?;
                routes.extend(
                    listed
                        .into_iter()
                        .filter(|(key, route)| is_ours(key, route)),
                );
            }
        }
        self.known = routes
            .iter()
            .map(|(key, route)| (key.clone(), route.protocol))
            .collect();

        Ok(routes)
    }

    fn must_hold(&self, _: &RouteKey, row: Option<&Route>) -> bool {
        row.is_some_and(|route| match route.via {
            RouteVia::Unreachable | RouteVia::Blackhole => true,
            RouteVia::Device(_) | RouteVia::Gateway(_) | RouteVia::Throw => false,
        })
    }

    fn apply(
        &mut self,
        changes: &[Change<RouteKey, Route>],
    ) -> Result<Vec<Absent<RouteKey>>, RouteError> {
        let (mut requests, mut sent, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        let mut indexes = BTreeMap::new();
        for change in changes {
            match change {
                Change::Set(key, route) => match self.device(&route.via, &mut indexes)? {
                    Egress::Missing(device) => absent.push(Absent {
                        key: key.clone(),
                        reason: format!("route {}: no device {device}", key.destination),
                    }),
                    Egress::Device(index) => requests.push(encode_set(key, route, Some(index))),
                    Egress::Any => requests.push(encode_set(key, route, None)),
                },
                Change::Unset(key) => match self.known.get(key) {
                    Some(protocol) => requests.push(encode_unset(key, *protocol)),
                    None => continue,
                },
            }
            if requests.len() > sent.len() {
                sent.push(change);
            }
        }
        let refusals = self
            .socket
            .batch(requests)
            .map_err(|error| RouteError::Send(Box::new(error)))?;
        judge(&sent, &refusals, &mut absent)?;
        self.learn(changes, &absent);
        self.wake_sockets(changes)?;

        Ok(absent)
    }
}

/// Decides which refusals matter: what should go may be gone; a device that is down is as good as missing.
fn judge(
    sent: &[&Change<RouteKey, Route>],
    refusals: &[Refusal],
    absent: &mut Vec<Absent<RouteKey>>,
) -> Result<(), RouteError> {
    let (mut count, mut first) = (0, None);
    for refusal in refusals {
        match sent[refusal.index] {
            Change::Unset(_) if refusal.is_absence() => {}
            Change::Set(key, route) if lacks_surroundings(route, refusal) => absent.push(Absent {
                key: key.clone(),
                reason: format!("route {}: {refusal}", key.destination),
            }),
            Change::Set(key, _) | Change::Unset(key) => {
                count += 1;
                first.get_or_insert((key, refusal));
            }
        }
    }

    match first {
        None => Ok(()),
        Some((key, refusal)) => Err(RouteError::Refused {
            destination: key.destination,
            table: key.table,
            reason: refusal.to_string(),
            count,
        }),
    }
}

/// Returns whether a route was refused for what it leads to or leaves from, not for what it is.
fn lacks_surroundings(route: &Route, refusal: &Refusal) -> bool {
    let missing = matches!(
        refusal.errno,
        libc::ENODEV | libc::ENETDOWN | libc::ENETUNREACH
    );
    // The kernel says EINVAL where the preferred source is not an address of the machine (yet).
    let source = refusal.errno == libc::EINVAL && route.source.is_some();

    match route.via {
        RouteVia::Device(_) => missing || source,
        RouteVia::Gateway(_) => missing || source || refusal.errno == libc::EHOSTUNREACH,
        RouteVia::Unreachable | RouteVia::Blackhole | RouteVia::Throw => false,
    }
}

/// Returns whether a route found in the kernel is ours.
fn is_ours(key: &RouteKey, route: &Route) -> bool {
    let leads_to_workload = || match &route.via {
        RouteVia::Device(name) => name.as_str().starts_with(WORKLOAD_PREFIX),
        RouteVia::Gateway(_) | RouteVia::Unreachable | RouteVia::Blackhole | RouteVia::Throw => {
            false
        }
    };

    route.protocol == ROUTE_PROTOCOL
        || key.table == MAIN_TABLE
            && route.protocol == WORKLOAD_ROUTE_PROTOCOL
            && leads_to_workload()
}

fn encode_set(key: &RouteKey, route: &Route, device: Option<u32>) -> Message {
    let (scope, kind) = match &route.via {
        RouteVia::Device(_) => (SCOPE_LINK, UNICAST),
        RouteVia::Gateway(_) => (SCOPE_UNIVERSE, UNICAST),
        RouteVia::Unreachable => (SCOPE_UNIVERSE, UNREACHABLE),
        RouteVia::Blackhole => (SCOPE_UNIVERSE, BLACKHOLE),
        RouteVia::Throw => (SCOPE_UNIVERSE, THROW),
    };
    let header = header(key, route.protocol, scope, kind);
    let mut message = Message::new(libc::RTM_NEWROUTE, flag::CREATE | flag::REPLACE, &header);
    put_key(&mut message, key);
    if let Some(device) = device {
        message.put_u32(attribute::DEVICE, device);
    }
    if let RouteVia::Gateway(gateway) = route.via {
        put_address(&mut message, attribute::GATEWAY, gateway);
    }
    if let Some(source) = route.source {
        put_address(&mut message, attribute::SOURCE, source);
    }
    if let Some(mtu) = route.mtu {
        message.nest(attribute::METRICS, |nest| {
            nest.put_u32(attribute::METRIC_MTU, mtu)
        });
    }

    message
}

/// A removal leaves type and scope open and thereby fits any, but of our protocol only.
fn encode_unset(key: &RouteKey, protocol: u8) -> Message {
    let header = header(key, protocol, SCOPE_NOWHERE, 0);
    let mut message = Message::new(libc::RTM_DELROUTE, 0, &header);
    put_key(&mut message, key);

    message
}

fn put_key(message: &mut Message, key: &RouteKey) {
    put_address(message, attribute::DESTINATION, key.destination.network());
    message.put_u32(attribute::TABLE, key.table);
    message.put_u32(attribute::PRIORITY, key.metric);
}

/// Builds a `struct rtmsg`.
fn header(key: &RouteKey, protocol: u8, scope: u8, kind: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = family_number(Family::of_net(&key.destination));
    header[1] = key.destination.prefix_len();
    header[4] = TABLE_IN_ATTRIBUTE;
    header[5] = protocol;
    header[6] = scope;
    header[7] = kind;

    header
}

/// Reads an `RTM_NEWROUTE`; `None` where it is of a shape that we never make.
fn read(message: &Received<'_>, links: &Links) -> Option<(RouteKey, Route)> {
    let header = message.payload.get(..HEADER)?;
    if u32_ne(&header[8..12])? & CLONED != 0 {
        return None;
    }
    let attributes = Attributes::new(message.payload.get(HEADER..)?);
    let number = |kind| attributes.find(kind).and_then(u32_ne);
    let address = |kind| attributes.find(kind).and_then(netlink::address);
    let unspecified: IpAddr = match header[0] {
        2 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        10 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let destination = address(attribute::DESTINATION).unwrap_or(unspecified);
    let key = RouteKey {
        table: number(attribute::TABLE).unwrap_or(u32::from(header[4])),
        destination: IpNet::new(destination, header[1]).ok()?,
        metric: number(attribute::PRIORITY).unwrap_or(0),
    };
    let via = match header[7] {
        UNREACHABLE => RouteVia::Unreachable,
        BLACKHOLE => RouteVia::Blackhole,
        THROW => RouteVia::Throw,
        UNICAST => match address(attribute::GATEWAY) {
            Some(gateway) => RouteVia::Gateway(gateway),
            None => RouteVia::Device(links.by_index(number(attribute::DEVICE)?)?.name.clone()),
        },
        _ => return None,
    };
    let mtu = attributes
        .nest(attribute::METRICS)
        .find(attribute::METRIC_MTU)
        .and_then(u32_ne);

    Some((
        key,
        Route {
            via,
            source: address(attribute::SOURCE),
            mtu,
            protocol: header[5],
        },
    ))
}
