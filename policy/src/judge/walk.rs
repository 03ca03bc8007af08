//! A packet's way through the base chains, as it opens its connection.

use std::{net::IpAddr, ops::Range};

use model::{
    Family, InterfaceName,
    nft::{CtState, End, HookPoint, Sense},
};

use super::{
    Connection, Judge, Station,
    rule::{Condition, Rule, Statement},
    set::{Content, Target},
};
use crate::{Verdict, packet::Header};

/// The most chains that may call each other (`NFT_JUMP_STACK_SIZE` of net/netfilter/nf_tables.h).
const DEPTH: usize = 16;

/// Where a packet on its way from a host to itself goes out and comes in.
const LOOPBACK: &str = "lo";

/// Priority of connection tracking, and of destination NAT (`NF_IP_PRI_*` of linux/netfilter_ipv4.h).
const TRACKING: i32 = -200;
const TRANSLATION: i32 = -100;

const EARLY: Range<i32> = i32::MIN..TRACKING;
const TRACKED: Range<i32> = TRACKING..TRANSLATION;
const TRANSLATED: Range<i32> = TRANSLATION..i32::MAX;
const ALL: Range<i32> = i32::MIN..i32::MAX;

/// A packet at a hook.
struct Seen<'a> {
    iif: Device<'a>,
    oif: Device<'a>,
    header: Header,
    /// The destination that it was sent to.
    sent_to: IpAddr,
    translated: bool,
    from_host: bool,
    to_host: bool,
    mark: u32,
}

/// An interface, as far as it is known.
#[derive(Clone, Copy)]
enum Device<'a> {
    /// There is none at this hook.
    None,
    /// This one.
    Named(&'a InterfaceName),
    /// One that is no pod's.
    Unnamed,
}

/// How a chain ends.
enum Flow {
    Accept,
    Drop,
    Return,
    Untrack,
}

/// What becomes of a packet at a hook.
enum Passage {
    /// It goes on.
    On,
    /// It is dropped.
    Dropped,
    /// It goes on without a connection: nothing is to be said of the connection.
    Untracked,
}

/// Returns whether a connection's first packet would pass.
pub(super) fn judge(judge: &Judge, connection: &Connection<'_>) -> Verdict {
    let (from, to) = (Device::of(connection.from), Device::of(connection.to));
    let dropped = match (connection.from, connection.to) {
        (Station::Host, Station::Host) => {
            let name = LOOPBACK.parse::<InterfaceName>().ok();
            let own = name.as_ref().map_or(Device::Unnamed, Device::Named);
            // What comes in again has been translated on its way out.
            let again = Connection {
                before: connection.header,
                ..*connection
            };
            cross(judge, connection, Device::None, own) || cross(judge, &again, own, Device::None)
        }
        (Station::Host, Station::Interface(_) | Station::Elsewhere)
        | (Station::Interface(_) | Station::Elsewhere, Station::Host)
        | (
            Station::Interface(_) | Station::Elsewhere,
            Station::Interface(_) | Station::Elsewhere,
        ) => cross(judge, connection, from, to),
    };

    if dropped {
        Verdict::Deny
    } else {
        Verdict::Allow
    }
}

/// Returns whether a packet is dropped between two interfaces.
fn cross(judge: &Judge, connection: &Connection<'_>, iif: Device<'_>, oif: Device<'_>) -> bool {
    let mut seen = Seen {
        iif,
        oif: Device::None,
        header: connection.before,
        sent_to: connection.before.destination,
        translated: connection.translated,
        from_host: connection.from == Station::Host,
        to_host: connection.to == Station::Host,
        mark: 0,
    };
    let comes_in = !matches!(iif, Device::None);
    let goes_out = !matches!(oif, Device::None);

    let early: &[(HookPoint, Range<i32>)] = if comes_in {
        &[
            (HookPoint::Prerouting, EARLY),
            (HookPoint::Prerouting, TRACKED),
        ]
    } else {
        seen.oif = oif;
        &[(HookPoint::Output, EARLY)]
    };
    for (point, range) in early {
        match judge.pass(point, range, &mut seen) {
            Passage::On => {}
            Passage::Dropped => return true,
            Passage::Untracked => return false,
        }
    }

    seen.header = connection.header;
    // Where it goes out is not known before it is routed.
    if comes_in
        && matches!(
            judge.pass(&HookPoint::Prerouting, &TRANSLATED, &mut seen),
            Passage::Dropped
        )
    {
        return true;
    }

    seen.oif = oif;
    let late: &[(HookPoint, Range<i32>)] = match (comes_in, goes_out) {
        (true, true) => &[(HookPoint::Forward, ALL), (HookPoint::Postrouting, ALL)],
        (true, false) => &[(HookPoint::Input, ALL)],
        (false, _) => &[
            (HookPoint::Output, TRACKING..i32::MAX),
            (HookPoint::Postrouting, ALL),
        ],
    };

    late.iter()
        .any(|(point, range)| matches!(judge.pass(point, range, &mut seen), Passage::Dropped))
}

