//! Whether a rule matches a packet.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Family, Selector,
    policy::{Action, Icmp, PortMatch, Protocol, Rule, ServiceRef, Side},
};

use super::Evaluator;
use crate::packet::{Header, IcmpHeader};

/// Which side of a packet is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Who sends.
    Source,
    /// Who is to get it.
    Destination,
}

impl Evaluator<'_> {
    /// Returns whether a rule matches a packet: all of its criteria, positive and negative, hold.
    pub(crate) fn matches(&self, rule: &Rule, header: &Header) -> bool {
        // What asks for HTTP is enforced by nobody here: nothing is allowed on its word.
        if rule.http && rule.action == Action::Allow {
            return false;
        }

        rule.family.is_none_or(|family| family == header.family())
            && rule
                .protocol
                .is_none_or(|protocol| protocol == header.protocol)
            && rule
                .not_protocol
                .is_none_or(|protocol| protocol != header.protocol)
            && rule.icmp.is_none_or(|icmp| is_icmp(header.icmp, icmp))
            && rule.not_icmp.is_none_or(|icmp| !is_icmp(header.icmp, icmp))
            && self.matches_side(rule, header, Which::Source)
            && self.matches_side(rule, header, Which::Destination)
    }

    fn matches_side(&self, rule: &Rule, header: &Header, which: Which) -> bool {
        let (side, address) = match which {
            Which::Source => (&rule.source, header.source),
            Which::Destination => (&rule.destination, header.destination),
        };

        is_in_nets(&side.nets, address)
            && is_outside_nets(&side.not_nets, address)
            && side
                .selector
                .as_ref()
                .is_none_or(|selector| self.selects(selector, address))
            && side
                .not_selector
                .as_ref()
                .is_none_or(|selector| !self.selects(selector, address))
            && self.matches_ports(rule.protocol, side, header, which)
            && side
                .service
                .as_ref()
                .is_none_or(|service| self.answers_for(service, header, which))
    }

    /// Returns whether an endpoint or network set that a selector selects has an address.
    pub(crate) fn selects(&self, selector: &Selector, address: IpAddr) -> bool {
        let endpoint = self.endpoints().any(|endpoint| {
            endpoint.addresses.contains(&address) && selector.matches(&endpoint.labels)
        });

        endpoint
            || self.sets.iter().any(|(set, labels)| {
                set.nets.iter().any(|net| net.contains(&address)) && selector.matches(labels)
            })
    }

    fn matches_ports(
        &self,
        protocol: Option<Protocol>,
        side: &Side,
        header: &Header,
        which: Which,
    ) -> bool {
        let is = |port: &PortMatch| self.is_port(port, protocol, side, header, which);

        (side.ports.is_empty() || side.ports.iter().any(is)) && !side.not_ports.iter().any(is)
    }

    /// Returns whether a packet's port is a rule's. A name means the numbers that the endpoints which the rule selects
    /// on that side give it, each only at that endpoint's addresses.
    pub(crate) fn is_port(
        &self,
        port: &PortMatch,
        protocol: Option<Protocol>,
        side: &Side,
        header: &Header,
        which: Which,
    ) -> bool {
        let Some(ports) = header.ports else {
            return false;
        };
        let (address, number) = match which {
            Which::Source => (header.source, ports.source),
            Which::Destination => (header.destination, ports.destination),
        };
        match port {
            PortMatch::Range(first, last) => (*first..=*last).contains(&number),
            PortMatch::Named(name) => self.endpoints().any(|endpoint| {
                let selected = side
                    .selector
                    .as_ref()
                    .is_none_or(|selector| selector.matches(&endpoint.labels));

                selected
                    && endpoint.addresses.contains(&address)
                    && endpoint.ports.iter().any(|named| {
                        named.name == *name
                            && named.port == number
                            && named.protocol == header.protocol
                            && protocol.is_none_or(|protocol| protocol == named.protocol)
                    })
            }),
        }
    }

    /// Returns whether a packet's side is an endpoint of a service: by its address, and as a destination by protocol
    /// and port too.
    pub(crate) fn answers_for(&self, service: &ServiceRef, header: &Header, which: Which) -> bool {
        let Some(service) = self.cluster.services.get(service) else {
            return false;
        };
        let mut backends = service.backends.iter();
        match which {
            Which::Source => backends.any(|backend| backend.address == header.source),
            Which::Destination => backends.any(|backend| {
                backend.address == header.destination
                    && backend.protocol == header.protocol
                    && header
                        .ports
                        .is_some_and(|ports| ports.destination == backend.port)
            }),
        }
    }
}

/// Returns whether a list of networks leaves room for an address. Networks of the other family do not count; a list
/// that has only such matches nothing.
pub(crate) fn is_in_nets(nets: &[IpNet], address: IpAddr) -> bool {
    nets.is_empty() || nets.iter().any(|net| net.contains(&address))
}

/// Returns whether an address is in none of the networks. Networks of the other family do not count; a list that has
/// only such, or one that holds everything, matches nothing.
pub(crate) fn is_outside_nets(not_nets: &[IpNet], address: IpAddr) -> bool {
    let family = Family::of(address);
    let mut ours = not_nets
        .iter()
        .filter(|net| Family::of_net(net) == family)
        .peekable();

    not_nets.is_empty() || (ours.peek().is_some() && ours.all(|net| !net.contains(&address)))
}

pub(crate) fn is_icmp(found: Option<IcmpHeader>, wanted: Icmp) -> bool {
    found.is_some_and(|found| {
        found.kind == wanted.kind && wanted.code.is_none_or(|code| code == found.code)
    })
}
