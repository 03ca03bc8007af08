//! nftables: the two barriers, source NAT, and what a pod may call itself.
//!
//! ```text
//! inet meshd     barrier     postrouting 98   what may leave, on any device but tunnels and pods'
//!                translate   postrouting 99   source NAT for services' and pools' packets
//!                antispoof   prerouting -300  a pod's interface passes its own addresses only
//! netdev meshd   device_out  egress           the same again on each underlay device
//!                device_in   ingress          what may come in from members
//! ```
//!
//! Sets: `space` what is pods', `member` members' own addresses, `own` ours; `open`/`openhost` whose
//! pods and addresses may be sent to in plaintext, `take`/`takehost` from whom it is taken; `anypool`,
//! `natpool` for source NAT; `workload` pairs of interface and address. Each with `4` or `6`.
//!
//! **Invariant:** a member's own address is never taken for a pod's.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Family, InterfaceName,
    constant::{VXLAN_PORT, WORKLOAD_PREFIX},
    event::LinkKind,
    nft::{
        Chain, ChainKey, ChainKind, Element, Hook, HookPoint, Match, NftFamily, Policy, Rule,
        Sense::{Is, Not},
        SetKey, SetKind, Statement,
    },
};

use policy::compile::Overlay;

use crate::{fact::Facts, ledger::Row, member::Member, own::Own, pool, translation, wish::Wish};

/// Just before our source NAT: addresses are still the pods' own.
const BARRIER_PRIORITY: i32 = 98;

/// Before connection tracking (`NF_IP_PRI_RAW`).
const ANTISPOOF_PRIORITY: i32 = -300;

/// Protocol numbers (IANA): IPv4 and IPv6 in IP, UDP, ICMPv6.
const IPIP: [u8; 2] = [4, 41];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// ICMPv6 types (RFC 4861): what only routers send, and what finds neighbours.
const ROUTER_MESSAGES: [u8; 2] = [134, 137];
const NEIGHBOUR_MESSAGES: [u8; 2] = [135, 136];

/// How packets to a member's prefixes leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    /// As routed.
    Plain,
    /// Into the tunnel.
    Tunnel,
    /// Not at all.
    Nothing,
}

/// Returns what stands in any state: pools, members, NAT and the pods' interfaces.
pub(crate) fn always(facts: &Facts, wish: &Wish, own: &Own) -> Vec<Row> {
    let mut rows = Vec::new();
    for family in Family::BOTH {
        for name in ["space", "anypool", "natpool", "open"] {
            rows.push(declare(
                NftFamily::Inet,
                name,
                family,
                SetKind::Nets(family),
            ));
        }
        for name in ["member", "own", "openhost"] {
            rows.push(declare(
                NftFamily::Inet,
                name,
                family,
                SetKind::Addresses(family),
            ));
        }
        let kind = SetKind::InterfaceAddresses(family);
        rows.push(declare(NftFamily::Inet, "workload", family, kind));
    }
    rows.push(Row::Set(tunnel_set(), SetKind::Interfaces));
    rows.extend(space(facts).map(|net| net_row(NftFamily::Inet, "space", net)));
    let pools = facts.pools.values();
    rows.extend(nets("anypool", pools.clone().map(|pool| pool.cidr)));
    let natted = pools.filter(|pool| pool.nat_outgoing && pool::serves_pods(pool));
    rows.extend(nets("natpool", natted.map(|pool| pool.cidr)));
    rows.extend(own_addresses(own).map(|address| host_row(NftFamily::Inet, "own", address)));
    rows.push(translation::outgoing(own, &wish.outgoing));
    rows.push(chain(
        NftFamily::Inet,
        "antispoof",
        antispoof_hook(),
        antispoof(wish),
    ));

    rows
}