impl Judge {
    fn pass(&self, point: &HookPoint, priorities: &Range<i32>, seen: &mut Seen<'_>) -> Passage {
        let bases = self
            .bases
            .iter()
            .filter(|base| base.point == *point && priorities.contains(&base.priority));
        for base in bases {
            match self.walk(base.chain, seen, 1) {
                Flow::Return if base.drops => return Passage::Dropped,
                Flow::Accept | Flow::Return => {}
                Flow::Drop => return Passage::Dropped,
                Flow::Untrack => return Passage::Untracked,
            }
        }

        Passage::On
    }

    /// What cannot be followed, which the kernel would not have taken, is dropped.
    fn walk(&self, chain: u32, seen: &mut Seen<'_>, depth: usize) -> Flow {
        let Some(rules) = self.chains.get(chain).filter(|_| depth <= DEPTH) else {
            return Flow::Drop;
        };
        for rule in rules {
            if !self.holds(rule, seen) {
                continue;
            }
            let end = match rule.statement {
                Statement::Accept => Some(Flow::Accept),
                Statement::Drop => Some(Flow::Drop),
                Statement::Return => Some(Flow::Return),
                Statement::Untrack => Some(Flow::Untrack),
                Statement::Jump(to) => self.follow(Target::Jump(to), seen, depth),
                Statement::Goto(to) => self.follow(Target::Goto(to), seen, depth),
                Statement::InputVerdict(map) => self
                    .target(map, seen.iif)
                    .and_then(|target| self.follow(target, seen, depth)),
                Statement::OutputVerdict(map) => self
                    .target(map, seen.oif)
                    .and_then(|target| self.follow(target, seen, depth)),
                Statement::SetMark(mask, value) => {
                    seen.mark = seen.mark & !mask | value;
                    None
                }
                Statement::Continue => None,
            };
            if let Some(end) = end {
                return end;
            }
        }

        Flow::Return
    }

    /// Follows a verdict; `None` where the next rule is to be asked.
    fn follow(&self, target: Target, seen: &mut Seen<'_>, depth: usize) -> Option<Flow> {
        match target {
            Target::Accept => Some(Flow::Accept),
            Target::Drop => Some(Flow::Drop),
            Target::Goto(to) => Some(self.walk(to, seen, depth + 1)),
            Target::Jump(to) => match self.walk(to, seen, depth + 1) {
                Flow::Return => None,
                end @ (Flow::Accept | Flow::Drop | Flow::Untrack) => Some(end),
            },
        }
    }

    fn target(&self, map: u32, device: Device<'_>) -> Option<Target> {
        let Device::Named(name) = device else {
            return None;
        };

        self.sets.get(map)?.target(name)
    }

    fn holds(&self, rule: &Rule, seen: &Seen<'_>) -> bool {
        rule.gate.admits(&seen.header)
            && rule
                .conditions
                .iter()
                .all(|condition| self.is(condition, seen))
    }

