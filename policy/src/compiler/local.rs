//! The node's own endpoints: which chains their packets enter.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName, ObjectKey, PodName,
    nft::{Element, Name, Verdict},
    policy::{Direction, Directions, HostEndpoint},
};

use super::{
    Change, Row, RowKey,
    book::Book,
    chain::Chains,
    condition::Labels,
    group::{GroupId, Groups},
    index::Index,
    kin::{KinId, MemberId},
    population::Population,
    set::ChainId,
};
use crate::{
    cluster::Interface,
    compile::{
        Options, Ruleset, chosen,
        group::{Asked, Question},
        host,
        set::key,
        verdict::Author,
        workload::{self, EGRESS_MAP, INGRESS_MAP},
    },
};

/// The node's own endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Locals {
    /// Which policies' selectors select whom of them.
    pub(super) index: Index,
    kins: BTreeMap<KinId, Local>,
    claims: BTreeMap<InterfaceName, BTreeSet<Claim>>,
    /// Who has an interface, of those that claim it.
    owners: BTreeMap<InterfaceName, KinId>,
    groups: Groups,
    doors: BTreeMap<InterfaceName, Door>,
    /// The hosts' endpoints, by name.
    hosts: BTreeMap<String, KinId>,
    host_rows: Ruleset,
    /// The chains that the hosts' packets are led to.
    host_leads: Vec<ChainId>,
    /// Whose policy may be another, and for which direction.
    stale: BTreeMap<KinId, Directions>,
    stale_doors: BTreeSet<InterfaceName>,
    hosts_are_stale: bool,
}

/// A kin of which somebody is on this node.
#[derive(Clone, Debug, Default)]
struct Local {
    users: usize,
    /// The interfaces of its pods.
    doors: BTreeSet<InterfaceName>,
    /// Of what they send and of what they get; none without interfaces.
    groups: [Option<GroupId>; 2],
}

/// An interface of a pod's: what it sends, and what it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Door {
    groups: [GroupId; 2],
    /// The chains that packets enter, as the rows have it.
    roots: [Option<Name>; 2],
}

/// A pod that says that an interface is its own. The first has it: the pod after which it is named, else the first by
/// name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) is_stranger: bool,
    pub(super) pod: PodName,
    pub(super) object: ObjectKey,
    pub(super) member: MemberId,
}

/// What pods send, and what they get.
const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// The maps that know interfaces, and for which of a door's groups.
const PLACES: [(&str, usize); 2] = [(EGRESS_MAP, 0), (INGRESS_MAP, 1)];

/// Both directions.
pub(super) const BOTH: Directions = Directions {
    ingress: true,
    egress: true,
};

impl Locals {
    /// Somebody of a kin is on this node, until [`release`](Self::release).
    pub(super) fn hold(&mut self, kin: KinId, population: &Population) {
        let local = self.kins.entry(kin).or_default();
        local.users += 1;
        if local.users == 1 {
            let labels = population.kins.labels(kin);
            self.index.enter(kin, labels, &population.words);
            self.stale.insert(kin, BOTH);
        }
    }

    pub(super) fn release(&mut self, kin: KinId, population: &Population) {
        let Some(local) = self.kins.get_mut(&kin) else {
            return;
        };
        local.users -= 1;
        if local.users > 0 {
            return;
        }
        self.kins.remove(&kin);
        self.stale.remove(&kin);
        self.index.leave(kin, population.kins.labels(kin));
    }

    pub(super) fn claim(&mut self, interface: &InterfaceName, claim: Claim) {
        let claims = self.claims.entry(interface.clone()).or_default();
        claims.insert(claim);
    }

    pub(super) fn disclaim(&mut self, interface: &InterfaceName, member: MemberId) {
        if let Some(claims) = self.claims.get_mut(interface) {
            claims.retain(|claim| claim.member != member);
            if claims.is_empty() {
                self.claims.remove(interface);
            }
        }
    }

    /// Finds out who has an interface.
    pub(super) fn settle(&mut self, interface: &InterfaceName, population: &Population) {
        let claims = self.claims.get(interface);
        let first = claims.and_then(BTreeSet::first);
        let owner = first.map(|claim| population.member(claim.member).kin);
        if self.owners.get(interface).copied() == owner {
            return;
        }
        let former = match owner {
            Some(kin) => self.owners.insert(interface.clone(), kin),
            None => self.owners.remove(interface),
        };
        for kin in former.into_iter().chain(owner) {
            if let Some(local) = self.kins.get_mut(&kin) {
                let was_empty = local.doors.is_empty();
                if owner == Some(kin) {
                    local.doors.insert(interface.clone());
                } else {
                    local.doors.remove(interface);
                }
                if was_empty != local.doors.is_empty() {
                    self.stale.insert(kin, BOTH);
                }
            }
        }
        self.stale_doors.insert(interface.clone());
    }

