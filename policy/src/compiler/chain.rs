//! Chains in use: of policies and profiles.

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
    family::Families,
    spoken_of,
    verdict::{Admission, Author, key},
};

/// Chains, for as long as an endpoint's way leads through them.
#[derive(Clone, Debug, Default)]
pub(super) struct Chains {
    chains: Slab<Authored>,
    by_author: BTreeMap<(ObjectKey, Direction), ChainId>,
    admissions: BTreeSet<Admission>,
    /// How many chains lead to each admission.
    leading: BTreeMap<Admission, usize>,
    /// Chains whose rules may have changed, or which nobody may use any more.
    touched: BTreeSet<ChainId>,
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

/// What chains are written from.
pub(super) struct Sources<'a> {
    pub(super) book: &'a Book,
    pub(super) options: &'a Options,
    /// The families of which anybody is there.
    pub(super) known: Families,
    pub(super) services: &'a Services,
    pub(super) population: &'a mut Population,
    pub(super) sets: &'a mut Sets,
}

impl Chains {
    /// Returns the number of an author's chain, which is there for as long as it is held, or until the next
    /// [`flush`](Self::flush).
    pub(super) fn number(&mut self, author: Author<'_>, direction: Direction) -> ChainId {
        let by = (author.key(), direction);
        if let Some(id) = self.by_author.get(&by).copied() {
            return id;
        }
        let id = self.chains.insert(Authored {
            author: by.0.clone(),
            direction,
            name: author.chain(direction),
            users: 0,
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

    /// Somebody leads to these chains, until [`release`](Self::release).
    pub(super) fn hold<'a>(&mut self, chains: impl IntoIterator<Item = &'a ChainId>) {
        for id in chains {
            self.chains[*id].users += 1;
        }
    }

    /// Ends a hold.
    pub(super) fn release<'a>(&mut self, chains: impl IntoIterator<Item = &'a ChainId>) {
        for id in chains {
            let chain = &mut self.chains[*id];
            chain.users -= 1;
            if chain.users == 0 {
                self.touched.insert(*id);
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
        let (rules, refusal) =
            author.write(chain.direction, sources.known, sources.options, &mut naming);
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
        for (name, rules) in authored {
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

pub(super) fn put(name: &str, rules: &[Rule]) -> Change {
    Change::Set(Row::Chain(key(name), chain(rules.to_vec())))
}

pub(super) fn take_out(name: &str) -> Change {
    Change::Unset(RowKey::Chain(key(name)))
}

pub(super) fn chain(rules: Vec<Rule>) -> Chain {
    Chain {
        hook: None,
        rules: rules.into(),
    }
}
