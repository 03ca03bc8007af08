//! Ports that no host policy closes.

use std::net::IpAddr;

use model::{
    policy::{Direction, Failsafe, Protocol},
    settings::Settings,
};

use crate::packet::Header;

/// Which of a packet's ports a failsafe is about.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Returns whether a failsafe port lets a packet through a host's policy. What IPv6 finds neighbours and routers by
/// passes as well: without it no port of the host's would be reached.
pub(super) fn lets_through(settings: &Settings, direction: Direction, header: &Header) -> bool {
    let far_end = far_end(direction, header);
    let is_listed = |failsafe: &Failsafe| means(failsafe, header, far_end, End::Destination);

    is_host_discovery(header) || list(settings, direction).iter().any(is_listed)
}

/// Returns whether a packet is one by which IPv6 finds neighbours and routers, or says which groups it listens to
/// (RFC 4861, RFC 2710, RFC 3810). No router forwards such packets.
fn is_host_discovery(header: &Header) -> bool {
    let icmp = header.icmp.map(|icmp| icmp.kind);

    header.protocol == Protocol::ICMPV6 && matches!(icmp, Some(130..=136 | 143))
}

/// Returns whether a packet is the answer to what a failsafe port lets through: connections are not tracked yet where
/// this is asked.
pub(super) fn lets_answer_through(
    settings: &Settings,
    direction: Direction,
    header: &Header,
) -> bool {
    let question = match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };

    list(settings, question)
        .iter()
        .any(|failsafe| means(failsafe, header, far_end(direction, header), End::Source))
}

fn far_end(direction: Direction, header: &Header) -> IpAddr {
    match direction {
        Direction::Ingress => header.source,
        Direction::Egress => header.destination,
    }
}

fn means(failsafe: &Failsafe, header: &Header, far_end: IpAddr, end: End) -> bool {
    let port = header.ports.map(|ports| match end {
        End::Source => ports.source,
        End::Destination => ports.destination,
    });

    failsafe.protocol == header.protocol
        && port == Some(failsafe.port)
        && failsafe.net.is_none_or(|net| net.contains(&far_end))
}

fn list(settings: &Settings, direction: Direction) -> Vec<Failsafe> {
    let field = settings.other.get(Failsafe::field(direction));

    Failsafe::listed(direction, field.map(|setting| &setting.value))
}
