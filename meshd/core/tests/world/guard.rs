//! The guard, asked packet by packet: the rules of the plan are followed as the kernel follows them,
//! by a reader of its own.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Event, Plan,
    event::{Link, LinkKind},
    nft::{Chain, Element, HookPoint, Match, NftFamily, Sense, SetKey, Statement},
    plan::RouteVia,
};

use crate::fixture::{Brain, block, links, pool};

/// Protocol numbers (IANA).
const UDP: u8 = 17;
const IPIP: [u8; 2] = [4, 41];

/// WireGuard's and VXLAN's ports.
const WIREGUARD: u16 = 51820;
const VXLAN: u16 = 4789;

/// A packet on its way through a chain.
#[derive(Clone, Copy, Debug)]
struct Packet {
    device: &'static str,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    port: u16,
}

/// A UDP packet on eth0.
fn packet(from: &str, to: &str) -> Packet {
    Packet {
        device: "eth0",
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        protocol: UDP,
        port: 5000,
    }
}

/// An Enforced mesh whose pods have both families, and what its dataplane is told.
fn plan() -> Plan {
    let mut brain = Brain::with(&[
        pool("fd00:65::/112"),
        block("fd00:65::/122", Some("a")),
        block("fd00:65::40/122", Some("b")),
    ]);

    brain.world.plan().clone()
}

/// What must not leave on an underlay device, by both barriers.
fn secrets() -> Vec<Packet> {
    let pairs = [
        ("10.65.0.5", "10.65.0.70"),
        ("fd00:65::5", "fd00:65::45"),
        ("10.65.0.1", "10.65.0.70"),
        ("192.0.2.1", "10.65.0.70"),
        ("192.0.2.1", "fd00:65::45"),
        ("203.0.113.9", "10.65.0.70"),
        ("10.65.0.5", "192.0.2.2"),
        ("10.65.0.1", "192.0.2.2"),
        // A block that nobody holds is the pods' too.
        ("10.65.0.5", "10.65.9.9"),
    ];

    pairs
        .into_iter()
        .filter(|(from, to)| from.contains(':') == to.contains(':'))
        .map(|(from, to)| packet(from, to))
        .collect()
}

/// What is nobody's business.
fn harmless() -> Vec<Packet> {
    let wireguard = Packet {
        port: WIREGUARD,
        ..packet("192.0.2.1", "192.0.2.2")
    };

    vec![
        wireguard,
        packet("192.0.2.1", "192.0.2.2"),
        packet("192.0.2.1", "203.0.113.9"),
        packet("10.65.0.5", "203.0.113.9"),
        packet("fd00:65::5", "2001:db8:9::9"),
    ]
}

#[test]
fn each_barrier_alone_lets_no_secret_out_and_holds_back_nothing_else() {
    let plan = plan();
    for (table, name) in [
        (NftFamily::Inet, "barrier"),
        (NftFamily::Netdev, "device_out"),
    ] {
        for secret in secrets() {
            assert!(!passes(&plan, table, name, secret), "{name}: {secret:?}");
        }
        for packet in harmless() {
            assert!(passes(&plan, table, name, packet), "{name}: {packet:?}");
        }
    }
}

#[test]
fn the_first_barrier_closes_every_device_but_tunnels_and_pods() {
    let plan = plan();
    for secret in secrets() {
        let on = |device| {
            passes(
                &plan,
                NftFamily::Inet,
                "barrier",
                Packet { device, ..secret },
            )
        };

        assert!(!on("new9"), "{secret:?}");
        assert!(on("wireguard.cali") && on("cali1"), "{secret:?}");
    }
}

#[test]
fn the_first_barrier_stands_before_all_source_nat() {
    let plan = plan();
    let hook = |name: &str| chain(&plan, NftFamily::Inet, name).hook.clone().unwrap();

    assert_eq!(hook("barrier").point, HookPoint::Postrouting);
    assert!(hook("barrier").priority < hook("translate").priority);
    assert!(
        hook("translate").priority < 100,
        "kube-proxy's is NF_IP_PRI_NAT_SRC"
    );
}

#[test]
fn the_second_barrier_stands_on_every_underlay_device_both_ways() {
    let mut brain = Brain::enforced();
    let mut links = links();
    let late = Link {
        mtu: 1500,
        up: true,
        kind: LinkKind::Underlay,
        addresses: ["198.51.100.1/24".parse().unwrap()].into(),
    };
    links.insert("eth1".parse().unwrap(), late);

    brain.tell(Event::Underlay(links));

    let both = ["eth0", "eth1"].map(|name| name.parse().unwrap()).to_vec();
    let plan = brain.world.plan();
    let point = |name| {
        chain(plan, NftFamily::Netdev, name)
            .hook
            .clone()
            .unwrap()
            .point
    };
    assert_eq!(point("device_out"), HookPoint::Egress(both.clone()));
    assert_eq!(point("device_in"), HookPoint::Ingress(both));
}

