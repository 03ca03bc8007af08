//! Pods: what they send and what they get.
//!
//! ```text
//! forward   -3 from_pod          the sender's egress policy
//!           -2 to_pod            the receiver's ingress policy
//! input     -3 from_pod_to_host  the sender's egress policy
//!           -2 pod_to_host       then a setting
//! ```
//!
//! What a host sends to its own pods is never asked about, as in Calico.

use model::{
    Family,
    nft::{End, HookPoint, Match, Rule, Sense, Statement, Verdict},
    policy::{Direction, Protocol},
};

use super::{
    EndpointToHost, Overlay, Ruleset, Scene,
    base::{Base, Entries, from_pod, invalid, to_pod},
    group::{Asked, Point, Tiers, group},
    verdict::{self, Verdicts},
};

/// Priorities of the base chains: in front of the filters of others (`NF_IP_PRI_FILTER` is 0).
const FIRST: i32 = -3;
const SECOND: i32 = -2;

/// Types of ICMPv6 by which a pod finds its neighbours, routers and groups (RFC 4861, RFC 2710, RFC 3810): it may ask
/// its own node whatever policy says, as in Calico.
const DISCOVERY: [u8; 6] = [130, 131, 132, 133, 135, 136];

/// Writes the chains of the node's pods.
pub(super) fn write(
    scene: &Scene,
    tiers: &Tiers<'_>,
    verdicts: &mut Verdicts<'_>,
    rows: &mut Ruleset,
) {
    let egress = entries(Direction::Egress, scene, tiers, verdicts);
    let ingress = entries(Direction::Ingress, scene, tiers, verdicts);

    Base::new("from_pod", HookPoint::Forward, FIRST)
        .established()
        .rule(vec![from_pod(Sense::Not)], Statement::Accept, "not a pod's")
        .rules(refused(Direction::Egress, scene, verdicts))
        .by_input(egress.clone(), rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);
    Base::new("to_pod", HookPoint::Forward, SECOND)
        .established()
        .rule(vec![to_pod(Sense::Not)], Statement::Accept, "not for a pod")
        .rules(refused(Direction::Ingress, scene, verdicts))
        .by_output(ingress, rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);

    Base::new("from_pod_to_host", HookPoint::Input, FIRST)
        .established()
        .rule(vec![from_pod(Sense::Not)], Statement::Accept, "not a pod's")
        .rules(discovery())
        .rules(refused(Direction::Egress, scene, verdicts))
        .by_input(egress, rows)
        .counted(Vec::new(), Statement::Drop, "a pod without policy yet")
        .write(rows);
    let then = Base::new("pod_to_host", HookPoint::Input, SECOND)
        .established()
        .rules(discovery());
    let then = match scene.options.endpoint_to_host {
        EndpointToHost::Pass => then,
        EndpointToHost::Drop => then.counted(
            vec![from_pod(Sense::Is)],
            Statement::Drop,
            "defaultEndpointToHostAction: Drop",
        ),
    };
    then.write(rows);
}

fn entries(
    direction: Direction,
    scene: &Scene,
    tiers: &Tiers<'_>,
    verdicts: &mut Verdicts<'_>,
) -> Entries {
    let workloads = scene.workloads.iter();

    workloads
        .map(|workload| {
            let asked = Asked {
                point: Point::Normal,
                direction,
                labels: &workload.labels,
                profiles: &workload.profiles,
            };
            let chain = group(&asked, Vec::new(), tiers, scene, verdicts);

            (workload.interface.clone(), Verdict::Goto(chain))
        })
        .collect()
}

/// Returns the rules that drop what no policy can allow.
fn refused(direction: Direction, scene: &Scene, verdicts: &Verdicts<'_>) -> Vec<Rule> {
    let deny = |matches: Vec<Match>, comment: &str| Rule {
        matches,
        ..verdicts.denial(direction, comment.to_owned())
    };
    let mut rules = Vec::new();
    if scene.options.drops_invalid {
        rules.push(deny(vec![invalid()], "of no connection"));
    }
    if direction == Direction::Ingress {
        return rules;
    }
    for overlay in &scene.options.forbidden_overlays {
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
