//! Why a rule does not match a packet.

use std::{fmt, net::IpAddr};

use model::{
    Family,
    policy::{Action, Icmp, PortMatch, Protocol, Rule, ServiceRef, Side},
};

use crate::{
    Evaluator,
    evaluate::{Which, is_icmp, is_in_nets, is_outside_nets},
    packet::{Header, IcmpHeader},
};

/// How many entries of a list are named.
const NAMED_MAX: usize = 5;

/// A criterion of a rule that a packet does not meet.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Mismatch {
    /// Nothing is allowed on the word of HTTP.
    Http,
    Family(Family),
    Protocol(Protocol, Protocol),
    NotProtocol(Protocol),
    Icmp(Option<IcmpHeader>, Icmp),
    NotIcmp(Icmp),
    Nets(Which, IpAddr, Vec<ipnet::IpNet>),
    NotNets(Which, IpAddr, Vec<ipnet::IpNet>),
    Selector(Which, IpAddr, String),
    NotSelector(Which, IpAddr, String),
    Ports(Which, Option<u16>, Vec<PortMatch>),
    NotPorts(Which, Option<u16>, Vec<PortMatch>),
    Service(Which, IpAddr, ServiceRef),
}

/// Returns every criterion of a rule that a packet does not meet; none where the rule matches.
pub(super) fn mismatches(evaluator: &Evaluator<'_>, rule: &Rule, header: &Header) -> Vec<Mismatch> {
    let mut found = Vec::new();
    if rule.http && rule.action == Action::Allow {
        found.push(Mismatch::Http);
    }
    let family = rule.family.filter(|family| *family != header.family());
    found.extend(family.map(Mismatch::Family));
    let protocol = rule.protocol.filter(|own| *own != header.protocol);
    found.extend(protocol.map(|own| Mismatch::Protocol(header.protocol, own)));
    let without = rule.not_protocol.filter(|own| *own == header.protocol);
    found.extend(without.map(Mismatch::NotProtocol));
    let icmp = rule.icmp.filter(|icmp| !is_icmp(header.icmp, *icmp));
    found.extend(icmp.map(|icmp| Mismatch::Icmp(header.icmp, icmp)));
    let not_icmp = rule.not_icmp.filter(|icmp| is_icmp(header.icmp, *icmp));
    found.extend(not_icmp.map(Mismatch::NotIcmp));
    for which in [Which::Source, Which::Destination] {
        found.extend(of_addresses(evaluator, rule, header, which));
        found.extend(of_ports(evaluator, rule, header, which));
    }

    found
}

fn of_addresses(
    evaluator: &Evaluator<'_>,
    rule: &Rule,
    header: &Header,
    which: Which,
) -> Vec<Mismatch> {
    let (side, address) = side(rule, header, which);
    let mut found = Vec::new();
    if !is_in_nets(&side.nets, address) {
        found.push(Mismatch::Nets(which, address, side.nets.clone()));
    }
    if !is_outside_nets(&side.not_nets, address) {
        found.push(Mismatch::NotNets(which, address, side.not_nets.clone()));
    }
    let unselected = side.selector.as_ref();
    let unselected = unselected.filter(|selector| !evaluator.selects(selector, address));
    found.extend(unselected.map(|one| Mismatch::Selector(which, address, one.to_string())));
    let left_out = side.not_selector.as_ref();
    let left_out = left_out.filter(|selector| evaluator.selects(selector, address));
    found.extend(left_out.map(|one| Mismatch::NotSelector(which, address, one.to_string())));
    let service = side.service.as_deref();
    let service = service.filter(|service| !evaluator.answers_for(service, header, which));
    found.extend(service.map(|one| Mismatch::Service(which, address, one.clone())));

    found
}

fn of_ports(
    evaluator: &Evaluator<'_>,
    rule: &Rule,
    header: &Header,
    which: Which,
) -> Vec<Mismatch> {
    let (side, _) = side(rule, header, which);
    let is = |port: &PortMatch| evaluator.is_port(port, rule.protocol, side, header, which);
    let number = header.ports.map(|ports| match which {
        Which::Source => ports.source,
        Which::Destination => ports.destination,
    });
    let mut found = Vec::new();
    if !side.ports.is_empty() && !side.ports.iter().any(is) {
        found.push(Mismatch::Ports(which, number, side.ports.clone()));
    }
    if side.not_ports.iter().any(is) {
        found.push(Mismatch::NotPorts(which, number, side.not_ports.clone()));
    }

    found
}

fn side<'a>(rule: &'a Rule, header: &Header, which: Which) -> (&'a Side, IpAddr) {
    match which {
        Which::Source => (&rule.source, header.source),
        Which::Destination => (&rule.destination, header.destination),
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http => f.write_str("it asks for HTTP, which no packet shows"),
            Self::Family(own) => write!(f, "it is for {own} alone"),
            Self::Protocol(found, own) => write!(f, "the protocol is {found}, not {own}"),
            Self::NotProtocol(own) => write!(f, "it leaves out {own}"),
            Self::Icmp(None, _) => f.write_str("the packet is not ICMP"),
            Self::Icmp(Some(found), own) => write!(
                f,
                "the ICMP type and code are {}/{}, not {}",
                found.kind,
                found.code,
                Kind(*own)
            ),
            Self::NotIcmp(own) => write!(f, "it leaves out ICMP {}", Kind(*own)),
            Self::Nets(which, address, nets) => {
                write!(f, "the {} {address} is not in {}", word(*which), some(nets))
            }
            Self::NotNets(which, address, nets) => write!(
                f,
                "the {} {address} is not among what notNets leaves: {}",
                word(*which),
                some(nets)
            ),
            Self::Selector(which, address, selector) => {
                write!(f, "the {} {address} is not {selector}", word(*which))
            }
            Self::NotSelector(which, address, selector) => write!(
                f,
                "the {} {address} is {selector}, which is left out",
                word(*which)
            ),
            Self::Ports(which, port, ports) => {
                write!(
                    f,
                    "the {} {} is not {}",
                    word(*which),
                    Number(*port),
                    some(ports)
                )
            }
            Self::NotPorts(which, port, ports) => write!(
                f,
                "the {} {} is among those left out: {}",
                word(*which),
                Number(*port),
                some(ports)
            ),
            Self::Service(which, address, service) => write!(
                f,
                "the {} {address} does not answer there for service {}/{}",
                word(*which),
                service.namespace,
                service.name
            ),
        }
    }
}

/// An ICMP type, with its code where one is asked for.
struct Kind(Icmp);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.code {
            Some(code) => write!(f, "{}/{code}", self.0.kind),
            None => self.0.kind.fmt(f),
        }
    }
}

/// A port, of packets that have one.
struct Number(Option<u16>);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(port) => write!(f, "port {port}"),
            None => f.write_str("has no port, which"),
        }
    }
}

fn word(which: Which) -> &'static str {
    match which {
        Which::Source => "source",
        Which::Destination => "destination",
    }
}

fn some<T: fmt::Display>(entries: &[T]) -> String {
    let mut text = entries
        .iter()
        .take(NAMED_MAX)
        .map(T::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if entries.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", entries.len() - NAMED_MAX));
    }

    text
}
