//! Sets that rules speak of, with what is in them, kept up to date member by member.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{
    Family, Selector,
    nft::{Element, SetKey, SetKind},
    policy::ServiceRef,
};

use super::{
    Change, Row, RowKey,
    cover::{Counts, Cover},
    index::AskId,
    population::{Body, Population},
    service::Services,
    slab::Slab,
};
use crate::compile::{
    Refusal,
    set::{Meaning, Shape, key},
};

/// A set's number.
pub(super) type SetId = u32;

/// A chain's number.
pub(super) type ChainId = u32;

/// The sets that chains ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct Sets {
    sets: Slab<Set>,
    by_meaning: BTreeMap<Meaning, SetId>,
    by_ask: BTreeMap<AskId, BTreeSet<SetId>>,
    /// Sets that may have changed since the last change of rows.
    touched: BTreeSet<SetId>,
    most: usize,
    effort: u64,
}

#[derive(Clone, Debug)]
struct Set {
    meaning: Meaning,
    ask: Option<AskId>,
    content: Content,
    /// What chains were told when they asked.
    told: Result<(), Refusal>,
    shape: Shape,
    askers: BTreeSet<ChainId>,
    /// How many chains have rules that speak of it.
    speakers: usize,
    /// Its name and kind in the rows.
    shown: Option<(String, SetKind)>,
    /// Elements that may differ from those in the rows, with whether they are there.
    pending: BTreeMap<Element, bool>,
    /// What the rows have of the set, where its shape has changed since.
    former: Option<BTreeSet<Element>>,
}

#[derive(Clone, Debug)]
enum Content {
    /// How often each network is there.
    Nets {
        counts: Counts,
        /// How many of them are more than an address.
        wide: usize,
        /// What they cover, where one is more than an address.
        cover: Option<Cover>,
    },
    /// How often each element is there.
    Pairs(BTreeMap<Element, u32>),
    Fixed(BTreeSet<Element>),
}

/// Whether something comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Comes,
    Goes,
}

impl Sets {
    /// Sets how many elements a set may have.
    pub(super) fn limit(&mut self, most: usize) {
        if most != self.most {
            self.most = most;
            self.touched.extend(self.by_meaning.values());
        }
    }

    /// Returns the number of the set of a meaning, and its name or why it can have none.
    pub(super) fn ask(
        &mut self,
        meaning: Meaning,
        asker: ChainId,
        population: &mut Population,
        services: &Services,
    ) -> (SetId, Result<String, Refusal>) {
        let id = match self.by_meaning.get(&meaning) {
            Some(id) => *id,
            None => self.make(meaning, population, services),
        };
        let set = &mut self.sets[id];
        set.askers.insert(asker);
        let name = set.told.clone().map(|()| set.meaning.title(set.shape).0);

        (id, name)
    }

    fn make(
        &mut self,
        meaning: Meaning,
        population: &mut Population,
        services: &Services,
    ) -> SetId {
        let selector = selector_of(&meaning);
        let ask = selector.map(|selector| {
            let Population {
                words, kins, index, ..
            } = population;
            index.ask(&selector, kins, words)
        });
        let (shape, fixed) = meaning.fixed(services.backends_of(&meaning));
        let content = match &meaning {
            Meaning::Selected(..) => Content::Nets {
                counts: Counts::new(),
                wide: 0,
                cover: None,
            },
            Meaning::Named { .. } => Content::Pairs(BTreeMap::new()),
            Meaning::Nets(..)
            | Meaning::Answering(..)
            | Meaning::Serving(..)
            | Meaning::Ports(_) => Content::Fixed(fixed),
        };
        let mut set = Set {
            meaning: meaning.clone(),
            ask,
            content,
            told: Ok(()),
            shape,
            askers: BTreeSet::new(),
            speakers: 0,
            shown: None,
            pending: BTreeMap::new(),
            former: None,
        };
        for body in ask.iter().flat_map(|ask| population.selected_by(*ask)) {
            self.effort += set.count(body, Way::Comes);
        }
        set.shape = set.current_shape();
        set.told = set.check(self.most);
        let id = self.sets.insert(set);
        self.by_meaning.insert(meaning, id);
        if let Some(ask) = ask {
            self.by_ask.entry(ask).or_default().insert(id);
        }
        self.touched.insert(id);

        id
    }

