//! What was asked at one point, rule by rule.

use model::policy::{Action, Direction, Policy, Rule, TierAction};
use serde::{Deserialize, Serialize};

use super::mismatch::{Mismatch, mismatches};
use crate::{
    Evaluator,
    cluster::Endpoint,
    decision::{Cause, Decision, Point, Verdict},
    evaluate::Question,
    packet::Header,
    scenario::{DecisionEntry, object_name},
};

/// Most rules of one policy that are gone through: the rest is counted.
const RULES_MAX: usize = 200;

/// What was asked at one point of a packet's way, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The point.
    pub point: Point,
    /// The endpoint: `NAMESPACE/POD`, or `node/NODE INTERFACE`.
    pub endpoint: String,
    /// What was decided; `None` where everybody passed it on.
    pub verdict: Option<Verdict>,
    /// By whom: a rule, a tier's end, a profile, a failsafe port, a setting, or nobody.
    pub by: String,
    /// The tiers that were asked, in order, up to the one that decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<TierTrace>,
    /// The profiles that were asked behind them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<PolicyTrace>,
}

/// A tier that was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierTrace {
    /// Its name.
    pub tier: String,
    /// Its policies for the endpoint, in order, up to the one that decided.
    pub policies: Vec<PolicyTrace>,
    /// What came of the tier.
    pub end: TierEnd,
}

/// What came of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TierEnd {
    /// A rule decided.
    Rule,
    /// A rule said Pass, or the tier's default action is Pass.
    Pass,
    /// No rule matched, and the tier's default action is Deny.
    DefaultDeny,
}

/// A policy, or a profile, that was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTrace {
    /// `KIND [NAMESPACE/]NAME`, or `profile NAME`.
    pub policy: String,
    /// Its rules of this direction, up to the one that ended it.
    pub rules: Vec<RuleTrace>,
    /// How many further rules did not match.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
}

/// A rule that was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleTrace {
    /// Its place in the object's list, from 0.
    pub rule: usize,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does.
    pub action: Action,
    /// Whether it matched.
    pub matches: bool,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
}

/// Goes through everything that was asked about a packet.
pub(super) fn steps(
    evaluator: &Evaluator<'_>,
    decisions: &[Decision],
    questions: &[Question],
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (place, decision) in decisions.iter().enumerate() {
        let here = questions.iter().filter(|one| one.place == place);
        let (mut here, mut own): (Vec<_>, _) = (here.collect(), None);
        if here
            .last()
            .is_some_and(|one| one.is_answered_by(place, decision))
        {
            own = here.pop();
        }
        steps.extend(here.into_iter().map(|question| passed(evaluator, question)));
        steps.push(decided(evaluator, decision, own));
    }
    let behind = questions.iter().filter(|one| one.place >= decisions.len());
    steps.extend(behind.map(|question| passed(evaluator, question)));

    steps
}

fn decided(evaluator: &Evaluator<'_>, decision: &Decision, question: Option<&Question>) -> Step {
    let asked = match decision.cause {
        Cause::Rule(_) | Cause::Profile(_) | Cause::TierDefault(_) | Cause::Nobody => question,
        Cause::Failsafe | Cause::Setting(_) => None,
    };
    let (tiers, profiles) = asked.map_or_else(Default::default, |one| walk(evaluator, one));

    Step {
        point: decision.point,
        endpoint: decision.endpoint.clone(),
        verdict: Some(decision.verdict),
        by: DecisionEntry::from(decision).by(),
        tiers,
        profiles,
    }
}

fn passed(evaluator: &Evaluator<'_>, question: &Question) -> Step {
    let (tiers, _) = walk(evaluator, question);
    let by = if tiers.is_empty() {
        "no policy"
    } else {
        "passed on"
    };

    Step {
        point: question.point(),
        endpoint: question.name.clone(),
        verdict: None,
        by: by.to_owned(),
        tiers,
        profiles: Vec::new(),
    }
}

