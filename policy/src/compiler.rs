//! A node's policy as rows of the plan, kept up to date change by change.
//!
//! **Invariants:** no I/O, no clock. After every [`update`](Compiler::update) the rows are those that
//! [`compile`](crate::compile::compile) makes of the same facts, in whatever order they came.

mod fact;

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName, NodeName, ObjectKey, Resource,
    nft::{Chain, ChainKey, Element, SetKey, SetKind},
};

use self::fact::Facts;
use crate::{
    cluster::{Cluster, Interface},
    compile::{Compiled, Options, Ruleset, Scene, compile},
};

/// What policy asks for on one node, kept up to date change by change.
#[derive(Clone, Debug)]
pub struct Compiler {
    facts: Facts,
    options: Options,
    is_stale: bool,
    rows: Ruleset,
    refused: BTreeMap<ObjectKey, String>,
    interfaces: BTreeSet<InterfaceName>,
}

/// A row that policy wants in the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A set or a map.
    Set(SetKey, SetKind),
    /// Something in a set.
    Element(SetKey, Element),
    /// A chain, whole.
    Chain(ChainKey, Chain),
}

/// What tells rows apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// A set or a map.
    Set(SetKey),
    /// Something in a set.
    Element(SetKey, Element),
    /// A chain.
    Chain(ChainKey),
}

/// A difference between two states of a node's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row is there, exactly so.
    Set(Row),
    /// No such row is there.
    Unset(RowKey),
}

impl Compiler {
    /// Knows nothing yet: no pod passes anything.
    pub fn new(node: NodeName) -> Self {
        Self {
            facts: Facts::new(node),
            options: Options::default(),
            is_stale: true,
            rows: Ruleset::default(),
            refused: BTreeMap::new(),
            interfaces: BTreeSet::new(),
        }
    }

    /// Takes in an object; of a kind that says nothing of policy it takes none. Returns whether anything changed.
    pub fn insert(&mut self, resource: &Resource) -> bool {
        let changed = self.facts.insert(resource);
        self.is_stale |= changed;

        changed
    }

    /// Forgets an object. Returns whether anything changed.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        let changed = self.facts.remove(key);
        self.is_stale |= changed;

        changed
    }

    /// Sets what policy follows, as it holds on this node. Returns whether anything changed.
    pub fn set_options(&mut self, options: Options) -> bool {
        let changed = options != self.options;
        self.options = options;
        self.is_stale |= changed;

        changed
    }

    /// Sets the node's own interfaces, by whose names and addresses host endpoints are found. Returns whether anything
    /// changed.
    pub fn set_interfaces(&mut self, interfaces: Vec<Interface>) -> bool {
        let changed = self.facts.set_interfaces(interfaces);
        self.is_stale |= changed;

        changed
    }

    /// Brings the rows up to date, and returns what changed since the last call, each row at most once.
    pub fn update(&mut self) -> Vec<Change> {
        if !std::mem::take(&mut self.is_stale) {
            return Vec::new();
        }
        let scene = self.scene();
        self.interfaces = scene
            .workloads
            .iter()
            .map(|workload| workload.interface.clone())
            .collect();
        let Compiled { rows, refused } = compile(&scene);
        let changes = rows.since(&self.rows);
        self.rows = rows;
        self.refused = refused
            .into_iter()
            .map(|(key, refusal)| (key, refusal.to_string()))
            .collect();

        changes
    }

    /// Returns all rows as they were after the last [`update`](Self::update).
    pub fn ruleset(&self) -> Ruleset {
        self.rows.clone()
    }

    /// Returns the policies and profiles in force that cannot be compiled, and why: they deny what they select.
    pub const fn refused(&self) -> &BTreeMap<ObjectKey, String> {
        &self.refused
    }

    /// Returns everything as the evaluator sees it.
    pub fn cluster(&self) -> Cluster {
        self.facts.cluster()
    }

    /// Returns whether the rows let a pod's interface pass what its policy allows; all others are closed.
    pub fn has_policy(&self, interface: &InterfaceName) -> bool {
        self.interfaces.contains(interface)
    }

    /// Returns what the slow compiler compiles.
    fn scene(&self) -> Scene {
        let cluster = self.facts.cluster();
        let mut scene = Scene::of_node(&cluster, self.facts.node());
        scene.options = self.options.clone();
        scene.workloads = self.facts.workloads(&cluster);

        scene
    }
}

impl Ruleset {
    /// Returns what makes these rows of others.
    pub fn since(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (key, kind) in &self.sets {
            if before.sets.get(key) != Some(kind) {
                changes.push(Change::Set(Row::Set(key.clone(), *kind)));
            }
        }
        for (key, element) in self.elements.difference(&before.elements) {
            changes.push(Change::Set(Row::Element(key.clone(), element.clone())));
        }
        for (key, chain) in &self.chains {
            if before.chains.get(key) != Some(chain) {
                changes.push(Change::Set(Row::Chain(key.clone(), chain.clone())));
            }
        }
        let gone = before.chains.keys();
        let gone = gone.filter(|key| !self.chains.contains_key(*key));
        changes.extend(gone.map(|key| Change::Unset(RowKey::Chain(key.clone()))));
        for (key, element) in before.elements.difference(&self.elements) {
            let key = RowKey::Element(key.clone(), element.clone());
            changes.push(Change::Unset(key));
        }
        let gone = before
            .sets
            .keys()
            .filter(|key| !self.sets.contains_key(*key));
        changes.extend(gone.map(|key| Change::Unset(RowKey::Set(key.clone()))));

        changes
    }

    /// Makes a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Set(Row::Set(key, kind)) => {
                self.sets.insert(key, kind);
            }
            Change::Set(Row::Element(key, element)) => {
                self.elements.insert((key, element));
            }
            Change::Set(Row::Chain(key, chain)) => {
                self.chains.insert(key, chain);
            }
            Change::Unset(RowKey::Set(key)) => {
                self.sets.remove(&key);
            }
            Change::Unset(RowKey::Element(key, element)) => {
                self.elements.remove(&(key, element));
            }
            Change::Unset(RowKey::Chain(key)) => {
                self.chains.remove(&key);
            }
        }
    }
}
