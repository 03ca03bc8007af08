//! The verdict on a packet.
//!
//! A packet crosses one or two nodes. On each it passes the hooks in the kernel's order:
//!
//! ```text
//! in ──▶ untracked ─▶ (tracking) ─▶ pre-DNAT ─▶ (DNAT) ─┬─▶ host ingress ─────────────────────────▶ process
//!                                                       └─▶ forward in, pod egress, pod ingress, forward out ─▶ out
//! process ──▶ untracked ─▶ (tracking, DNAT) ─▶ host egress ─▶ out
//! ```
//!
//! Who allows a packet untracked or before DNAT spares it the host's ingress policy, never a pod's. What is established
//! passes; an answer to what was not tracked is asked for anew.

mod crossing;
mod failsafe;
mod hook;
mod host;
mod matching;
mod path;
mod tier;

use model::policy::{HostEndpoint, NetworkSet};

use self::{crossing::State, tier::SortedTier};
use crate::{
    cluster::{Cluster, Endpoint, Pod, PodNetwork},
    decision::{Decision, Outcome, Verdict},
    packet::{Header, Packet, has_memory},
};

/// Answers for one cluster.
#[derive(Debug)]
pub struct Evaluator<'a> {
    cluster: &'a Cluster,
    /// Pods with a network of their own.
    workloads: Vec<(&'a Pod, Endpoint)>,
    /// Hosts' endpoints.
    hosts: Vec<(&'a HostEndpoint, Endpoint)>,
    /// Network sets, with their labels.
    sets: Vec<(&'a NetworkSet, Labels)>,
    /// Tiers in order, each with its policies in order.
    tiers: Vec<SortedTier<'a>>,
}

type Labels = std::collections::BTreeMap<String, String>;

/// Returns the verdict on a packet, and who decided.
///
/// Places that the cluster does not have are taken for other machines.
pub fn evaluate(cluster: &Cluster, packet: &Packet) -> Outcome {
    Evaluator::new(cluster).evaluate(packet)
}

impl<'a> Evaluator<'a> {
    /// Puts together what the cluster's objects say about each other: inherited labels, the order of policies.
    pub fn new(cluster: &'a Cluster) -> Self {
        let has_network = |pod: &&Pod| pod.network == PodNetwork::Own;

        Self {
            cluster,
            workloads: cluster
                .pods
                .iter()
                .filter(has_network)
                .map(|pod| (pod, cluster.workload(pod)))
                .collect(),
            hosts: cluster
                .host_endpoints
                .iter()
                .map(|host| (host, cluster.host(host)))
                .collect(),
            sets: cluster
                .sets
                .iter()
                .map(|set| (set, cluster.set_labels(set)))
                .collect(),
            tiers: tier::sorted(cluster),
        }
    }

    /// Returns the verdict on a packet, and who decided.
    ///
    /// Places that the cluster does not have are taken for other machines.
    pub fn evaluate(&self, packet: &Packet) -> Outcome {
        let path = self.path(packet);
        let mut decisions = Vec::new();
        let mut tracked = Vec::new();
        for crossing in &path {
            let crossed = crossing.pass(self, State::New, &mut decisions);
            match crossed {
                Ok(tracking) => tracked.push(tracking),
                Err(denial) => return denied(decisions, *denial),
            }
        }
        for (crossing, tracking) in path.iter().zip(tracked).rev() {
            let state = tracking.of_answer(has_memory(packet.header.protocol));
            let answer = crossing.answered();
            // Who lets an answer through is of no interest; who does not, is.
            if let Err(denial) = answer.pass(self, state, &mut Vec::new()) {
                return denied(decisions, *denial);
            }
        }

        Outcome {
            verdict: Verdict::Allow,
            decisions,
        }
    }

    /// Returns every endpoint with the addresses that stand for it.
    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let workloads = self.workloads.iter().map(|(_, endpoint)| endpoint);

        workloads.chain(self.hosts.iter().map(|(_, endpoint)| endpoint))
    }
}

fn denied(mut decisions: Vec<Decision>, denial: Decision) -> Outcome {
    decisions.push(denial);

    Outcome {
        verdict: Verdict::Deny,
        decisions,
    }
}

/// Returns whether a packet is one by which IPv6 finds neighbours, routers and groups: what every pod may ask its node.
fn is_neighbour_discovery(header: &Header) -> bool {
    let icmp = header.icmp.map(|icmp| icmp.kind);

    header.protocol == model::policy::Protocol::ICMPV6
        && matches!(icmp, Some(130..=133 | 135 | 136))
}

#[cfg(test)]
mod tests;
