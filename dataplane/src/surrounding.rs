//! Other programs' policy routing and network managers, as far as they concern us.
//!
//! ```text
//! the plan ──▶ ways: an address of each peer's, and where its packets should go
//! each way ──▶ RTM_GETROUTE, by the mark, source and device that the packets have ──▶ where they do go
//!              once more for each rule of others' that takes some packets only: with such a packet
//! what differs, and a rule of others' that stands before ours and fits ──▶ a detour
//! ```
//!
//! The kernel is asked rather than the rules evaluated: rules only tell who it was. Nothing here changes
//! anything, and nothing is sent.
//!
//! Not seen: what eBPF programs or nftables' marks do to single packets; ways beyond the first
//! [`SAMPLE`] of each kind; rules for flow labels, or for several devices one behind another in a VRF.

mod daemon;
mod packet;
mod probe;
mod route;
mod rule;
mod vrf;

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use ipnet::{IpNet, Ipv4Net};
use model::{
    Family, InterfaceName, Plan,
    conflict::{Detour, ForeignRule, Share, Surroundings, Taken, Traffic},
    constant::{ROUTE_PROTOCOL, SOURCE_TABLE, TUNNEL_MARK, TUNNEL_TABLE},
    plan::{RouteKey, RouteVia},
};

use self::{
    packet::Packet,
    probe::{Answer, By, answer},
    rule::{Action, Rule},
    vrf::Domain,
};
use crate::{
    foreign::Example,
    link::{Link, Links},
    netlink::{NetlinkError, Socket},
};

/// How many ways of each kind are asked for.
const SAMPLE: usize = 256;

/// How many addresses of a kind and a family stand for all in others' packet filters.
const EXAMPLES: usize = 4;

/// How many rules that take only some packets are looked into, for each way.
const PARTIAL: usize = 16;

/// Class of WireGuard's handshake messages: DSCP AF41, which data does not have (`HANDSHAKE_DSCP`).
const HANDSHAKE_CLASS: u8 = 0x88;

/// The routing table that every machine uses (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

/// Kinds of links that carry packets inside others.
const TUNNELS: [&str; 2] = ["wireguard", "tun"];

/// A way that packets of ours should take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    traffic: Traffic,
    /// Whose packets: a pod's, with its interface; none for the machine's own.
    from: Option<(IpAddr, Option<InterfaceName>)>,
    to: IpAddr,
    mark: u32,
    planned: Option<InterfaceName>,
    /// What is known of all of its packets.
    packet: Packet,
    /// Whose packets to a peer: the tunnel device.
    tunnel: Option<InterfaceName>,
}

/// The ways of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    ways: Vec<Way>,
    tunnels: BTreeSet<InterfaceName>,
    pods: BTreeSet<InterfaceName>,
}

impl Ways {
    /// Takes the ways from a plan: costs as much as the sample, whatever the plan's size.
    pub(crate) fn of(plan: &Plan) -> Self {
        let sources = Family::BOTH.map(|family| source(plan, family));
        let source = |family: Family| match family {
            Family::V4 => sources[0].clone(),
            Family::V6 => sources[1].clone(),
        };
        let mut ways = Vec::new();
        for (key, device) in through_tunnels(plan, TUNNEL_TABLE) {
            let from = source(Family::of_net(&key.destination)).map(Some);
            ways.extend(from.into_iter().chain([None]).map(|from| Way {
                traffic: Traffic::ToPods,
                from,
                to: key.destination.network(),
                mark: 0,
                planned: Some(device.clone()),
                packet: Packet::any(Family::of_net(&key.destination)),
                tunnel: None,
            }));
        }
        for (key, device) in through_tunnels(plan, SOURCE_TABLE) {
            let from = source(Family::of_net(&key.destination));
            ways.extend(from.map(|from| Way {
                traffic: Traffic::ToMembers,
                from: Some(from),
                to: key.destination.network(),
                mark: 0,
                planned: Some(device.clone()),
                packet: Packet::any(Family::of_net(&key.destination)),
                tunnel: None,
            }));
        }
        let peers = plan.peers.rows().iter().take(SAMPLE);
        ways.extend(peers.map(|((device, _), peer)| {
            let port = plan.tunnels.get(device).map_or(0, |tunnel| tunnel.port);
            Way {
                traffic: Traffic::Tunnel,
                from: None,
                to: peer.endpoint.ip(),
                mark: TUNNEL_MARK,
                planned: None,
                packet: Packet::of_tunnel(port, peer.endpoint.port()),
                tunnel: Some(device.clone()),
            }
        }));

        Self {
            ways,
            tunnels: plan.tunnels.rows().keys().cloned().collect(),
            pods: vrf::pods(plan),
        }
    }
}

