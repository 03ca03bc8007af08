//! Chains in use: of policies and profiles, and of the groups that ask them.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    ObjectKey,
    nft::{Chain, Rule},
    policy::Direction,
};

use super::{
    Change, Row, RowKey,
    book::Book,
    population::Population,
    service::Services,
    set::{ChainId, SetId, Sets, Way},
    slab::Slab,
};
use crate::compile::{
    Options, Ruleset,
    group::Group,
    spoken_of,
    verdict::{Admission, key},
};

/// Chains, for as long as an endpoint's way leads through them.
#[derive(Clone, Debug, Default)]
pub(super) struct Chains {
    chains: Slab<Authored>,
    by_author: BTreeMap<(ObjectKey, Direction), ChainId>,
    groups: BTreeMap<String, Grouped>,
    admissions: BTreeSet<Admission>,
    /// How many chains lead to each admission.
    leading: BTreeMap<Admission, usize>,
    /// Chains whose rules may have changed, or which nobody may use any more.
    touched: BTreeSet<ChainId>,
    touched_groups: BTreeSet<String>,
    /// Who cannot be compiled, and why.
    refused: BTreeMap<ObjectKey, String>,
    effort: u64,
}

/// A chain with an author.
#[derive(Clone, Debug)]
struct Authored {
    author: ObjectKey,
    direction: Direction,
    name: String,
    users: usize,
    /// What the rows have.
    rules: Option<Vec<Rule>>,
    asked: BTreeSet<SetId>,
    spoken: BTreeSet<SetId>,
    admits: Option<Admission>,
    refusal: Option<String>,
}

#[derive(Clone, Debug)]
struct Grouped {
    rules: Vec<Rule>,
    users: usize,
    is_shown: bool,
}

/// What leads an endpoint's packets: the chain that they enter, and all that it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lead {
    /// The name of the first.
    pub(super) root: String,
    groups: Vec<String>,
    chains: Vec<ChainId>,
}

/// What chains are written from.
pub(super) struct Sources<'a> {
    pub(super) book: &'a Book,
    pub(super) options: &'a Options,
    pub(super) services: &'a Services,
    pub(super) population: &'a mut Population,
    pub(super) sets: &'a mut Sets,
}

impl Chains {
    /// Holds a group's chains and all that they lead to, until [`release`](Self::release).
    pub(super) fn hold(&mut self, group: Group<'_>) -> Lead {
        let mut lead = Lead {
            root: group.root,
            ..Lead::default()
        };
        for author in group.authors {
            let name = || author.chain(group.direction);
            lead.chains
                .push(self.hold_author(author.key(), group.direction, name));
        }
        for (name, rules) in group.chains {
            self.effort += rules.len() as u64;
            let known = self.groups.entry(name.clone()).or_insert(Grouped {
                rules,
                users: 0,
                is_shown: false,
            });
            known.users += 1;
            if !known.is_shown {
                self.touched_groups.insert(name.clone());
            }
            lead.groups.push(name);
        }

        lead
    }

    fn hold_author(
        &mut self,
        author: ObjectKey,
        direction: Direction,
        name: impl FnOnce() -> String,
    ) -> ChainId {
        let by = (author, direction);
        if let Some(id) = self.by_author.get(&by).copied() {
            self.chains[id].users += 1;
            return id;
        }
        let id = self.chains.insert(Authored {
            author: by.0.clone(),
            direction,
            name: name(),
            users: 1,
            rules: None,
            asked: BTreeSet::new(),
            spoken: BTreeSet::new(),
            admits: None,
            refusal: None,
        });
        self.by_author.insert(by, id);
        self.touched.insert(id);

        id
    }

    /// Ends a hold.
    pub(super) fn release(&mut self, lead: Lead) {
        for name in lead.groups {
            if let Some(group) = self.groups.get_mut(&name) {
                group.users -= 1;
                if group.users == 0 {
                    self.touched_groups.insert(name);
                }
            }
        }
        for id in lead.chains {
            let chain = &mut self.chains[id];
            chain.users -= 1;
            if chain.users == 0 {
                self.touched.insert(id);
            }
        }
    }

