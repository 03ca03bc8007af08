//! Chains of endpoints: which policies are asked, tier by tier, and then the profiles.
//!
//! Endpoints of which the same is asked share a chain, named after the least of their interfaces: a policy that comes
//! or goes is a rule more or less in a chain that keeps its name. `Pass` and a tier that ends with it lead on into a
//! chain of what is asked afterwards; it always ends the packet's way, so that nothing comes back.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName, ObjectKey,
    constant::PASS_MARK,
    nft::{Chain, Name, Rule, Statement},
    policy::{Action, Direction, Policy, Profile, Stage, Tier, TierAction, order},
};

use super::{
    Options, Ruleset, Scene, name,
    verdict::{self, Author, clear, denial, marked, plain},
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

/// The rules of the chains that ask, by name.
pub(crate) type Group = Vec<(String, Vec<Rule>)>;

/// An interface that is asked about; `None` is each that has no endpoint of its own.
pub(crate) type Seat = Option<InterfaceName>;

/// Is told whose chains a direction's groups jump to.
pub(crate) type Holding<'a, 'h> = dyn FnMut(Author<'a>, Direction) + 'h;

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

    /// Returns whose chains are asked, in order: endpoints of which these are the same share a group. `None` where
    /// more tiers pass than can be followed.
    pub(crate) fn authors(&self) -> Option<Vec<Author<'a>>> {
        if self.is_too_deep() {
            return None;
        }
        let mut found = Vec::new();
        for tier in &self.tiers {
            found.extend(tier.policies.iter().copied().map(Author::Policy));
            let ends = tier_end(self.question.point, tier.tier) == TierAction::Deny;
            if ends && !self.passes(tier) {
                return Some(found);
            }
        }
        if self.question.point == Point::Normal {
            found.extend(self.profiles.iter().copied().map(Author::Profile));
        }

        Some(found)
    }

    /// Returns the chains that ask all that is to be asked of an endpoint; packets enter the one of the group's name.
    /// `head` comes first.
    pub(crate) fn group(&self, name: &str, head: Vec<Rule>) -> Group {
        let mut group = Group::new();
        let mut rules = head;
        if self.is_too_deep() {
            let comment = "more tiers pass than the kernel can follow".to_owned();
            rules.push(denial(self.options, self.question.direction, comment));
        } else {
            rules.extend(self.ask(&self.tiers, name, &mut group));
        }
        group.push((name.to_owned(), rules));

        group
    }

    fn is_too_deep(&self) -> bool {
        let passing = self.tiers.iter().filter(|tier| self.passes(tier)).count();

        passing > self.options.limits.passing_tiers
    }

    /// Returns the rules that ask tiers, and then what stands behind the last.
    fn ask(&self, tiers: &[Applying<'a>], name: &str, group: &mut Group) -> Vec<Rule> {
        let Some((first, others)) = tiers.split_first() else {
            return self.end();
        };
        let after = if self.passes(first) {
            let mut rules = vec![clear(PASS_MARK, "the tier has been left")];
            rules.extend(self.ask(others, name, group));
            let after = name::behind(name, &first.tier.name);
            group.push((after.clone(), rules));
            Some(after)
        } else {
            None
        };

        let mut rules = self.ask_policies(first, after.as_ref());
        match (tier_end(self.question.point, first.tier), after) {
            (TierAction::Deny, _) => {
                let comment = tier_comment(first.tier, "ends: Deny");
                rules.push(denial(self.options, self.question.direction, comment));
            }
            (TierAction::Pass, Some(after)) => {
                let comment = tier_comment(first.tier, "ends: Pass");
                rules.push(plain(Vec::new(), Statement::Goto(after.into()), &comment));
            }
            (TierAction::Pass, None) => rules.extend(self.ask(others, name, group)),
        }

        rules
    }

    /// Returns the rules that ask a tier's policies; one that says `Pass` leads into the chain `after`.
    fn ask_policies(&self, tier: &Applying<'a>, after: Option<&String>) -> Vec<Rule> {
        let direction = self.question.direction;
        let comment = tier_comment(tier.tier, "asks");
        let mut rules = Vec::new();
        for policy in &tier.policies {
            let chain = Author::Policy(policy).chain(direction);
            rules.push(plain(Vec::new(), Statement::Jump(chain.into()), &comment));
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
    fn end(&self) -> Vec<Rule> {
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
            let comment = name::comment(&format!("Profile {}", profile.name), "is asked");
            let jump = Statement::Jump(Author::Profile(profile).chain(direction).into());
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

/// Writes the groups of endpoints; `prefix` begins their names, `head` their rules. Returns where each leads.
pub(crate) fn write<'a>(
    prefix: &str,
    head: &[Rule],
    asked: impl IntoIterator<Item = (Seat, Asked<'a>)>,
    hold: &mut Holding<'a, '_>,
    rows: &mut Ruleset,
) -> Vec<(Seat, Name)> {
    let mut leads = Vec::new();
    for (seats, asked) in gather(asked) {
        let direction = asked.question.direction;
        for author in asked.authors().into_iter().flatten() {
            hold(author, direction);
        }
        let least = seats.first().and_then(Option::as_ref);
        let name = name::of_group(prefix, direction, least);
        for (name, rules) in asked.group(&name, head.to_vec()) {
            let rules = rules.into();
            rows.chains
                .insert(verdict::key(&name), Chain { hook: None, rules });
        }
        let name = Name::from(name);
        leads.extend(seats.into_iter().map(|seat| (seat, name.clone())));
    }

    leads
}

/// Puts those together of whom the same is asked.
fn gather<'a>(
    asked: impl IntoIterator<Item = (Seat, Asked<'a>)>,
) -> impl Iterator<Item = (BTreeSet<Seat>, Asked<'a>)> {
    type Who = Option<Vec<ObjectKey>>;
    let mut groups: BTreeMap<Who, (BTreeSet<Seat>, Asked<'a>)> = BTreeMap::new();
    for (seat, asked) in asked {
        let authors = asked.authors();
        let who = authors.map(|authors| authors.into_iter().map(Author::key).collect());
        let group = groups.entry(who).or_insert((BTreeSet::new(), asked));
        group.0.insert(seat);
    }

    groups.into_values()
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
