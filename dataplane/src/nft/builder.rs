//! Turns changes of rows into one transaction, keeping count of what the kernel will hold after it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{
    Change, InterfaceName,
    nft::{Chain, ChainKey, Element, Hook, NftFamily, SetKey, SetKind, Verdict},
};

use super::{
    ChainRow, NftError, NftKey, NftRow, element,
    handle::InPlace,
    ruleset::{FAMILIES, HeldSet, Ruleset},
    transaction::{self, Transaction},
    with_devices,
};

/// A transaction in the making.
pub(super) struct Builder {
    pub(super) transaction: Transaction,
    /// How chains are changed in place; a chain that has rules and is not among them is written anew.
    pub(super) edits: BTreeMap<ChainKey, InPlace>,
    /// What must not stand in the same transaction: see [`Builder::grow_hook`].
    pub(super) later: Vec<Transaction>,
    /// A chain gets a device in the first transaction.
    pub(super) has_grown: bool,
    /// What the kernel holds once the transaction is committed.
    pub(super) held: Ruleset,
    pub(super) deferred: BTreeSet<(SetKey, Element)>,
    pub(super) missing: BTreeMap<ChainKey, BTreeSet<InterfaceName>>,
    /// The devices that exist, where a change speaks of devices.
    pub(super) existing: BTreeSet<InterfaceName>,
}

/// Changes of sets' elements. What is to be changed comes set by set.
#[derive(Default)]
struct Deltas<'a>(Vec<(&'a SetKey, Delta<'a>)>);

/// Changes of a set's elements, in order.
#[derive(Default)]
struct Delta<'a> {
    added: Vec<&'a Element>,
    removed: Vec<&'a Element>,
}

impl<'a> Deltas<'a> {
    /// Returns the changes of a set: those of the last one, or of a new one.
    fn of(&mut self, set: &'a SetKey) -> &mut Delta<'a> {
        if self.0.last().is_none_or(|(last, _)| *last != set) {
            self.0.push((set, Delta::default()));
        }
        let last = self.0.len() - 1;

        &mut self.0[last].1
    }
}

impl Builder {
    /// Deletes whole tables.
    pub(super) fn delete_tables(&mut self, tables: impl IntoIterator<Item = NftFamily>) {
        for family in tables {
            self.transaction.delete_table(family);
        }
    }

    /// Adds the tables that are not there.
    pub(super) fn add_tables(&mut self, flags: u32) {
        for family in FAMILIES {
            if !self.held.tables.contains_key(&family) {
                self.transaction.add_table(family, flags);
                self.held.tables.insert(family, flags);
            }
        }
    }

    /// Adds the steps for all changes: what is set comes first. Chains stand empty before the elements that lead
    /// into them, and are filled last.
    pub(super) fn build(&mut self, changes: &[Change<NftKey, NftRow>]) -> Result<(), NftError> {
        let (mut deltas, mut chains) = (Deltas::default(), Vec::<(&ChainKey, &ChainRow)>::new());
        let (mut dead_sets, mut dead_chains) = (Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::Set(NftKey::Set(key), NftRow::Set(kind)) => self.set_set(key, *kind)?,
                Change::Set(NftKey::Chain(key), NftRow::Chain(row)) => chains.push((key, row)),
                Change::Set(NftKey::Element(set, element), _) => {
                    deltas.of(set).added.push(element);
                }
                // A key always comes with a row of its own sort: `Rows` pairs them.
                Change::Set(NftKey::Set(_) | NftKey::Chain(_), _) => {}
                Change::Unset(NftKey::Element(set, element)) => {
                    deltas.of(set).removed.push(element);
                }
                Change::Unset(NftKey::Set(key)) => dead_sets.push(key),
                Change::Unset(NftKey::Chain(key)) => dead_chains.push(key),
            }
        }

        for (key, row) in &chains {
            self.set_hook(key, row.hook.as_ref());
        }
        for (set, delta) in deltas.0 {
            self.change_elements(set, delta)?;
        }
        self.set_chains(&chains);
        self.unset_chains(&dead_chains);
        self.unset_sets(&dead_sets);

        Ok(())
    }

    fn set_set(&mut self, key: &SetKey, kind: SetKind) -> Result<(), NftError> {
        match self.held.sets.get(key) {
            Some(held) if held.kind == kind => {}
            Some(_) => {
                return Err(NftError::Refused {
                    step: format!("set {}", key.name),
                    reason: "a set of this name holds something else".to_owned(),
                });
            }
            None => {
                self.transaction.add_set(key, kind);
                let held = HeldSet {
                    kind,
                    elements: BTreeSet::new(),
                };
                self.held.sets.insert(key.clone(), held);
            }
        }

        Ok(())
    }