    /// An author says something else now.
    pub(super) fn rewrite(&mut self, author: &ObjectKey) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let by = (author.clone(), direction);
            self.touched.extend(self.by_author.get(&by));
        }
    }

    /// Everything may be said in another way now.
    pub(super) fn rewrite_all(&mut self) {
        self.touched.extend(self.by_author.values());
    }

    /// Chains ask for sets that are now called otherwise.
    pub(super) fn ask_again(&mut self, chains: BTreeSet<ChainId>) {
        self.touched.extend(chains);
    }

    /// Writes what has changed since the last call, and forgets what nobody uses.
    pub(super) fn flush(&mut self, mut sources: Sources<'_>, changes: &mut Vec<Change>) {
        for id in std::mem::take(&mut self.touched) {
            if self.chains.get_mut(id).is_none() {
                continue;
            }
            if self.chains[id].users > 0 {
                self.write(id, &mut sources, changes);
            } else {
                self.drop(id, sources.sets, changes);
            }
        }
        for name in std::mem::take(&mut self.touched_groups) {
            self.flush_group(name, changes);
        }
        self.flush_admissions(changes);
    }

    fn write(&mut self, id: ChainId, sources: &mut Sources<'_>, changes: &mut Vec<Change>) {
        let chain = &mut self.chains[id];
        let Some(author) = sources.book.author(&chain.author) else {
            return;
        };
        let mut asked: BTreeSet<SetId> = BTreeSet::new();
        let mut names: BTreeMap<String, SetId> = BTreeMap::new();
        let mut naming = |meaning| {
            let (set, name) = sources
                .sets
                .ask(meaning, id, sources.population, sources.services);
            asked.insert(set);
            if let Ok(name) = &name {
                names.insert(name.clone(), set);
            }
            name
        };
        let (rules, refusal) = author.write(chain.direction, sources.options, &mut naming);
        self.effort += rules.len() as u64;
        let spoken = rules.iter().flat_map(spoken_of);
        let spoken = spoken
            .filter_map(|name| names.get(name.as_str()).copied())
            .collect();
        chain.replace_sets(id, asked, spoken, sources.sets);
        let author = chain.author.clone();
        let refusal = refusal.map(|refusal| refusal.to_string());
        let is_noted = refusal == chain.refusal;
        chain.refusal = refusal;
        let admits = rules.iter().find_map(Admission::of);
        count(
            &mut self.leading,
            std::mem::replace(&mut chain.admits, admits),
            admits,
        );
        if chain.rules.as_ref() != Some(&rules) {
            changes.push(put(&chain.name, &rules));
            chain.rules = Some(rules);
        }
        if !is_noted {
            self.note(author);
        }
    }

    /// Notes why an author cannot be compiled, or that it can be.
    fn note(&mut self, author: ObjectKey) {
        let refusals = [Direction::Ingress, Direction::Egress].map(|direction| {
            let id = self.by_author.get(&(author.clone(), direction))?;
            self.chains[*id].refusal.clone()
        });
        match refusals.into_iter().flatten().next() {
            Some(refusal) => self.refused.insert(author, refusal),
            None => self.refused.remove(&author),
        };
    }

    fn drop(&mut self, id: ChainId, sets: &mut Sets, changes: &mut Vec<Change>) {
        let Some(mut chain) = self.chains.remove(id) else {
            return;
        };
        chain.replace_sets(id, BTreeSet::new(), BTreeSet::new(), sets);
        count(&mut self.leading, chain.admits, None);
        if chain.rules.is_some() {
            changes.push(take_out(&chain.name));
        }
        self.by_author
            .remove(&(chain.author.clone(), chain.direction));
        if chain.refusal.is_some() {
            self.note(chain.author);
        }
    }

    fn flush_group(&mut self, name: String, changes: &mut Vec<Change>) {
        let Some(group) = self.groups.get_mut(&name) else {
            return;
        };
        match (group.users > 0, group.is_shown) {
            (true, true) => {}
            (true, false) => {
                group.is_shown = true;
                changes.push(put(&name, &group.rules));
            }
            (false, is_shown) => {
                if is_shown {
                    changes.push(take_out(&name));
                }
                self.groups.remove(&name);
            }
        }
    }

    fn flush_admissions(&mut self, changes: &mut Vec<Change>) {
        let wanted: BTreeSet<Admission> = self.leading.keys().copied().collect();
        for admission in self.admissions.symmetric_difference(&wanted) {
            let (name, rules) = admission.chain();
            changes.push(if wanted.contains(admission) {
                put(&name, &rules)
            } else {
                take_out(&name)
            });
        }
        self.admissions = wanted;
    }

    /// Returns who cannot be compiled, and why.
    pub(super) const fn refused(&self) -> &BTreeMap<ObjectKey, String> {
        &self.refused
    }

    /// Returns how many rules were written.
    pub(super) const fn effort(&self) -> u64 {
        self.effort
    }

    /// Writes every row that is there.
    pub(super) fn rows(&self, rows: &mut Ruleset) {
        let authored = self.chains.iter();
        let authored = authored.filter_map(|chain| Some((&chain.name, chain.rules.as_ref()?)));
        let groups = self.groups.iter();
        let groups = groups
            .filter(|(_, group)| group.is_shown)
            .map(|(name, group)| (name, &group.rules));
        for (name, rules) in authored.chain(groups) {
            rows.chains.insert(key(name), chain(rules.clone()));
        }
        for (name, rules) in self.admissions.iter().map(|admission| admission.chain()) {
            rows.chains.insert(key(&name), chain(rules));
        }
    }
}

impl Authored {
    fn replace_sets(
        &mut self,
        id: ChainId,
        asked: BTreeSet<SetId>,
        spoken: BTreeSet<SetId>,
        sets: &mut Sets,
    ) {
        for set in spoken.difference(&self.spoken) {
            sets.speak(*set, Way::Comes);
        }
        for set in self.spoken.difference(&spoken) {
            sets.speak(*set, Way::Goes);
        }
        for set in self.asked.difference(&asked) {
            sets.unask(*set, id);
        }
        self.asked = asked;
        self.spoken = spoken;
    }
}

fn count(
    leading: &mut BTreeMap<Admission, usize>,
    former: Option<Admission>,
    now: Option<Admission>,
) {
    if let Some(now) = now {
        *leading.entry(now).or_insert(0) += 1;
    }
    if let Some(former) = former
        && let Some(count) = leading.get_mut(&former)
    {
        *count -= 1;
        if *count == 0 {
            leading.remove(&former);
        }
    }
}

fn put(name: &str, rules: &[Rule]) -> Change {
    Change::Set(Row::Chain(key(name), chain(rules.to_vec())))
}

fn take_out(name: &str) -> Change {
    Change::Unset(RowKey::Chain(key(name)))
}

fn chain(rules: Vec<Rule>) -> Chain {
    Chain {
        hook: None,
        rules: rules.into(),
    }
}