    /// Somebody whom a selector selects comes or goes.
    pub(super) fn count(&mut self, ask: AskId, body: &Body, way: Way) {
        for id in self.by_ask.get(&ask).into_iter().flatten() {
            let changed = self.sets[*id].count(body, way);
            self.effort += changed;
            if changed > 0 {
                self.touched.insert(*id);
            }
        }
    }

    /// Who answers for a service has changed.
    pub(super) fn serve(&mut self, service: &ServiceRef, services: &Services) {
        for family in Family::BOTH {
            for meaning in [
                Meaning::Answering(service.clone(), family),
                Meaning::Serving(service.clone(), family),
            ] {
                if let Some(id) = self.by_meaning.get(&meaning) {
                    let (_, elements) = meaning.fixed(services.backends_of(&meaning));
                    self.effort += elements.len() as u64;
                    self.sets[*id].replace(elements);
                    self.touched.insert(*id);
                }
            }
        }
    }

    /// A chain no longer asks for a set.
    pub(super) fn unask(&mut self, id: SetId, asker: ChainId) {
        self.sets[id].askers.remove(&asker);
        self.touched.insert(id);
    }

    /// Rules that speak of a set come or go.
    pub(super) fn speak(&mut self, id: SetId, way: Way) {
        let set = &mut self.sets[id];
        match way {
            Way::Comes => set.speakers += 1,
            Way::Goes => set.speakers -= 1,
        }
        self.touched.insert(id);
    }

    /// Returns the chains that must ask again, because a set has another name now, or none.
    pub(super) fn told_otherwise(&mut self) -> BTreeSet<ChainId> {
        let mut askers = BTreeSet::new();
        for id in &self.touched {
            let set = &mut self.sets[*id];
            let shape = set.current_shape();
            let told = set.check(self.most);
            if told != set.told || shape != set.shape {
                set.told = told;
                set.shape = shape;
                askers.extend(set.askers.iter().copied());
            }
        }

        askers
    }

    /// Writes what has changed since the last call, and forgets the sets that no chain asks for.
    pub(super) fn flush(&mut self, population: &mut Population, changes: &mut Vec<Change>) {
        for id in std::mem::take(&mut self.touched) {
            self.sets[id].flush(changes);
            if !self.sets[id].askers.is_empty() {
                continue;
            }
            let Some(set) = self.sets.remove(id) else {
                continue;
            };
            self.by_meaning.remove(&set.meaning);
            let Some(ask) = set.ask else {
                continue;
            };
            if let Some(sets) = self.by_ask.get_mut(&ask) {
                sets.remove(&id);
                if sets.is_empty() {
                    self.by_ask.remove(&ask);
                }
            }
            population.index.drop(ask, &mut population.words);
        }
    }

    /// Returns how many elements were looked at.
    pub(super) const fn effort(&self) -> u64 {
        self.effort
    }

    /// Writes every row that is there.
    pub(super) fn rows(&self, rows: &mut crate::compile::Ruleset) {
        for set in self.sets.iter() {
            let Some((name, kind)) = &set.shown else {
                continue;
            };
            let key = key(name);
            rows.sets.insert(key.clone(), *kind);
            let elements = set.elements().into_iter();
            rows.elements
                .extend(elements.map(|element| (key.clone(), element)));
        }
    }
}

/// Returns the selector whose members are in a set.
fn selector_of(meaning: &Meaning) -> Option<Selector> {
    match meaning {
        Meaning::Selected(selector, _) => Some(selector.clone()),
        Meaning::Named { selector, .. } => Some(selector.clone().unwrap_or_else(Selector::all)),
        Meaning::Nets(..) | Meaning::Answering(..) | Meaning::Serving(..) | Meaning::Ports(_) => {
            None
        }
    }
}

