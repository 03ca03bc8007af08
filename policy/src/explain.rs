//! Why a packet passes or not, rule by rule, and what would turn that round.
//!
//! ```text
//! Cluster + Probe ──▶ packets ──▶ evaluate ─┬─▶ steps: who was asked, and why each rule matched or not
//!                                           └─▶ flips: changes that turn the verdict, each tried
//! ```
//!
//! The evaluator decides; this tells what it asked. Nothing here is guessed: a rule's criteria are tried one by one,
//! and a change is proposed only after the changed cluster gave the other verdict. It may take long on a large cluster,
//! so whoever has work to do asks for it beside that.

mod change;
mod flip;
mod impact;
mod label;
mod mismatch;
mod proposal;
mod show;
mod trace;

use std::net::IpAddr;

use model::{NodeName, policy::Protocol, resource::FieldError};
use serde::{Deserialize, Serialize};

pub use self::{
    flip::Flip,
    impact::{Shift, StagedEffect},
    show::{Otherwise, PointView, PolicyView, TierView, View, show},
    trace::{PolicyTrace, RuleTrace, Step, TierEnd, TierTrace},
};
use crate::{
    Cluster, Evaluator, Packet, Place, Verdict,
    scenario::{Flow, Probe, Prober, object_name},
};

/// Most packets that one question is about.
const PACKETS_MAX: usize = 16;

/// Why a packet passes or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who sends, as it was asked.
    pub from: String,
    /// Who is to get it, as it was asked.
    pub to: String,
    /// The sender.
    pub source: End,
    /// The receiver, behind every translation.
    pub destination: End,
    /// The protocol: its name, else its number.
    pub protocol: String,
    /// The receiver's port, where the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The address that it was sent to, where that was translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_to: Option<IpAddr>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What was asked, in packet order, up to the first Deny.
    pub steps: Vec<Step>,
    /// The smallest changes that turn the verdict round, smallest first.
    pub flips: Vec<Flip>,
    /// The staged policies that would turn it round, each alone: `KIND [NAMESPACE/]NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<String>,
}

/// One end of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// The address.
    pub address: IpAddr,
    /// The pod, where it is one with a network of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<model::PodName>,
    /// The node that it is or runs on; none beyond the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

/// Says why each packet of a probe passes or not: one for every family that both ends have, and for every endpoint
/// that a service may choose.
///
/// # Errors
/// The probe's ends are not there, or have no family in common; or it is about too many packets.
pub fn why(cluster: &Cluster, probe: &Probe) -> Result<Vec<Explanation>, FieldError> {
    let evaluator = Evaluator::new(cluster);
    let prober = Prober {
        cluster,
        evaluator: &evaluator,
        outside: &[],
        path: "packet".to_owned(),
    };

    let found = of_probe(&prober, probe, PACKETS_MAX)?;
    if found.is_empty() {
        let message = "nobody answers there: the service has no endpoint for this port";
        return Err(FieldError::new("to", message));
    }

    Ok(found)
}

/// Says why each packet of a probe passes or not, whoever it is from.
pub(crate) fn of_probe(
    prober: &Prober<'_>,
    probe: &Probe,
    most: usize,
) -> Result<Vec<Explanation>, FieldError> {
    let (cluster, evaluator) = (prober.cluster, prober.evaluator);
    let flows = prober.flows(probe)?;
    let count: usize = flows.iter().map(|flow| flow.packets.len()).sum();
    if count > most {
        let message = format!("it is about {count} packets; {most} are explained at once");
        return Err(FieldError::new("packet", message));
    }
    let packets = flows
        .iter()
        .flat_map(|flow| flow.packets.iter().map(move |packet| (flow, packet)));

    Ok(packets
        .map(|(flow, packet)| explain(cluster, evaluator, flow, packet))
        .collect())
}

fn explain(
    cluster: &Cluster,
    evaluator: &Evaluator<'_>,
    flow: &Flow,
    packet: &Packet,
) -> Explanation {
    let (outcome, questions) = evaluator.consult(packet);
    let header = &packet.header;

    Explanation {
        from: flow.from.clone(),
        to: flow.to.clone(),
        source: end(cluster, &packet.from, header.source),
        destination: end(cluster, &packet.to, header.destination),
        protocol: protocol(header.protocol),
        port: header.ports.map(|ports| ports.destination),
        sent_to: packet.translation.map(|translation| translation.address),
        verdict: outcome.verdict,
        steps: trace::steps(evaluator, &outcome.decisions, &questions),
        flips: flip::flips(cluster, packet),
        staged: staged(cluster, packet, outcome.verdict),
    }
}

/// Returns the staged policies that would turn the verdict round, each alone.
fn staged(cluster: &Cluster, packet: &Packet, verdict: Verdict) -> Vec<String> {
    let staged = cluster
        .policies
        .iter()
        .filter(|policy| policy.staged.is_some());
    let turning = staged.filter(|policy| {
        impact::enforced(cluster, policy)
            .is_some_and(|changed| Evaluator::new(&changed).evaluate(packet).verdict != verdict)
    });

    turning.map(|policy| object_name(&policy.key)).collect()
}

fn end(cluster: &Cluster, place: &Place, address: IpAddr) -> End {
    let (pod, node) = match place {
        Place::Pod(name) => {
            let node = cluster.pod(name).map(|pod| pod.node.clone());
            (Some(name.clone()), node)
        }
        Place::Node(name) => (None, Some(name.clone())),
        Place::Outside => (None, None),
    };

    End { address, pod, node }
}

fn protocol(protocol: Protocol) -> String {
    protocol.to_string()
}

#[cfg(test)]
mod tests;
