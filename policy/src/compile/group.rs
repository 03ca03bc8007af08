//! Chains of endpoints: which policies are asked, tier by tier, and then the profiles.
//!
//! Endpoints of which the same is asked share a chain; its name is made of its rules. `Pass` and a tier that ends
//! with it lead on into a chain of what is asked afterwards; it always ends the packet's way, so that nothing comes
//! back.

use std::collections::BTreeMap;

use model::{
    constant::PASS_MARK,
    nft::{Rule, Statement},
    policy::{Action, Direction, Policy, Stage, Tier, TierAction, order},
};

use super::{
    Scene, name,
    verdict::{Verdicts, clear, marked, plain},
};

type Labels = BTreeMap<String, String>;

/// Where an endpoint's policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// What the endpoint itself sends or gets: tiers, then profiles, then no.
    Normal,
    /// What a host forwards: tiers, then yes.
    Forward,
    /// Before destination NAT: tiers that all pass, then on.
    PreDnat,
    /// Before connection tracking: the same.
    Untracked,
}

/// An endpoint that is asked about.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) point: Point,
    pub(super) direction: Direction,
    pub(super) labels: &'a Labels,
    pub(super) profiles: &'a [String],
}

/// Tiers and their policies, in order.
pub(super) struct Tiers<'a>(Vec<(Tier, Vec<&'a Policy>)>);

/// A tier with those of its policies that an endpoint has.
struct Applying<'a> {
    tier: &'a Tier,
    policies: Vec<&'a Policy>,
}

impl<'a> Tiers<'a> {
    /// Sorts the policies into their tiers; one that nobody made is behind all others, and denies.
    pub(super) fn new(scene: &'a Scene) -> Self {
        let named = scene.policies.iter().map(|policy| policy.tier.as_str());
        let tiers = order::tiers(&scene.tiers, named);

        Self(
            tiers
                .into_iter()
                .map(|tier| {
                    let mut policies: Vec<&Policy> = scene
                        .policies
                        .iter()
                        .filter(|policy| policy.tier == tier.name && policy.staged.is_none())
                        .collect();
                    policies.sort_by(|a, b| order::policies(a, b));

                    (tier, policies)
                })
                .collect(),
        )
    }

    /// Returns whether any policy is asked of an endpoint.
    pub(super) fn any(&self, asked: &Asked<'_>) -> bool {
        !self.applying(asked).is_empty()
    }