impl Set {
    /// Counts a member in or out; returns how many elements were looked at.
    fn count(&mut self, body: &Body, way: Way) -> u64 {
        let mut effort = 0;
        match &self.meaning {
            Meaning::Selected(_, family) => {
                let family = *family;
                for net in body.nets.iter().filter(|net| Family::of_net(net) == family) {
                    effort += 1;
                    self.count_net(*net, family, way);
                }
            }
            Meaning::Named { .. } => {
                let pairs: Vec<Element> = self.meaning.pairs(&body.nets, &body.ports).collect();
                effort += pairs.len() as u64;
                for pair in pairs {
                    self.count_pair(pair, way);
                }
            }
            Meaning::Nets(..)
            | Meaning::Answering(..)
            | Meaning::Serving(..)
            | Meaning::Ports(_) => {}
        }

        effort
    }

    fn count_pair(&mut self, pair: Element, way: Way) {
        let Content::Pairs(counts) = &mut self.content else {
            return;
        };
        let was = counts.contains_key(&pair);
        let is = count(counts, &pair, way);
        if was != is && self.shown.is_some() {
            self.pending.entry(pair).or_insert(was);
        }
    }

    fn count_net(&mut self, net: IpNet, family: Family, way: Way) {
        let Content::Nets { counts, wide, .. } = &mut self.content else {
            return;
        };
        let was = counts.contains_key(&net);
        let is = way == Way::Comes || counts.get(&net).is_some_and(|count| *count > 1);
        let is_wide = net.prefix_len() < family.bits();
        let before = *wide;
        let after = match (is_wide && was != is, way) {
            (false, _) => before,
            (true, Way::Comes) => before + 1,
            (true, Way::Goes) => before - 1,
        };
        if (before == 0) != (after == 0) {
            self.keep_former();
        }
        let Content::Nets {
            counts,
            wide,
            cover,
        } = &mut self.content
        else {
            return;
        };
        count(counts, &net, way);
        *wide = after;
        let is_noted = self.shown.is_some() && self.former.is_none();
        let pending = &mut self.pending;
        let mut note = |element, was| {
            if is_noted {
                pending.entry(element).or_insert(was);
            }
        };
        match (after > 0, cover.as_mut()) {
            (false, _) => {
                *cover = None;
                if was != is {
                    note(Element::Address(net.addr()), was);
                }
            }
            (true, None) => *cover = Some(Cover::of(counts)),
            (true, Some(_)) if was == is => {}
            (true, Some(cover)) => {
                let mut tell = |net, was| note(Element::Net(net), was);
                match way {
                    Way::Comes => cover.add(net, &mut tell),
                    Way::Goes => cover.remove(net, counts, &mut tell),
                }
            }
        }
    }

    /// Puts elements in the place of all that were there.
    fn replace(&mut self, elements: BTreeSet<Element>) {
        let Content::Fixed(known) = &mut self.content else {
            return;
        };
        if self.shown.is_some() {
            for element in known.symmetric_difference(&elements) {
                let was = known.contains(element);
                self.pending.entry(element.clone()).or_insert(was);
            }
        }
        *known = elements;
    }

    /// Keeps what the rows have, before the elements become others altogether.
    fn keep_former(&mut self) {
        if self.shown.is_none() || self.former.is_some() {
            return;
        }
        self.former = Some(self.in_rows());
        self.pending.clear();
    }

    /// Returns what the rows have.
    fn in_rows(&self) -> BTreeSet<Element> {
        if let Some(former) = &self.former {
            return former.clone();
        }
        let mut elements = self.elements();
        for (element, was) in &self.pending {
            if *was {
                elements.insert(element.clone());
            } else {
                elements.remove(element);
            }
        }

        elements
    }

