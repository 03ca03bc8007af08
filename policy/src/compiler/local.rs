//! The node's own endpoints: which chains their packets enter.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName, ObjectKey, PodName,
    nft::{Element, Verdict},
    policy::{Direction, Directions, HostEndpoint},
};

use super::{
    Change, Row, RowKey,
    book::Book,
    chain::{Chains, Lead},
    condition::Labels,
    index::Index,
    kin::{KinId, MemberId},
    population::Population,
};
use crate::{
    cluster::Interface,
    compile::{
        Options, Ruleset, chosen,
        group::{Group, Question},
        host,
        set::key,
        workload::{self, EGRESS_MAPS, INGRESS_MAP},
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
    /// The chains that interfaces' packets enter, as the rows have it: those sent and those got.
    doors: BTreeMap<InterfaceName, [String; 2]>,
    /// The hosts' endpoints, by name.
    hosts: BTreeMap<String, KinId>,
    host_rows: Ruleset,
    host_leads: Vec<Lead>,
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
    egress: Option<Lead>,
    ingress: Option<Lead>,
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

    pub(super) fn release(&mut self, kin: KinId, population: &Population, chains: &mut Chains) {
        let Some(local) = self.kins.get_mut(&kin) else {
            return;
        };
        local.users -= 1;
        if local.users > 0 {
            return;
        }
        for lead in [local.egress.take(), local.ingress.take()] {
            lead.into_iter().for_each(|lead| chains.release(lead));
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
        for (kin, directions) in std::mem::take(&mut self.stale) {
            for direction in [Direction::Egress, Direction::Ingress] {
                if directions.contains(direction) {
                    self.lead(kin, direction, book, options, population, chains);
                }
            }
        }
        for interface in std::mem::take(&mut self.stale_doors) {
            self.flush_door(interface, changes);
        }
    }

    fn lead(
        &mut self,
        kin: KinId,
        direction: Direction,
        book: &Book,
        options: &Options,
        population: &Population,
        chains: &mut Chains,
    ) {
        let Some(local) = self.kins.get_mut(&kin) else {
            return;
        };
        let profiles = population.profiles_of(kin);
        let lead = (!local.doors.is_empty()).then(|| {
            let question = workload::question(direction);
            let asks = self.index.of(kin);
            let group: Group<'_> = book
                .asked(question, asks, profiles, options)
                .group(Vec::new());
            chains.hold(group)
        });
        let known = match direction {
            Direction::Egress => &mut local.egress,
            Direction::Ingress => &mut local.ingress,
        };
        let root = |lead: &Option<Lead>| lead.as_ref().map(|lead| lead.root.clone());
        if root(known) != root(&lead) {
            self.stale_doors.extend(local.doors.iter().cloned());
        }
        if let Some(former) = std::mem::replace(known, lead) {
            chains.release(former);
        }
    }

    fn flush_door(&mut self, interface: InterfaceName, changes: &mut Vec<Change>) {
        let owner = self.owners.get(&interface);
        let local = owner.and_then(|kin| self.kins.get(kin));
        let door = local.and_then(|local| {
            let roots = [local.egress.as_ref()?, local.ingress.as_ref()?];
            Some(roots.map(|lead| lead.root.clone()))
        });
        let former = match &door {
            Some(door) => self.doors.insert(interface.clone(), door.clone()),
            None => self.doors.remove(&interface),
        };
        let places = [(EGRESS_MAPS[0], 0), (EGRESS_MAPS[1], 0), (INGRESS_MAP, 1)];
        for (map, way) in places {
            let element = |door: &[String; 2]| {
                let verdict = Verdict::Goto(door[way].as_str().into());
                Element::InterfaceVerdict(interface.clone(), verdict)
            };
            let (before, now) = (former.as_ref().map(element), door.as_ref().map(element));
            if before == now {
                continue;
            }
            let gone = before.map(|element| Change::Unset(RowKey::Element(key(map), element)));
            let new = now.map(|element| Change::Set(Row::Element(key(map), element)));
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
        let mut ask = |place: usize, question: Question, head| {
            let host: &HostEndpoint = hosts[place];
            let kin = self.hosts.get(&host.name)?;
            let profiles = host.profiles.iter().map(String::as_str);
            let asked = book.asked(question, self.index.of(*kin), profiles, options);
            let lead = asked.is_needed().then(|| chains.hold(asked.group(head)))?;
            let root = lead.root.clone();
            leads.push(lead);

            Some(root)
        };
        host::write(&names, options, book.is_early(), &mut ask, &mut rows);
        changes.extend(rows.since(&self.host_rows));
        self.host_rows = rows;
        for lead in std::mem::replace(&mut self.host_leads, leads) {
            chains.release(lead);
        }
    }

    /// Writes every row that is there.
    pub(super) fn rows(&self, rows: &mut Ruleset) {
        rows.sets.extend(self.host_rows.sets.clone());
        rows.elements.extend(self.host_rows.elements.clone());
        rows.chains.extend(self.host_rows.chains.clone());
        for (interface, door) in &self.doors {
            let places = [(EGRESS_MAPS[0], 0), (EGRESS_MAPS[1], 0), (INGRESS_MAP, 1)];
            rows.elements.extend(places.map(|(map, way)| {
                let verdict = Verdict::Goto(door[way].as_str().into());
                let element = Element::InterfaceVerdict(interface.clone(), verdict);

                (key(map), element)
            }));
        }
    }
}
