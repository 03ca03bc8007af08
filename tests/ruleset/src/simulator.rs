//! A kernel that knows our words: it walks a packet through the base chains of a hook and the chains that they lead
//! into. It reads rows, and shares nothing with the compiler.

use std::net::IpAddr;

use model::{
    Family,
    nft::{
        ChainKey, ChainKind, CtState, Element, End, HookPoint, Match, NftFamily, Policy, Sense,
        SetKey, Statement, Verdict,
    },
};

use policy::{compile::Ruleset, packet::Header};

/// A packet at a hook.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) iif: Option<String>,
    pub(super) oif: Option<String>,
    pub(super) header: Header,
    /// What is known of its connection; nothing before it is looked for.
    pub(super) state: Option<Tracked>,
    pub(super) ct_mark: u32,
    pub(super) dnat: bool,
    pub(super) from_host: bool,
    pub(super) to_host: bool,
    pub(super) mark: u32,
    /// Chains and comments of what it met, for people.
    pub(super) trace: Vec<String>,
}

/// What is known of a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracked {
    New,
    Established,
    Invalid,
    Untracked,
}

/// How a chain ends.
enum Flow {
    Accept,
    Drop,
    Return,
}

/// The most chains that may call each other (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// Walks every base chain at a point whose priority is within bounds; returns whether the packet passes.
pub(super) fn pass(
    rows: &Ruleset,
    point: &HookPoint,
    priorities: std::ops::Range<i32>,
    seen: &mut Seen,
) -> bool {
    let mut chains: Vec<_> = rows
        .chains
        .iter()
        .filter_map(|(key, chain)| Some((key, chain.hook.as_ref()?)))
        .filter(|(_, hook)| hook.point == *point && priorities.contains(&hook.priority))
        .collect();
    chains.sort_by_key(|(_, hook)| hook.priority);
    for (key, hook) in chains {
        assert_eq!(hook.kind, ChainKind::Filter);
        let passes = match walk(rows, key, seen, 1) {
            Flow::Accept => true,
            Flow::Drop => false,
            Flow::Return => hook.policy == Policy::Accept,
        };
        if !passes {
            return false;
        }
    }

    true
}

fn walk(rows: &Ruleset, key: &ChainKey, seen: &mut Seen, depth: usize) -> Flow {
    assert!(depth <= DEPTH, "{:?}", seen.trace);
    let chain = rows
        .chains
        .get(key)
        .unwrap_or_else(|| panic!("no chain {key:?}"));
    let named = |name: &str| ChainKey {
        table: key.table,
        name: name.into(),
    };
    for rule in chain.rules.iter() {
        if !rule.matches.iter().all(|each| holds(rows, each, seen)) {
            continue;
        }
        seen.trace.push(format!("{}: {}", key.name, rule.comment));
        let called = |name: &str, seen: &mut Seen| walk(rows, &named(name), seen, depth + 1);
        match &rule.statement {
            Statement::Accept => return Flow::Accept,
            Statement::AcceptUntracked => {
                assert_eq!(seen.state, None, "notrack comes too late");
                seen.state = Some(Tracked::Untracked);
                return Flow::Accept;
            }
            Statement::Drop | Statement::LogAndDrop(_) => return Flow::Drop,
            Statement::Return => return Flow::Return,
            Statement::Jump(to) => match called(to, seen) {
                Flow::Return => {}
                end @ (Flow::Accept | Flow::Drop) => return end,
            },
            Statement::Goto(to) => return called(to, seen),
            Statement::InputVerdict(map) => {
                let verdict = entry(rows, map, seen.iif.as_deref());
                if let Some(end) = verdict.and_then(|verdict| obey(&verdict, seen, &called)) {
                    return end;
                }
            }
            Statement::OutputVerdict(map) => {
                let verdict = entry(rows, map, seen.oif.as_deref());
                if let Some(end) = verdict.and_then(|verdict| obey(&verdict, seen, &called)) {
                    return end;
                }
            }
            Statement::SetMark { mask, value } => seen.mark = seen.mark & !mask | value,
            Statement::Log(_) | Statement::Continue => {}
            Statement::Snat(_)
            | Statement::SnatPorts(..)
            | Statement::Masquerade
            | Statement::MasqueradePorts(_)
            | Statement::Dnat(..) => {
                panic!("policy translates nothing")
            }
        }
    }

    Flow::Return
}

/// Does what a map says; `None` where the next rule is to be asked.
fn obey(
    verdict: &Verdict,
    seen: &mut Seen,
    called: &impl Fn(&str, &mut Seen) -> Flow,
) -> Option<Flow> {
    match verdict {
        Verdict::Accept => Some(Flow::Accept),
        Verdict::Drop => Some(Flow::Drop),
        Verdict::Goto(to) => Some(called(to, seen)),
        Verdict::Jump(to) => match called(to, seen) {
            Flow::Return => None,
            end @ (Flow::Accept | Flow::Drop) => Some(end),
        },
    }
}