/// Returns the barriers themselves, while they are up.
pub(crate) fn barriers(facts: &Facts, wish: &Wish, own: &Own) -> Vec<Row> {
    let mut rows = Vec::new();
    for family in Family::BOTH {
        for name in ["space", "open", "take"] {
            rows.push(declare(
                NftFamily::Netdev,
                name,
                family,
                SetKind::Nets(family),
            ));
        }
        for name in ["member", "own", "openhost", "takehost"] {
            rows.push(declare(
                NftFamily::Netdev,
                name,
                family,
                SetKind::Addresses(family),
            ));
        }
    }
    rows.extend(space(facts).map(|net| net_row(NftFamily::Netdev, "space", net)));
    rows.extend(own_addresses(own).map(|address| host_row(NftFamily::Netdev, "own", address)));
    rows.extend(
        wish.devices
            .iter()
            .map(|device| Row::Element(tunnel_set(), Element::Interface(device.name.clone()))),
    );
    rows.push(chain(
        NftFamily::Inet,
        "barrier",
        barrier_hook(),
        barrier(wish),
    ));
    let underlay = |kind: &LinkKind| *kind == LinkKind::Underlay;
    let devices: Vec<InterfaceName> = facts
        .links
        .iter()
        .filter(|(_, link)| underlay(&link.kind))
        .map(|(name, _)| name.clone())
        .collect();
    if devices.is_empty() {
        return rows;
    }
    let out = hook(HookPoint::Egress(devices.clone()), 0, ChainKind::Filter);
    rows.push(chain(
        NftFamily::Netdev,
        "device_out",
        out,
        device_out(wish),
    ));
    let inward = hook(HookPoint::Ingress(devices), 0, ChainKind::Filter);
    rows.push(chain(
        NftFamily::Netdev,
        "device_in",
        inward,
        device_in(wish),
    ));

    rows
}

/// Returns the elements of a block that is guarded though its pool is disabled.
pub(crate) fn lone_block(block: IpNet, is_up: bool) -> Vec<Row> {
    let mut rows = vec![net_row(NftFamily::Inet, "space", block)];
    if is_up {
        rows.push(net_row(NftFamily::Netdev, "space", block));
    }

    rows
}

/// Returns a member's own addresses as the sets know them.
pub(crate) fn member_hosts(member: &Member, is_up: bool) -> Vec<Row> {
    let tables: &[NftFamily] = if is_up {
        &[NftFamily::Inet, NftFamily::Netdev]
    } else {
        &[NftFamily::Inet]
    };

    member
        .hosts
        .iter()
        .flat_map(|host| tables.iter().map(|table| host_row(*table, "member", *host)))
        .collect()
}

/// Returns the exceptions for a member in one family.
pub(crate) fn exceptions(
    member: &Member,
    family: Family,
    pods: Sends,
    hosts: Sends,
    takes_plain: bool,
) -> Vec<Row> {
    let blocks = || {
        member
            .pods
            .iter()
            .copied()
            .filter(|n| Family::of_net(n) == family)
    };
    let addresses = || {
        member
            .hosts
            .iter()
            .copied()
            .filter(|a| Family::of(*a) == family)
    };
    let mut rows = Vec::new();
    for table in [NftFamily::Inet, NftFamily::Netdev] {
        if pods == Sends::Plain {
            rows.extend(blocks().map(|net| net_row(table, "open", net)));
        }
        if hosts == Sends::Plain {
            rows.extend(addresses().map(|address| host_row(table, "openhost", address)));
        }
    }
    if takes_plain {
        rows.extend(blocks().map(|net| net_row(NftFamily::Netdev, "take", net)));
        rows.extend(addresses().map(|a| host_row(NftFamily::Netdev, "takehost", a)));
    }

    rows
}

/// Returns the pair that lets a pod's address pass on its interface.
pub(crate) fn pod_source(interface: &InterfaceName, address: IpAddr) -> Row {
    let key = set_key(NftFamily::Inet, "workload", Family::of(address));

    Row::Element(key, Element::InterfaceAddress(interface.clone(), address))
}

/// What is pods': the pools that serve them, each part once.
fn space(facts: &Facts) -> impl Iterator<Item = IpNet> {
    let pools = facts.pools.values().filter(|pool| pool::is_guarded(pool));

    pool::without_nested(pools.map(|pool| pool.cidr)).into_iter()
}

fn own_addresses(own: &Own) -> impl Iterator<Item = IpAddr> {
    let addresses = own.addresses.iter().map(IpNet::addr);

    addresses
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
}

