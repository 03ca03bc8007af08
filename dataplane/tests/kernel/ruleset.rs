//! A ruleset that says every word there is, and how `nft` shows it.

use dataplane::{ChainRow, NftKey, NftRow};
use model::{
    Family,
    nft::{
        Chain, ChainKey, ChainKind, CtState, Detour, Element, End, Hook, HookPoint, Match, Nflog,
        NftFamily, Policy, Rule, Sense, SetKey, SetKind, Statement, Verdict,
    },
};

/// A row of our nftables.
pub(crate) type Row = (NftKey, NftRow);

/// What each rule, set and hook looks like in `nft list ruleset`.
pub(crate) const EXPECTED: &str = r#"
    table inet meshd {
    type ipv4_addr
    flags interval
    elements = { 10.0.0.0/25, 10.0.0.128/25,
    elements = { fd00::/64 }
    elements = { 192.0.2.1, 192.0.2.2 }
    type ifname
    elements = { "eth0",
    "wg.cali" }
    type ifname . ipv4_addr
    elements = { "cali1" . 10.0.0.5 }
    type ifname . ipv6_addr
    elements = { "cali1" . fd00::5 }
    type inet_service
    elements = { 0-79, 80, 8080-8090,
    65000-65535 }
    type ipv4_addr . inet_proto . inet_service
    elements = { 10.0.0.5 . tcp . 8080 }
    type ipv6_addr . inet_proto . inet_service
    elements = { fd00::5 . udp . 53 }
    type ifname : verdict
    elements = { "cali1" : goto words,
    "cali2" : jump words,
    "cali3" : drop,
    "cali4" : accept }
    type filter hook postrouting priority srcnat - 2; policy drop;
    type nat hook postrouting priority srcnat - 1; policy accept;
    iifname "eth0" counter packets N bytes N accept comment "iif"
    iifname != "cali*" return comment "iif prefix"
    iifname @devices drop comment "iif set"
    oifname != "eth0" accept comment "oif"
    oifname "cali*" accept comment "oif prefix"
    oifname != @devices accept comment "oif set"
    meta nfproto ipv6 accept comment "family"
    ip saddr @nets_v4 accept comment "source"
    ip6 daddr != @nets_v6 accept comment "destination"
    ip saddr @nodes drop comment "addresses"
    iifname . ip saddr != @pairs_v4 drop comment "pair"
    iifname . ip6 saddr @pairs_v6 accept comment "pair v6"
    ip saddr 10.0.0.0/14 accept comment "source net"
    ip6 daddr != fd00::5 accept comment "destination net"
    udp dport 4789 drop comment "port"
    icmpv6 type nd-router-advert drop comment "icmpv6"
    icmp type echo-request accept comment "icmp type"
    icmp type destination-unreachable icmp code host-unreachable accept comment "icmp code"
    icmpv6 type != echo-request accept comment "not icmpv6"
    tcp dport 80 accept comment "one port"
    tcp dport 80-90 accept comment "ports"
    udp sport != 80-90 accept comment "not ports"
    sctp sport != 80 accept comment "not one port"
    tcp dport @ports accept comment "port set"
    udp sport != @ports accept comment "not port set"
    ip daddr . meta l4proto . th dport @endpoints_v4 accept comment "endpoints"
    ip6 saddr . meta l4proto . th sport != @endpoints_v6 accept comment "not endpoints"
    ct mark & 0x00040000 == 0x00000000 accept comment "ct mark"
    ct mark & 0x00040000 != 0x00000000 accept comment "not ct mark"
    ct state untracked accept comment "untracked"
    iifname vmap @verdicts comment "input verdict"
    oifname vmap @verdicts comment "output verdict"
    log prefix "why: " group 1 comment "log"
    meta nfproto ipv6 log prefix "dropped " group 2 drop comment "log and drop"
    meta nfproto ipv4 goto words comment "goto"
    type filter hook prerouting priority raw; policy accept;
    notrack accept comment "notrack"
    meta mark & 0x00004000 == 0x00004000 accept comment "mark"
    meta mark & 0x00200000 != 0x00000000 accept comment "not mark"
    ct state established,related accept comment "ct state"
    ct direction reply accept comment "ct reply"
    ct status dnat accept comment "ct dnat"
    meta nfproto ipv4 ct original ip daddr @nodes accept comment "ct original"
    fib daddr type local accept comment "destination local"
    fib daddr type unicast accept comment "elsewhere"
    fib daddr type != unicast accept comment "not elsewhere"
    ip option lsrr exists accept comment "loose"
    ip option ssrr exists accept comment "strict"
    exthdr rt exists accept comment "routing header"
    fib saddr type local accept comment "source local"
    jump words comment "jump"
    meta mark set meta mark & 0xffffbfff | 0x00008000 comment "set mark"
    counter packets N bytes N comment "count"
    meta nfproto ipv4 snat ip to 192.0.2.1 fully-random comment "snat"
    meta nfproto ipv6 snat ip6 to 2001:db8::1 fully-random comment "snat6"
    meta l4proto tcp meta nfproto ipv4 snat ip to 192.0.2.1:40000-50000 fully-random comment "snat ports"
    masquerade fully-random comment "masquerade"
    meta l4proto udp masquerade to :40000-50000 fully-random comment "masquerade ports"
    meta nfproto ipv4 dnat ip to 10.65.0.2 comment "dnat"
    meta l4proto tcp meta nfproto ipv6 dnat ip6 to [fd00:65::2]:8080 comment "dnat port"
    type nat hook prerouting priority dstnat - 1; policy accept;
    table netdev meshd {
    type filter hook egress devices = { eth0, eth1 } priority filter; policy accept;
    type filter hook ingress devices = { eth0, eth1 } priority filter; policy accept;
    ip daddr @nets_v4 counter packets N bytes N drop comment "netdev"
    ip6 saddr fd00::/64 drop comment "netdev v6"
"#;

pub(crate) fn ruleset() -> Vec<Row> {
    let mut rows = ruleset_without_devices();
    let devices = || ["eth0", "eth1"].map(|name| name.parse().unwrap()).to_vec();
    let hook = |point| {
        Some(Hook {
            point,
            priority: 0,
            kind: ChainKind::Filter,
            policy: Policy::Accept,
        })
    };
    rows.extend([
        (
            NftKey::Set(SetKey {
                table: NftFamily::Netdev,
                name: "nets_v4".into(),
            }),
            NftRow::Set(SetKind::Nets(Family::V4)),
        ),
        chain(
            NftFamily::Netdev,
            "egress_guard",
            hook(HookPoint::Egress(devices())),
            vec![Rule {
                counter: true,
                ..rule(
                    "netdev",
                    [Match::Destination(Sense::Is, Family::V4, "nets_v4".into())],
                    Statement::Drop,
                )
            }],
        ),
        chain(
            NftFamily::Netdev,
            "ingress_guard",
            hook(HookPoint::Ingress(devices())),
            vec![rule(
                "netdev v6",
                [Match::SourceNet(Sense::Is, "fd00::/64".parse().unwrap())],
                Statement::Drop,
            )],
        ),
    ]);
    rows.sort_by(|a, b| a.0.cmp(&b.0));

    rows
}

pub(crate) fn ruleset_without_devices() -> Vec<Row> {
    let hook = |priority, kind, policy| {
        Some(Hook {
            point: HookPoint::Postrouting,
            priority,
            kind,
            policy,
        })
    };
    let mut rows = sets();
    rows.extend([
        chain(
            NftFamily::Inet,
            "early",
            Some(Hook {
                point: HookPoint::Prerouting,
                priority: -300,
                kind: ChainKind::Filter,
                policy: Policy::Accept,
            }),
            vec![rule("notrack", [], Statement::AcceptUntracked)],
        ),
        chain(
            NftFamily::Inet,
            "guard",
            hook(98, ChainKind::Filter, Policy::Drop),
            every_match(),
        ),
        chain(
            NftFamily::Inet,
            "masq",
            hook(99, ChainKind::Nat, Policy::Accept),
            every_nat(),
        ),
        chain(
            NftFamily::Inet,
            "lead",
            Some(Hook {
                point: HookPoint::Prerouting,
                priority: -101,
                kind: ChainKind::Nat,
                policy: Policy::Accept,
            }),
            every_dnat(),
        ),
        chain(
            NftFamily::Inet,
            "words",
            None,
            vec![plain(Statement::Accept)],
        ),
    ]);
    rows.sort_by(|a, b| a.0.cmp(&b.0));

    rows
}

/// One set of each kind, with elements.
fn sets() -> Vec<Row> {
    let pair = |address: &str| {
        Element::InterfaceAddress("cali1".parse().unwrap(), address.parse().unwrap())
    };

    vec![
        set("nets_v4", SetKind::Nets(Family::V4)),
        element("nets_v4", net("10.0.0.0/25")),
        element("nets_v4", net("10.0.0.128/25")),
        element("nets_v4", net("240.0.0.0/4")),
        set("nets_v6", SetKind::Nets(Family::V6)),
        element("nets_v6", net("fd00::/64")),
        set("nodes", SetKind::Addresses(Family::V4)),
        element("nodes", Element::Address("192.0.2.1".parse().unwrap())),
        element("nodes", Element::Address("192.0.2.2".parse().unwrap())),
        set("devices", SetKind::Interfaces),
        element("devices", Element::Interface("eth0".parse().unwrap())),
        element("devices", Element::Interface("wg.cali".parse().unwrap())),
        set("pairs_v4", SetKind::InterfaceAddresses(Family::V4)),
        element("pairs_v4", pair("10.0.0.5")),
        set("pairs_v6", SetKind::InterfaceAddresses(Family::V6)),
        element("pairs_v6", pair("fd00::5")),
        set("ports", SetKind::Ports),
        element("ports", Element::Ports(0, 79)),
        element("ports", Element::Ports(80, 80)),
        element("ports", Element::Ports(8080, 8090)),
        element("ports", Element::Ports(65000, 65535)),
        set("endpoints_v4", SetKind::AddressPorts(Family::V4)),
        element("endpoints_v4", endpoint("10.0.0.5", 6, 8080)),
        set("endpoints_v6", SetKind::AddressPorts(Family::V6)),
        element("endpoints_v6", endpoint("fd00::5", 17, 53)),
        set("verdicts", SetKind::InterfaceVerdicts),
        entry("cali1", Verdict::Goto("words".into())),
        entry("cali2", Verdict::Jump("words".into())),
        entry("cali3", Verdict::Drop),
        entry("cali4", Verdict::Accept),
    ]
}

fn every_match() -> Vec<Rule> {
    [
        about_devices(),
        about_addresses(),
        about_transport(),
        about_state(),
        about_nothing(),
    ]
    .concat()
}

fn about_devices() -> Vec<Rule> {
    use Sense::{Is, Not};

    let name = |name: &str| name.parse().unwrap();

    vec![
        Rule {
            counter: true,
            ..on("iif", Match::Iif(Is, name("eth0")))
        },
        rule(
            "iif prefix",
            [Match::IifPrefix(Not, "cali".into())],
            Statement::Return,
        ),
        rule(
            "iif set",
            [Match::IifSet(Is, "devices".into())],
            Statement::Drop,
        ),
        on("oif", Match::Oif(Not, name("eth0"))),
        on("oif prefix", Match::OifPrefix(Is, "cali".into())),
        on("oif set", Match::OifSet(Not, "devices".into())),
    ]
}

fn about_addresses() -> Vec<Rule> {
    use Family::{V4, V6};
    use Sense::{Is, Not};

    let pairs = |sense, family, set: &str| Match::SourceOnInterface(sense, family, set.into());

    vec![
        on("family", Match::Family(V6)),
        on("source", Match::Source(Is, V4, "nets_v4".into())),
        on("destination", Match::Destination(Not, V6, "nets_v6".into())),
        rule(
            "addresses",
            [Match::Source(Is, V4, "nodes".into())],
            Statement::Drop,
        ),
        rule("pair", [pairs(Not, V4, "pairs_v4")], Statement::Drop),
        on("pair v6", pairs(Is, V6, "pairs_v6")),
        on(
            "source net",
            Match::SourceNet(Is, "10.0.0.0/14".parse().unwrap()),
        ),
        on(
            "destination net",
            Match::DestinationNet(Not, "fd00::5/128".parse().unwrap()),
        ),
        rule(
            "port",
            [Match::Protocol(Is, 17), Match::DestinationPort(4789)],
            Statement::Drop,
        ),
        rule(
            "icmpv6",
            [Match::Protocol(Is, 58), Match::Icmpv6Type(134)],
            Statement::Drop,
        ),
    ]
}

fn about_transport() -> Vec<Rule> {
    use End::{Destination, Source};
    use Sense::{Is, Not};

    let of = |protocol: u8, comment: &str, condition: Match| {
        let protocol = Match::Protocol(Is, protocol);
        rule(comment, [protocol, condition], Statement::Accept)
    };
    let set = |end, sense, family, name: &str| Match::AddressPort(end, sense, family, name.into());

    vec![
        of(1, "icmp type", Match::Icmp(Is, 8, None)),
        of(1, "icmp code", Match::Icmp(Is, 3, Some(1))),
        of(58, "not icmpv6", Match::Icmp(Not, 128, None)),
        of(6, "one port", Match::Port(Destination, Is, 80, 80)),
        of(6, "ports", Match::Port(Destination, Is, 80, 90)),
        of(17, "not ports", Match::Port(Source, Not, 80, 90)),
        of(132, "not one port", Match::Port(Source, Not, 80, 80)),
        of(
            6,
            "port set",
            Match::PortSet(Destination, Is, "ports".into()),
        ),
        of(
            17,
            "not port set",
            Match::PortSet(Source, Not, "ports".into()),
        ),
        on(
            "endpoints",
            set(Destination, Is, Family::V4, "endpoints_v4"),
        ),
        on(
            "not endpoints",
            set(Source, Not, Family::V6, "endpoints_v6"),
        ),
    ]
}

fn about_state() -> Vec<Rule> {
    use Sense::{Is, Not};

    let state = CtState {
        established: true,
        related: true,
        ..CtState::default()
    };
    let untracked = CtState {
        untracked: true,
        ..CtState::default()
    };
    let ct_mark = |sense| Match::CtMark {
        sense,
        mask: 0x0004_0000,
        value: 0,
    };

    vec![
        on(
            "mark",
            Match::Mark {
                sense: Is,
                mask: 0x4000,
                value: 0x4000,
            },
        ),
        on(
            "not mark",
            Match::Mark {
                sense: Not,
                mask: 0x0020_0000,
                value: 0,
            },
        ),
        on("ct mark", ct_mark(Is)),
        on("not ct mark", ct_mark(Not)),
        on("untracked", Match::CtState(untracked)),
        on("ct state", Match::CtState(state)),
        on("ct reply", Match::CtReply),
        on("ct dnat", Match::CtDnat),
        on(
            "ct original",
            Match::CtOriginalDestination(Is, Family::V4, "nodes".into()),
        ),
        on("destination local", Match::DestinationLocal),
        on("elsewhere", Match::DestinationElsewhere(Is)),
        on("not elsewhere", Match::DestinationElsewhere(Not)),
        on("loose", Match::Detour(Detour::Loose)),
        on("strict", Match::Detour(Detour::Strict)),
        on("routing header", Match::Detour(Detour::Header)),
        on("source local", Match::SourceLocal),
    ]
}

fn about_nothing() -> Vec<Rule> {
    vec![
        rule("jump", [], Statement::Jump("words".into())),
        rule(
            "input verdict",
            [],
            Statement::InputVerdict("verdicts".into()),
        ),
        rule(
            "output verdict",
            [],
            Statement::OutputVerdict("verdicts".into()),
        ),
        rule("log", [], Statement::Log(nflog(1, "why: "))),
        rule(
            "log and drop",
            [Match::Family(Family::V6)],
            Statement::LogAndDrop(nflog(2, "dropped ")),
        ),
        rule(
            "goto",
            [Match::Family(Family::V4)],
            Statement::Goto("words".into()),
        ),
        rule(
            "set mark",
            [],
            Statement::SetMark {
                mask: 0xc000,
                value: 0x8000,
            },
        ),
        Rule {
            counter: true,
            ..rule("count", [], Statement::Continue)
        },
    ]
}

fn nflog(group: u16, prefix: &str) -> Nflog {
    Nflog {
        group,
        prefix: prefix.into(),
    }
}

fn endpoint(address: &str, protocol: u8, port: u16) -> Element {
    Element::AddressPort(address.parse().unwrap(), protocol, port)
}

/// An entry of the map of verdicts.
pub(crate) fn entry(interface: &str, verdict: Verdict) -> Row {
    element(
        "verdicts",
        Element::InterfaceVerdict(interface.parse().unwrap(), verdict),
    )
}

/// What is so is accepted.
fn on(comment: &str, condition: Match) -> Rule {
    rule(comment, [condition], Statement::Accept)
}

fn every_nat() -> Vec<Rule> {
    vec![
        rule("snat", [], Statement::Snat(address("192.0.2.1"))),
        rule("snat6", [], Statement::Snat(address("2001:db8::1"))),
        rule(
            "snat ports",
            [Match::Protocol(Sense::Is, 6)],
            Statement::SnatPorts(address("192.0.2.1"), (40000, 50000)),
        ),
        rule("masquerade", [], Statement::Masquerade),
        rule(
            "masquerade ports",
            [Match::Protocol(Sense::Is, 17)],
            Statement::MasqueradePorts((40000, 50000)),
        ),
    ]
}

/// The other direction, which has hooks of its own.
fn every_dnat() -> Vec<Rule> {
    vec![
        rule("dnat", [], Statement::Dnat(address("10.65.0.2"), None)),
        rule(
            "dnat port",
            [Match::Protocol(Sense::Is, 6)],
            Statement::Dnat(address("fd00:65::2"), Some(8080)),
        ),
    ]
}

fn address(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

pub(crate) fn set(name: &str, kind: SetKind) -> Row {
    let key = SetKey {
        table: NftFamily::Inet,
        name: name.into(),
    };

    (NftKey::Set(key), NftRow::Set(kind))
}

pub(crate) fn element(set: &str, element: Element) -> Row {
    let key = SetKey {
        table: NftFamily::Inet,
        name: set.into(),
    };

    (NftKey::Element(key, element), NftRow::Element)
}

pub(crate) fn net(text: &str) -> Element {
    Element::Net(text.parse().unwrap())
}

pub(crate) fn chain(table: NftFamily, name: &str, hook: Option<Hook>, rules: Vec<Rule>) -> Row {
    let row = ChainRow::new(
        table,
        Chain {
            hook,
            rules: rules.into(),
        },
    );

    (
        NftKey::Chain(ChainKey {
            table,
            name: name.into(),
        }),
        NftRow::Chain(Box::new(row)),
    )
}

pub(crate) fn rule<const N: usize>(
    comment: &str,
    matches: [Match; N],
    statement: Statement,
) -> Rule {
    Rule {
        matches: matches.into(),
        counter: false,
        statement,
        comment: comment.into(),
    }
}

pub(crate) fn plain(statement: Statement) -> Rule {
    rule("why", [], statement)
}