    fn is(&self, condition: &Condition, seen: &Seen<'_>) -> bool {
        let header = &seen.header;
        let set = |id: u32, has: &dyn Fn(&Content) -> bool| self.sets.get(id).is_some_and(has);
        let same = |sense: Sense, fact: bool| (sense == Sense::Is) == fact;
        let of = |family: Family| header.family() == family;
        match condition {
            Condition::Iif(sense, name) => same(*sense, seen.iif.is(name)),
            Condition::Oif(sense, name) => same(*sense, seen.oif.is(name)),
            Condition::IifPrefix(sense, prefix) => same(*sense, seen.iif.begins(prefix)),
            Condition::OifPrefix(sense, prefix) => same(*sense, seen.oif.begins(prefix)),
            Condition::IifSet(sense, id) => same(*sense, set(*id, &|set| seen.iif.is_in(set))),
            Condition::OifSet(sense, id) => same(*sense, set(*id, &|set| seen.oif.is_in(set))),
            Condition::Family(family) => of(*family),
            Condition::Address(end, sense, family, id) => {
                let address = address(header, *end);
                of(*family) && same(*sense, set(*id, &|set| set.has_address(address)))
            }
            Condition::Net(end, sense, net) => {
                let inside = net.contains(&address(header, *end));
                of(Family::of_net(net)) && same(*sense, inside)
            }
            Condition::SourceOnInterface(sense, family, id) => {
                let pair = |set: &Content| match seen.iif {
                    Device::Named(name) => set.has_pair(name, header.source),
                    Device::None | Device::Unnamed => false,
                };
                of(*family) && same(*sense, set(*id, &pair))
            }
            Condition::Protocol(sense, number) => same(*sense, header.protocol.0 == *number),
            Condition::Icmp(sense, kind, code) => header.icmp.is_some_and(|icmp| {
                let is_it = icmp.kind == *kind && code.is_none_or(|code| icmp.code == code);
                same(*sense, is_it)
            }),
            Condition::Port(end, sense, first, last) => port(header, *end)
                .is_some_and(|port| same(*sense, (*first..=*last).contains(&port))),
            Condition::PortSet(end, sense, id) => port(header, *end)
                .is_some_and(|port| same(*sense, set(*id, &|set| set.has_port(port)))),
            // A packet without ports is taken for too short to be looked at.
            Condition::AddressPort(end, sense, family, id) => {
                let (address, number) = (address(header, *end), header.protocol.0);
                of(*family)
                    && port(header, *end).is_some_and(|port| {
                        let has = |set: &Content| set.has_address_port(address, number, port);
                        same(*sense, set(*id, &has))
                    })
            }
            Condition::Mark(sense, mask, value) => same(*sense, seen.mark & mask == *value),
            Condition::CtMark(sense, value) => same(*sense, *value == 0),
            Condition::CtState(CtState { new, .. }) => *new,
            Condition::CtDnat => seen.translated,
            Condition::CtOriginalDestination(sense, family, id) => {
                of(*family) && same(*sense, set(*id, &|set| set.has_address(seen.sent_to)))
            }
            Condition::SourceLocal => seen.from_host,
            Condition::DestinationLocal => seen.to_host,
            Condition::DestinationElsewhere(sense) => same(*sense, !seen.to_host),
            Condition::Never => false,
        }
    }
}

impl<'a> Device<'a> {
    const fn of(station: Station<'a>) -> Self {
        match station {
            Station::Host => Self::None,
            Station::Interface(name) => Self::Named(name),
            Station::Elsewhere => Self::Unnamed,
        }
    }

    fn is(self, name: &InterfaceName) -> bool {
        match self {
            Self::Named(own) => own == name,
            Self::None | Self::Unnamed => false,
        }
    }

    fn begins(self, prefix: &str) -> bool {
        match self {
            Self::Named(own) => own.as_str().starts_with(prefix),
            Self::None | Self::Unnamed => false,
        }
    }

    fn is_in(self, set: &Content) -> bool {
        match self {
            Self::Named(own) => set.has_interface(own),
            Self::None | Self::Unnamed => false,
        }
    }
}

const fn address(header: &Header, end: End) -> IpAddr {
    match end {
        End::Source => header.source,
        End::Destination => header.destination,
    }
}

fn port(header: &Header, end: End) -> Option<u16> {
    let ports = header.ports?;

    Some(match end {
        End::Source => ports.source,
        End::Destination => ports.destination,
    })
}