/// The first barrier: nothing of the pods leaves but by tunnels and pods' devices.
fn barrier(wish: &Wish) -> Vec<Rule> {
    let mut rules = vec![
        accept(
            "to the machine itself",
            vec![Match::Oif(Is, interface("lo"))],
        ),
        accept(
            "to a pod here",
            vec![Match::OifPrefix(Is, WORKLOAD_PREFIX.into())],
        ),
        accept("into a tunnel", vec![Match::OifSet(Is, tunnel_set().name)]),
    ];
    for family in covered(wish) {
        let [to_pod, to_member] = outward(family);
        rules.push(to_pod);
        // The address is put back after us: on the wire this is one host's answer to another. An
        // answer to a pod is not: it must not leave in plaintext, whoever gives it.
        rules.push(accept(
            "answers for this host's own address",
            vec![
                Match::CtReply,
                Match::CtOriginalDestination(Is, family, name("own", family).into()),
            ],
        ));
        rules.push(to_member);
    }

    rules
}

/// The second barrier, outward: the same on each device, and tunnels of others to members.
fn device_out(wish: &Wish) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in covered(wish) {
        rules.extend(outward(family));
        let to_member = vec![
            Match::Destination(Is, family, name("member", family).into()),
            Match::Destination(Not, family, name("openhost", family).into()),
        ];
        rules.extend(foreign_tunnels(to_member, "to a member outside the tunnel"));
    }

    rules
}

/// The second barrier, inward.
fn device_in(wish: &Wish) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in covered(wish) {
        rules.push(drop_counted(
            "from a pod outside the tunnel",
            vec![
                Match::Source(Is, family, name("space", family).into()),
                Match::Source(Not, family, name("member", family).into()),
                Match::Source(Not, family, name("take", family).into()),
            ],
        ));
        rules.push(drop_counted(
            "from a member to a pod outside the tunnel",
            vec![
                Match::Source(Is, family, name("member", family).into()),
                Match::Source(Not, family, name("takehost", family).into()),
                Match::Destination(Is, family, name("space", family).into()),
                Match::Destination(Not, family, name("own", family).into()),
            ],
        ));
        let from_member = vec![
            Match::Source(Is, family, name("member", family).into()),
            Match::Source(Not, family, name("takehost", family).into()),
        ];
        rules.extend(foreign_tunnels(
            from_member,
            "from a member outside the tunnel",
        ));
    }

    rules
}

/// What must not leave in plaintext: to pods, and from pods to members.
fn outward(family: Family) -> [Rule; 2] {
    [
        drop_counted(
            "to a pod outside the tunnel",
            vec![
                Match::Destination(Is, family, name("space", family).into()),
                Match::Destination(Not, family, name("member", family).into()),
                Match::Destination(Not, family, name("open", family).into()),
            ],
        ),
        drop_counted(
            "from a pod to a member outside the tunnel",
            vec![
                Match::Source(Is, family, name("space", family).into()),
                Match::Source(Not, family, name("own", family).into()),
                Match::Destination(Is, family, name("member", family).into()),
                Match::Destination(Not, family, name("openhost", family).into()),
            ],
        ),
    ]
}

/// Returns the rule against VXLAN, and those against IP in IP.
fn foreign_tunnels(between: Vec<Match>, comment: &str) -> [Rule; 3] {
    let with = |more: Vec<Match>| [between.clone(), more].concat();
    let vxlan = vec![Match::Protocol(Is, UDP), Match::DestinationPort(VXLAN_PORT)];
    let ip_in_ip = |protocol| {
        let matches = with(vec![Match::Protocol(Is, protocol)]);
        drop_counted(&format!("IP in IP {comment}"), matches)
    };
    let [v4, v6] = IPIP;

    [
        drop_counted(&format!("VXLAN {comment}"), with(vxlan)),
        ip_in_ip(v4),
        ip_in_ip(v6),
    ]
}

