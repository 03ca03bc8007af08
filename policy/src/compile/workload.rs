//! Pods: what they send and what they get.
//!
//! ```text
//! prerouting 1000 from_pod     the sender's egress policy, wherever the packet goes
//! forward      -2 to_pod       the receiver's ingress policy
//! input        -2 pod_to_host  a setting
//! output       -3 host_to_pod  answers on a connection that was revoked
//! ```
//!
//! What a pod sends is asked about once, when others have done to it what they do before it is routed: its destination
//! is the translated one. From there a packet goes where routing sends it, to the host or elsewhere, as it is; what
//! would be sent on by its own words (source routes) is dropped. Asked in the input hook and again in the forward hook,
//! the same chains would be checked twice by the kernel at every change.
//!
//! What a host sends to its own pods is never asked about otherwise, as in Calico.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};
use model::{
    Family,
    nft::{Detour, End, HookPoint, Match, Rule, Sense, Statement},
    policy::{Direction, Protocol},
};

use super::{
    EndpointToHost, Options, Overlay, Ruleset,
    base::{Base, Entries, from_pod, invalid, revoked, to_pod},
    group::{Point, Question},
    verdict,
};

/// Behind all that others do in front of routing, destination NAT (`NF_IP_PRI_NAT_DST` is -100) and plain rewriting.
const LAST: i32 = 1000;
/// In front of the filters of others (`NF_IP_PRI_FILTER` is 0).
const FIRST: i32 = -3;
const SECOND: i32 = -2;

/// Types of ICMPv6 by which a pod finds its neighbours, routers and groups (RFC 4861, RFC 2710, RFC 3810): it may ask
/// its own node whatever policy says, as in Calico.
const DISCOVERY: [u8; 6] = [130, 131, 132, 133, 135, 136];

/// The groups that IPv6 packets are sent to (RFC 4291, section 2.7).
const GROUPS: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
    8,
));

/// The chain of what a pod asks to find its neighbours.
const NEIGHBOURS: &str = "find_neighbours";

/// The map of what pods send.
pub(crate) const EGRESS_MAP: &str = "from_pod_by_interface";

/// What the names of pods' groups begin with.
pub(crate) const GROUP: &str = "group";

/// The map of what pods get.
pub(crate) const INGRESS_MAP: &str = "to_pod_by_interface";

/// Returns what pods are asked.
pub(crate) const fn question(direction: Direction) -> Question {
    Question {
        point: Point::Normal,
        direction,
    }
}

/// Writes the chains of the node's pods.
pub(crate) fn write(options: &Options, egress: Entries, ingress: Entries, rows: &mut Ruleset) {
    Base::new("from_pod", HookPoint::Prerouting, LAST)
        .established()
        .rule(vec![from_pod(Sense::Not)], Statement::Accept, "not a pod's")
        .rules(discovery())
        .rules(detours(options))
        .rules(refused(Direction::Egress, options))
        .by_input(egress, rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);
    Base::new("to_pod", HookPoint::Forward, SECOND)
        .established()
        .rule(vec![to_pod(Sense::Not)], Statement::Accept, "not for a pod")
        .rules(refused(Direction::Ingress, options))
        .by_output(ingress, rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);

    let then = Base::new("pod_to_host", HookPoint::Input, SECOND)
        .established()
        .rule(vec![from_pod(Sense::Not)], Statement::Accept, "not a pod's")
        .rules([find_neighbours(Vec::new())]);
    let then = match options.endpoint_to_host {
        EndpointToHost::Pass => then,
        EndpointToHost::Drop => then.counted(
            Vec::new(),
            Statement::Drop,
            "defaultEndpointToHostAction: Drop",
        ),
    };
    then.write(rows);
    neighbours().write(rows);

    Base::new("host_to_pod", HookPoint::Output, FIRST)
        .counted(
            vec![to_pod(Sense::Is), revoked()],
            Statement::Drop,
            "allowed once, and no longer",
        )
        .write(rows);
}

/// Returns the rules that drop what no policy can allow.
fn refused(direction: Direction, options: &Options) -> Vec<Rule> {
    let deny = |matches: Vec<Match>, comment: &str| Rule {
        matches,
        ..verdict::denial(options, direction, comment.to_owned())
    };
    let mut rules = Vec::new();
    if options.drops_invalid {
        rules.push(deny(vec![invalid()], "of no connection"));
    }
    if direction == Direction::Ingress {
        return rules;
    }
    for overlay in &options.forbidden_overlays {
        rules.push(match overlay {
            Overlay::Vxlan(port) => deny(
                vec![
                    Match::Protocol(Sense::Is, Protocol::UDP.0),
                    Match::Port(End::Destination, Sense::Is, *port, *port),
                ],
                "VXLAN from a pod",
            ),
            // IPPROTO_IPIP
            Overlay::Ipip => deny(vec![Match::Protocol(Sense::Is, 4)], "IPIP from a pod"),
        });
    }

    rules
}

/// Returns the rules that let a pod find its neighbours: what stays on this node, whoever of it is asked. Such messages
/// are not forwarded; one that would be is a packet like any other.
fn discovery() -> [Rule; 2] {
    let to_all = Match::DestinationNet(Sense::Is, GROUPS);

    [Match::DestinationLocal, to_all].map(|destination| find_neighbours(vec![destination]))
}

fn find_neighbours(more: Vec<Match>) -> Rule {
    let mut matches = vec![
        Match::Family(Family::V6),
        Match::Protocol(Sense::Is, Protocol::ICMPV6.0),
    ];
    matches.extend(more);

    verdict::plain(
        matches,
        Statement::Jump(NEIGHBOURS.into()),
        "a pod finds its neighbours",
    )
}

/// Begins the chain that knows what a pod finds its neighbours by.
fn neighbours() -> Base {
    DISCOVERY
        .into_iter()
        .fold(Base::without_hook(NEIGHBOURS), |chain, kind| {
            let matches = vec![
                Match::Family(Family::V6),
                Match::Protocol(Sense::Is, Protocol::ICMPV6.0),
                Match::Icmp(Sense::Is, kind, None),
            ];

            chain.rule(matches, Statement::Accept, "a pod finds its neighbours")
        })
}

/// Returns the rules that drop what this node would send on to another destination than policy sees. Kernels do that
/// only where they are told to (`accept_source_route`, `seg6_enabled`).
fn detours(options: &Options) -> impl Iterator<Item = Rule> {
    Detour::ALL.into_iter().map(|detour| {
        let matches = vec![
            Match::Detour(detour),
            Match::DestinationElsewhere(Sense::Not),
        ];
        let comment = "sent on by its own words".to_owned();

        Rule {
            matches,
            ..verdict::denial(options, Direction::Egress, comment)
        }
    })
}