    fn change_elements(&mut self, key: &SetKey, delta: Delta<'_>) -> Result<(), NftError> {
        let Some(held) = self.held.sets.get_mut(key) else {
            return match delta.added.first() {
                None => Ok(()),
                Some(_) => Err(NftError::Refused {
                    step: format!("elements of set {}", key.name),
                    reason: "there is no such set".to_owned(),
                }),
            };
        };
        if let Some(element) = delta
            .added
            .iter()
            .find(|each| !element::fits(held.kind, each))
        {
            return Err(NftError::Element {
                set: key.name.to_string(),
                element: (*element).clone(),
            });
        }
        for element in &delta.removed {
            self.deferred.remove(&(key.clone(), (*element).clone()));
        }

        let (deleted, added) = settle(held, key, delta, &mut self.deferred);
        self.transaction
            .delete_elements(key, &deleted.iter().collect::<Vec<_>>());
        self.transaction
            .add_elements(key, &added.iter().collect::<Vec<_>>());

        Ok(())
    }

    /// Writes the rules of chains that are there, which may jump to any.
    fn set_chains(&mut self, chains: &[(&ChainKey, &ChainRow)]) {
        for (key, row) in chains {
            let held = self.held.chains.get(*key);
            if let (Some(chain), true) =
                (&row.chain, held.is_none_or(|held| !held.has_rules_of(row)))
            {
                self.set_rules(key, chain, held.is_some_and(|held| !held.is_empty()));
            }
            let present = row
                .hook
                .as_ref()
                .map(|hook| with_devices(hook, |name| self.existing.contains(name)));
            let row = ChainRow {
                hook: present,
                ..(*row).clone()
            };
            self.held.chains.insert((*key).clone(), row);
        }
    }

    fn set_rules(&mut self, key: &ChainKey, chain: &Chain, has_rules: bool) {
        if !has_rules {
            return self.transaction.add_rules(key, chain);
        }
        match self.edits.remove(key) {
            Some((edit, handles)) => self.transaction.edit_chain(key, chain, &edit, &handles),
            None => {
                self.transaction.flush_chain(key);
                self.transaction.add_rules(key, chain);
            }
        }
    }

    fn set_hook(&mut self, key: &ChainKey, hook: Option<&Hook>) {
        let present = hook.map(|hook| with_devices(hook, |name| self.existing.contains(name)));
        let absent: BTreeSet<InterfaceName> = hook
            .into_iter()
            .flat_map(transaction::devices)
            .filter(|name| !self.existing.contains(*name))
            .cloned()
            .collect();
        match absent.is_empty() {
            true => self.missing.remove(key),
            false => self.missing.insert(key.clone(), absent),
        };

        let held = self.held.chains.get(key).map(|held| held.hook.clone());
        match held {
            None => self.transaction.add_chain(key, present.as_ref()),
            Some(held) if held == present => {}
            Some(held) => self.change_hook(key, held.as_ref(), present.as_ref()),
        }
    }

    /// Changes a hook in place where only policy or devices differ, else makes the chain anew.
    fn change_hook(&mut self, key: &ChainKey, held: Option<&Hook>, wanted: Option<&Hook>) {
        let (Some(held), Some(wanted)) = (held, wanted) else {
            return self.remake_chain(key, wanted);
        };
        let bare = |hook: &Hook| {
            (
                with_devices(hook, |_| false).point,
                hook.priority,
                hook.kind,
            )
        };
        if bare(held) != bare(wanted) {
            return self.remake_chain(key, Some(wanted));
        }

        let had: BTreeSet<_> = transaction::devices(held).cloned().collect();
        let wants: BTreeSet<_> = transaction::devices(wanted).cloned().collect();
        self.grow_hook(key, &with_devices(wanted, |name| !had.contains(name)));
        let gone: BTreeSet<_> = had.difference(&wants).cloned().collect();
        if !gone.is_empty() {
            self.transaction.delete_devices(key, wanted, &gone);
        }
    }

    /// Sets the policy of a chain and adds devices to it.
    ///
    /// The kernel (`nf_tables_updchain`, seen in Linux 6.18) takes a device that a second chain of the
    /// table gets in one transaction for the same device twice: each further chain has a transaction of its own.
    fn grow_hook(&mut self, key: &ChainKey, fresh: &Hook) {
        let grows = transaction::devices(fresh).len() > 0;
        if grows && self.has_grown {
            let mut transaction = Transaction::default();
            transaction.add_chain(key, Some(fresh));
            self.later.push(transaction);
        } else {
            self.transaction.add_chain(key, Some(fresh));
            self.has_grown |= grows;
        }
    }

