//! What the dataplane made of the plan, and who may rely on what of it.
//!
//! A row whose surroundings are missing holds up only those that need it: a pod its own, a phase
//! everything that keeps plaintext in or carries what is encrypted.

use std::collections::BTreeMap;

use model::{
    InterfaceName, NodeName, Pass, PodName,
    conflict::Conflict,
    pass::DeviceBackend,
    plan::{RouteVia, RowKey},
};

use crate::{World, lapse::Lapses, ledger::Owner, member::Member};

/// The last pass over the plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    /// The newest generation that a pass saw.
    pub(crate) generation: u64,
    /// The newest generation of which nothing was refused.
    whole: u64,
    /// What was refused, by target.
    pub(crate) failures: BTreeMap<String, String>,
    /// What is missing under the rows that could not be set.
    pub(crate) incomplete: BTreeMap<RowKey, String>,
    /// What carries each device.
    pub(crate) backends: BTreeMap<InterfaceName, DeviceBackend>,
    /// What somebody else has where it belongs to us.
    pub(crate) conflicts: Vec<Conflict>,
    /// Handshakes of peers that the plan is without.
    pub(crate) lapses: Lapses,
}

impl Applied {
    /// Takes in the end of a pass.
    pub(crate) fn learn(&mut self, pass: Pass) {
        let incomplete = pass.incomplete.into_iter();
        self.generation = pass.generation;
        self.failures = pass.failures;
        self.incomplete = incomplete.map(|each| (each.row, each.reason)).collect();
        self.backends = pass.backends;
        self.conflicts = pass.conflicts;
        if self.failures.is_empty() {
            self.whole = self.generation;
        }
    }

    /// Returns whether a pass over at least this generation came to its end.
    fn has_passed(&self, generation: u64) -> bool {
        self.generation >= generation && self.failures.is_empty()
    }
}

impl World {
    /// Returns whether the machine holds at least this generation of the plan, as far as a phase
    /// promises anything of it.
    pub(crate) fn has_applied(&self, generation: u64) -> bool {
        self.applied.has_passed(generation) && !self.lacks_anything_essential()
    }

    /// Returns whether everything of a pod is in the kernel, or out of it, as of this generation.
    pub(crate) fn has_applied_pod(&self, generation: u64, pod: &PodName) -> bool {
        let incomplete = &self.applied.incomplete;
        let rows = self.ledger.rows_of(&Owner::Pod(pod.clone()));

        self.applied.has_passed(generation)
            && !incomplete.contains_key(&RowKey::Pod(pod.clone()))
            && !rows.iter().any(|row| incomplete.contains_key(row))
    }

    /// Returns whether a row is missing that the whole node needs.
    pub(crate) fn lacks_anything_essential(&self) -> bool {
        self.applied
            .incomplete
            .keys()
            .any(|row| self.is_essential(row))
    }

    /// A pod's rows are its own, and a way for plaintext is no part of what a phase promises.
    pub(crate) fn is_essential(&self, row: &RowKey) -> bool {
        let is_plain_way = match row {
            RowKey::Route(key) => {
                let via = self.plan.routes.get(key).map(|route| &route.via);
                matches!(via, Some(RouteVia::Gateway(_)))
            }
            // A firewall of somebody else's is no part of what keeps plaintext in.
            RowKey::Pod(_) | RowKey::Opening(_) => return false,
            RowKey::Set(_)
            | RowKey::Element(..)
            | RowKey::Chain(_)
            | RowKey::Sysctl(_)
            | RowKey::Tunnel(_)
            | RowKey::Address(..)
            | RowKey::Peer(..)
            | RowKey::Rule(_) => false,
        };

        !is_plain_way && !self.ledger.is_a_pods(row)
    }

    /// Returns whether packets pass to and from a member as was last decided.
    pub(crate) fn is_in_force(&self, name: &NodeName) -> bool {
        self.decided
            .get(name)
            .is_some_and(|generation| *generation <= self.applied.whole)
    }

    /// Returns what is missing on the encrypted way to a member.
    pub(crate) fn lacks(&self, name: &NodeName, member: &Member) -> Option<String> {
        if self.applied.incomplete.is_empty() {
            return None;
        }
        let devices = member.carriers.values();
        let devices = devices.map(|carrier| RowKey::Tunnel(carrier.device.clone()));
        let rows = self.ledger.rows_of(&Owner::Node(name.clone()));
        let mut needed = devices.chain(rows.iter().cloned());

        needed.find_map(|row| {
            let reason = self.applied.incomplete.get(&row)?;
            self.is_essential(&row).then(|| format!("{row}: {reason}"))
        })
    }
}