    /// Puts a host's endpoint in, or takes it out; returns the kin that it had.
    pub(super) fn set_host(&mut self, name: &str, kin: Option<KinId>) -> Option<KinId> {
        self.hosts_are_stale = true;
        match kin {
            Some(kin) => self.hosts.insert(name.to_owned(), kin),
            None => self.hosts.remove(name),
        }
    }

    /// The labels of a kin are others now.
    pub(super) fn relabel(&mut self, kin: KinId, former: &Labels, population: &Population) {
        if !self.kins.contains_key(&kin) {
            return;
        }
        let labels = population.kins.labels(kin);
        let turn = self.index.relabel(kin, former, labels, &population.words);
        if !turn.left.is_empty() || !turn.joined.is_empty() {
            self.mark(kin, BOTH);
        }
    }

    /// The policy of a kin, if it is on this node, may be another in some directions.
    pub(super) fn mark(&mut self, kin: KinId, directions: Directions) {
        if !self.kins.contains_key(&kin) {
            return;
        }
        let stale = self.stale.entry(kin).or_default();
        stale.ingress |= directions.ingress;
        stale.egress |= directions.egress;
        self.hosts_are_stale |= self.hosts.values().any(|host| *host == kin);
    }

    /// The policy of everybody may be another.
    pub(super) fn mark_all(&mut self) {
        self.stale = self.kins.keys().map(|kin| (*kin, BOTH)).collect();
        self.mark_hosts();
    }

    /// The hosts' policy, or their interfaces, may be others.
    pub(super) const fn mark_hosts(&mut self) {
        self.hosts_are_stale = true;
    }

    /// Returns whether the rows let an interface's packets into chains of its own.
    pub(super) fn has_door(&self, interface: &InterfaceName) -> bool {
        self.doors.contains_key(interface)
    }

    /// Writes what has changed of the pods since the last call.
    pub(super) fn flush_pods(
        &mut self,
        book: &Book,
        options: &Options,
        population: &Population,
        chains: &mut Chains,
        changes: &mut Vec<Change>,
    ) {
        let mut asked: BTreeMap<GroupId, Asked<'_>> = BTreeMap::new();
        for (kin, directions) in std::mem::take(&mut self.stale) {
            for direction in DIRECTIONS {
                if directions.contains(direction) {
                    let profiles = population.profiles_of(kin);
                    let question = workload::question(direction);
                    let asks = self.index.of(kin);
                    let found = book.asked(question, asks, profiles, options);
                    if let Some(id) = self.group(kin, &found, chains) {
                        asked.insert(id, found);
                    }
                }
            }
        }
        let mut doors = std::mem::take(&mut self.stale_doors);
        for interface in &doors {
            self.seat(interface);
        }
        let (owners, index) = (&self.owners, &self.index);
        let ask = |id, direction, interface: &InterfaceName| {
            asked.remove(&id).or_else(|| {
                let kin = *owners.get(interface)?;
                let profiles = population.profiles_of(kin);
                let question = workload::question(direction);
                Some(book.asked(question, index.of(kin), profiles, options))
            })
        };
        doors.extend(self.groups.flush(ask, chains, changes));
        for interface in doors {
            self.flush_door(interface, changes);
        }
    }

    /// Finds the group of a kin's interfaces, if it has some.
    fn group(&mut self, kin: KinId, asked: &Asked<'_>, chains: &mut Chains) -> Option<GroupId> {
        let local = self.kins.get_mut(&kin)?;
        let has_doors = !local.doors.is_empty();
        let group = has_doors.then(|| self.groups.find(asked, chains));
        let known = &mut local.groups[way(asked.question.direction)];
        if std::mem::replace(known, group) != group {
            self.stale_doors.extend(local.doors.iter().cloned());
        }

        group
    }