impl Ways {
    /// Returns addresses that packets on these ways have, a few of each kind and family.
    pub(crate) fn examples(&self) -> BTreeSet<Example> {
        let few = |wanted: Traffic, family: Family| {
            let ways = self
                .ways
                .iter()
                .filter(move |way| way.traffic == wanted && Family::of(way.to) == family);
            ways.filter_map(|way| match (way.traffic, &way.from) {
                (Traffic::Tunnel, _) => Some(Example::Peer(way.to)),
                (Traffic::ToPods, Some((pod, Some(_)))) => Some(Example::Pods(*pod, way.to)),
                (Traffic::ToPods | Traffic::ToMembers, _) => None,
            })
            .take(EXAMPLES)
        };
        let kinds = [Traffic::Tunnel, Traffic::ToPods].into_iter();

        kinds
            .flat_map(|kind| {
                Family::BOTH
                    .into_iter()
                    .flat_map(move |family| few(kind, family))
            })
            .collect()
    }
}

/// Returns whose packets stand for all pods': a pod's, or the tunnel address.
fn source(plan: &Plan, family: Family) -> Option<(IpAddr, Option<InterfaceName>)> {
    let of_family = |net: &&IpNet| Family::of_net(net) == family;
    let mut pods = plan.pods.rows().values();
    let pod = pods.find_map(|pod| {
        let address = pod.addresses.iter().find(of_family)?;
        Some((address.addr(), Some(pod.host.clone())))
    });

    pod.or_else(|| {
        let mut addresses = plan.addresses.rows().keys();
        let (_, address) = addresses.find(|(_, net)| of_family(&net))?;

        Some((address.addr(), None))
    })
}

/// Returns the first routes of a table that lead into tunnels.
fn through_tunnels(plan: &Plan, table: u32) -> Vec<(&RouteKey, &InterfaceName)> {
    let first = RouteKey {
        table,
        destination: Ipv4Net::default().into(),
        metric: 0,
    };
    let routes = plan.routes.rows().range(first..);
    let routes = routes.take_while(|(key, _)| key.table == table);

    routes
        .filter_map(|(key, route)| match &route.via {
            RouteVia::Device(device) => Some((key, device)),
            RouteVia::Gateway(_)
            | RouteVia::Unreachable
            | RouteVia::Blackhole
            | RouteVia::Throw => None,
        })
        .take(SAMPLE)
        .collect()
}

