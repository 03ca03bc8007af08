//! Which selectors select which labels, kept both ways.
//!
//! ```text
//! labels ──▶ selectors that need one of them ──asked──▶ those that select
//! selector ──▶ the fewest labels with something that it needs ──asked──▶ those that it selects
//! ```
//!
//! Whoever looks the same is one *kin*: selectors are asked once for all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::Selector;

use super::{
    condition::{Condition, Label, Labels, Need, answered},
    kin::{KinId, Kins},
    slab::{Slab, Word, Words},
};

/// A selector's number.
pub(super) type AskId = u32;

/// Which selectors select which kin.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    asks: Slab<Ask>,
    by_selector: BTreeMap<Arc<Selector>, AskId>,
    by_need: BTreeMap<Need, BTreeSet<AskId>>,
    /// The kins that are in, and what selects each, sorted.
    kins: BTreeMap<KinId, Box<[AskId]>>,
    by_label: BTreeMap<(Word, Word), BTreeSet<KinId>>,
    effort: u64,
}

/// A selector that somebody asks.
#[derive(Clone, Debug)]
struct Ask {
    selector: Arc<Selector>,
    condition: Condition,
    needs: Box<[Need]>,
    users: u32,
    /// Whom it selects.
    kins: BTreeSet<KinId>,
}

/// What a change of labels changes.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Selectors that no longer select.
    pub(super) left: Vec<AskId>,
    /// Selectors that select now.
    pub(super) joined: Vec<AskId>,
}

impl Index {
    /// Asks a selector, of all that is there and all that comes, until it is dropped as often as it was asked.
    pub(super) fn ask(&mut self, selector: &Selector, kins: &Kins, words: &mut Words) -> AskId {
        if let Some(id) = self.by_selector.get(selector).copied() {
            self.asks[id].users += 1;
            return id;
        }
        let condition = Condition::new(selector, words);
        let selected = self.selected(&condition, kins, words);
        let selector = Arc::new(selector.clone());
        let needs = condition.needs(words);
        let id = self.asks.insert(Ask {
            selector: Arc::clone(&selector),
            condition,
            needs: needs.clone().into(),
            users: 1,
            kins: selected.clone(),
        });
        self.by_selector.insert(selector, id);
        for need in needs {
            self.by_need.entry(need).or_default().insert(id);
        }
        for kin in selected {
            let mut asks = self.of(kin).to_vec();
            insert_sorted(&mut asks, id);
            self.kins.insert(kin, asks.into());
        }

        id
    }

    /// Ends one use of a selector; returns whether it is gone.
    pub(super) fn drop(&mut self, id: AskId, words: &mut Words) -> bool {
        let ask = &mut self.asks[id];
        ask.users -= 1;
        if ask.users > 0 {
            return false;
        }
        let Some(ask) = self.asks.remove(id) else {
            return false;
        };
        self.by_selector.remove(&ask.selector);
        for need in &ask.needs {
            remove_from(&mut self.by_need, need, id);
        }
        for kin in ask.kins {
            let asks = self.of(kin).iter().copied().filter(|each| *each != id);
            let asks = asks.collect();
            self.kins.insert(kin, asks);
        }
        ask.condition.release(words);

        true
    }

    /// Takes a kin in.
    pub(super) fn enter(&mut self, kin: KinId, labels: &Labels, words: &Words) {
        for label in labels {
            self.by_label.entry(*label).or_default().insert(kin);
        }
        let asks = self.selecting(labels, words);
        for ask in &asks {
            self.asks[*ask].kins.insert(kin);
        }
        self.kins.insert(kin, asks.into());
    }

    /// Lets a kin go.
    pub(super) fn leave(&mut self, kin: KinId, labels: &Labels) {
        for label in labels {
            remove_from(&mut self.by_label, label, kin);
        }
        for ask in self.kins.remove(&kin).unwrap_or_default() {
            self.asks[ask].kins.remove(&kin);
        }
    }

    /// Gives a kin that is in other labels.
    pub(super) fn relabel(
        &mut self,
        kin: KinId,
        former: &Labels,
        labels: &Labels,
        words: &Words,
    ) -> Turn {
        let before = self.kins.get(&kin).cloned().unwrap_or_default();
        self.leave(kin, former);
        self.enter(kin, labels, words);
        let after = self.of(kin);
        let without = |all: &[AskId], others: &[AskId]| -> Vec<AskId> {
            let all = all.iter().copied();
            all.filter(|ask| others.binary_search(ask).is_err())
                .collect()
        };

        Turn {
            left: without(&before, after),
            joined: without(after, &before),
        }
    }

    /// Returns the selectors that select a kin, sorted.
    pub(super) fn of(&self, kin: KinId) -> &[AskId] {
        self.kins.get(&kin).map_or(&[], |asks| asks)
    }

    /// Returns the kins that a selector selects.
    pub(super) fn selected_by(&self, ask: AskId) -> &BTreeSet<KinId> {
        &self.asks[ask].kins
    }

    /// Returns how often a selector was asked.
    pub(super) const fn effort(&self) -> u64 {
        self.effort
    }

    /// Returns the selectors that select labels, sorted.
    fn selecting(&mut self, labels: &Labels, words: &Words) -> Vec<AskId> {
        let mut found = Vec::new();
        for need in answered(labels, words) {
            found.extend(self.by_need.get(&need).into_iter().flatten().copied());
        }
        found.sort_unstable();
        found.dedup();
        self.effort += found.len() as u64;
        found.retain(|ask| self.asks[*ask].condition.holds(labels, words));

        found
    }

    /// Returns the kins of which a condition holds.
    fn selected(&mut self, condition: &Condition, kins: &Kins, words: &Words) -> BTreeSet<KinId> {
        let requirements = condition.requirements();
        let fewest = requirements.iter().min_by_key(|labels| self.count(labels));
        let candidates: Vec<KinId> = match fewest {
            None => self.kins.keys().copied().collect(),
            Some(labels) => labels.iter().flat_map(|label| self.with(*label)).collect(),
        };
        self.effort += candidates.len() as u64;
        let selected = candidates.into_iter();

        selected
            .filter(|kin| condition.holds(kins.labels(*kin), words))
            .collect()
    }

    /// Returns how many kins have one of some labels; far beyond a bound, only that it is far beyond.
    fn count(&self, labels: &[Label]) -> usize {
        let counts = labels
            .iter()
            .flat_map(|label| self.postings(*label).map(BTreeSet::len));

        counts.take(1_000).sum()
    }

    fn with(&self, label: Label) -> impl Iterator<Item = KinId> + '_ {
        self.postings(label).flatten().copied()
    }

    fn postings(&self, (label, value): Label) -> impl Iterator<Item = &BTreeSet<KinId>> {
        let (first, last) = match value {
            Some(value) => (value, value),
            None => Word::ENDS,
        };

        self.by_label
            .range((label, first)..=(label, last))
            .map(|(_, kins)| kins)
    }
}

fn insert_sorted(list: &mut Vec<AskId>, id: AskId) {
    if let Err(place) = list.binary_search(&id) {
        list.insert(place, id);
    }
}

fn remove_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(&value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