    /// Puts an interface into the groups of the kin that has it.
    fn seat(&mut self, interface: &InterfaceName) {
        let owner = self.owners.get(interface);
        let local = owner.and_then(|kin| self.kins.get(kin));
        let groups = local.and_then(|local| Some([local.groups[0]?, local.groups[1]?]));
        let known = self.doors.get_mut(interface);
        let former = known.as_ref().map(|door| door.groups);
        if former == groups {
            return;
        }
        for group in groups.into_iter().flatten() {
            self.groups.enter(group, interface);
        }
        for group in former.into_iter().flatten() {
            if groups.is_none_or(|groups| !groups.contains(&group)) {
                self.groups.leave(group, interface);
            }
        }
        match (known, groups) {
            (Some(door), Some(groups)) => door.groups = groups,
            (None, Some(groups)) => {
                let roots = [None, None];
                self.doors.insert(interface.clone(), Door { groups, roots });
            }
            // It is taken out with its rows.
            (_, None) => {}
        }
    }

    /// Writes where an interface's packets go.
    fn flush_door(&mut self, interface: InterfaceName, changes: &mut Vec<Change>) {
        let Some(door) = self.doors.get_mut(&interface) else {
            return;
        };
        let owner = self.owners.get(&interface);
        let local = owner.and_then(|kin| self.kins.get(kin));
        let is_open = local.is_some_and(|local| local.groups.iter().all(Option::is_some));
        let groups = door.groups;
        let now = groups.map(|group| is_open.then(|| self.groups.root(group).clone()));
        let former = std::mem::replace(&mut door.roots, now.clone());
        if !is_open {
            self.doors.remove(&interface);
        }
        for (map, way) in PLACES {
            let element = |root: &Name| {
                Element::InterfaceVerdict(interface.clone(), Verdict::Goto(root.clone()))
            };
            let (before, now) = (&former[way], &now[way]);
            if before == now {
                continue;
            }
            let gone = before.as_ref().map(element);
            let gone = gone.map(|element| Change::Unset(RowKey::Element(key(map), element)));
            let new = now.as_ref().map(element);
            let new = new.map(|element| Change::Set(Row::Element(key(map), element)));
            changes.extend(gone.into_iter().chain(new));
        }
    }

    /// Writes what has changed of the hosts since the last call.
    pub(super) fn flush_hosts<'a>(
        &mut self,
        endpoints: impl Iterator<Item = &'a HostEndpoint>,
        interfaces: &[Interface],
        book: &Book,
        options: &Options,
        chains: &mut Chains,
        changes: &mut Vec<Change>,
    ) {
        if !std::mem::take(&mut self.hosts_are_stale) {
            return;
        }
        let chosen = chosen(endpoints, interfaces);
        let names: Vec<_> = chosen.keys().cloned().collect();
        let hosts: Vec<&HostEndpoint> = chosen.into_values().collect();
        let mut leads = Vec::new();
        let mut rows = Ruleset::default();
        let ask = |place: usize, question: Question| {
            let host: &HostEndpoint = hosts[place];
            let kin = self.hosts.get(&host.name)?;
            let profiles = host.profiles.iter().map(String::as_str);

            Some(book.asked(question, self.index.of(*kin), profiles, options))
        };
        let mut hold = |author: Author<'_>, direction| {
            let chain = chains.number(author, direction);
            chains.hold([&chain]);
            leads.push(chain);
        };
        let asking = host::Asking {
            interfaces: &names,
            options,
            ask: &ask,
            hold: &mut hold,
        };
        host::write(asking, book.is_early(), &mut rows);
        changes.extend(rows.since(&self.host_rows));
        self.host_rows = rows;
        chains.release(&std::mem::replace(&mut self.host_leads, leads));
    }

    /// Returns how much has been done for groups.
    pub(super) const fn effort(&self) -> u64 {
        self.index.effort() + self.groups.effort()
    }

    /// Writes every row that is there.
    pub(super) fn rows(&self, rows: &mut Ruleset) {
        rows.sets.extend(self.host_rows.sets.clone());
        rows.elements.extend(self.host_rows.elements.clone());
        rows.chains.extend(self.host_rows.chains.clone());
        self.groups.rows(rows);
        for (interface, door) in &self.doors {
            for (map, way) in PLACES {
                if let Some(root) = &door.roots[way] {
                    let verdict = Verdict::Goto(root.clone());
                    let element = Element::InterfaceVerdict(interface.clone(), verdict);
                    rows.elements.insert((key(map), element));
                }
            }
        }
    }
}

/// Returns a direction's place among a door's groups.
const fn way(direction: Direction) -> usize {
    match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    }
}