/// Looks at the machine. `root` is where its files are.
pub(crate) fn examine(
    socket: &mut Socket,
    ways: &Ways,
    root: &Path,
) -> Result<Surroundings, NetlinkError> {
    if ways.tunnels.is_empty() {
        return Ok(Surroundings::default());
    }
    let links = Links::list(socket)?;
    let mut found = Surroundings {
        managers: daemon::find(root),
        memberships: vrf::memberships(socket, ways, &links)?,
        ..Surroundings::default()
    };
    for family in Family::BOTH {
        let rules = rule::list(socket, family)?;
        let others = rules.iter().filter(|rule| rule.protocol != ROUTE_PROTOCOL);
        let marks = others.filter(|rule| rule.looks_for(TUNNEL_MARK));
        found.marks.extend(marks.map(Rule::to_string));
        for table in [TUNNEL_TABLE, SOURCE_TABLE] {
            found
                .routes
                .extend(route::list(socket, family, table, &links)?);
        }
        // A new rule alone may be an expected one whose like is looked for below.
        if rules
            .iter()
            .all(|rule| rule.is_kernels() || rule.protocol == ROUTE_PROTOCOL)
        {
            continue;
        }
        let mine = ways.ways.iter().filter(|way| Family::of(way.to) == family);
        for way in mine {
            let look = Look {
                way,
                rules: before_ours(way, &rules).collect(),
                links: &links,
                tunnels: &ways.tunnels,
            };
            look.note_detours(socket, &mut found.detours)?;
        }
    }

    Ok(found)
}

/// Keeps one example of a kind.
fn note(detours: &mut BTreeSet<Detour>, detour: Option<Detour>) {
    let Some(detour) = detour else {
        return;
    };
    let is_alike = |other: &Detour| {
        (other.traffic, &other.taken, &other.rule) == (detour.traffic, &detour.taken, &detour.rule)
    };
    if !detours.iter().any(is_alike) {
        detours.insert(detour);
    }
}

/// A way, and what may stand in it.
struct Look<'a> {
    way: &'a Way,
    /// Others' rules that are asked before the one that should decide.
    rules: Vec<&'a Rule>,
    links: &'a Links,
    tunnels: &'a BTreeSet<InterfaceName>,
}

impl Look<'_> {
    /// Asks for the way, of its packets as such and then of those that single rules take.
    fn note_detours(
        &self,
        socket: &mut Socket,
        detours: &mut BTreeSet<Detour>,
    ) -> Result<(), NetlinkError> {
        let plain = self.plain();
        note(detours, self.detour(socket, &plain)?);
        for packet in self.samples(&plain) {
            note(detours, self.detour(socket, &packet)?);
        }

        Ok(())
    }

    /// Returns the packet of which no more is known than of all of the way's.
    fn plain(&self) -> Packet {
        if self.is_kernels_tunnel() {
            self.way.packet.of_kernel()
        } else {
            self.way.packet
        }
    }

    fn is_kernels_tunnel(&self) -> bool {
        let link = self
            .way
            .tunnel
            .as_ref()
            .and_then(|name| self.links.by_name(name));

        link.is_some_and(|link| link.kind.as_deref() == Some(TUNNELS[0]))
    }

    /// Returns packets of the way that rules tell from the plain one.
    fn samples(&self, plain: &Packet) -> BTreeSet<Packet> {
        let forwarded = self.way.from.is_some();
        let partial = self.rules.iter().filter(|rule| !rule.asks.fit(plain));
        let sample = |rule: &&Rule| rule.asks.sample(self.way.traffic, forwarded, plain);
        let mut samples: BTreeSet<Packet> = partial.filter_map(sample).take(PARTIAL).collect();
        if self.way.traffic == Traffic::Tunnel && !self.is_kernels_tunnel() {
            samples.insert(plain.in_class(HANDSHAKE_CLASS));
        }

        samples
    }

    /// Asks for the way of a packet, and finds the rule of others' by which it is another than planned.
    fn detour(&self, socket: &mut Socket, packet: &Packet) -> Result<Option<Detour>, NetlinkError> {
        let way = self.way;
        let iif = way.from.as_ref().and_then(|(_, device)| device.as_ref());
        let iif = iif.and_then(|device| self.links.by_name(device));
        let domain = iif.and_then(|link| Domain::of(link, self.links));
        let by = iif.map_or(By::Any, |link| By::In(link.index));
        let Some(answer) = self.ask(socket, packet, by)? else {
            return Ok(None);
        };
        let taken = match &answer {
            Answer::Refused => Taken::Refused,
            Answer::Route { device, table } => {
                let Some(link) = self.links.by_index(*device) else {
                    return Ok(None);
                };
                if is_as_planned(way, link, self.tunnels) {
                    return Ok(None);
                }
                Taken::Device(link.name.clone(), *table)
            }
        };
        let domain = domain.as_ref();
        let mut rules = self.rules.iter();
        let culprit =
            rules.find(|rule| rule.takes(way, packet, domain) && leads(rule, &answer, domain));

        Ok(culprit.map(|rule| Detour {
            traffic: way.traffic,
            share: self.share(rule, packet),
            example: way.to,
            planned: way.planned.clone(),
            taken,
            rule: ForeignRule {
                priority: rule.priority,
                text: rule.to_string(),
            },
        }))
    }

    /// Of a tunnel's own packets all are known; of others, what a rule asks of single ones.
    fn share(&self, rule: &Rule, packet: &Packet) -> Share {
        let takes_all = match self.way.traffic {
            Traffic::Tunnel => *packet == self.plain(),
            Traffic::ToPods | Traffic::ToMembers => !rule.is_partial(),
        };

        if takes_all { Share::All } else { Share::Some }
    }

    /// Asks the kernel; of a protocol that it cannot be asked about, the tables that rules name.
    fn ask(
        &self,
        socket: &mut Socket,
        packet: &Packet,
        by: By,
    ) -> Result<Option<Answer>, NetlinkError> {
        if packet.is_askable() {
            return answer(socket, self.way, packet, by);
        }
        for rule in self
            .rules
            .iter()
            .filter(|rule| rule.takes(self.way, packet, None))
        {
            match rule.action {
                Action::Refuse(_) => return Ok(Some(Answer::Refused)),
                Action::Lookup(table) => {
                    let found = route::lookup(socket, self.way.to, table, rule.suppress)?;
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                Action::LookupDomain | Action::Other => {}
            }
        }

        Ok(None)
    }
}

