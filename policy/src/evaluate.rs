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
mod question;
mod tier;

use std::net::IpAddr;

use model::policy::{HostEndpoint, NetworkSet, Profile, Protocol};

use self::{crossing::State, question::Record, tier::SortedTier};
pub(crate) use self::{
    matching::{Which, is_icmp, is_in_nets, is_outside_nets},
    question::Question,
    tier::{AskedTier, Chain},
};
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
        self.follow(packet, &mut Record::default())
    }

    /// Returns the verdict on a packet, and every question that was put to an endpoint's tiers on its way: what an
    /// explanation goes through.
    pub(crate) fn consult(&self, packet: &Packet) -> (Outcome, Vec<Question>) {
        let mut record = Record::with_questions();
        let outcome = self.follow(packet, &mut record);

        (outcome, record.into_questions())
    }

    fn follow(&self, packet: &Packet, record: &mut Record) -> Outcome {
        let path = self.path(packet);
        let mut tracked = Vec::new();
        for crossing in &path {
            let crossed = crossing.pass(self, State::New, record);
            match crossed {
                Ok(tracking) => tracked.push(tracking),
                Err(denial) => return denied(record.take_decisions(), *denial),
            }
        }
        let decisions = record.take_decisions();
        for (crossing, tracking) in path.iter().zip(tracked).rev() {
            let state = tracking.of_answer(has_memory(packet.header.protocol));
            let answer = crossing.answered();
            // Who lets an answer through is of no interest; who does not, is.
            let mut answered = record.for_answer(decisions.len());
            if let Err(denial) = answer.pass(self, state, &mut answered) {
                record.adopt(answered);
                return denied(decisions, *denial);
            }
        }

        Outcome {
            verdict: Verdict::Allow,
            decisions,
        }
    }

    /// Returns a profile by its name.
    pub(crate) fn profile(&self, name: &str) -> Option<&Profile> {
        self.cluster.profiles.get(name)
    }

    /// Returns the pod with a network of its own that has an address.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<&'a Pod> {
        self.workload_at(address).map(|(pod, _)| pod)
    }

    /// Returns the pod that has an address, and its labels, inherited ones too.
    pub(crate) fn workload_at(&self, address: IpAddr) -> Option<(&'a Pod, &Labels)> {
        self.workloads
            .iter()
            .find(|(pod, _)| pod.addresses.contains(&address))
            .map(|(pod, endpoint)| (*pod, &endpoint.labels))
    }

    /// Returns the pods with a network of their own.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = (&'a Pod, &Endpoint)> {
        self.workloads
            .iter()
            .map(|(pod, endpoint)| (*pod, endpoint))
    }

    /// Returns the hosts' endpoints.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (&'a HostEndpoint, &Endpoint)> {
        self.hosts.iter().map(|(host, endpoint)| (*host, endpoint))
    }

    /// Returns the number that an endpoint gives the name of a port.
    pub(crate) fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let mut ports = self.endpoints().flat_map(|endpoint| &endpoint.ports);

        ports
            .find(|port| port.name == name && port.protocol == protocol)
            .map(|port| port.port)
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
