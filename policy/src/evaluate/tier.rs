//! Tiers in order, policies in order, rules in order; profiles behind them.

use std::cmp::Ordering;

use model::{
    Kind,
    policy::{Action, Direction, Policy, Rule, RuleRef, Stage, Tier, TierAction},
};

use super::Evaluator;
use crate::{
    cluster::{Cluster, Endpoint},
    decision::{Cause, Verdict},
    packet::Header,
};

/// The tier of policies that name none.
const DEFAULT_TIER: &str = "default";

/// The tiers that always exist: name, order and default action (Calico's, and Kubernetes' two for administrators).
const BUILT_IN: [(&str, f64, TierAction); 3] = [
    ("kube-admin", 1_000.0, TierAction::Pass),
    (DEFAULT_TIER, 1_000_000.0, TierAction::Deny),
    ("kube-baseline", 10_000_000.0, TierAction::Pass),
];

/// A tier and its policies, in order.
#[derive(Debug)]
pub(super) struct SortedTier<'a> {
    name: String,
    /// What happens at its end.
    default_action: TierAction,
    policies: Vec<&'a Policy>,
}

/// A tier that is asked about an endpoint, with those of its policies that apply there.
#[derive(Debug)]
pub(crate) struct AskedTier<'a> {
    pub(crate) name: &'a str,
    /// What happens at its end.
    pub(crate) default_action: TierAction,
    /// In order; at least one.
    pub(crate) policies: Vec<&'a Policy>,
}

/// Which of an endpoint's policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chain {
    /// Before connections are tracked.
    Untracked,
    /// Before the destination is translated.
    PreDnat,
    /// What the endpoint itself sends or gets.
    Normal,
    /// What a host forwards.
    Forward,
}

/// What the tiers say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Somebody decided.
    Decided(Verdict, Cause),
    /// Policies were asked, and none decided.
    Passed,
    /// No policy selects the endpoint here.
    NotAsked,
}

/// Returns the tiers in order: by order, without one last, then by name; those that only policies name, behind them.
pub(super) fn sorted(cluster: &Cluster) -> Vec<SortedTier<'_>> {
    let mut tiers = cluster.tiers.clone();
    for (name, order, default_action) in BUILT_IN {
        if !tiers.iter().any(|tier| tier.name == name) {
            tiers.push(Tier {
                name: name.into(),
                order: Some(order),
                default_action,
            });
        }
    }
    tiers.sort_by(|a, b| ascending(a.order, b.order).then_with(|| a.name.cmp(&b.name)));
    let mut missing: Vec<&str> = cluster
        .policies
        .iter()
        .map(|policy| policy.tier.as_str())
        .filter(|name| !tiers.iter().any(|tier| tier.name == *name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    let existing = tiers
        .iter()
        .map(|tier| (tier.name.as_str(), tier.default_action));
    let missing = missing.into_iter().map(|name| (name, TierAction::Deny));

    existing
        .chain(missing)
        .map(|(name, default_action)| SortedTier {
            name: name.to_owned(),
            default_action,
            policies: policies_of(cluster, name),
        })
        .collect()
}

/// Returns the policies of a tier that decide something: by order, without one last, then by name, namespace and kind.
fn policies_of<'a>(cluster: &'a Cluster, tier: &str) -> Vec<&'a Policy> {
    let mut policies: Vec<&Policy> = cluster
        .policies
        .iter()
        .filter(|policy| policy.tier == tier && policy.staged.is_none())
        .collect();
    policies.sort_by(|a, b| ascending(a.order, b.order).then_with(|| tie(a).cmp(&tie(b))));

    policies
}

fn ascending(a: Option<f64>, b: Option<f64>) -> Ordering {
    let place = |order: Option<f64>| order.unwrap_or(f64::INFINITY);

    place(a).partial_cmp(&place(b)).unwrap_or(Ordering::Equal)
}

/// Returns the text by which policies of the same order stand: `NAME/NAMESPACE/KIND`, as Calico compares it.
fn tie(policy: &Policy) -> String {
    let kind = if policy.key.kind == Kind::ClusterNetworkPolicy {
        "KubernetesClusterNetworkPolicy"
    } else {
        policy.key.kind.as_str()
    };
    let namespace = policy.key.namespace.as_deref().unwrap_or_default();

    format!("{}/{namespace}/{kind}", policy.key.name)
}

