//! What this node knows about IPAM without asking: its own blocks and affinities, pools and settings.
//!
//! Filled by the watch and by what the node reads and writes itself. What it says may be old: the store compares the
//! revision of every write, and what was refused is read anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cni_ipam::Rules;
use model::{
    Kind, NodeName, Object, ObjectKey,
    resource::{BlockAffinity, FieldError, IpPool, IpReservation, IpamBlock, IpamConfiguration},
};

/// Kinds that are watched for IPAM beside those that the brain watches.
pub(crate) const WATCHED_FOR_IPAM: [Kind; 3] = [
    Kind::BlockAffinity,
    Kind::IPAMConfiguration,
    Kind::IPReservation,
];

/// Shared between the loop, which feeds it, and operations, which ask it.
#[derive(Clone, Debug)]
pub(crate) struct View(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    node: NodeName,
    /// Kinds of which everything was told.
    complete: BTreeSet<Kind>,
    pools: BTreeMap<String, Result<IpPool, FieldError>>,
    reservations: BTreeMap<String, Result<IpReservation, FieldError>>,
    configuration: Result<IpamConfiguration, FieldError>,
    /// The node's labels.
    labels: BTreeMap<String, String>,
    /// Blocks that are affine to the node, and its affinities, by name.
    records: BTreeMap<ObjectKey, Object>,
}

/// Why the rules are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    /// The store has not told everything yet.
    #[error("the store has not told its {} yet", .0.plural())]
    Incomplete(Kind),
    /// Nobody knows what it forbids.
    #[error("{0} cannot be read: {1}")]
    Unreadable(ObjectKey, String),
}

impl View {
    /// Returns the view of a node that has heard nothing yet.
    pub(crate) fn new(node: NodeName) -> Self {
        Self(Arc::new(Mutex::new(Known {
            node,
            complete: BTreeSet::new(),
            pools: BTreeMap::new(),
            reservations: BTreeMap::new(),
            configuration: Ok(IpamConfiguration::default()),
            labels: BTreeMap::new(),
            records: BTreeMap::new(),
        })))
    }

    /// Takes in an object that the store has.
    pub(crate) fn applied(&self, object: &Object) {
        let mut known = self.known();
        let name = object.metadata.name.clone();
        if object.kind == Kind::IPPool {
            known.pools.insert(name, object.try_into());
        } else if object.kind == Kind::IPReservation {
            known.reservations.insert(name, object.try_into());
        } else if object.kind == Kind::IPAMConfiguration {
            known.configuration = object.try_into();
        } else if object.kind == Kind::Node && name == known.node.as_str() {
            known.labels.clone_from(&object.metadata.labels);
        } else if object.kind == Kind::IPAMBlock || object.kind == Kind::BlockAffinity {
            known.keep(object);
        }
    }

