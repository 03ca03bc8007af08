//! One rule of a policy as rules of the kernel.
//!
//! ```text
//! rule ──▶ per family ──▶ per alternative of the source's and of the destination's ports ──▶ conditions, statement
//! ```
//!
//! The kernel's rules hold where all their conditions hold. What a policy says with "or" inside one criterion is a
//! set; only a number *or* a name of a port needs two rules.
//!
//! No rule is written for a family of which nobody is there whom it asks for: its set would be empty for as long. A
//! rule that speaks of who it must *not* be is written for both.

use std::collections::BTreeSet;

use ipnet::IpNet;
use model::{
    Family,
    nft::{End, Match, Sense},
    policy::{Action, PortMatch, Protocol, Rule, Side},
};

use super::{
    Refusal,
    family::Families,
    set::{Meaning, Naming, merged},
};

/// Conditions that must all hold.
type Conditions = Vec<Match>;

/// Protocols that have ports.
const WITH_PORTS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// Returns the alternatives under which a rule matches; none where no packet can. `known` are the families of which
/// anybody is there.
pub(super) fn alternatives(
    rule: &Rule,
    known: Families,
    sets: &mut Naming<'_>,
) -> Result<Vec<Conditions>, Refusal> {
    if rule.http && rule.action == Action::Allow {
        return Ok(Vec::new());
    }
    let transport = transport(rule)?;
    let mut found = Vec::new();
    for family in families(rule, known) {
        let mut head = Vec::new();
        if let Some(family) = family {
            head.push(Match::Family(family));
        }
        head.extend(transport.iter().cloned());
        let sources = side(rule, &rule.source, End::Source, family, known, sets)?;
        let destinations = side(
            rule,
            &rule.destination,
            End::Destination,
            family,
            known,
            sets,
        )?;
        for source in &sources {
            for destination in &destinations {
                found.push([&head[..], source, destination].concat());
            }
        }
    }

    Ok(found)
}

/// Returns the families for which a rule is written: one rule for both where it speaks of no address.
fn families(rule: &Rule, known: Families) -> Vec<Option<Family>> {
    let said = rule.family;
    let implied = rule.protocol.and_then(Protocol::family);
    let wanted: Vec<Family> = Family::BOTH
        .into_iter()
        .filter(|family| said.is_none_or(|said| said == *family))
        .filter(|family| implied.is_none_or(|implied| implied == *family))
        .filter(|family| is_possible(rule, *family, known))
        .collect();
    if wanted.len() == Family::BOTH.len() && !is_about_addresses(rule) {
        return vec![None];
    }

    wanted.into_iter().map(Some).collect()
}

/// Returns whether a packet of a family can be what a rule says of addresses. Networks that are named, or excepted,
/// are of the families that a rule is about.
fn is_possible(rule: &Rule, family: Family, known: Families) -> bool {
    let serves = rule.destination.service.is_some();
    let is_of = |net: &IpNet| Family::of_net(net) == family;
    let mut sides = [&rule.source, &rule.destination].into_iter();

    !(serves && has_no_ports(rule))
        && sides.all(|side| {
            let asks = side.selector.is_some() || side.service.is_some();
            let speaks = |nets: &[IpNet]| nets.is_empty() || nets.iter().any(is_of);
            let mut excepted = side.not_nets.iter().filter(|net| is_of(net));

            (known.has(family) || !asks)
                && speaks(&side.nets)
                && speaks(&side.not_nets)
                && !excepted.any(|net| net.prefix_len() == 0)
        })
}

fn is_about_addresses(rule: &Rule) -> bool {
    [&rule.source, &rule.destination].into_iter().any(|side| {
        let names =
            |ports: &[PortMatch]| ports.iter().any(|port| matches!(port, PortMatch::Named(_)));

        !side.nets.is_empty()
            || !side.not_nets.is_empty()
            || side.selector.is_some()
            || side.not_selector.is_some()
            || side.service.is_some()
            || names(&side.ports)
            || names(&side.not_ports)
    })
}

