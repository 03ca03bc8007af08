//! The smallest changes that turn a verdict round, each of them tried before it is told.
//!
//! ```text
//! verdict ─▶ candidates at the deciding point ─▶ changed cluster ─▶ evaluate ─┬─▶ turned: told
//!                        ▲                                                   └─▶ denied elsewhere
//!                        └───────────────────────────────────────────────────────┘  (a few times)
//! ```

use model::{
    Kind, ObjectKey,
    policy::{Action, Direction, Policy},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    change::Change,
    label,
    mismatch::{Mismatch, mismatches},
    proposal::Proposal,
};
use crate::{
    Evaluator, Packet,
    cluster::Cluster,
    decision::{Cause, Decision, Outcome, Verdict},
    evaluate::{Question, Which},
};

/// Most changes that are proposed together.
const TOGETHER_MAX: usize = 4;

/// Most ways that are told.
const WAYS_MAX: usize = 5;

/// Most candidates that are tried at one point.
const CANDIDATES_MAX: usize = 16;

/// A way to turn a verdict round; it was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flip {
    /// The changes, in words. All of them are needed.
    pub changes: Vec<String>,
    /// What to apply for them, where objects of their own say it. Changes to what is there already are not among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Value>,
}

/// A verdict, with everything that was asked for it.
struct Answer {
    outcome: Outcome,
    questions: Vec<Question>,
}

/// Returns the smallest changes that turn the verdict on a packet round, smallest first.
pub(super) fn flips(cluster: &Cluster, packet: &Packet) -> Vec<Flip> {
    let answer = ask(cluster, packet);
    let mut ways = match answer.outcome.verdict {
        Verdict::Deny => open(cluster, packet, &answer, TOGETHER_MAX),
        Verdict::Allow => close(cluster, packet, &answer),
    };
    ways.sort_by_key(|way| (way.len(), way.iter().map(Change::weight).sum::<usize>()));
    ways.dedup();
    ways.truncate(WAYS_MAX);

    ways.iter()
        .map(|way| Flip {
            changes: way.iter().map(Change::words).collect(),
            manifests: way.iter().filter_map(Change::manifest).collect(),
        })
        .collect()
}

fn ask(cluster: &Cluster, packet: &Packet) -> Answer {
    let (outcome, questions) = Evaluator::new(cluster).consult(packet);

    Answer { outcome, questions }
}

/// Returns ways to have a denied packet pass: at the first point that denies it, and then at the next.
fn open(cluster: &Cluster, packet: &Packet, answer: &Answer, left: usize) -> Vec<Vec<Change>> {
    let Some(denial) = answer.outcome.denied_by() else {
        return Vec::new();
    };
    let place = answer.outcome.decisions.len() - 1;
    let mut ways = Vec::new();
    let mut elsewhere = Vec::new();
    for change in candidates(cluster, answer, place, denial) {
        let Some(changed) = change.applied(cluster) else {
            continue;
        };
        let now = ask(&changed, packet);
        match now.outcome.denied_by() {
            None => ways.push(vec![change]),
            Some(next) if next != denial => elsewhere.push((change, changed, now)),
            Some(_) => {}
        }
    }
    if !ways.is_empty() || left <= 1 {
        return ways;
    }
    // The first candidate is the smallest; what is denied further on is opened there.
    let Some((change, changed, now)) = elsewhere.into_iter().next() else {
        return ways;
    };
    let further = open(&changed, packet, &now, left - 1);

    further
        .into_iter()
        .map(|more| std::iter::once(change.clone()).chain(more).collect())
        .collect()
}

/// Returns ways to have a packet denied, at the last point that allows it or an earlier one.
fn close(cluster: &Cluster, packet: &Packet, answer: &Answer) -> Vec<Vec<Change>> {
    let mut ways = Vec::new();
    for (place, decision) in answer.outcome.decisions.iter().enumerate().rev() {
        for change in candidates(cluster, answer, place, decision) {
            let Some(changed) = change.applied(cluster) else {
                continue;
            };
            if ask(&changed, packet).outcome.verdict == Verdict::Deny {
                ways.push(vec![change]);
            }
        }
    }

    ways
}