    /// Replaces a chain. Base chains have no callers, so nothing else is in the way.
    fn remake_chain(&mut self, key: &ChainKey, hook: Option<&Hook>) {
        self.transaction.flush_chain(key);
        self.transaction.delete_chain(key);
        self.transaction.add_chain(key, hook);
        self.held.chains.remove(key);
    }

    fn unset_chains(&mut self, chains: &[&ChainKey]) {
        let known: Vec<&ChainKey> = chains
            .iter()
            .copied()
            .filter(|key| self.held.chains.contains_key(*key))
            .collect();
        for key in &known {
            self.transaction.flush_chain(key);
        }
        for key in known {
            self.transaction.delete_chain(key);
            self.held.chains.remove(key);
            self.missing.remove(key);
        }
    }

    fn unset_sets(&mut self, sets: &[&SetKey]) {
        for key in sets {
            if self.held.sets.remove(*key).is_some() {
                self.transaction.delete_set(key);
                self.deferred.retain(|(set, _)| set != *key);
            }
        }
    }
}

/// Decides which elements really go and come, and notes them as done.
///
/// A network inside a larger one that is still there waits until that one goes; a network around
/// smaller ones takes their place at once.
fn settle(
    held: &mut HeldSet,
    key: &SetKey,
    delta: Delta<'_>,
    deferred: &mut BTreeSet<(SetKey, Element)>,
) -> (Vec<Element>, Vec<Element>) {
    let mut deleted: Vec<Element> = Vec::new();
    for element in &delta.removed {
        deleted.extend(held.elements.take(*element));
    }
    let freed = take_freed(held, key, deferred);

    let mut added = Vec::new();
    for element in freed.into_iter().chain(delta.added.into_iter().cloned()) {
        if held.elements.contains(&element) {
            continue;
        }
        let Element::Net(net) = &element else {
            if let Some(other) = verdict_of_same_key(held, &element) {
                held.elements.remove(&other);
                deleted.push(other);
            }
            held.elements.insert(element.clone());
            added.push(element);
            continue;
        };
        if covers(held, net) {
            deferred.insert((key.clone(), element));
            continue;
        }
        let inside = parts(held, net);
        for part in inside {
            held.elements.remove(&part);
            match added.iter().position(|each| *each == part) {
                Some(index) => drop(added.remove(index)),
                None => deleted.push(part),
            }
        }
        held.elements.insert(element.clone());
        added.push(element);
    }

    (deleted, added)
}

/// Returns the entry of a map whose place this one takes: a key has one verdict at a time.
fn verdict_of_same_key(held: &HeldSet, element: &Element) -> Option<Element> {
    let Element::InterfaceVerdict(name, _) = element else {
        return None;
    };
    // `Accept` is the least verdict there is.
    let least = Element::InterfaceVerdict(name.clone(), Verdict::Accept);
    let found = held.elements.range(least..).next()?;

    matches!(found, Element::InterfaceVerdict(other, _) if other == name).then(|| found.clone())
}

/// Takes the deferred networks around which nothing larger is left.
fn take_freed(
    held: &HeldSet,
    key: &SetKey,
    deferred: &mut BTreeSet<(SetKey, Element)>,
) -> Vec<Element> {
    let freed: Vec<Element> = deferred
        .iter()
        .filter(|(set, _)| set == key)
        .map(|(_, element)| element.clone())
        .filter(|element| !matches!(element, Element::Net(net) if covers(held, net)))
        .collect();
    for element in &freed {
        deferred.remove(&(key.clone(), element.clone()));
    }

    freed
}

/// Returns whether a network that is there contains this one.
///
/// What is there does not overlap, and sorts by address: only the next before this one can contain it.
fn covers(held: &HeldSet, net: &IpNet) -> bool {
    let before = held.elements.range(..Element::Net(*net)).next_back();

    matches!(before, Some(Element::Net(wider)) if wider.contains(net))
}

/// Returns the networks that are there and inside this one.
fn parts(held: &HeldSet, net: &IpNet) -> Vec<Element> {
    // Networks sort by address and then by length: what is inside follows the network itself.
    held.elements
        .range(Element::Net(*net)..)
        .take_while(
            |element| matches!(element, Element::Net(other) if net.contains(&other.network())),
        )
        .cloned()
        .collect()
}