    fn applying(&self, asked: &Asked<'_>) -> Vec<Applying<'_>> {
        self.0
            .iter()
            .map(|(tier, policies)| Applying {
                tier,
                policies: policies
                    .iter()
                    .copied()
                    .filter(|policy| applies(policy, asked))
                    .collect(),
            })
            .filter(|applying| !applying.policies.is_empty())
            .collect()
    }
}

fn applies(policy: &Policy, asked: &Asked<'_>) -> bool {
    let here = match asked.point {
        Point::Untracked => policy.stage == Stage::Untracked,
        Point::PreDnat => policy.stage == Stage::PreDnat,
        Point::Normal => policy.stage == Stage::Normal,
        Point::Forward => policy.stage == Stage::Normal && policy.apply_on_forward,
    };

    here && policy.types.contains(asked.direction) && policy.selector.matches(asked.labels)
}

/// Returns the name of the chain that asks all that is to be asked of an endpoint. `head` comes first.
pub(super) fn group(
    asked: &Asked<'_>,
    head: Vec<Rule>,
    tiers: &Tiers<'_>,
    scene: &Scene,
    verdicts: &mut Verdicts<'_>,
) -> String {
    let applying = tiers.applying(asked);
    let passing = applying.iter().filter(|tier| passes(tier, asked)).count();
    let mut rules = head;
    if passing > scene.options.limits.passing_tiers {
        let comment = "more tiers pass than the kernel can follow".to_owned();
        rules.push(verdicts.denial(asked.direction, comment));
    } else {
        rules.extend(ask(asked, &applying, scene, verdicts));
    }

    put(asked, rules, verdicts)
}

/// Adds a chain under the name that its rules give it.
fn put(asked: &Asked<'_>, rules: Vec<Rule>, verdicts: &mut Verdicts<'_>) -> String {
    let prefix = format!("group_{}", name::word(asked.direction));
    let name = name::hashed(&prefix, &format!("{rules:?}"));
    verdicts.add(name.clone(), rules);

    name
}

/// Returns the rules that ask tiers, and then what stands behind the last.
fn ask(
    asked: &Asked<'_>,
    tiers: &[Applying<'_>],
    scene: &Scene,
    verdicts: &mut Verdicts<'_>,
) -> Vec<Rule> {
    let Some((first, others)) = tiers.split_first() else {
        return end(asked, scene, verdicts);
    };
    let after = if passes(first, asked) {
        let mut rules = vec![clear(PASS_MARK, "the tier has been left")];
        rules.extend(ask(asked, others, scene, verdicts));
        Some(put(asked, rules, verdicts))
    } else {
        None
    };

    let mut rules = Vec::new();
    for policy in &first.policies {
        let chain = verdicts.policy(policy, asked.direction);
        rules.push(plain(
            Vec::new(),
            Statement::Jump(chain),
            &tier_comment(first.tier, "asks"),
        ));
        if let Some(after) = after
            .as_ref()
            .filter(|_| says_pass(policy, asked.direction))
        {
            let comment = tier_comment(first.tier, "is left");
            rules.push(plain(
                vec![marked(PASS_MARK)],
                Statement::Goto(after.clone()),
                &comment,
            ));
        }
    }
    match (tier_end(asked.point, first.tier), after) {
        (TierAction::Deny, _) => {
            let comment = tier_comment(first.tier, "ends: Deny");
            rules.push(verdicts.denial(asked.direction, comment));
        }
        (TierAction::Pass, Some(after)) => {
            let comment = tier_comment(first.tier, "ends: Pass");
            rules.push(plain(Vec::new(), Statement::Goto(after), &comment));
        }
        (TierAction::Pass, None) => rules.extend(ask(asked, others, scene, verdicts)),
    }

    rules
}

/// Before tracking and translation every tier passes on.
const fn tier_end(point: Point, tier: &Tier) -> TierAction {
    match point {
        Point::Normal | Point::Forward => tier.default_action,
        Point::PreDnat | Point::Untracked => TierAction::Pass,
    }
}

fn tier_comment(tier: &Tier, what: &str) -> String {
    name::comment(&format!("tier {}", tier.name), what)
}

fn passes(tier: &Applying<'_>, asked: &Asked<'_>) -> bool {
    let mut policies = tier.policies.iter();

    policies.any(|policy| says_pass(policy, asked.direction))
}

fn says_pass(policy: &Policy, direction: Direction) -> bool {
    let mut rules = policy.rules(direction).iter();

    rules.any(|rule| rule.action == Action::Pass)
}

/// Returns what stands behind the last tier.
fn end(asked: &Asked<'_>, scene: &Scene, verdicts: &mut Verdicts<'_>) -> Vec<Rule> {
    if asked.point != Point::Normal {
        return vec![plain(
            Vec::new(),
            Statement::Accept,
            "nothing here is against it",
        )];
    }
    let mut rules = Vec::new();
    for profile in asked.profiles {
        if let Some(profile) = scene.profiles.get(profile) {
            let chain = verdicts.profile(profile, asked.direction);
            let comment = name::comment(&format!("Profile {}", profile.name), "is asked");
            rules.push(plain(Vec::new(), Statement::Jump(chain), &comment));
        }
    }
    let comment = "no policy and no profile allows it".to_owned();
    rules.push(verdicts.denial(asked.direction, comment));

    rules
}
