//! The kernel's numbers of rules, by which chains are changed in place.
//!
//! A number is learnt when the tables are read, with a rule that we add in place (the kernel echoes it), or else from a
//! list of the chain, just before its first change. The kernel gives none twice in a table. Where others can change our
//! tables, they may even put another table of the name in its place: numbers then hold for one generation of the
//! ruleset, and a transaction that speaks of them is for that generation alone.

use std::collections::BTreeMap;

use model::{Change, nft::ChainKey};

use super::{
    ChainRow, NftKey, NftRow, NftTarget,
    code::TABLE_F_OWNER,
    edit::{self, Edit},
    ruleset,
    transaction::Committed,
};
use crate::netlink::NetlinkError;

/// The numbers of rules, in order, of chains of which they are known.
#[derive(Default)]
pub(super) struct Handles {
    known: BTreeMap<ChainKey, Vec<u64>>,
    /// The generation in which they are right; `None`: in each, as nobody else can change our tables.
    pub(super) generation: Option<u32>,
}

/// How a chain is changed in place: the edit, and the numbers of the rules that are there.
pub(super) type InPlace = (Edit, Vec<u64>);

impl Handles {
    /// Takes over the numbers that were just read. Where others may change our tables they are asked for again.
    pub(super) const fn of(known: BTreeMap<ChainKey, Vec<u64>>) -> Self {
        Self {
            known,
            generation: None,
        }
    }

    /// Notes what a transaction told: the numbers of the chains that it changed in place.
    pub(super) fn note(&mut self, committed: &mut Committed) {
        if let Some(before) = self.generation {
            let is_next = committed.generation == Some(before.wrapping_add(1));
            self.generation = committed.generation;
            if !is_next {
                self.known.clear();
            }
        }
        for (chain, handles) in std::mem::take(&mut committed.handles) {
            match handles {
                Some(handles) => self.known.insert(chain, handles),
                None => self.known.remove(&chain),
            };
        }
    }
}

impl NftTarget {
    /// Returns how chains are changed in place, of those for which that is known and worth it. The others are written
    /// anew.
    pub(super) fn edits(
        &mut self,
        changes: &[Change<NftKey, NftRow>],
    ) -> BTreeMap<ChainKey, InPlace> {
        let mut edits = BTreeMap::new();
        for change in changes {
            match change {
                Change::Set(NftKey::Chain(key), NftRow::Chain(row)) => {
                    let known = self.handles.known.remove(key);
                    let edit = self.edit(key, row);
                    if let Some(in_place) = edit.and_then(|edit| self.in_place(key, edit, known)) {
                        edits.insert(key.clone(), in_place);
                    }
                }
                Change::Unset(NftKey::Chain(key)) => drop(self.handles.known.remove(key)),
                Change::Set(NftKey::Set(_) | NftKey::Element(..) | NftKey::Chain(_), _)
                | Change::Unset(NftKey::Set(_) | NftKey::Element(..)) => {}
            }
        }

        edits
    }

    /// Forgets the numbers, if somebody else may have changed our tables since they were right.
    pub(super) fn check_handles(&mut self) -> Result<(), NetlinkError> {
        let flags = self.held.tables.values();
        let is_owned = flags.clone().all(|flags| flags & TABLE_F_OWNER != 0);
        let generation = match is_owned {
            true => None,
            false => ruleset::generation(&mut self.socket)?,
        };
        if generation != self.handles.generation {
            self.handles = Handles {
                known: BTreeMap::new(),
                generation,
            };
        }

        Ok(())
    }

    fn edit(&self, key: &ChainKey, row: &ChainRow) -> Option<Edit> {
        let held = self.held.chains.get(key)?;
        if held.is_empty() || held.has_rules_of(row) {
            return None;
        }

        held.edit_into(row)
    }

    fn in_place(&mut self, key: &ChainKey, edit: Edit, known: Option<Vec<u64>>) -> Option<InPlace> {
        if let Some(handles) = known {
            return Some((edit, handles));
        }
        let held = self.held.chains.get(key)?;
        let found = match ruleset::handles(&mut self.socket, key) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "A chain could not be listed; it is written anew");
                return None;
            }
        };
        let (handles, tags): (Vec<u64>, Vec<Option<u64>>) = found.into_iter().unzip();

        (tags == *held.tags()).then_some((edit, handles))
    }
}

impl ChainRow {
    /// Returns how these rules become those of a row of the plan.
    fn edit_into(&self, row: &Self) -> Option<Edit> {
        let wanted = row.chain.as_ref()?;
        if let Some(held) = &self.chain {
            let (had, wanted) = (&held.rules, &wanted.rules);
            return edit::between(had.len(), wanted.len(), |i, j| had[i] == wanted[j]);
        }
        let (had, wanted) = (self.tags(), row.tags());

        edit::between(had.len(), wanted.len(), |i, j| {
            had[i].is_some() && had[i] == wanted[j]
        })
    }
}
