//! The smallest cluster that still shows a difference: parts are taken out one by one, as long as it stays.

use model::policy::{Direction, Policy, Rule, Side};
use policy::{Cluster, Packet, Place};

/// A part that can be taken out.
type Cut = Box<dyn Fn(&mut Cluster)>;

/// Takes parts out of a cluster as long as `differs` says that what remains still shows the difference. The ends of
/// the packet stay.
///
/// What is returned has no part that it can do without. `differs` is asked a few hundred times.
pub fn shrink(
    cluster: &Cluster,
    packet: &Packet,
    mut differs: impl FnMut(&Cluster) -> bool,
) -> Cluster {
    let has = |cluster: &Cluster, place: &Place| match place {
        Place::Pod(name) => cluster.pod(name).is_some(),
        Place::Node(_) | Place::Outside => true,
    };
    let mut smallest = cluster.clone();
    let mut has_changed = true;
    while has_changed {
        has_changed = false;
        let mut index = 0;
        while let Some(cut) = cuts(&smallest).get(index) {
            let mut smaller = smallest.clone();
            cut(&mut smaller);
            let has_ends = has(&smaller, &packet.from) && has(&smaller, &packet.to);
            if smaller != smallest && has_ends && differs(&smaller) {
                smallest = smaller;
                has_changed = true;
            } else {
                index += 1;
            }
        }
    }

    smallest
}

/// Returns what can be taken out, the largest parts first.
fn cuts(cluster: &Cluster) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = Vec::new();
    for index in 0..cluster.policies.len() {
        cuts.push(Box::new(move |cluster| {
            cluster.policies.remove(index);
        }));
    }
    for index in 0..cluster.host_endpoints.len() {
        cuts.push(Box::new(move |cluster| {
            cluster.host_endpoints.remove(index);
        }));
    }
    for index in 0..cluster.sets.len() {
        cuts.push(Box::new(move |cluster| {
            cluster.sets.remove(index);
        }));
    }
    for index in 0..cluster.tiers.len() {
        cuts.push(Box::new(move |cluster| {
            cluster.tiers.remove(index);
        }));
    }
    for index in 0..cluster.pods.len() {
        cuts.push(Box::new(move |cluster| {
            cluster.pods.remove(index);
        }));
        cuts.push(Box::new(move |cluster| {
            cluster.pods[index].ports.clear();
        }));
    }
    cuts.push(Box::new(|cluster| cluster.configurations.clear()));
    cuts.push(Box::new(|cluster| cluster.services.clear()));
    let profiles: Vec<String> = cluster.profiles.keys().cloned().collect();
    for name in profiles {
        cuts.push(Box::new(move |cluster| {
            cluster.profiles.remove(&name);
        }));
    }
    for (index, policy) in cluster.policies.iter().enumerate() {
        cuts.extend(cuts_of_policy(index, policy));
    }

    cuts
}

fn cuts_of_policy(index: usize, policy: &Policy) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for place in 0..policy.rules(direction).len() {
            cuts.push(Box::new(move |cluster| {
                rules(&mut cluster.policies[index], direction).remove(place);
            }));
            for simpler in SIMPLER {
                cuts.push(Box::new(move |cluster| {
                    simpler(&mut rules(&mut cluster.policies[index], direction)[place]);
                }));
            }
        }
    }

    cuts
}

/// What a rule may do without. Whoever takes its protocol away must take the ports first, or it cannot be compiled.
const SIMPLER: [fn(&mut Rule); 11] = [
    |rule| rule.source = Side::default(),
    |rule| rule.destination = Side::default(),
    |rule| rule.source.ports.clear(),
    |rule| rule.source.not_ports.clear(),
    |rule| rule.destination.ports.clear(),
    |rule| rule.destination.not_ports.clear(),
    |rule| rule.source.selector = None,
    |rule| rule.destination.selector = None,
    |rule| rule.not_icmp = None,
    |rule| rule.icmp = None,
    |rule| rule.family = None,
];

fn rules(policy: &mut Policy, direction: Direction) -> &mut Vec<Rule> {
    match direction {
        Direction::Ingress => &mut policy.ingress,
        Direction::Egress => &mut policy.egress,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chance;

    #[test]
    fn what_a_difference_does_not_need_is_taken_out() {
        let mut chance = (0..)
            .map(Chance::new)
            .find(|chance| chance.clone().cluster().policies.len() > 4)
            .unwrap();
        let cluster = chance.cluster();
        let packet = std::iter::repeat_with(|| chance.packet(&cluster))
            .flatten()
            .find(|packet| packet.from == Place::Pod(cluster.pods[1].name.clone()))
            .unwrap();
        let wanted = cluster.policies[2].key.clone();

        let shrunk = shrink(&cluster, &packet, |cluster| {
            cluster.policies.iter().any(|policy| policy.key == wanted)
        });

        let [policy] = &shrunk.policies[..] else {
            panic!("{:?}", shrunk.policies);
        };
        assert_eq!(policy.key, wanted);
        assert_eq!(policy.ingress, []);
        assert_eq!(policy.egress, []);
        assert!(shrunk.pod(&cluster.pods[1].name).is_some());
        assert!(shrunk.pods.len() <= 2, "{:?}", shrunk.pods);
        assert_eq!(shrunk.profiles.len(), 0);
        assert_eq!(shrunk.nodes, cluster.nodes);
    }
}