/// Returns what a rule says of protocol and ICMP, if it says of ICMP and of ports what can be said.
fn transport(rule: &Rule) -> Result<Conditions, Refusal> {
    let mut conditions = Vec::new();
    if let Some(protocol) = rule.protocol {
        conditions.push(Match::Protocol(Sense::Is, protocol.0));
    }
    if let Some(protocol) = rule.not_protocol {
        conditions.push(Match::Protocol(Sense::Not, protocol.0));
    }
    let speaks_of_icmp = rule.icmp.is_some() || rule.not_icmp.is_some();
    if speaks_of_icmp && rule.protocol.and_then(Protocol::family).is_none() {
        return Err(Refusal::IcmpWithoutProtocol);
    }
    let mut sides = [&rule.source, &rule.destination].into_iter();
    let speaks_of_numbers = sides.any(|side| {
        let mut ports = side.ports.iter().chain(&side.not_ports);
        ports.any(|port| matches!(port, PortMatch::Range(..)))
    });
    if speaks_of_numbers && !rule.protocol.is_some_and(Protocol::has_ports) {
        return Err(Refusal::PortWithoutProtocol);
    }
    let icmp = [(Sense::Is, rule.icmp), (Sense::Not, rule.not_icmp)];
    for (sense, icmp) in icmp {
        conditions.extend(icmp.map(|icmp| Match::Icmp(sense, icmp.kind, icmp.code)));
    }

    Ok(conditions)
}

/// Returns the alternatives of one side in a family.
fn side(
    rule: &Rule,
    side: &Side,
    end: End,
    family: Option<Family>,
    known: Families,
    sets: &mut Naming<'_>,
) -> Result<Vec<Conditions>, Refusal> {
    let both = match family {
        Some(family) => addresses(side, end, family, sets)?,
        None => Conditions::new(),
    };
    let selected = match (&side.selector, family) {
        (Some(selector), Some(family)) => {
            vec![on_set(
                end,
                Sense::Is,
                family,
                sets(Meaning::Selected(selector.clone(), family))?,
            )]
        }
        (Some(_) | None, Some(_) | None) => Vec::new(),
    };
    let named = family.filter(|family| known.has(*family));
    let positive = ports(rule, side, end, named, selected, sets)?;
    let negative = not_ports(rule, side, end, family, sets)?;

    let mut found = Vec::new();
    for is in &positive {
        for is_not in &negative {
            found.push([&both[..], is, is_not].concat());
        }
    }

    Ok(found)
}

/// Returns what a side says of addresses of a family in which it is possible, but for its selector.
fn addresses(
    side: &Side,
    end: End,
    family: Family,
    sets: &mut Naming<'_>,
) -> Result<Conditions, Refusal> {
    let mut conditions = Vec::new();
    for (sense, nets) in [(Sense::Is, &side.nets), (Sense::Not, &side.not_nets)] {
        if nets.is_empty() {
            continue;
        }
        let ours: Vec<IpNet> = nets
            .iter()
            .copied()
            .filter(|net| Family::of_net(net) == family)
            .collect();
        conditions.push(match *ours {
            [net] => on_net(end, sense, net.trunc()),
            _ => {
                let set = sets(Meaning::Nets(merged(ours), family))?;
                on_set(end, sense, family, set)
            }
        });
    }
    if let Some(selector) = &side.not_selector {
        let set = sets(Meaning::Selected(selector.clone(), family))?;
        conditions.push(on_set(end, Sense::Not, family, set));
    }
    if let Some(service) = &side.service {
        conditions.push(match end {
            End::Source => {
                let set = sets(Meaning::Answering(service.as_ref().clone(), family))?;
                on_set(end, Sense::Is, family, set)
            }
            End::Destination => {
                let set = sets(Meaning::Serving(service.as_ref().clone(), family))?;
                Match::AddressPort(end, Sense::Is, family, set.into())
            }
        });
    }

    Ok(conditions)
}

/// Returns the alternatives of a side's ports: numbers, beside the selector, and names, which have the selector in
/// them; none of names where there is no `family` in which anybody could have them.
fn ports(
    rule: &Rule,
    side: &Side,
    end: End,
    family: Option<Family>,
    selected: Conditions,
    sets: &mut Naming<'_>,
) -> Result<Vec<Conditions>, Refusal> {
    if side.ports.is_empty() {
        return Ok(vec![selected]);
    }
    let number = numbers(&side.ports, end, Sense::Is, sets)?;
    if has_no_ports(rule) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    if let Some(condition) = number {
        found.push([selected, vec![condition]].concat());
    }
    if let Some(condition) = names(rule, side, &side.ports, end, Sense::Is, family, sets)? {
        found.push(vec![condition]);
    }

    Ok(found)
}

