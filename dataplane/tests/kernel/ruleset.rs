//! A ruleset that says every word there is, and how `nft` shows it.

use dataplane::{ChainRow, NftKey, NftRow};
use model::{
    Family,
    nft::{
        Chain, ChainKey, ChainKind, CtState, Element, Hook, HookPoint, Match, NftFamily, Policy,
        Rule, Sense, SetKey, SetKind, Statement,
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
    meta mark & 0x00004000 == 0x00004000 accept comment "mark"
    meta mark & 0x00200000 != 0x00000000 accept comment "not mark"
    ct state established,related accept comment "ct state"
    ct direction reply accept comment "ct reply"
    ct status dnat accept comment "ct dnat"
    meta nfproto ipv4 ct original ip daddr @nodes accept comment "ct original"
    fib daddr type local accept comment "destination local"
    fib saddr type local accept comment "source local"
    jump words comment "jump"
    meta mark set meta mark & 0xffffbfff | 0x00008000 comment "set mark"
    counter packets N bytes N comment "count"
    meta nfproto ipv4 snat ip to 192.0.2.1 fully-random comment "snat"
    meta nfproto ipv6 snat ip6 to 2001:db8::1 fully-random comment "snat6"
    masquerade fully-random comment "masquerade"
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
    let pair = |address: &str| {
        Element::InterfaceAddress("cali1".parse().unwrap(), address.parse().unwrap())
    };
    let mut rows = vec![
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
            "words",
            None,
            vec![plain(Statement::Accept)],
        ),
    ];
    rows.sort_by(|a, b| a.0.cmp(&b.0));

    rows
}

fn every_match() -> Vec<Rule> {
    [
        about_devices(),
        about_addresses(),
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

fn about_state() -> Vec<Rule> {
    use Sense::{Is, Not};

    let state = CtState {
        established: true,
        related: true,
        ..CtState::default()
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
        on("ct state", Match::CtState(state)),
        on("ct reply", Match::CtReply),
        on("ct dnat", Match::CtDnat),
        on(
            "ct original",
            Match::CtOriginalDestination(Is, Family::V4, "nodes".into()),
        ),
        on("destination local", Match::DestinationLocal),
        on("source local", Match::SourceLocal),
    ]
}

fn about_nothing() -> Vec<Rule> {
    vec![
        rule("jump", [], Statement::Jump("words".into())),
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

/// What is so is accepted.
fn on(comment: &str, condition: Match) -> Rule {
    rule(comment, [condition], Statement::Accept)
}

fn every_nat() -> Vec<Rule> {
    vec![
        rule("snat", [], Statement::Snat("192.0.2.1".parse().unwrap())),
        rule("snat6", [], Statement::Snat("2001:db8::1".parse().unwrap())),
        rule("masquerade", [], Statement::Masquerade),
    ]
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
    let row = ChainRow::new(table, Chain { hook, rules });

    (
        NftKey::Chain(ChainKey {
            table,
            name: name.into(),
        }),
        NftRow::Chain(row),
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
