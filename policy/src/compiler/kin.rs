//! Whoever looks the same: the same labels of their own, the same profiles to inherit from.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    condition::Labels,
    slab::{Slab, Word, Words},
};

/// A kin's number.
pub(super) type KinId = u32;

/// A member's number.
pub(super) type MemberId = u32;

/// All kins, and the profiles that they inherit from.
#[derive(Clone, Debug, Default)]
pub(super) struct Kins {
    kins: Slab<Kin>,
    by_looks: BTreeMap<Arc<Looks>, KinId>,
    by_profile: BTreeMap<Word, BTreeSet<KinId>>,
    /// The labels that profiles give, sorted by key.
    given: BTreeMap<Word, Box<Labels>>,
    /// Labels that were given, and of which somebody may still have to be told.
    retired: Vec<Box<Labels>>,
}

/// What makes a kin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Looks {
    /// Its own labels, sorted by key.
    pub(super) labels: Box<Labels>,
    /// The profiles to inherit from, the first first.
    pub(super) profiles: Box<[Word]>,
}

#[derive(Clone, Debug)]
struct Kin {
    looks: Arc<Looks>,
    /// Its labels, inherited ones too, sorted by key.
    labels: Box<Labels>,
    members: BTreeSet<MemberId>,
}

impl Looks {
    /// Reads labels and names of profiles; the words are held until [`release`](Self::release).
    pub(super) fn new(
        labels: &BTreeMap<String, String>,
        profiles: &[String],
        words: &mut Words,
    ) -> Self {
        Self {
            labels: read(labels, words),
            profiles: profiles.iter().map(|name| words.take(name)).collect(),
        }
    }

    pub(super) fn release(&self, words: &mut Words) {
        release(&self.labels, words);
        for profile in &self.profiles {
            words.give_back(*profile);
        }
    }
}

impl Kins {
    /// Adds a member to the kin that looks so; returns the kin, and whether it is new. Takes the words of `looks`.
    pub(super) fn join(
        &mut self,
        looks: Looks,
        member: MemberId,
        words: &mut Words,
    ) -> (KinId, bool) {
        if let Some(id) = self.by_looks.get(&looks).copied() {
            looks.release(words);
            self.kins[id].members.insert(member);
            return (id, false);
        }
        let looks = Arc::new(looks);
        let id = self.kins.insert(Kin {
            labels: self.inherit(&looks),
            looks: Arc::clone(&looks),
            members: BTreeSet::from([member]),
        });
        for profile in &looks.profiles {
            self.by_profile.entry(*profile).or_default().insert(id);
        }
        self.by_looks.insert(looks, id);

        (id, true)
    }

    /// Takes a member out; returns whether it was the last.
    pub(super) fn part(&mut self, id: KinId, member: MemberId) -> bool {
        let members = &mut self.kins[id].members;
        members.remove(&member);

        members.is_empty()
    }

    /// Forgets a kin without members.
    pub(super) fn forget(&mut self, id: KinId, words: &mut Words) {
        let Some(kin) = self.kins.remove(id) else {
            return;
        };
        self.by_looks.remove(&kin.looks);
        for profile in &kin.looks.profiles {
            if let Some(kins) = self.by_profile.get_mut(profile) {
                kins.remove(&id);
                if kins.is_empty() {
                    self.by_profile.remove(profile);
                }
            }
        }
        kin.looks.release(words);
    }

    /// Sets what a profile gives. Returns the kins whose labels that changes, with those that they had.
    pub(super) fn give(
        &mut self,
        profile: &str,
        labels: &BTreeMap<String, String>,
        words: &mut Words,
    ) -> Vec<(KinId, Box<Labels>)> {
        let name = words.take(profile);
        let given = read(labels, words);
        let former = if given.is_empty() {
            self.given.remove(&name)
        } else {
            self.given.insert(name, given)
        };
        let mut changed = Vec::new();
        for id in self.by_profile.get(&name).into_iter().flatten() {
            let labels = self.inherit(&self.kins[*id].looks);
            let kin = &mut self.kins[*id];
            if labels != kin.labels {
                changed.push((*id, std::mem::replace(&mut kin.labels, labels)));
            }
        }
        if former.is_some() {
            // One hold of the name is the former labels'.
            words.give_back(name);
        }
        if !self.given.contains_key(&name) {
            words.give_back(name);
        }
        // Whoever has the former labels is told of them before their words may go.
        self.retired.extend(former);

        changed
    }

    /// Gives back the words of labels that no profile gives any more.
    pub(super) fn retire(&mut self, words: &mut Words) {
        for labels in std::mem::take(&mut self.retired) {
            release(&labels, words);
        }
    }

    /// Returns a kin's labels, inherited ones too.
    pub(super) fn labels(&self, id: KinId) -> &Labels {
        &self.kins[id].labels
    }

    pub(super) fn looks(&self, id: KinId) -> &Looks {
        &self.kins[id].looks
    }

    pub(super) fn members(&self, id: KinId) -> &BTreeSet<MemberId> {
        &self.kins[id].members
    }

    /// Returns the kins that name a profile.
    pub(super) fn with_profile(&self, profile: Word) -> impl Iterator<Item = KinId> + '_ {
        self.by_profile.get(&profile).into_iter().flatten().copied()
    }

    /// Returns labels with what profiles add: own labels win, then the first profile.
    fn inherit(&self, looks: &Looks) -> Box<Labels> {
        let mut labels: BTreeMap<Word, Word> = looks.labels.iter().copied().collect();
        for profile in &looks.profiles {
            for (key, value) in self.given.get(profile).into_iter().flatten() {
                labels.entry(*key).or_insert(*value);
            }
        }

        labels.into_iter().collect()
    }
}

fn read(labels: &BTreeMap<String, String>, words: &mut Words) -> Box<Labels> {
    let mut read: Vec<(Word, Word)> = labels
        .iter()
        .map(|(key, value)| (words.take(key), words.take(value)))
        .collect();
    read.sort_unstable();

    read.into()
}

fn release(labels: &Labels, words: &mut Words) {
    for (key, value) in labels {
        words.give_back(*key);
        words.give_back(*value);
    }
}