fn entry(rows: &Ruleset, map: &str, device: Option<&str>) -> Option<Verdict> {
    elements(rows, map).find_map(|element| match element {
        Element::InterfaceVerdict(name, verdict) => {
            (Some(name.as_str()) == device).then(|| verdict.clone())
        }
        other => panic!("{other:?} in a map"),
    })
}

fn elements<'a>(rows: &'a Ruleset, set: &str) -> impl Iterator<Item = &'a Element> + use<'a> {
    let key = SetKey {
        table: NftFamily::Inet,
        name: set.into(),
    };
    assert!(rows.sets.contains_key(&key), "no set {set}");
    let least = (key.clone(), Element::Net("0.0.0.0/0".parse().unwrap()));

    rows.elements
        .range(least..)
        .take_while(move |(set, _)| *set == key)
        .map(|(_, element)| element)
}

fn holds(rows: &Ruleset, condition: &Match, seen: &Seen) -> bool {
    let header = &seen.header;
    let is = |sense: &Sense, fact: bool| (*sense == Sense::Is) == fact;
    let within = |set: &str, address: IpAddr| {
        elements(rows, set).any(|element| match element {
            Element::Net(net) => net.contains(&address),
            Element::Address(one) => *one == address,
            other => panic!("{other:?} in a set of addresses"),
        })
    };
    let starts = |device: &Option<String>, prefix: &str| {
        device.as_ref().is_some_and(|name| name.starts_with(prefix))
    };
    let port = |end: &End| {
        header.ports.map(|ports| match end {
            End::Source => ports.source,
            End::Destination => ports.destination,
        })
    };
    match condition {
        Match::IifPrefix(sense, prefix) => is(sense, starts(&seen.iif, prefix)),
        Match::OifPrefix(sense, prefix) => is(sense, starts(&seen.oif, prefix)),
        Match::Family(family) => header.family() == *family,
        Match::Source(sense, family, set) => {
            header.family() == *family && is(sense, within(set, header.source))
        }
        Match::Destination(sense, family, set) => {
            header.family() == *family && is(sense, within(set, header.destination))
        }
        Match::SourceNet(sense, net) => {
            header.family() == Family::of_net(net) && is(sense, net.contains(&header.source))
        }
        Match::DestinationNet(sense, net) => {
            header.family() == Family::of_net(net) && is(sense, net.contains(&header.destination))
        }
        Match::Protocol(sense, number) => is(sense, header.protocol.0 == *number),
        Match::Icmp(sense, kind, code) => header.icmp.is_some_and(|icmp| {
            let same = icmp.kind == *kind && code.is_none_or(|code| icmp.code == code);
            is(sense, same)
        }),
        Match::Port(end, sense, first, last) => {
            port(end).is_some_and(|port| is(sense, (*first..=*last).contains(&port)))
        }
        Match::PortSet(end, sense, set) => port(end).is_some_and(|port| {
            let found = elements(rows, set).any(|element| match element {
                Element::Ports(first, last) => (*first..=*last).contains(&port),
                other => panic!("{other:?} in a set of ports"),
            });
            is(sense, found)
        }),
        // What has no port is taken for too short to be looked at.
        Match::AddressPort(end, sense, family, set) => {
            let address = match end {
                End::Source => header.source,
                End::Destination => header.destination,
            };
            header.family() == *family
                && port(end).is_some_and(|port| {
                    let wanted = Element::AddressPort(address, header.protocol.0, port);
                    is(sense, elements(rows, set).any(|element| *element == wanted))
                })
        }
        Match::Mark { sense, mask, value } => is(sense, seen.mark & mask == *value),
        Match::CtMark { sense, mask, value } => {
            matches!(seen.state, Some(Tracked::New | Tracked::Established))
                && is(sense, seen.ct_mark & mask == *value)
        }
        Match::CtState(wanted) => is_state(*wanted, seen.state),
        Match::CtDnat => seen.dnat && seen.state != Some(Tracked::Untracked),
        Match::SourceLocal => seen.from_host,
        Match::DestinationLocal => seen.to_host,
        Match::DestinationElsewhere(sense) => is(sense, !seen.to_host),
        // No packet of ours has any.
        Match::Detour(_) => false,
        other => panic!("policy does not ask for {other:?}"),
    }
}

fn is_state(wanted: CtState, state: Option<Tracked>) -> bool {
    match state.expect("state is asked for before it is known") {
        Tracked::New => wanted.new,
        Tracked::Established => wanted.established,
        Tracked::Invalid => wanted.invalid,
        Tracked::Untracked => wanted.untracked,
    }
}