/// Returns changes that may turn a decision round, smallest first.
fn candidates(
    cluster: &Cluster,
    answer: &Answer,
    place: usize,
    decision: &Decision,
) -> Vec<Change> {
    let mut questions = answer.questions.iter();
    let question = questions.rfind(|one| one.is_answered_by(place, decision));
    let mut found = Vec::new();
    if let Some(question) = question {
        let evaluator = Evaluator::new(cluster);
        let proposal = Proposal {
            cluster,
            evaluator: &evaluator,
            question,
            action: match decision.verdict {
                Verdict::Allow => Action::Deny,
                Verdict::Deny => Action::Allow,
            },
            is_contested: matches!(decision.cause, Cause::Rule(_)),
        };
        if decision.verdict == Verdict::Deny {
            found.extend(labels(&evaluator, question, decision));
        }
        found.extend(tier_of(decision).and_then(|tier| proposal.in_tier(tier)));
    }
    match &decision.cause {
        Cause::Rule(rule) if is_editable(&rule.object) => {
            let (key, index) = (rule.object.clone(), rule.index);
            found.push(Change::RemoveRule(key, rule.direction, index));
        }
        Cause::Nobody => found.extend(namespace(cluster, decision)),
        Cause::Setting("defaultEndpointToHostAction") => {
            found.push(Change::Set("defaultEndpointToHostAction", "Accept"));
        }
        Cause::Rule(_)
        | Cause::Profile(_)
        | Cause::TierDefault(_)
        | Cause::Failsafe
        | Cause::Setting(_) => {}
    }
    found.truncate(CANDIDATES_MAX);
    found.sort_by_key(Change::weight);

    found
}

/// The tier in which somebody else could decide instead.
fn tier_of(decision: &Decision) -> Option<&str> {
    match &decision.cause {
        Cause::Rule(rule) => rule.tier.as_deref(),
        Cause::TierDefault(tier) => Some(tier),
        Cause::Profile(_) | Cause::Nobody => Some(model::policy::DEFAULT_TIER),
        Cause::Failsafe | Cause::Setting(_) => None,
    }
}

/// Profiles of namespaces are nobody's to edit.
fn is_editable(key: &ObjectKey) -> bool {
    key.kind != Kind::Namespace && key.kind != Kind::ServiceAccount
}

/// A pod whose namespace nobody knows has no profile.
fn namespace(cluster: &Cluster, decision: &Decision) -> Option<Change> {
    let (namespace, _) = decision.endpoint.split_once('/')?;
    let name = model::resource::Namespace::profile_name(namespace);
    let is_pod = namespace != "node";

    (is_pod && !cluster.profiles.contains_key(&name))
        .then(|| Change::AddNamespace(namespace.to_owned()))
}

/// Returns labels that would have an Allow rule of the asked tiers match: for the pod at the far end, or its namespace.
fn labels(evaluator: &Evaluator<'_>, question: &Question, decision: &Decision) -> Vec<Change> {
    let last = tier_of(decision);
    let mut found = Vec::new();
    for tier in evaluator.asked_tiers(&question.endpoint, question.chain, question.direction) {
        let policies = tier.policies.iter();
        found.extend(policies.flat_map(|policy| of_policy(evaluator, question, policy)));
        if last == Some(tier.name) {
            break;
        }
    }
    found.sort_by_key(|(count, _)| *count);
    found.truncate(CANDIDATES_MAX / 2);

    found.into_iter().map(|(_, change)| change).collect()
}

fn of_policy(
    evaluator: &Evaluator<'_>,
    question: &Question,
    policy: &Policy,
) -> Vec<(usize, Change)> {
    let header = &question.header;
    let (far, address) = match question.direction {
        Direction::Ingress => (Which::Source, header.source),
        Direction::Egress => (Which::Destination, header.destination),
    };
    let Some((pod, labels)) = evaluator.workload_at(address) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for rule in policy.rules(question.direction) {
        let misses = mismatches(evaluator, rule, header);
        let [Mismatch::Selector(which, ..)] = &misses[..] else {
            continue;
        };
        let side = match far {
            Which::Source => &rule.source,
            Which::Destination => &rule.destination,
        };
        let Some(selector) = side.selector.as_ref().filter(|_| *which == far) else {
            continue;
        };
        if rule.action != Action::Allow {
            continue;
        }
        let Some(added) = label::missing(selector.expression(), labels) else {
            continue;
        };
        found.extend(label::change(&pod.name, added));
    }

    found
}