impl Evaluator<'_> {
    /// Asks the tiers of one chain of an endpoint.
    pub(super) fn ask_tiers(
        &self,
        endpoint: &Endpoint,
        chain: Chain,
        direction: Direction,
        header: &Header,
    ) -> Answer {
        let mut asked = false;
        for tier in self.asked_tiers(endpoint, chain, direction) {
            asked = true;
            match self.ask_policies(&tier.policies, direction, header) {
                Some((Action::Allow, rule)) => {
                    return Answer::Decided(Verdict::Allow, Cause::Rule(rule));
                }
                Some((Action::Deny, rule)) => {
                    return Answer::Decided(Verdict::Deny, Cause::Rule(rule));
                }
                Some((Action::Pass | Action::Log, _)) => {}
                None if chain.ends_with_default() && tier.default_action == TierAction::Deny => {
                    let cause = Cause::TierDefault(tier.name.to_owned());
                    return Answer::Decided(Verdict::Deny, cause);
                }
                None => {}
            }
        }

        if asked {
            Answer::Passed
        } else {
            Answer::NotAsked
        }
    }

    /// Returns the tiers of one chain of an endpoint, in order, that have a policy for it.
    pub(crate) fn asked_tiers(
        &self,
        endpoint: &Endpoint,
        chain: Chain,
        direction: Direction,
    ) -> impl Iterator<Item = AskedTier<'_>> {
        let asked = self.tiers.iter().map(move |tier| AskedTier {
            name: &tier.name,
            default_action: tier.default_action,
            policies: tier
                .policies
                .iter()
                .copied()
                .filter(|policy| chain.asks(policy, endpoint, direction))
                .collect(),
        });

        asked.filter(|tier| !tier.policies.is_empty())
    }

    /// Asks an endpoint's profiles in order; what none allows is denied.
    pub(super) fn ask_profiles(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        header: &Header,
    ) -> (Verdict, Cause) {
        let profiles = &self.cluster.profiles;
        for profile in endpoint
            .profiles
            .iter()
            .filter_map(|name| profiles.get(name))
        {
            let by = || Cause::Profile(profile.name.clone());
            match self.first_match(profile.rules(direction), header) {
                Some((Action::Allow, _)) => return (Verdict::Allow, by()),
                Some((Action::Deny, _)) => return (Verdict::Deny, by()),
                Some((Action::Pass | Action::Log, _)) | None => {}
            }
        }

        (Verdict::Deny, Cause::Nobody)
    }

    /// Returns what the first rule that matches does, and where it stands.
    fn ask_policies(
        &self,
        policies: &[&Policy],
        direction: Direction,
        header: &Header,
    ) -> Option<(Action, RuleRef)> {
        policies.iter().find_map(|policy| {
            let (action, index) = self.first_match(policy.rules(direction), header)?;
            let rule = RuleRef {
                object: policy.key.clone(),
                tier: Some(policy.tier.clone()),
                direction,
                index,
            };

            Some((action, rule))
        })
    }

    /// Returns the action and the place of the first rule that matches; one that only takes a note ends nothing.
    fn first_match(&self, rules: &[Rule], header: &Header) -> Option<(Action, usize)> {
        rules
            .iter()
            .find(|rule| rule.action != Action::Log && self.matches(rule, header))
            .map(|rule| (rule.action, rule.index))
    }
}

impl Chain {
    /// Returns whether a tier's default action counts: before tracking and translation every tier passes on.
    pub(crate) const fn ends_with_default(self) -> bool {
        match self {
            Self::Untracked | Self::PreDnat => false,
            Self::Normal | Self::Forward => true,
        }
    }

    /// Returns whether a policy is asked about an endpoint here, or would be if it were not staged.
    pub(crate) fn asks(self, policy: &Policy, endpoint: &Endpoint, direction: Direction) -> bool {
        let here = match self {
            Self::Untracked => policy.stage == Stage::Untracked,
            Self::PreDnat => policy.stage == Stage::PreDnat,
            Self::Normal => policy.stage == Stage::Normal,
            Self::Forward => policy.stage == Stage::Normal && policy.apply_on_forward,
        };

        here && policy.types.contains(direction) && policy.selector.matches(&endpoint.labels)
    }
}