/// What comes from a pod: its own addresses, no tunnels, nothing that only routers say.
fn antispoof(wish: &Wish) -> Vec<Rule> {
    let from_pod = |more: Vec<Match>| {
        let mut matches = vec![Match::IifPrefix(Is, WORKLOAD_PREFIX.into())];
        matches.extend(more);
        matches
    };
    let icmp = |kind: u8| {
        let matches = vec![Match::Protocol(Is, ICMPV6), Match::Icmpv6Type(kind)];
        from_pod([vec![Match::Family(Family::V6)], matches].concat())
    };
    let mut rules = Vec::new();
    for kind in ROUTER_MESSAGES {
        rules.push(drop_counted("a pod is no router", icmp(kind)));
    }
    for source in ["fe80::/10", "::/128"] {
        let source: IpNet = source.parse().expect("a network");
        for kind in NEIGHBOUR_MESSAGES {
            let matches = [icmp(kind), vec![Match::SourceNet(Is, source)]].concat();
            rules.push(accept("a pod finds its gateway", matches));
        }
    }
    let [vxlan, ip_in_ip @ ..] = foreign_tunnels(from_pod(Vec::new()), "from a pod");
    let forbidden = &wish.policy.forbidden_overlays;
    let is_vxlan = |overlay: &Overlay| matches!(overlay, Overlay::Vxlan(_));
    rules.extend(forbidden.iter().any(is_vxlan).then_some(vxlan));
    if forbidden.contains(&Overlay::Ipip) {
        rules.extend(ip_in_ip);
    }
    for family in Family::BOTH {
        let own = Match::SourceOnInterface(Is, family, name("workload", family).into());
        rules.push(accept("a pod's own address", from_pod(vec![own])));
    }
    rules.push(drop_counted(
        "not a pod's own address",
        from_pod(Vec::new()),
    ));

    rules
}

fn covered(wish: &Wish) -> impl Iterator<Item = Family> {
    Family::BOTH
        .into_iter()
        .filter(|family| wish.covers(*family))
}

fn barrier_hook() -> Hook {
    hook(HookPoint::Postrouting, BARRIER_PRIORITY, ChainKind::Filter)
}

fn antispoof_hook() -> Hook {
    hook(HookPoint::Prerouting, ANTISPOOF_PRIORITY, ChainKind::Filter)
}

fn hook(point: HookPoint, priority: i32, kind: ChainKind) -> Hook {
    Hook {
        point,
        priority,
        kind,
        policy: Policy::Accept,
    }
}

fn chain(table: NftFamily, name: &str, hook: Hook, rules: Vec<Rule>) -> Row {
    Row::Chain(
        ChainKey {
            table,
            name: name.into(),
        },
        Chain {
            hook: Some(hook),
            rules: rules.into(),
        },
    )
}

fn accept(comment: &str, matches: Vec<Match>) -> Rule {
    Rule {
        matches,
        counter: false,
        statement: Statement::Accept,
        comment: comment.into(),
    }
}

fn drop_counted(comment: &str, matches: Vec<Match>) -> Rule {
    Rule {
        matches,
        counter: true,
        statement: Statement::Drop,
        comment: comment.into(),
    }
}

fn declare(table: NftFamily, base: &str, family: Family, kind: SetKind) -> Row {
    Row::Set(set_key(table, base, family), kind)
}

fn nets(base: &str, nets: impl Iterator<Item = IpNet>) -> Vec<Row> {
    let nets = pool::without_nested(nets).into_iter();

    nets.map(|net| net_row(NftFamily::Inet, base, net))
        .collect()
}

fn net_row(table: NftFamily, base: &str, net: IpNet) -> Row {
    Row::Element(
        set_key(table, base, Family::of_net(&net)),
        Element::Net(net),
    )
}

fn host_row(table: NftFamily, base: &str, address: IpAddr) -> Row {
    Row::Element(
        set_key(table, base, Family::of(address)),
        Element::Address(address),
    )
}

pub(crate) fn tunnel_set() -> SetKey {
    SetKey {
        table: NftFamily::Inet,
        name: "tunnels".into(),
    }
}

fn set_key(table: NftFamily, base: &str, family: Family) -> SetKey {
    SetKey {
        table,
        name: name(base, family).into(),
    }
}

/// Returns the name of a set for a family.
pub(crate) fn name(base: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("{base}4"),
        Family::V6 => format!("{base}6"),
    }
}

pub(crate) fn interface(name: &str) -> InterfaceName {
    name.parse().expect("a name of at most 15 letters")
}
