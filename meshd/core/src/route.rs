//! Which way packets go: routing tables and rules.
//!
//! ```text
//! rule 99   not from all fwmark M/M   lookup 1   pods of members: tunnel, throw, or unreachable
//! rule 100  from OWN_BLOCK            lookup 2   members' own addresses, for pods' packets
//! main                                           local pods, own blocks, plain routes
//! ```
//!
//! **Invariant:** while the guard is up, nothing in the pools' space leaves table 1 other than into
//! a tunnel, unless a `throw` says so: own blocks, and members that were not switched yet.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Family,
    constant::{ROUTE_PROTOCOL, SOURCE_TABLE, TUNNEL_MARK, TUNNEL_TABLE, WORKLOAD_ROUTE_PROTOCOL},
    family::host_net,
    plan::{Route, RouteKey, RouteVia, RuleKey},
};

use crate::{
    fact::Facts, guard::Sends, ledger::Row, member::Member, mtu, own::Own, pool, wish::Wish,
};

/// The kernel's `main` table (linux/rtnetlink.h).
const MAIN_TABLE: u32 = 254;

/// Metric of what must lose to everything else in its table.
const LAST_METRIC: u32 = 4096;

/// The highest priority that still stands before the rule for `main`.
const LAST_PRIORITY: u32 = 32765;

/// Returns the routes of this node itself that hold in any state.
pub(crate) fn of_own_blocks(own: &Own) -> Vec<Row> {
    let blocks = own.blocks.iter().filter(|block| !is_single(block));
    // Behind the pod's own route of the same address.
    let loans = own.loans.iter().map(|address| host_net(*address));

    blocks
        .map(|block| row(MAIN_TABLE, *block, RouteVia::Blackhole))
        .chain(loans.map(|net| last(MAIN_TABLE, net, RouteVia::Blackhole)))
        .collect()
}

/// Returns the rules, and the routes of this node itself, that hold while the guard is up.
pub(crate) fn of_guard(facts: &Facts, wish: &Wish, own: &Own) -> Vec<Row> {
    let covered = |net: &IpNet| wish.covers(Family::of_net(net));
    let mut rows = Vec::new();
    for family in Family::BOTH
        .into_iter()
        .filter(|family| wish.covers(*family))
    {
        rows.push(Row::Rule(RuleKey {
            family,
            priority: wish.rule_priority,
            source: None,
            without_mark: Some(TUNNEL_MARK),
            table: TUNNEL_TABLE,
        }));
    }
    let pools = facts
        .pools
        .values()
        .filter(|pool| pool::is_guarded(pool))
        .map(|pool| pool.cidr);
    for pool in pools
        .collect::<std::collections::BTreeSet<_>>()
        .iter()
        .filter(|net| covered(net))
    {
        rows.push(fallback(TUNNEL_TABLE, *pool));
    }
    for net in own.nets().filter(covered) {
        rows.push(row(TUNNEL_TABLE, net, RouteVia::Throw));
        rows.push(Row::Rule(RuleKey {
            family: Family::of_net(&net),
            priority: source_priority(wish.rule_priority),
            source: Some(net),
            without_mark: None,
            table: SOURCE_TABLE,
        }));
    }
    let inside = own.addresses.iter().map(|net| host_net(net.addr()));
    let inside = inside.filter(|net| covered(net) && pool::is_in_space(facts, net.addr()));
    rows.extend(
        inside
            .filter(|net| own.nets().all(|own| own != *net))
            .map(|net| row(TUNNEL_TABLE, net, RouteVia::Throw)),
    );

    rows
}

/// Returns the rule by which packets of an address that is in no block find members' own addresses.
pub(crate) fn from_lone_address(wish: &Wish, address: IpAddr) -> Row {
    Row::Rule(RuleKey {
        family: Family::of(address),
        priority: source_priority(wish.rule_priority),
        source: Some(host_net(address)),
        without_mark: None,
        table: SOURCE_TABLE,
    })
}

/// Returns the fallback of a block that is guarded though its pool is disabled.
pub(crate) fn of_lone_block(block: IpNet) -> Row {
    fallback(TUNNEL_TABLE, block)
}

/// Returns the way to a member's pods without a tunnel: through its own address, where we share a
/// subnet with it. It stands in any state, so that switching changes one table only.
pub(crate) fn plain(facts: &Facts, member: &Member) -> Vec<Row> {
    member
        .nets()
        .filter_map(|net| {
            let gateway = member.gateway(Family::of_net(&net))?;
            mtu::subnet_of(&facts.links, gateway)?;
            Some(row(MAIN_TABLE, net, RouteVia::Gateway(gateway)))
        })
        .collect()
}