#[test]
fn nothing_comes_in_that_claims_to_be_a_pods_or_goes_to_one() {
    let plan = plan();
    let comes_in = |packet| passes(&plan, NftFamily::Netdev, "device_in", packet);
    for (from, to) in [
        ("10.65.0.70", "10.65.0.5"),
        ("10.65.0.70", "192.0.2.1"),
        ("fd00:65::45", "fd00:65::5"),
        ("192.0.2.2", "10.65.0.5"),
    ] {
        assert!(!comes_in(packet(from, to)), "{from} to {to}");
    }

    assert!(comes_in(packet("192.0.2.2", "192.0.2.1")));
    assert!(comes_in(packet("203.0.113.9", "192.0.2.1")));
}

#[test]
fn no_other_tunnel_leads_to_a_member_or_comes_from_one() {
    let plan = plan();
    let ways = [
        (
            "device_out",
            packet("192.0.2.1", "192.0.2.2"),
            packet("192.0.2.1", "203.0.113.9"),
        ),
        (
            "device_in",
            packet("192.0.2.2", "192.0.2.1"),
            packet("203.0.113.9", "192.0.2.1"),
        ),
    ];
    for (name, member, stranger) in ways {
        let disguises = |packet: Packet| {
            let vxlan = Packet {
                port: VXLAN,
                ..packet
            };
            let bare = IPIP.map(|protocol| Packet { protocol, ..packet });
            [vec![vxlan], bare.to_vec()].concat()
        };
        for packet in disguises(member) {
            assert!(
                !passes(&plan, NftFamily::Netdev, name, packet),
                "{packet:?}"
            );
        }
        for packet in disguises(stranger) {
            assert!(passes(&plan, NftFamily::Netdev, name, packet), "{packet:?}");
        }
    }
}

#[test]
fn behind_every_way_into_the_tunnel_stands_one_that_leads_nowhere() {
    let plan = plan();
    let nowhere = |table: u32, net: &str| {
        let net: IpNet = net.parse().unwrap();
        let found = plan.routes.rows().iter().any(|(key, route)| {
            (key.table, key.destination) == (table, net) && route.via == RouteVia::Unreachable
        });
        assert!(found, "table {table}: {net}");
    };
    nowhere(1, "10.65.0.0/16");
    nowhere(1, "fd00:65::/112");
    nowhere(2, "192.0.2.2/32");
    nowhere(2, "192.0.2.3/32");
}

/// Whether a chain of a table lets a packet pass.
fn passes(plan: &Plan, table: NftFamily, name: &str, packet: Packet) -> bool {
    for rule in chain(plan, table, name).rules.iter() {
        if !rule
            .matches
            .iter()
            .all(|word| holds(plan, table, word, packet))
        {
            continue;
        }
        match rule.statement {
            Statement::Accept => return true,
            Statement::Drop => return false,
            ref other => panic!("{other:?} in a barrier"),
        }
    }

    true
}

fn chain<'a>(plan: &'a Plan, table: NftFamily, name: &str) -> &'a Chain {
    let mut chains = plan.nft_chains.rows().iter();
    let found = chains.find(|(key, _)| key.table == table && key.name == name);

    found.unwrap_or_else(|| panic!("no chain {name}")).1
}

/// Whether a condition holds of a packet; no barrier knows connections but by their answers, and none
/// of these packets is one.
fn holds(plan: &Plan, table: NftFamily, word: &Match, packet: Packet) -> bool {
    let is = |sense: &Sense, fact: bool| fact == (*sense == Sense::Is);
    let within = |address: IpAddr, name: &str| {
        let mut elements = elements(plan, table, name);
        elements.any(|element| match element {
            Element::Net(net) => net.contains(&address),
            Element::Address(host) => *host == address,
            other => panic!("{other:?} in a set of addresses"),
        })
    };
    let of = |family: &model::Family, address: IpAddr| model::Family::of(address) == *family;
    match word {
        Match::Oif(sense, name) => is(sense, name.as_str() == packet.device),
        Match::OifPrefix(sense, prefix) => is(sense, packet.device.starts_with(prefix.as_str())),
        Match::OifSet(sense, name) => {
            let device = Element::Interface(packet.device.parse().unwrap());
            is(
                sense,
                elements(plan, table, name).any(|each| *each == device),
            )
        }
        Match::Source(sense, family, name) => {
            of(family, packet.from) && is(sense, within(packet.from, name))
        }
        Match::Destination(sense, family, name) => {
            of(family, packet.to) && is(sense, within(packet.to, name))
        }
        Match::Protocol(sense, protocol) => is(sense, packet.protocol == *protocol),
        Match::DestinationPort(port) => packet.port == *port,
        Match::CtReply | Match::CtOriginalDestination(..) => false,
        other => panic!("{other:?} in a barrier"),
    }
}

fn elements<'a>(
    plan: &'a Plan,
    table: NftFamily,
    name: &str,
) -> impl Iterator<Item = &'a Element> + use<'a> {
    let set = SetKey {
        table,
        name: name.into(),
    };
    assert!(plan.nft_sets.get(&set).is_some(), "no set {name}");
    let all = plan.nft_elements.rows().keys();

    all.filter(move |(of, _)| *of == set)
        .map(|(_, element)| element)
}