/// Returns the alternatives under which a side's port is none of those that it must not be.
fn not_ports(
    rule: &Rule,
    side: &Side,
    end: End,
    family: Option<Family>,
    sets: &mut Naming<'_>,
) -> Result<Vec<Conditions>, Refusal> {
    let number = numbers(&side.not_ports, end, Sense::Not, sets)?;
    let number: Conditions = number.into_iter().collect();
    if has_no_ports(rule) {
        return Ok(vec![number]);
    }
    let Some(name) = names(rule, side, &side.not_ports, end, Sense::Not, family, sets)? else {
        return Ok(vec![number]);
    };
    let mut found = vec![[number, vec![name]].concat()];
    if rule.protocol.is_none() {
        // What has no port has none of these either, and may be too short to be looked at.
        let others = WITH_PORTS.map(|protocol| Match::Protocol(Sense::Not, protocol.0));
        found.push(others.to_vec());
    }

    Ok(found)
}

/// Returns whether a rule's packets have no ports.
fn has_no_ports(rule: &Rule) -> bool {
    rule.protocol.is_some_and(|protocol| !protocol.has_ports())
}

/// Returns the condition on ports that are given as numbers, if there are any.
fn numbers(
    ports: &[PortMatch],
    end: End,
    sense: Sense,
    sets: &mut Naming<'_>,
) -> Result<Option<Match>, Refusal> {
    let ranges = joined(ports);
    if ranges.is_empty() {
        return Ok(None);
    }

    Ok(Some(match *ranges {
        [(first, last)] => Match::Port(end, sense, first, last),
        _ => Match::PortSet(end, sense, sets(Meaning::Ports(ranges))?.into()),
    }))
}

/// Returns the condition on ports that are given by name, if there are any.
fn names(
    rule: &Rule,
    side: &Side,
    ports: &[PortMatch],
    end: End,
    sense: Sense,
    family: Option<Family>,
    sets: &mut Naming<'_>,
) -> Result<Option<Match>, Refusal> {
    let names: BTreeSet<String> = ports
        .iter()
        .filter_map(|port| match port {
            PortMatch::Named(name) => Some(name.clone()),
            PortMatch::Range(..) => None,
        })
        .collect();
    let Some(family) = family.filter(|_| !names.is_empty()) else {
        return Ok(None);
    };
    let set = sets(Meaning::Named {
        names,
        selector: side.selector.clone(),
        protocol: rule.protocol,
        family,
    })?;

    Ok(Some(Match::AddressPort(end, sense, family, set.into())))
}

/// Returns ranges of ports in order, those that touch or overlap as one.
fn joined(ports: &[PortMatch]) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = ports
        .iter()
        .filter_map(|port| match port {
            PortMatch::Range(first, last) => Some((*first, *last)),
            PortMatch::Named(_) => None,
        })
        .collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            Some(_) | None => joined.push((first, last)),
        }
    }

    joined
}

fn on_net(end: End, sense: Sense, net: IpNet) -> Match {
    match end {
        End::Source => Match::SourceNet(sense, net),
        End::Destination => Match::DestinationNet(sense, net),
    }
}

fn on_set(end: End, sense: Sense, family: Family, set: String) -> Match {
    match end {
        End::Source => Match::Source(sense, family, set.into()),
        End::Destination => Match::Destination(sense, family, set.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_or_overlap_are_one() {
        let ports = [
            PortMatch::Range(90, 95),
            PortMatch::single(80),
            PortMatch::Range(81, 85),
            PortMatch::Range(92, 93),
            PortMatch::Named("http".into()),
            PortMatch::Range(97, 65535),
            PortMatch::single(65535),
        ];

        assert_eq!(joined(&ports), [(80, 85), (90, 95), (97, 65535)]);
    }
}
