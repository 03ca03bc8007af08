//! A node's policy as rows of the plan, kept up to date change by change.
//!
//! ```text
//! objects ──▶ population: members by kin (whoever looks the same)     book: policies, tiers, profiles
//!                 │ index: sets' selectors × kins                         │ index: policies' selectors × own kins
//!                 ▼                                                       ▼
//!             sets: elements, counted ◀──ask, speak── chains ◀──hold── locals: own interfaces
//! ```
//!
//! A change goes from where it enters to what depends on it, and no further: a pod's labels to the sets whose
//! selectors now select or no longer select it; a policy to its chain, or to the groups that ask it; a namespace's
//! labels to its pods. Chains and sets are there for as long as an endpoint's way leads to them. What rows are called,
//! and what stands in them, is written by the same code as in [`compile`](crate::compile).
//!
//! **Invariants:** no I/O, no clock. After every [`update`](Compiler::update) the rows are those that
//! [`compile`](crate::compile::compile) makes of the same facts, in whatever order they came. No change costs more
//! than what it touches: [`effort`](Compiler::effort).

mod book;
mod chain;
mod condition;
mod cover;
mod fact;
mod group;
mod index;
mod kin;
mod local;
mod population;
mod row;
mod service;
mod set;
mod slab;

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName, Kind, NodeName, ObjectKey, Resource,
    policy::{HostEndpoint, Policy, Profile},
    resource::{Namespace, WorkloadEndpoint},
};

pub use self::row::{Change, Row, RowKey};
use self::{
    book::{Book, reordered},
    chain::{Chains, Sources},
    fact::Facts,
    kin::{KinId, MemberId},
    local::{Claim, Locals},
    population::{Move, Newcomer, Population},
    service::Services,
    set::{Sets, Way},
};
use crate::{
    cluster::{
        Cluster, Interface,
        object::{self, Origin},
    },
    compile::{Options, Ruleset, family::Families, is_stranger, workload},
};

/// What policy asks for on one node, kept up to date change by change.
#[derive(Clone, Debug)]
pub struct Compiler {
    facts: Facts,
    options: Options,
    services: Services,
    population: Population,
    book: Book,
    locals: Locals,
    chains: Chains,
    sets: Sets,
    /// The families of which anybody was there when the rows were brought up to date.
    known: Families,
    /// The base chains of pods.
    base: Ruleset,
    base_is_stale: bool,
    is_stale: bool,
}

impl Compiler {
    /// Knows nothing yet: no pod passes anything.
    pub fn new(node: NodeName) -> Self {
        let mut compiler = Self {
            facts: Facts::new(node),
            options: Options::default(),
            services: Services::default(),
            population: Population::default(),
            book: Book::default(),
            locals: Locals::default(),
            chains: Chains::default(),
            sets: Sets::default(),
            known: Families::default(),
            base: Ruleset::default(),
            base_is_stale: true,
            is_stale: true,
        };
        let (origin, profile) = object::built_in();
        let name = profile.name.clone();
        compiler.set_profile(&name, origin, Some(profile));

        compiler
    }

    /// Takes in an object; of a kind that says nothing of policy it takes none. Returns whether anything changed.
    pub fn insert(&mut self, resource: &Resource) -> bool {
        let changed = match resource {
            Resource::WorkloadEndpoint(endpoint) => self.put_pod(endpoint),
            Resource::Namespace(namespace) => self.put_namespace(namespace),
            Resource::ServiceAccount(account) => {
                let profile = account.profile();
                let name = profile.name.clone();
                let origin = Origin::Account(resource.key());
                self.set_profile(&name, origin, Some(profile))
            }
            Resource::Profile(profile) => {
                let name = profile.name.clone();
                self.set_profile(&name, Origin::Object, Some(profile.as_ref().clone()))
            }
            Resource::Service(service) => {
                let changed = self.services.put(service);
                self.serve(changed)
            }
            Resource::EndpointSlice(slice) => {
                let changed = self.services.put_slice(resource.key(), slice);
                self.serve(changed)
            }
            Resource::Tier(tier) => {
                let changed = self.book.put_tier(tier);
                if changed {
                    self.locals.mark_all();
                }
                changed
            }
            Resource::Policy(policy) => self.put_policy(policy),
            Resource::NetworkSet(set) => {
                let newcomer = self.population.set(set);
                self.put(set.key.clone(), newcomer)
            }
            Resource::HostEndpoint(host) => self.put_host(host),
            Resource::Node(node) => self.facts.put_node(node),
            Resource::FelixConfiguration(settings) => self.facts.put_settings(settings),
            Resource::IpPool(_)
            | Resource::IpamBlock(_)
            | Resource::BlockAffinity(_)
            | Resource::MeshConfiguration(_)
            | Resource::KeyClaim(_)
            | Resource::AddressClaim(_)
            | Resource::Opaque(_) => false,
        };
        self.is_stale |= changed;

        changed
    }

