//! Groups of the node's pods: those of whom the same is asked, and the chains that they share.
//!
//! A group is called after the least of its interfaces. So what is asked may change, and the chain stays; only where
//! the least interface comes or goes does the group move into a chain of another name, and all of it with it.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName,
    nft::{Name, Rule},
    policy::Direction,
};

use super::{
    Change,
    chain::{Chains, put, take_out},
    set::ChainId,
    slab::Slab,
};
use crate::compile::{Ruleset, group::Asked, name, verdict::key, workload};

/// A group's number.
pub(super) type GroupId = u32;

/// Who is asked, in which direction: what makes a group. `None`: more tiers pass than can be followed.
type Who = (Direction, Option<Vec<ChainId>>);

/// The groups of the node's pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    groups: Slab<Group>,
    by_who: BTreeMap<Who, GroupId>,
    /// Groups that may be asked otherwise now, or are called otherwise.
    touched: BTreeSet<GroupId>,
    /// What the rows have.
    chains: BTreeMap<String, Vec<Rule>>,
    effort: u64,
}

#[derive(Clone, Debug)]
struct Group {
    who: Who,
    members: BTreeSet<InterfaceName>,
    /// The chain that packets enter, as the rows have it.
    root: Name,
    /// The names of all its chains, as the rows have them.
    chains: Vec<String>,
}

impl Groups {
    /// Returns the group of which this is asked; its chains are written anew by the next [`flush`](Self::flush), and
    /// one without members does not outlive that.
    pub(super) fn find(&mut self, asked: &Asked<'_>, chains: &mut Chains) -> GroupId {
        let direction = asked.question.direction;
        let authors = asked.authors().map(|authors| {
            let authors = authors.into_iter();
            authors
                .map(|author| chains.number(author, direction))
                .collect()
        });
        let who: Who = (direction, authors);
        let id = match self.by_who.get(&who) {
            Some(id) => *id,
            None => {
                chains.hold(who.1.iter().flatten());
                let group = Group {
                    who: who.clone(),
                    members: BTreeSet::new(),
                    root: Name::default(),
                    chains: Vec::new(),
                };
                let id = self.groups.insert(group);
                self.by_who.insert(who, id);
                id
            }
        };
        self.touched.insert(id);

        id
    }

    /// An interface is one of a group's, until [`leave`](Self::leave).
    pub(super) fn enter(&mut self, id: GroupId, interface: &InterfaceName) {
        let members = &mut self.groups[id].members;
        members.insert(interface.clone());
        if members.first() == Some(interface) {
            self.touched.insert(id);
        }
    }

    pub(super) fn leave(&mut self, id: GroupId, interface: &InterfaceName) {
        let members = &mut self.groups[id].members;
        if members.first() == Some(interface) {
            self.touched.insert(id);
        }
        members.remove(interface);
    }

    /// Returns the name of the chain that a group's packets enter.
    pub(super) fn root(&self, id: GroupId) -> &Name {
        &self.groups[id].root
    }

    /// Writes what has changed since the last call; `ask` says what an interface of a group is asked. Returns the
    /// interfaces whose group has another name now.
    pub(super) fn flush<'a>(
        &mut self,
        mut ask: impl FnMut(GroupId, Direction, &InterfaceName) -> Option<Asked<'a>>,
        chains: &mut Chains,
        changes: &mut Vec<Change>,
    ) -> BTreeSet<InterfaceName> {
        let (mut renamed, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let mut now: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for id in std::mem::take(&mut self.touched) {
            let group = &mut self.groups[id];
            gone.extend(std::mem::take(&mut group.chains));
            let direction = group.who.0;
            let least = group.members.first();
            let Some(asked) = least.and_then(|least| ask(id, direction, least)) else {
                self.drop(id, chains);
                continue;
            };
            let root = name::of_group(workload::GROUP, direction, least);
            let written = asked.group(&root, Vec::new());
            if group.root != root {
                renamed.extend(group.members.iter().cloned());
                group.root = root.into();
            }
            group.chains = written.iter().map(|(name, _)| name.clone()).collect();
            now.extend(written);
        }
        gone.retain(|name| !now.contains_key(name));
        self.show(now, gone, changes);

        renamed
    }

    fn show(
        &mut self,
        now: BTreeMap<String, Vec<Rule>>,
        gone: BTreeSet<String>,
        changes: &mut Vec<Change>,
    ) {
        for (name, rules) in now {
            self.effort += rules.len() as u64;
            if self.chains.get(&name) != Some(&rules) {
                changes.push(put(&name, &rules));
                self.chains.insert(name, rules);
            }
        }
        for name in gone {
            if self.chains.remove(&name).is_some() {
                changes.push(take_out(&name));
            }
        }
    }

    fn drop(&mut self, id: GroupId, chains: &mut Chains) {
        if let Some(group) = self.groups.remove(id) {
            chains.release(group.who.1.iter().flatten());
            self.by_who.remove(&group.who);
        }
    }

    /// Returns how many rules were written.
    pub(super) const fn effort(&self) -> u64 {
        self.effort
    }

    /// Writes every row that is there.
    pub(super) fn rows(&self, rows: &mut Ruleset) {
        for (name, rules) in &self.chains {
            let chain = super::chain::chain(rules.clone());
            rows.chains.insert(key(name), chain);
        }
    }
}
