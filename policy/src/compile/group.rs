//! Chains of endpoints: which policies are asked, tier by tier, and then the profiles.
//!
//! Endpoints of which the same is asked share a chain; its name is made of its rules. `Pass` and a tier that ends
//! with it lead on into a chain of what is asked afterwards; it always ends the packet's way, so that nothing comes
//! back.

use std::collections::BTreeMap;

use model::{
    constant::PASS_MARK,
    nft::{Rule, Statement},
    policy::{Action, Direction, Policy, Profile, Stage, Tier, TierAction, order},
};

use super::{
    Options, Scene, name,
    verdict::{Author, clear, denial, marked, plain},
};

type Labels = BTreeMap<String, String>;

/// Where an endpoint's policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// What the endpoint itself sends or gets: tiers, then profiles, then no.
    Normal,
    /// What a host forwards: tiers, then yes.
    Forward,
    /// Before destination NAT: tiers that all pass, then on.
    PreDnat,
    /// Before connection tracking: the same.
    Untracked,
}

/// What an endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    pub(crate) point: Point,
    pub(crate) direction: Direction,
}

/// Tiers and their policies, in order.
pub(super) struct Tiers<'a>(Vec<(Tier, Vec<&'a Policy>)>);

/// A tier with those of its policies that an endpoint has.
pub(crate) struct Applying<'a> {
    pub(crate) tier: &'a Tier,
    /// In order, at least one.
    pub(crate) policies: Vec<&'a Policy>,
}

/// Who is asked about an endpoint.
pub(crate) struct Asked<'a> {
    pub(crate) question: Question,
    /// Tiers in order.
    pub(crate) tiers: Vec<Applying<'a>>,
    /// The profiles that exist, in order.
    pub(crate) profiles: Vec<&'a Profile>,
    pub(crate) options: &'a Options,
}

/// The chains that ask.
pub(crate) struct Group<'a> {
    pub(crate) direction: Direction,
    /// The name of the first.
    pub(crate) root: String,
    /// The rules of each, by name.
    pub(crate) chains: Vec<(String, Vec<Rule>)>,
    /// Whose chains they jump to.
    pub(crate) authors: Vec<Author<'a>>,
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

    /// Returns who is asked about an endpoint with these labels.
    pub(super) fn applying(&self, question: Question, labels: &Labels) -> Vec<Applying<'_>> {
        self.0
            .iter()
            .map(|(tier, policies)| Applying {
                tier,
                policies: policies
                    .iter()
                    .copied()
                    .filter(|policy| question.is_for(policy) && policy.selector.matches(labels))
                    .collect(),
            })
            .filter(|applying| !applying.policies.is_empty())
            .collect()
    }
}

impl Question {
    /// Returns whether a policy answers it, of an endpoint that it selects.
    pub(crate) fn is_for(self, policy: &Policy) -> bool {
        let here = match self.point {
            Point::Untracked => policy.stage == Stage::Untracked,
            Point::PreDnat => policy.stage == Stage::PreDnat,
            Point::Normal => policy.stage == Stage::Normal,
            Point::Forward => policy.stage == Stage::Normal && policy.apply_on_forward,
        };

        here && policy.types.contains(self.direction)
    }
}

impl<'a> Asked<'a> {
    /// Returns whether anything is decided here at all: before tracking and translation, by policies alone.
    pub(crate) const fn is_needed(&self) -> bool {
        match self.question.point {
            Point::Untracked | Point::PreDnat => !self.tiers.is_empty(),
            Point::Normal | Point::Forward => true,
        }
    }

    /// Returns the chains that ask all that is to be asked of an endpoint. `head` comes first.
    pub(crate) fn group(&self, head: Vec<Rule>) -> Group<'a> {
        let passing = self.tiers.iter().filter(|tier| self.passes(tier)).count();
        let mut group = Group {
            direction: self.question.direction,
            root: String::new(),
            chains: Vec::new(),
            authors: Vec::new(),
        };
        let mut rules = head;
        if passing > self.options.limits.passing_tiers {
            let comment = "more tiers pass than the kernel can follow".to_owned();
            rules.push(denial(self.options, self.question.direction, comment));
        } else {
            rules.extend(self.ask(&self.tiers, &mut group));
        }
        group.root = self.put(rules, &mut group);

