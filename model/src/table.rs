//! A keyed set of rows that remembers what changed.

use std::collections::{BTreeMap, BTreeSet};

/// A keyed set of rows that remembers which keys changed since the last drain.
///
/// A planner writes rows. A reconciler drains the changes, and can at any time
/// read the whole table to find what the kernel has and nobody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<K: Ord, V> {
    rows: BTreeMap<K, V>,
    changed: BTreeSet<K>,
}

/// One difference between a table and the world it describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K, V> {
    /// The row should exist exactly like this.
    Set(K, V),
    /// The row should not exist.
    Unset(K),
}

impl<K: Ord + Clone, V: Clone + PartialEq> Table<K, V> {
    /// Writes a row. Writing a row that is already there is not a change.
    pub fn set(&mut self, key: K, row: V) {
        if self.rows.get(&key) == Some(&row) {
            return;
        }

        self.rows.insert(key.clone(), row);
        self.changed.insert(key);
    }

    /// Removes a row, if it is there.
    pub fn unset(&mut self, key: &K) {
        if self.rows.remove(key).is_some() {
            self.changed.insert(key.clone());
        }
    }

    /// Returns the row with this key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    /// Returns every row, in key order.
    pub fn rows(&self) -> &BTreeMap<K, V> {
        &self.rows
    }

    /// Returns whether a drain would yield something.
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes less memory: rows that were written in order lie in nodes that are half empty. Costs a copy of each.
    pub fn compact(&mut self) {
        self.rows = std::mem::take(&mut self.rows).into_iter().collect();
        self.changed = std::mem::take(&mut self.changed).into_iter().collect();
    }

    /// Returns how many changes a drain would yield.
    pub fn change_count(&self) -> usize {
        self.changed.len()
    }

    /// Forgets the changes: whoever asks is about to read every row.
    pub fn forget_changes(&mut self) {
        self.changed.clear();
    }

    /// Returns what a drain would yield, in key order: keys with their rows, or `None` where the row is gone.
    pub fn changes(&self) -> impl Iterator<Item = (&K, Option<&V>)> {
        self.changed.iter().map(|key| (key, self.rows.get(key)))
    }

    /// Takes the changes made since the last call, in key order.
    pub fn drain_changes(&mut self) -> Vec<Change<K, V>> {
        std::mem::take(&mut self.changed)
            .into_iter()
            .map(|key| match self.rows.get(&key) {
                Some(row) => Change::Set(key, row.clone()),
                None => Change::Unset(key),
            })
            .collect()
    }
}

impl<K: Ord, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_an_equal_row_is_not_a_change() {
        let mut table = table([("a", 1)]);
        table.drain_changes();

        table.set("a", 1);

        assert_eq!(table.drain_changes(), []);
    }

    #[test]
    fn a_row_set_and_unset_between_drains_ends_as_one_unset() {
        let mut table = table([("a", 1)]);

        table.set("a", 2);
        table.unset(&"a");

        assert_eq!(table.drain_changes(), [Change::Unset("a")]);
    }

    #[test]
    fn changes_can_be_looked_at_before_they_are_drained() {
        let mut table = table([("a", 1), ("b", 2)]);
        table.drain_changes();
        table.set("a", 3);
        table.unset(&"b");

        let seen: Vec<_> = table.changes().collect();

        assert_eq!(seen, [(&"a", Some(&3)), (&"b", None)]);
        assert_eq!(table.drain_changes().len(), 2);
    }

    #[test]
    fn what_takes_less_memory_says_the_same() {
        let mut table = table([("a", 1), ("b", 2)]);
        table.drain_changes();
        table.set("c", 3);
        table.unset(&"a");
        let before = table.clone();

        table.compact();

        assert_eq!(table, before);
        assert_eq!(table.change_count(), 2);
        table.forget_changes();
        assert_eq!(table.drain_changes(), []);
    }

    fn table<const N: usize>(rows: [(&'static str, u8); N]) -> Table<&'static str, u8> {
        let mut table = Table::default();
        for (key, row) in rows {
            table.set(key, row);
        }

        table
    }
}
