//! Rows of the plan, and differences between them.

use model::nft::{Chain, ChainKey, Element, SetKey, SetKind};

use crate::compile::Ruleset;

/// A row that policy wants in the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A set or a map.
    Set(SetKey, SetKind),
    /// Something in a set.
    Element(SetKey, Element),
    /// A chain, whole.
    Chain(ChainKey, Chain),
}

/// What tells rows apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// A set or a map.
    Set(SetKey),
    /// Something in a set.
    Element(SetKey, Element),
    /// A chain.
    Chain(ChainKey),
}

/// A difference between two states of a node's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row is there, exactly so.
    Set(Row),
    /// No such row is there.
    Unset(RowKey),
}

impl Ruleset {
    /// Returns what makes these rows of others.
    pub fn since(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (key, kind) in &self.sets {
            if before.sets.get(key) != Some(kind) {
                changes.push(Change::Set(Row::Set(key.clone(), *kind)));
            }
        }
        for (key, element) in self.elements.difference(&before.elements) {
            changes.push(Change::Set(Row::Element(key.clone(), element.clone())));
        }
        for (key, chain) in &self.chains {
            if before.chains.get(key) != Some(chain) {
                changes.push(Change::Set(Row::Chain(key.clone(), chain.clone())));
            }
        }
        let gone = before.chains.keys();
        let gone = gone.filter(|key| !self.chains.contains_key(*key));
        changes.extend(gone.map(|key| Change::Unset(RowKey::Chain(key.clone()))));
        for (key, element) in before.elements.difference(&self.elements) {
            let key = RowKey::Element(key.clone(), element.clone());
            changes.push(Change::Unset(key));
        }
        let gone = before
            .sets
            .keys()
            .filter(|key| !self.sets.contains_key(*key));
        changes.extend(gone.map(|key| Change::Unset(RowKey::Set(key.clone()))));

        changes
    }

    /// Makes a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Set(Row::Set(key, kind)) => {
                self.sets.insert(key, kind);
            }
            Change::Set(Row::Element(key, element)) => {
                self.elements.insert((key, element));
            }
            Change::Set(Row::Chain(key, chain)) => {
                self.chains.insert(key, chain);
            }
            Change::Unset(RowKey::Set(key)) => {
                self.sets.remove(&key);
            }
            Change::Unset(RowKey::Element(key, element)) => {
                self.elements.remove(&(key, element));
            }
            Change::Unset(RowKey::Chain(key)) => {
                self.chains.remove(&key);
            }
        }
    }
}