/// Returns the routes to a member's pods and own addresses in one family while the guard is up.
pub(crate) fn to_member(
    facts: &Facts,
    own: &Own,
    member: &Member,
    family: Family,
    pods: Sends,
    hosts: Sends,
    device_mtu: u32,
) -> Vec<Row> {
    let carrier = member.carriers.get(&family);
    let source = if member.is_stock {
        None
    } else {
        own.granted_address(family)
    };
    let mut rows = Vec::new();
    let of_family = |net: &IpNet| Family::of_net(net) == family;
    // What was lent lies inside another node's block, maybe our own: it takes no other way than the borrower's.
    let loans = member.loans.iter().map(|address| host_net(*address));
    rows.extend(
        loans
            .filter(of_family)
            .map(|net| fallback(TUNNEL_TABLE, net)),
    );
    for block in member.nets().filter(of_family) {
        match (pods, carrier) {
            (Sends::Tunnel, Some(carrier)) => {
                let mtu = mtu::of_route(carrier.mtu, device_mtu);
                let via = RouteVia::Device(carrier.device.clone());
                rows.push(row_with(TUNNEL_TABLE, block, via, source, mtu));
            }
            (Sends::Plain, _) => rows.push(row(TUNNEL_TABLE, block, RouteVia::Throw)),
            (Sends::Tunnel | Sends::Nothing, _) => {}
        }
    }
    for host in member
        .hosts
        .iter()
        .copied()
        .filter(|host| Family::of(*host) == family)
    {
        rows.extend(to_host(facts, member, host, hosts, device_mtu));
    }

    rows
}

/// Returns the routes that pods' packets to a member's own address take.
fn to_host(
    facts: &Facts,
    member: &Member,
    host: IpAddr,
    sends: Sends,
    device_mtu: u32,
) -> Vec<Row> {
    let net = host_net(host);
    let mut rows = Vec::new();
    if pool::is_in_space(facts, host) {
        rows.push(row(TUNNEL_TABLE, net, RouteVia::Throw));
    }
    let carrier = member.carriers.get(&Family::of(host));
    match (sends, carrier) {
        (Sends::Plain, _) => {}
        (Sends::Tunnel, Some(carrier)) => {
            let mtu = mtu::of_route(carrier.mtu, device_mtu);
            let via = RouteVia::Device(carrier.device.clone());
            rows.push(row_with(SOURCE_TABLE, net, via, None, mtu));
            rows.push(fallback(SOURCE_TABLE, net));
        }
        (Sends::Tunnel | Sends::Nothing, _) => rows.push(fallback(SOURCE_TABLE, net)),
    }

    rows
}

/// Returns the route to a local pod.
pub(crate) fn to_pod(address: IpNet, host_end: model::InterfaceName) -> Row {
    Row::Route(
        RouteKey {
            table: MAIN_TABLE,
            destination: address,
            metric: metric(&address),
        },
        Route {
            via: RouteVia::Device(host_end),
            source: None,
            mtu: None,
            protocol: WORKLOAD_ROUTE_PROTOCOL,
        },
    )
}

fn source_priority(tunnel: u32) -> u32 {
    if tunnel >= LAST_PRIORITY {
        tunnel
    } else {
        tunnel + 1
    }
}

fn row(table: u32, destination: IpNet, via: RouteVia) -> Row {
    row_with(table, destination, via, None, None)
}

fn row_with(
    table: u32,
    destination: IpNet,
    via: RouteVia,
    source: Option<IpAddr>,
    mtu: Option<u32>,
) -> Row {
    let key = RouteKey {
        table,
        destination,
        metric: metric(&destination),
    };

    Row::Route(
        key,
        Route {
            via,
            source,
            mtu,
            protocol: ROUTE_PROTOCOL,
        },
    )
}

fn fallback(table: u32, destination: IpNet) -> Row {
    last(table, destination, RouteVia::Unreachable)
}

/// Returns a route that loses to every other one to the same destination.
fn last(table: u32, destination: IpNet, via: RouteVia) -> Row {
    let key = RouteKey {
        table,
        destination,
        metric: LAST_METRIC,
    };

    Row::Route(
        key,
        Route {
            via,
            source: None,
            mtu: None,
            protocol: ROUTE_PROTOCOL,
        },
    )
}

fn metric(net: &IpNet) -> u32 {
    match net {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == Family::of_net(net).bits()
}
