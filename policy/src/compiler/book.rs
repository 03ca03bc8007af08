//! Policies, tiers and profiles: who is asked about an endpoint, and in which order.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    Kind, ObjectKey,
    policy::{Direction, Directions, Policy, Profile, Stage, Tier, order},
};

use super::index::AskId;
use crate::{
    cluster::object::Origin,
    compile::{
        Options,
        group::{Applying, Asked, Question, says_pass},
        verdict::Author,
    },
};

/// Policies, tiers and profiles.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    policies: BTreeMap<ObjectKey, Entry>,
    /// Those that decide something, by what selects their endpoints.
    by_ask: BTreeMap<AskId, BTreeMap<ObjectKey, Arc<Policy>>>,
    tiers: BTreeMap<String, Tier>,
    /// How many policies name a tier.
    named: BTreeMap<String, usize>,
    /// The tiers, in order, and the place of each.
    order: Vec<Tier>,
    places: BTreeMap<String, usize>,
    /// Policies before tracking or translation.
    early: usize,
    /// By name; of several of one name the last counts.
    profiles: BTreeMap<String, BTreeMap<Origin, Profile>>,
}

#[derive(Clone, Debug)]
struct Entry {
    policy: Arc<Policy>,
    ask: Option<AskId>,
}

/// What of a policy the chains that ask it know.
#[derive(PartialEq)]
struct Cover<'a> {
    tier: &'a str,
    order: Option<f64>,
    types: Directions,
    stage: Stage,
    apply_on_forward: bool,
    says_pass: [bool; 2],
}

/// What became of a profile.
pub(super) struct Turn {
    pub(super) was_there: bool,
    pub(super) is_there: bool,
    pub(super) rules_changed: bool,
    /// The labels that it gives now, if they are others.
    pub(super) labels: Option<BTreeMap<String, String>>,
}

impl Book {
    /// Puts a policy, found by `ask`, in the place of what was there; returns that.
    pub(super) fn put(
        &mut self,
        policy: Policy,
        ask: Option<AskId>,
    ) -> Option<(Arc<Policy>, Option<AskId>)> {
        let former = self.remove(&policy.key);
        let policy = Arc::new(policy);
        self.early += usize::from(policy.stage != Stage::Normal);
        *self.named.entry(policy.tier.clone()).or_insert(0) += 1;
        if !self.places.contains_key(&policy.tier) {
            self.sort();
        }
        if let Some(ask) = ask {
            let found = self.by_ask.entry(ask).or_default();
            found.insert(policy.key.clone(), Arc::clone(&policy));
        }
        self.policies
            .insert(policy.key.clone(), Entry { policy, ask });

        former
    }

    /// Takes a policy out, and returns it.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<(Arc<Policy>, Option<AskId>)> {
        let Entry { policy, ask } = self.policies.remove(key)?;
        self.early -= usize::from(policy.stage != Stage::Normal);
        if let Some(count) = self.named.get_mut(&policy.tier) {
            *count -= 1;
            if *count == 0 {
                self.named.remove(&policy.tier);
            }
        }
        if let Some(found) = ask.and_then(|ask| self.by_ask.get_mut(&ask)) {
            found.remove(key);
        }
        if let Some(ask) = ask
            && self.by_ask.get(&ask).is_some_and(BTreeMap::is_empty)
        {
            self.by_ask.remove(&ask);
        }