    fn elements(&self) -> BTreeSet<Element> {
        match &self.content {
            Content::Nets {
                cover: Some(cover), ..
            } => cover.nets().iter().copied().map(Element::Net).collect(),
            Content::Nets { counts, .. } => {
                let nets = counts.keys();
                nets.map(|net| Element::Address(net.addr())).collect()
            }
            Content::Pairs(counts) => counts.keys().cloned().collect(),
            Content::Fixed(elements) => elements.clone(),
        }
    }

    fn has(&self, element: &Element) -> bool {
        match (&self.content, element) {
            (
                Content::Nets {
                    cover: Some(cover), ..
                },
                Element::Net(net),
            ) => cover.nets().contains(net),
            (Content::Nets { counts, cover, .. }, Element::Address(address)) => {
                cover.is_none() && counts.contains_key(&IpNet::from(*address))
            }
            (Content::Nets { .. }, _) => false,
            (Content::Pairs(counts), pair) => counts.contains_key(pair),
            (Content::Fixed(elements), element) => elements.contains(element),
        }
    }

    fn len(&self) -> usize {
        match &self.content {
            Content::Nets {
                cover: Some(cover), ..
            } => cover.nets().len(),
            Content::Nets { counts, .. } => counts.len(),
            Content::Pairs(counts) => counts.len(),
            Content::Fixed(elements) => elements.len(),
        }
    }

    fn current_shape(&self) -> Shape {
        match &self.content {
            Content::Nets { cover: Some(_), .. } => Shape::Wide,
            Content::Nets { cover: None, .. } => Shape::Single,
            Content::Pairs(_) | Content::Fixed(_) => self.shape,
        }
    }

    fn check(&self, most: usize) -> Result<(), Refusal> {
        let found = self.len();
        if found > most {
            return Err(Refusal::TooManyElements { found, most });
        }

        Ok(())
    }

    fn flush(&mut self, changes: &mut Vec<Change>) {
        self.shape = self.current_shape();
        let title = (self.speakers > 0).then(|| self.meaning.title(self.shape));
        if title == self.shown {
            self.flush_elements(changes);
        } else {
            if let Some((name, _)) = &self.shown {
                let key = key(name);
                let gone = self.in_rows().into_iter();
                changes.extend(gone.map(|element| unset(&key, element)));
                changes.push(Change::Unset(RowKey::Set(key)));
            }
            if let Some((name, kind)) = &title {
                let key = key(name);
                changes.push(Change::Set(Row::Set(key.clone(), *kind)));
                let new = self.elements().into_iter();
                changes.extend(new.map(|element| set(&key, element)));
            }
            self.shown = title;
        }
        self.pending.clear();
        self.former = None;
    }

    fn flush_elements(&self, changes: &mut Vec<Change>) {
        let Some((name, _)) = &self.shown else {
            return;
        };
        let key = key(name);
        if let Some(former) = &self.former {
            let now = self.elements();
            let new = now.difference(former).cloned();
            changes.extend(new.map(|element| set(&key, element)));
            let gone = former.difference(&now).cloned();
            changes.extend(gone.map(|element| unset(&key, element)));
            return;
        }
        for (element, was) in &self.pending {
            match (*was, self.has(element)) {
                (false, true) => changes.push(set(&key, element.clone())),
                (true, false) => changes.push(unset(&key, element.clone())),
                (true, true) | (false, false) => {}
            }
        }
    }
}

fn set(key: &SetKey, element: Element) -> Change {
    Change::Set(Row::Element(key.clone(), element))
}

fn unset(key: &SetKey, element: Element) -> Change {
    Change::Unset(RowKey::Element(key.clone(), element))
}

/// Counts one in or out; returns whether there is one now.
fn count<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: &K, way: Way) -> bool {
    match way {
        Way::Comes => {
            *counts.entry(key.clone()).or_insert(0) += 1;
            true
        }
        Way::Goes => {
            let Some(left) = counts.get_mut(key) else {
                return false;
            };
            *left -= 1;
            if *left == 0 {
                counts.remove(key);
                return false;
            }
            true
        }
    }
}
