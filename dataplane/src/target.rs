//! What every kind of kernel object has in common.

use std::collections::BTreeMap;

use model::{Change, Table};

/// One kind of kernel object that can be made to match a table of the plan.
///
/// # Guarantees
///
/// - [`observe`](Target::observe) reports only objects that this agent owns, or that stand where one of them belongs.
/// - [`apply`](Target::apply) is idempotent: setting an equal row, or unsetting one that is not
///   there, succeeds and changes nothing.
/// - A row that changes is replaced without a moment in which neither holds, where the kernel can do that.
///
/// # Assumptions
///
/// - Other programs may add, change or delete objects at any time.
/// - [`apply`](Target::apply) may have been interrupted half way, by us or by a crash.
///
/// # Errors
///
/// An error says that nothing is known about the batch: it may be in the kernel in part. A row whose
/// *surroundings* are missing (its device, its namespace, the tunnel service) is no error but is
/// [`Absent`]: it harms nobody else, and is tried again.
pub trait Target {
    /// What tells two objects apart.
    type Key: Ord + Clone;
    /// Everything about an object that we set.
    type Row: Clone + PartialEq;
    /// Why the kernel refused.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Returns the objects that exist.
    fn observe(&mut self) -> Result<BTreeMap<Self::Key, Self::Row>, Self::Error>;

    /// Returns whether a row keeps plaintext in: then it is restored at once, however often somebody
    /// else changes it. `None`: it is to be removed.
    fn must_hold(&self, _key: &Self::Key, _row: Option<&Self::Row>) -> bool {
        false
    }

    /// Returns whether an object goes together with what is set, instead of after everything else: what it opens is
    /// then never open beside what takes its place, and stays in no other target's way.
    fn goes_at_once(&self, _key: &Self::Key) -> bool {
        false
    }

    /// Makes the changes, in one transaction where the kernel offers one. Returns the rows that
    /// could not be set because what they stand on is missing.
    fn apply(
        &mut self,
        changes: &[Change<Self::Key, Self::Row>],
    ) -> Result<Vec<Absent<Self::Key>>, Self::Error>;
}

/// A row that cannot be set yet because its device, namespace or service is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent<K> {
    /// The row.
    pub key: K,
    /// What is missing.
    pub reason: String,
}

/// What a target should hold: a table of the plan, or several read as one.
///
/// # Guarantees
///
/// Changes and rows come in the order of their keys, each key once.
pub trait Desired {
    /// What tells two rows apart.
    type Key: Ord + Clone;
    /// A row.
    type Row: Clone + PartialEq;

    /// Returns whether something changed since the last call.
    fn has_changes(&self) -> bool;

    /// Takes the changes since the last call.
    fn drain_changes(&mut self) -> Vec<Change<Self::Key, Self::Row>>;

    /// Forgets the changes since the last call: every row is about to be read.
    fn forget_changes(&mut self);

    /// Returns every row.
    fn rows(&self) -> impl Iterator<Item = (Self::Key, Self::Row)>;
}

impl<K: Ord + Clone, V: Clone + PartialEq> Desired for Table<K, V> {
    type Key = K;
    type Row = V;

    fn has_changes(&self) -> bool {
        Table::has_changes(self)
    }

    fn drain_changes(&mut self) -> Vec<Change<K, V>> {
        Table::drain_changes(self)
    }

    fn forget_changes(&mut self) {
        Table::forget_changes(self);
    }

    fn rows(&self) -> impl Iterator<Item = (K, V)> {
        Table::rows(self)
            .iter()
            .map(|(key, row)| (key.clone(), row.clone()))
    }
}