        group
    }

    /// Adds a chain under the name that its rules give it.
    fn put(&self, rules: Vec<Rule>, group: &mut Group<'a>) -> String {
        let prefix = format!("group_{}", name::word(self.question.direction));
        let name = name::hashed(&prefix, &text(&rules));
        group.chains.push((name.clone(), rules));

        name
    }

    /// Returns the rules that ask tiers, and then what stands behind the last.
    fn ask(&self, tiers: &[Applying<'a>], group: &mut Group<'a>) -> Vec<Rule> {
        let Some((first, others)) = tiers.split_first() else {
            return self.end(group);
        };
        let after = if self.passes(first) {
            let mut rules = vec![clear(PASS_MARK, "the tier has been left")];
            rules.extend(self.ask(others, group));
            Some(self.put(rules, group))
        } else {
            None
        };

        let mut rules = self.ask_policies(first, after.as_ref(), group);
        match (tier_end(self.question.point, first.tier), after) {
            (TierAction::Deny, _) => {
                let comment = tier_comment(first.tier, "ends: Deny");
                rules.push(denial(self.options, self.question.direction, comment));
            }
            (TierAction::Pass, Some(after)) => {
                let comment = tier_comment(first.tier, "ends: Pass");
                rules.push(plain(Vec::new(), Statement::Goto(after.into()), &comment));
            }
            (TierAction::Pass, None) => rules.extend(self.ask(others, group)),
        }

        rules
    }

    /// Returns the rules that ask a tier's policies; one that says `Pass` leads into the chain `after`.
    fn ask_policies(
        &self,
        tier: &Applying<'a>,
        after: Option<&String>,
        group: &mut Group<'a>,
    ) -> Vec<Rule> {
        let direction = self.question.direction;
        let comment = tier_comment(tier.tier, "asks");
        let mut rules = Vec::new();
        for policy in &tier.policies {
            let author = Author::Policy(policy);
            group.authors.push(author);
            rules.push(plain(
                Vec::new(),
                Statement::Jump(author.chain(direction).into()),
                &comment,
            ));
            if let Some(after) = after.filter(|_| says_pass(policy, direction)) {
                let comment = tier_comment(tier.tier, "is left");
                rules.push(plain(
                    vec![marked(PASS_MARK)],
                    Statement::Goto(after.as_str().into()),
                    &comment,
                ));
            }
        }

        rules
    }

    /// Returns what stands behind the last tier.
    fn end(&self, group: &mut Group<'a>) -> Vec<Rule> {
        if self.question.point != Point::Normal {
            return vec![plain(
                Vec::new(),
                Statement::Accept,
                "nothing here is against it",
            )];
        }
        let direction = self.question.direction;
        let mut rules = Vec::new();
        for profile in &self.profiles {
            let author = Author::Profile(profile);
            group.authors.push(author);
            let comment = name::comment(&format!("Profile {}", profile.name), "is asked");
            let jump = Statement::Jump(author.chain(direction).into());
            rules.push(plain(Vec::new(), jump, &comment));
        }
        let comment = "no policy and no profile allows it".to_owned();
        rules.push(denial(self.options, direction, comment));

        rules
    }

    fn passes(&self, tier: &Applying<'_>) -> bool {
        let mut policies = tier.policies.iter();

        policies.any(|policy| says_pass(policy, self.question.direction))
    }
}

/// Returns a text that no other rules have. Jumps are most of what there is, and short.
fn text(rules: &[Rule]) -> String {
    let mut text = String::with_capacity(64 * rules.len());
    for rule in rules {
        let is_plain = rule.matches.is_empty() && !rule.counter;
        if let (Statement::Jump(chain), true) = (&rule.statement, is_plain) {
            for part in [chain, &rule.comment] {
                text.push_str(&part.len().to_string());
                text.push(':');
                text.push_str(part);
            }
        } else {
            text.push_str(&format!("{rule:?}"));
        }
    }

    text
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

/// Returns whether a policy may leave its tier.
pub(crate) fn says_pass(policy: &Policy, direction: Direction) -> bool {
    let mut rules = policy.rules(direction).iter();

    rules.any(|rule| rule.action == Action::Pass)
}