/// Returns the tiers, and the profiles behind them, that were asked one question.
fn walk(evaluator: &Evaluator<'_>, question: &Question) -> (Vec<TierTrace>, Vec<PolicyTrace>) {
    let (endpoint, direction) = (&question.endpoint, question.direction);
    let mut tiers = Vec::new();
    for tier in evaluator.asked_tiers(endpoint, question.chain, direction) {
        let (policies, action) = ask(evaluator, &tier.policies, direction, &question.header);
        let ends = question.chain.ends_with_default() && tier.default_action == TierAction::Deny;
        let end = match action {
            Some(Action::Allow | Action::Deny) => TierEnd::Rule,
            Some(Action::Pass | Action::Log) => TierEnd::Pass,
            None if ends => TierEnd::DefaultDeny,
            None => TierEnd::Pass,
        };
        tiers.push(TierTrace {
            tier: tier.name.to_owned(),
            policies,
            end,
        });
        if end != TierEnd::Pass {
            return (tiers, Vec::new());
        }
    }
    let profiles = if question.has_profiles() {
        profiles(evaluator, endpoint, direction, &question.header)
    } else {
        Vec::new()
    };

    (tiers, profiles)
}

fn ask(
    evaluator: &Evaluator<'_>,
    policies: &[&Policy],
    direction: Direction,
    header: &Header,
) -> (Vec<PolicyTrace>, Option<Action>) {
    let mut traces = Vec::new();
    for policy in policies {
        let name = object_name(&policy.key);
        let (trace, action) = rules(evaluator, name, policy.rules(direction), header);
        traces.push(trace);
        if action.is_some() {
            return (traces, action);
        }
    }

    (traces, None)
}

fn profiles(
    evaluator: &Evaluator<'_>,
    endpoint: &Endpoint,
    direction: Direction,
    header: &Header,
) -> Vec<PolicyTrace> {
    let mut traces = Vec::new();
    for name in &endpoint.profiles {
        let Some(profile) = evaluator.profile(name) else {
            continue;
        };
        let name = format!("profile {name}");
        let (trace, action) = rules(evaluator, name, profile.rules(direction), header);
        traces.push(trace);
        if matches!(action, Some(Action::Allow | Action::Deny)) {
            break;
        }
    }

    traces
}

/// Goes through a list of rules; those that come from one entry of the object count as one.
fn rules(
    evaluator: &Evaluator<'_>,
    policy: String,
    rules: &[Rule],
    header: &Header,
) -> (PolicyTrace, Option<Action>) {
    let mut traces: Vec<RuleTrace> = Vec::new();
    let mut more = 0;
    let mut ended = None;
    for entry in rules.chunk_by(|a, b| a.index == b.index) {
        let trace = entry_trace(evaluator, entry, header);
        let (action, matches) = (trace.action, trace.matches);
        if traces.len() < RULES_MAX || matches {
            traces.push(trace);
        } else {
            more += 1;
        }
        if matches && action != Action::Log {
            ended = Some(action);
            break;
        }
    }
    let trace = PolicyTrace {
        policy,
        rules: traces,
        more,
    };

    (trace, ended)
}

/// What came of the rules of one entry: of several that do not match, the nearest miss is told.
fn entry_trace(evaluator: &Evaluator<'_>, entry: &[Rule], header: &Header) -> RuleTrace {
    let misses = entry.iter().map(|rule| mismatches(evaluator, rule, header));
    let nearest: Vec<Mismatch> = misses.min_by_key(Vec::len).unwrap_or_default();
    let rule = &entry[0];

    RuleTrace {
        rule: rule.index,
        name: rule.name.clone(),
        action: rule.action,
        matches: nearest.is_empty(),
        because: nearest.iter().map(Mismatch::to_string).collect(),
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over references"
)]
const fn is_zero(value: &usize) -> bool {
    *value == 0
}