        Some((policy, ask))
    }

    pub(super) fn policy(&self, key: &ObjectKey) -> Option<&Arc<Policy>> {
        self.policies.get(key).map(|entry| &entry.policy)
    }

    /// Puts a tier in; returns whether that changed anything.
    pub(super) fn put_tier(&mut self, tier: &Tier) -> bool {
        if self.tiers.get(&tier.name) == Some(tier) {
            return false;
        }
        self.tiers.insert(tier.name.clone(), tier.clone());
        self.sort();

        true
    }

    /// Takes a tier out; returns whether it was there.
    pub(super) fn remove_tier(&mut self, name: &str) -> bool {
        let was_there = self.tiers.remove(name).is_some();
        if was_there {
            self.sort();
        }

        was_there
    }

    fn sort(&mut self) {
        let named = self.named.keys().map(String::as_str);
        self.order = order::tiers(self.tiers.values(), named);
        let names = self.order.iter().map(|tier| tier.name.clone());
        self.places = names.zip(0..).collect();
    }

    /// Puts a profile in, or takes it out.
    pub(super) fn set_profile(
        &mut self,
        name: &str,
        origin: Origin,
        profile: Option<Profile>,
    ) -> Turn {
        let former = self.profile(name).cloned();
        let known = self.profiles.entry(name.to_owned()).or_default();
        match profile {
            Some(profile) => known.insert(origin, profile),
            None => known.remove(&origin),
        };
        if known.is_empty() {
            self.profiles.remove(name);
        }
        let now = self.profile(name);
        let rules = |profile: Option<&Profile>| {
            profile.map(|profile| (profile.ingress.clone(), profile.egress.clone()))
        };
        let labels = |profile: Option<&Profile>| {
            profile.map_or_else(BTreeMap::new, |profile| profile.labels.clone())
        };
        let given = labels(now);

        Turn {
            was_there: former.is_some(),
            is_there: now.is_some(),
            rules_changed: rules(former.as_ref()) != rules(now),
            labels: (given != labels(former.as_ref())).then_some(given),
        }
    }

    /// Returns a profile as it counts.
    pub(super) fn profile(&self, name: &str) -> Option<&Profile> {
        let (_, profile) = self.profiles.get(name)?.last_key_value()?;

        Some(profile)
    }

    /// Returns the profile of an origin, whether or not it counts.
    pub(super) fn profile_of(&self, name: &str, origin: &Origin) -> Option<&Profile> {
        self.profiles.get(name)?.get(origin)
    }

    /// Returns whether there is policy before tracking or translation.
    pub(super) const fn is_early(&self) -> bool {
        self.early > 0
    }

    /// Returns whose rules a chain of this key holds.
    pub(super) fn author(&self, key: &ObjectKey) -> Option<Author<'_>> {
        if key.kind == Kind::Profile {
            return self.profile(&key.name).map(Author::Profile);
        }

        self.policy(key).map(|policy| Author::Policy(policy))
    }

    /// Returns who is asked about an endpoint that `asks` select and that has these profiles.
    pub(super) fn asked<'a>(
        &'a self,
        question: Question,
        asks: &[AskId],
        profiles: impl Iterator<Item = &'a str>,
        options: &'a Options,
    ) -> Asked<'a> {
        let found = asks.iter().filter_map(|ask| self.by_ask.get(ask)).flatten();
        let mut policies: Vec<(usize, &Policy)> = found
            .map(|(_, policy)| policy.as_ref())
            .filter(|policy| question.is_for(policy))
            .map(|policy| (self.place(policy), policy))
            .collect();
        policies.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| order::policies(a.1, b.1)));
        let tiers = policies.chunk_by(|a, b| a.0 == b.0);

        Asked {
            question,
            tiers: tiers
                .map(|policies| Applying {
                    tier: &self.order[policies[0].0],
                    policies: policies.iter().map(|(_, policy)| *policy).collect(),
                })
                .collect(),
            profiles: profiles.filter_map(|name| self.profile(name)).collect(),
            options,
        }
    }

    fn place(&self, policy: &Policy) -> usize {
        let place = self.places.get(&policy.tier);

        *place.expect("a tier has its place from the first policy that names it on")
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().map(|entry| entry.policy.as_ref())
    }

    pub(super) fn tiers(&self) -> impl Iterator<Item = &Tier> {
        self.tiers.values()
    }

    /// Returns the profiles that count, by name.
    pub(super) fn profiles(&self) -> BTreeMap<String, Profile> {
        let names = self.profiles.keys();

        names
            .filter_map(|name| Some((name.clone(), self.profile(name)?.clone())))
            .collect()
    }
}

/// Returns the directions in which endpoints must be asked anew where one policy takes the other's place.
pub(super) fn reordered(former: Option<&Policy>, policy: Option<&Policy>) -> Directions {
    let covers = [former, policy].map(|policy| {
        let decides = policy.filter(|policy| policy.staged.is_none());
        decides.map(cover)
    });
    let is_same_selector =
        former.map(|policy| &policy.selector) == policy.map(|policy| &policy.selector);
    if covers[0] == covers[1] && is_same_selector {
        return Directions::default();
    }
    let types = covers.iter().flatten().map(|cover| cover.types);

    types.fold(Directions::default(), |all, one| Directions {
        ingress: all.ingress || one.ingress,
        egress: all.egress || one.egress,
    })
}

fn cover(policy: &Policy) -> Cover<'_> {
    Cover {
        tier: &policy.tier,
        order: policy.order,
        types: policy.types,
        stage: policy.stage,
        apply_on_forward: policy.apply_on_forward,
        says_pass: [Direction::Ingress, Direction::Egress]
            .map(|direction| says_pass(policy, direction)),
    }
}