    /// Takes in that the store has an object no more, or has another version than the one known.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        let mut known = self.known();
        if key.kind == Kind::IPPool {
            known.pools.remove(&key.name);
        } else if key.kind == Kind::IPReservation {
            known.reservations.remove(&key.name);
        } else if key.kind == Kind::IPAMConfiguration {
            known.configuration = Ok(IpamConfiguration::default());
        } else {
            known.records.remove(key);
        }
    }

    /// Takes in that everything of a kind was told.
    pub(crate) fn completed(&self, kind: Kind) {
        self.known().complete.insert(kind);
    }

    /// Returns a block or an affinity of the node's, if it is known.
    pub(crate) fn record(&self, key: &ObjectKey) -> Option<Object> {
        self.known().records.get(key).cloned()
    }

    /// Returns the node's affinities, if all are known.
    pub(crate) fn affinities(&self) -> Option<Vec<Object>> {
        let known = self.known();
        let of_kind = |key: &ObjectKey| key.kind == Kind::BlockAffinity;
        let records = known.records.iter().filter(|(key, _)| of_kind(key));

        known
            .complete
            .contains(&Kind::BlockAffinity)
            .then(|| records.map(|(_, object)| object.clone()).collect())
    }

    /// Returns every pool; one that cannot be read hands out nothing.
    pub(crate) fn pools(&self) -> Vec<IpPool> {
        let known = self.known();

        known.pools.values().flatten().cloned().collect()
    }

    /// Returns the node's labels.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.known().labels.clone()
    }

    /// Returns the rules by which addresses are handed out.
    ///
    /// # Errors
    ///
    /// Where what may forbid something is not known.
    pub(crate) fn rules(&self) -> Result<Rules, Unknown> {
        let known = self.known();
        for kind in [Kind::IPAMConfiguration, Kind::IPReservation, Kind::IPPool] {
            if !known.complete.contains(&kind) {
                return Err(Unknown::Incomplete(kind));
            }
        }
        let unreadable = |kind, name: &str, error: &FieldError| {
            Unknown::Unreadable(ObjectKey::cluster(kind, name), error.to_string())
        };
        let configuration = known.configuration.clone();
        let mut rules = Rules::of_node(known.node.clone());
        rules.configuration = configuration
            .map_err(|error| unreadable(Kind::IPAMConfiguration, "default", &error))?;
        for (name, reservation) in &known.reservations {
            let read = reservation.clone();
            let read = read.map_err(|error| unreadable(Kind::IPReservation, name, &error))?;
            rules.reservations.push(read);
        }

        Ok(rules)
    }

    /// What was being changed when a thread panicked is whole or absent.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Keeps a block or an affinity if it is the node's; an older version than the one that is kept is not taken.
    fn keep(&mut self, object: &Object) {
        let key = object.key();
        let is_ours = match sequence(object) {
            Some((owner, number)) => {
                let newer = self.records.get(&key).and_then(sequence);
                if newer.is_some_and(|(_, kept)| kept > number) {
                    return;
                }
                owner.as_ref() == Some(&self.node)
            }
            None => BlockAffinity::try_from(object).is_ok_and(|it| it.node == self.node),
        };
        if is_ours {
            self.records.insert(key, object.clone());
        } else {
            self.records.remove(&key);
        }
    }
}

/// Returns whose a block is, and its sequence number, which rises with every write.
fn sequence(object: &Object) -> Option<(Option<NodeName>, u64)> {
    let block = IpamBlock::try_from(object).ok()?;

    Some((block.affinity, block.sequence_number))
}

#[cfg(test)]
mod tests {
    use cni_ipam::new_block;

    use super::*;

    #[test]
    fn a_watch_that_lags_takes_nothing_back_that_the_node_wrote_itself() {
        let view = View::new(node("n1"));
        let written = block("n1", 7);
        view.applied(&written);

        view.applied(&block("n1", 6));
        assert_eq!(view.record(&written.key()), Some(written.clone()));

        view.applied(&block("n2", 8));
        assert_eq!(view.record(&written.key()), None);
    }

    #[test]
    fn others_blocks_are_not_kept() {
        let view = View::new(node("n1"));
        let foreign = block("n2", 1);

        view.applied(&foreign);

        assert_eq!(view.record(&foreign.key()), None);
    }

    #[test]
    fn nobody_hands_out_addresses_while_reservations_may_be_missing() {
        let view = View::new(node("n1"));
        view.completed(Kind::IPAMConfiguration);
        view.completed(Kind::IPPool);
        let incomplete = Unknown::Incomplete(Kind::IPReservation);
        assert_eq!(view.rules().unwrap_err(), incomplete);

        view.completed(Kind::IPReservation);
        assert!(view.rules().is_ok());

        let key = ObjectKey::cluster(Kind::IPReservation, "r");
        let spec = serde_json::json!({"reservedCIDRs": ["all"]});
        view.applied(&Object::new(&key, spec));
        let error = view.rules().unwrap_err();
        assert!(matches!(error, Unknown::Unreadable(..)), "{error}");

        view.forget(&key);
        assert!(view.rules().is_ok());
    }

    fn block(owner: &str, sequence: u64) -> Object {
        let cidr = "10.65.0.0/26".parse().unwrap();

        new_block(cidr, node(owner), sequence, None).to_object()
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }
}
