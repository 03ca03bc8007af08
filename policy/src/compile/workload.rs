//! Pods: what they send and what they get.
//!
//! ```text
//! forward   -3 from_pod          the sender's egress policy
//!           -2 to_pod            the receiver's ingress policy
//! input     -3 from_pod_to_host  the sender's egress policy
//!           -2 pod_to_host       then a setting
//! output    -3 host_to_pod       answers on a connection that was revoked
//! ```
//!
//! What a host sends to its own pods is never asked about otherwise, as in Calico.

use model::{
    Family,
    nft::{End, HookPoint, Match, Rule, Sense, Statement},
    policy::{Direction, Protocol},
};

use super::{
    EndpointToHost, Options, Overlay, Ruleset,
    base::{Base, Entries, from_pod, invalid, revoked, to_pod},
    group::{Point, Question},
    verdict,
};

/// Priorities of the base chains: in front of the filters of others (`NF_IP_PRI_FILTER` is 0).
const FIRST: i32 = -3;
const SECOND: i32 = -2;

/// Types of ICMPv6 by which a pod finds its neighbours, routers and groups (RFC 4861, RFC 2710, RFC 3810): it may ask
/// its own node whatever policy says, as in Calico.
const DISCOVERY: [u8; 6] = [130, 131, 132, 133, 135, 136];

/// The maps of what pods send: two hooks, the same answers.
pub(crate) const EGRESS_MAPS: [&str; 2] =
    ["from_pod_by_interface", "from_pod_to_host_by_interface"];

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
    Base::new("from_pod", HookPoint::Forward, FIRST)
        .established()
        .rule(vec![from_pod(Sense::Not)], Statement::Accept, "not a pod's")
        .rules(refused(Direction::Egress, options))
        .by_input(egress.clone(), rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);
    Base::new("to_pod", HookPoint::Forward, SECOND)
        .established()
        .rule(vec![to_pod(Sense::Not)], Statement::Accept, "not for a pod")
        .rules(refused(Direction::Ingress, options))
        .by_output(ingress, rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);

    Base::new("from_pod_to_host", HookPoint::Input, FIRST)
        .established()
        .rule(vec![from_pod(Sense::Not)], Statement::Accept, "not a pod's")
        .rules(discovery())
        .rules(refused(Direction::Egress, options))
        .by_input(egress, rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);
    let then = Base::new("pod_to_host", HookPoint::Input, SECOND)
        .established()
        .rules(discovery());
    let then = match options.endpoint_to_host {
        EndpointToHost::Pass => then,
        EndpointToHost::Drop => then.counted(
            vec![from_pod(Sense::Is)],
            Statement::Drop,
            "defaultEndpointToHostAction: Drop",
        ),
    };
    then.write(rows);

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

fn discovery() -> Vec<Rule> {
    DISCOVERY
        .into_iter()
        .map(|kind| {
            let matches = vec![
                from_pod(Sense::Is),
                Match::Family(Family::V6),
                Match::Protocol(Sense::Is, Protocol::ICMPV6.0),
                Match::Icmp(Sense::Is, kind, None),
            ];

            verdict::plain(matches, Statement::Accept, "a pod finds its neighbours")
        })
        .collect()
}