    /// Forgets an object. Returns whether anything changed.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        let changed = match key.kind {
            Kind::WorkloadEndpoint | Kind::NetworkSet | Kind::GlobalNetworkSet => {
                self.take_out(key)
            }
            Kind::HostEndpoint => self.remove_host(key),
            Kind::Namespace => self.remove_namespace(&key.name),
            Kind::ServiceAccount => {
                let namespace = key.namespace.as_deref().unwrap_or_default();
                let name = model::resource::ServiceAccount::profile_name(namespace, &key.name);
                self.set_profile(&name, Origin::Account(key.clone()), None)
            }
            Kind::Profile => self.set_profile(&key.name, Origin::Object, None),
            Kind::Service => {
                let changed = self.services.remove(key);
                self.serve(changed)
            }
            Kind::EndpointSlice => {
                let changed = self.services.remove_slice(key);
                self.serve(changed)
            }
            Kind::Tier => {
                let changed = self.book.remove_tier(&key.name);
                if changed {
                    self.locals.mark_all();
                }
                changed
            }
            Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::KubernetesNetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy => self.remove_policy(key),
            Kind::Node | Kind::MeshNode => self.facts.remove_node(&key.name),
            Kind::FelixConfiguration => self.facts.remove_settings(&key.name),
            Kind::IPPool
            | Kind::IPAMBlock
            | Kind::BlockAffinity
            | Kind::IPAMHandle
            | Kind::IPAMConfiguration
            | Kind::IPReservation
            | Kind::ClusterInformation
            | Kind::MeshConfiguration
            | Kind::KeyClaim
            | Kind::AddressClaim
            | Kind::Pod => false,
        };
        self.is_stale |= changed;

        changed
    }

    /// Sets what policy follows, as it holds on this node. Returns whether anything changed.
    pub fn set_options(&mut self, options: Options) -> bool {
        if options == self.options {
            return false;
        }
        self.options = options;
        self.base_is_stale = true;
        self.is_stale = true;
        self.locals.mark_all();
        self.chains.rewrite_all();

        true
    }

    /// Sets the node's own interfaces, by whose names and addresses host endpoints are found. Returns whether anything
    /// changed.
    pub fn set_interfaces(&mut self, interfaces: Vec<Interface>) -> bool {
        let changed = self.facts.set_interfaces(interfaces);
        if changed {
            self.locals.mark_hosts();
        }
        self.is_stale |= changed;

        changed
    }

    /// Brings the rows up to date, and returns what changed since the last call, each row at most once.
    pub fn update(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        if !std::mem::take(&mut self.is_stale) {
            return changes;
        }
        self.flush_base(&mut changes);
        self.count_families();
        self.locals.flush_pods(
            &self.book,
            &self.options,
            &self.population,
            &mut self.chains,
            &mut changes,
        );
        self.locals.flush_hosts(
            self.facts.own_hosts(),
            self.facts.interfaces(),
            &self.book,
            &self.options,
            &mut self.chains,
            &mut changes,
        );
        self.sets.limit(self.options.limits.elements);
        self.chains.ask_again(self.sets.told_otherwise());
        let sources = Sources {
            book: &self.book,
            options: &self.options,
            known: self.known,
            services: &self.services,
            population: &mut self.population,
            sets: &mut self.sets,
        };
        self.chains.flush(sources, &mut changes);
        self.sets.flush(&mut self.population, &mut changes);

        changes
    }

    /// Returns all rows as they were after the last [`update`](Self::update). Costs as much as they are.
    pub fn ruleset(&self) -> Ruleset {
        let mut rows = self.base.clone();
        self.locals.rows(&mut rows);
        self.chains.rows(&mut rows);
        self.sets.rows(&mut rows);

        rows
    }

    /// Returns the policies and profiles in force that cannot be compiled, and why: they deny what they select.
    pub const fn refused(&self) -> &BTreeMap<ObjectKey, String> {
        self.chains.refused()
    }

    /// Returns everything as the evaluator sees it. Costs as much as there is.
    pub fn cluster(&self) -> Cluster {
        let mut cluster = Cluster {
            pods: self.population.pods().collect(),
            profiles: self.book.profiles(),
            services: self.services.all(),
            tiers: self.book.tiers().cloned().collect(),
            policies: self.book.policies().cloned().collect(),
            sets: self.population.sets().collect(),
            ..Cluster::default()
        };
        self.facts.fill(&mut cluster);

        cluster
    }

    /// Returns whether the rows let a pod's interface pass what its policy allows; all others are closed.
    pub fn has_policy(&self, interface: &InterfaceName) -> bool {
        self.locals.has_door(interface)
    }

    /// Returns a number that rises with the work that is done: selectors asked, elements counted, rules written.
    pub const fn effort(&self) -> u64 {
        self.population.index.effort()
            + self.locals.effort()
            + self.sets.effort()
            + self.chains.effort()
    }

    /// Has every chain written anew where the first of a family has come, or the last is gone: rules ask for no family
    /// of which nobody is there.
    fn count_families(&mut self) {
        let known = self.population.families().and(self.services.families());
        if std::mem::replace(&mut self.known, known) != known {
            self.chains.rewrite_all();
        }
    }

    fn flush_base(&mut self, changes: &mut Vec<Change>) {
        if !std::mem::take(&mut self.base_is_stale) {
            return;
        }
        let mut rows = Ruleset::default();
        workload::write(&self.options, Vec::new(), Vec::new(), &mut rows);
        changes.extend(rows.since(&self.base));
        self.base = rows;
    }

    fn put_pod(&mut self, endpoint: &WorkloadEndpoint) -> bool {
        let key = ObjectKey::namespaced(
            Kind::WorkloadEndpoint,
            &endpoint.pod.namespace,
            &endpoint.name,
        );
        let newcomer = self.population.pod(endpoint, self.facts.node());

        self.put(key, newcomer)
    }

    fn put(&mut self, key: ObjectKey, newcomer: Newcomer) -> bool {
        let Some(step) = self.population.put(key.clone(), newcomer) else {
            return false;
        };
        let Some((id, ..)) = step.joined else {
            return false;
        };
        self.take(&key, id, &step);

        true
    }

    fn take_out(&mut self, key: &ObjectKey) -> bool {
        let Some((id, step)) = self.population.remove(key) else {
            return false;
        };
        self.take(key, id, &step);

        true
    }

    /// Follows a member's coming or going.
    fn take(&mut self, key: &ObjectKey, id: MemberId, step: &Move) {
        let mut interfaces = BTreeSet::new();
        if let Some((kin, body, _)) = &step.left {
            for ask in self.population.index.of(*kin) {
                self.sets.count(*ask, body, Way::Goes);
            }
            if let Some(interface) = body.interface() {
                self.locals.disclaim(interface, id);
                interfaces.insert(interface.clone());
            }
        }
        if let Some((id, kin, _)) = step.joined {
            let body = &self.population.member(id).body;
            for ask in self.population.index.of(kin) {
                self.sets.count(*ask, body, Way::Comes);
            }
            if let Some(interface) = body.interface() {
                let pod = body.pod_name(key);
                let claim = Claim {
                    is_stranger: is_stranger(interface, &pod),
                    pod,
                    object: key.clone(),
                    member: id,
                };
                self.locals.claim(interface, claim);
                self.locals.hold(kin, &self.population);
                interfaces.insert(interface.clone());
            }
        }
        for interface in interfaces {
            self.locals.settle(&interface, &self.population);
        }
        if let Some((kin, body, is_empty)) = &step.left {
            if body.interface().is_some() {
                self.locals.release(*kin, &self.population);
            }
            if *is_empty && key.kind != Kind::HostEndpoint {
                self.population.bury(*kin);
            }
        }
    }

    fn put_host(&mut self, host: &HostEndpoint) -> bool {
        if !self.facts.put_host(host) {
            return false;
        }
        let key = ObjectKey::cluster(Kind::HostEndpoint, &host.name);
        let newcomer = self.population.host(host);
        let step = self.population.put(key.clone(), newcomer);
        let joined = step.as_ref().and_then(|step| step.joined);
        if let (Some(step), Some((id, ..))) = (&step, joined) {
            self.take(&key, id, step);
        }
        let kin = self.population.find(&key).map(|member| member.kin);
        let kin = kin.filter(|_| host.node == *self.facts.node());
        self.seat_host(&host.name, kin);
        self.bury_left(step.as_ref());

        true
    }

    fn remove_host(&mut self, key: &ObjectKey) -> bool {
        if !self.facts.remove_host(&key.name) {
            return false;
        }
        let step = self.population.remove(key);
        if let Some((id, step)) = &step {
            self.take(key, *id, step);
        }
        self.seat_host(&key.name, None);
        self.bury_left(step.as_ref().map(|(_, step)| step));

        true
    }

    /// Puts a host's endpoint among the node's own, or takes it out.
    fn seat_host(&mut self, name: &str, kin: Option<KinId>) {
        if let Some(kin) = kin {
            self.locals.hold(kin, &self.population);
        }
        let former = self.locals.set_host(name, kin);
        if let Some(former) = former {
            self.locals.release(former, &self.population);
        }
    }

    fn bury_left(&mut self, step: Option<&Move>) {
        if let Some((kin, _, true)) = step.and_then(|step| step.left.as_ref()) {
            self.population.bury(*kin);
        }
    }

    fn put_namespace(&mut self, namespace: &Namespace) -> bool {
        let mut changed = false;
        for (origin, profile) in object::of_namespace(namespace) {
            let name = profile.name.clone();
            changed |= self.set_profile(&name, origin, Some(profile));
        }

        changed
    }

    fn remove_namespace(&mut self, name: &str) -> bool {
        let namespace = Namespace {
            name: name.to_owned(),
            labels: BTreeMap::new(),
        };
        let mut changed = false;
        for (origin, profile) in object::of_namespace(&namespace) {
            changed |= self.set_profile(&profile.name, origin, None);
        }

        changed
    }

    fn set_profile(&mut self, name: &str, origin: Origin, profile: Option<Profile>) -> bool {
        if self.book.profile_of(name, &origin) == profile.as_ref() {
            return false;
        }
        let turn = self.book.set_profile(name, origin, profile);
        if let Some(labels) = &turn.labels {
            self.give(name, labels);
        }
        let word = self.population.words.find(name);
        if turn.was_there != turn.is_there {
            for kin in word
                .into_iter()
                .flat_map(|word| self.population.kins.with_profile(word))
            {
                self.locals.mark(kin, local::BOTH);
            }
        }
        if turn.rules_changed {
            let key = ObjectKey::cluster(Kind::Profile, name);
            self.chains.rewrite(&key);
        }

        true
    }

    /// Follows a profile's labels to those who inherit them.
    fn give(&mut self, profile: &str, labels: &BTreeMap<String, String>) {
        let Population { words, kins, .. } = &mut self.population;
        for (kin, former) in kins.give(profile, labels, words) {
            let turn = self.population.relabel(kin, &former);
            for (asks, way) in [(&turn.left, Way::Goes), (&turn.joined, Way::Comes)] {
                for ask in asks {
                    for body in self.population.bodies(kin) {
                        self.sets.count(*ask, body, way);
                    }
                }
            }
            self.locals.relabel(kin, &former, &self.population);
        }
        let Population { words, kins, .. } = &mut self.population;
        kins.retire(words);
    }

    fn serve(&mut self, changed: impl IntoIterator<Item = model::policy::ServiceRef>) -> bool {
        let mut any = false;
        for service in changed {
            self.sets.serve(&service, &self.services);
            any = true;
        }

        any
    }

    fn put_policy(&mut self, policy: &Policy) -> bool {
        if self.book.policy(&policy.key).map(AsRef::as_ref) == Some(policy) {
            return false;
        }
        let was_early = self.book.is_early();
        let Population { words, kins, .. } = &mut self.population;
        let ask = policy.staged.is_none().then(|| {
            let index = &mut self.locals.index;
            index.ask(&policy.selector, kins, words)
        });
        let former = self.book.put(policy.clone(), ask);
        let (former, former_ask) = former.unzip();
        self.reorder(former.as_deref(), Some(policy), [former_ask.flatten(), ask]);
        self.chains.rewrite(&policy.key);
        self.drop_ask(former_ask.flatten());
        if was_early != self.book.is_early() {
            self.locals.mark_hosts();
        }

        true
    }

    fn remove_policy(&mut self, key: &ObjectKey) -> bool {
        let was_early = self.book.is_early();
        let Some((former, ask)) = self.book.remove(key) else {
            return false;
        };
        self.reorder(Some(&former), None, [ask, None]);
        self.drop_ask(ask);
        if was_early != self.book.is_early() {
            self.locals.mark_hosts();
        }

        true
    }

    /// Marks those who must be asked anew where one policy takes another's place.
    fn reorder(
        &mut self,
        former: Option<&Policy>,
        policy: Option<&Policy>,
        asks: [Option<index::AskId>; 2],
    ) {
        let directions = reordered(former, policy);
        if !directions.ingress && !directions.egress {
            return;
        }
        let asks = asks.into_iter().flatten();
        let kins: BTreeSet<KinId> = asks
            .flat_map(|ask| self.locals.index.selected_by(ask).iter().copied())
            .collect();
        for kin in kins {
            self.locals.mark(kin, directions);
        }
    }

    fn drop_ask(&mut self, ask: Option<index::AskId>) {
        if let Some(ask) = ask {
            self.locals.index.drop(ask, &mut self.population.words);
        }
    }
}

#[cfg(test)]
mod tests;