fn is_as_planned(way: &Way, link: &Link, tunnels: &BTreeSet<InterfaceName>) -> bool {
    match &way.planned {
        Some(device) => link.name == *device,
        None => {
            let is_tunnel = link
                .kind
                .as_deref()
                .is_some_and(|kind| TUNNELS.contains(&kind));

            !is_tunnel && !tunnels.contains(&link.name)
        }
    }
}

/// Returns others' rules that are asked before the one that should decide; none where that one is missing.
fn before_ours<'a>(way: &Way, rules: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
    let table = match way.traffic {
        Traffic::ToPods => TUNNEL_TABLE,
        Traffic::ToMembers => SOURCE_TABLE,
        Traffic::Tunnel => MAIN_TABLE,
    };
    let decides = |rule: &Rule| {
        let is_right = rule.protocol == ROUTE_PROTOCOL || table == MAIN_TABLE && rule.is_kernels();
        is_right && rule.action == Action::Lookup(table)
    };
    let end = rules.iter().position(decides).unwrap_or(0);
    let others = rules[..end].iter();

    others.filter(|rule| rule.protocol != ROUTE_PROTOCOL && !rule.is_kernels())
}

/// Returns whether a rule can have led to an answer; `domain` is the VRF of the packet's device.
fn leads(rule: &Rule, answer: &Answer, domain: Option<&Domain>) -> bool {
    match (&rule.action, answer) {
        (Action::Lookup(table), Answer::Route { table: found, .. }) => table == found,
        (Action::LookupDomain, Answer::Route { table: found, .. }) => {
            domain.is_some_and(|domain| domain.table == *found)
        }
        // A VRF's table ends with a route that refuses all else.
        (Action::LookupDomain, Answer::Refused) => domain.is_some(),
        (Action::Refuse(_), Answer::Refused) => true,
        (Action::Lookup(_), Answer::Refused)
        | (Action::Refuse(_) | Action::Other, Answer::Route { .. } | Answer::Refused) => false,
    }
}
