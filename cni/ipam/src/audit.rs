//! What is wrong with the records, and how each thing is put right.
//!
//! ```text
//! lists ──▶ Snapshot ─┐
//!                     ├─▶ audit ─▶ Finding ─▶ Repair ─▶ repair (an Operation)
//! pods, nodes ─▶ Facts┘
//! ```
//!
//! Lists of different kinds are taken at different moments, so that a finding
//! may only show somebody at work. Every repair therefore names what it saw —
//! a revision, a sequence number — and does nothing when that has changed; what
//! may be in progress is repaired only when it was seen twice (see
//! [`garbage`](crate::garbage)).

mod address;
mod fact;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Kind, NodeName, Object, ObjectKey, PodName,
    resource::{BlockAffinity, FieldError, IpPool, IpamBlock, IpamHandle},
};

use crate::{
    affinity::Condition,
    stored::{Stored, is_marked},
};

/// The records of IPAM as they were listed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Blocks by their ranges.
    pub blocks: BTreeMap<IpNet, Stored<IpamBlock>>,
    /// Affinities by their names.
    pub affinities: BTreeMap<String, Stored<BlockAffinity>>,
    /// Handles by their ids.
    pub handles: BTreeMap<String, Stored<IpamHandle>>,
    /// Objects that are marked for deletion.
    pub marked: Vec<Object>,
    /// Objects that cannot be read.
    pub unreadable: Vec<(ObjectKey, FieldError)>,
}

/// What is true outside the records.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Pools.
    pub pools: Vec<IpPool>,
    /// Every node, with its labels.
    pub nodes: BTreeMap<NodeName, BTreeMap<String, String>>,
    /// Addresses that nodes say their tunnel devices have.
    pub tunnels: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    /// Every pod.
    pub pods: BTreeMap<PodName, PodFact>,
}

/// What is known about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    /// The node that it runs on.
    pub node: NodeName,
    /// Its addresses; `None` while nobody has said.
    pub addresses: Option<BTreeSet<IpAddr>>,
}

/// Something that is wrong, and what it was seen by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// What it is wrong with.
    pub subject: String,
    /// How it is put right; `None`: only a person can say.
    pub repair: Option<Repair>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An address whose holder is gone.
    LeakedAddress,
    /// An address of a node that is gone.
    VanishedNode,
    /// Two pods say that they have one address.
    SharedAddress,
    /// A pod has an address of a pool that nobody assigned.
    UnassignedAddress,
    /// A pod has an address that is assigned to somebody else.
    StolenAddress,
    /// An ordinal that is neither allocated nor free.
    LostAddress,
    /// An allocation without a sequence number, a sequence number without an allocation, or attributes without one.
    UntidyBlock,
    /// A block that overlaps another.
    OverlappingBlock,
    /// A block that no pool has as one of its blocks.
    StrayBlock,
    /// A block without owner that nobody holds an address of.
    OrphanBlock,
    /// An empty block of a pool that does not select the node any more.
    DeselectedBlock,
    /// A block whose owner has no affinity to it, or not a confirmed one.
    UnconfirmedBlock,
    /// An affinity to a block that is not there, or is another's.
    StaleAffinity,
    /// A block of a node that is gone.
    AbandonedBlock,
    /// A handle that counts other addresses than its blocks have.
    WrongHandle,
    /// Two handles that have one name.
    CollidingHandle,
    /// A record that was marked for deletion and never deleted.
    HalfDeleted,
    /// A record that cannot be read.
    Unreadable,
}

/// What puts something right. It does nothing when what it was seen by has changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Give an address back that was assigned at this sequence number.
    Release {
        /// The block.
        block: IpNet,
        /// The address.
        address: IpAddr,
        /// Who holds it.
        handle: Option<String>,
        /// Since when.
        sequence_number: Option<u64>,
    },
    /// Write the counts of a handle; none: remove it.
    CountHandle {
        /// The handle.
        id: String,
        /// The revision of its record; `None`: there is none.
        at: Option<String>,
        /// Addresses by block.
        blocks: BTreeMap<IpNet, u32>,
    },
    /// Free lost ordinals, and drop what belongs to no allocation.
    Tidy {
        /// The block.
        block: IpNet,
        /// Its revision.
        at: String,
    },
    /// Remove a record that says nothing.
    Remove {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its revision.
        at: String,
    },
    /// Confirm a block to its owner.
    Claim {
        /// The node.
        node: NodeName,
        /// The block.
        block: IpNet,
    },
    /// Take a block from its owner, if it is empty.
    GiveUp {
        /// The node.
        node: NodeName,
        /// The block.
        block: IpNet,
        /// Whether it must be empty.
        condition: Condition,
    },
}

/// Compares the records with each other and with the facts. The findings are in order.
///
/// The facts must be read *after* the records: a node or pod that is not there then is gone, one that is there may be
/// newer than its records. The other way round, whoever came in between would look vanished.
pub fn audit(snapshot: &Snapshot, facts: &Facts, now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    record::check(snapshot, facts, now, &mut findings);
    address::check(snapshot, facts, &mut findings);
    findings.sort();
    findings.dedup();

    findings
}

impl Snapshot {
    /// Reads the objects of IPAM; those of other kinds are passed over.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut snapshot = Self::default();
        for object in objects {
            let kinds = [Kind::IPAMBlock, Kind::BlockAffinity, Kind::IPAMHandle];
            let is_ours = kinds.contains(&object.kind);
            if is_ours && is_marked(&object) {
                snapshot.marked.push(object);
            } else if is_ours {
                let key = object.key();
                if let Err(error) = snapshot.insert(object) {
                    snapshot.unreadable.push((key, error));
                }
            }
        }

        snapshot
    }

    fn insert(&mut self, object: Object) -> Result<(), FieldError> {
        if object.kind == Kind::IPAMBlock {
            let stored = Stored::<IpamBlock>::read(object)?;
            self.blocks.insert(stored.value.cidr, stored);
        } else if object.kind == Kind::IPAMHandle {
            let stored = Stored::<IpamHandle>::read(object)?;
            self.handles.insert(stored.value.id.clone(), stored);
        } else if !is_virtual(&object) {
            let stored = Stored::<BlockAffinity>::read(object)?;
            self.affinities.insert(stored.value.name.clone(), stored);
        }

        Ok(())
    }

    /// Returns a node's affinity to a block.
    pub(crate) fn affinity(&self, node: &NodeName, cidr: IpNet) -> Option<&Stored<BlockAffinity>> {
        let named = self.affinities.get(&BlockAffinity::object_name(node, cidr));

        named.filter(|it| it.value.node == *node && it.value.cidr == cidr)
    }
}

/// Returns whether an affinity is that of a pseudo-host of Calico's, which keeps its own books.
fn is_virtual(object: &Object) -> bool {
    let spec = object.body.get("spec");

    spec.and_then(|spec| spec.get("type")?.as_str()) == Some("virtual")
}

impl Finding {
    fn new(fault: Fault, subject: impl Into<String>, repair: Option<Repair>) -> Self {
        Self {
            fault,
            subject: subject.into(),
            repair,
        }
    }
}

impl Fault {
    /// Every fault, in order.
    pub const ALL: [Self; 18] = [
        Self::LeakedAddress,
        Self::VanishedNode,
        Self::SharedAddress,
        Self::UnassignedAddress,
        Self::StolenAddress,
        Self::LostAddress,
        Self::UntidyBlock,
        Self::OverlappingBlock,
        Self::StrayBlock,
        Self::OrphanBlock,
        Self::DeselectedBlock,
        Self::UnconfirmedBlock,
        Self::StaleAffinity,
        Self::AbandonedBlock,
        Self::WrongHandle,
        Self::CollidingHandle,
        Self::HalfDeleted,
        Self::Unreadable,
    ];

    /// Returns whether one look is enough: nobody at work leaves this behind for a moment.
    pub const fn is_certain(self) -> bool {
        match self {
            Self::VanishedNode
            | Self::SharedAddress
            | Self::UnassignedAddress
            | Self::StolenAddress
            | Self::LostAddress
            | Self::UntidyBlock
            | Self::OverlappingBlock
            | Self::StrayBlock
            | Self::AbandonedBlock
            | Self::CollidingHandle
            | Self::Unreadable => true,
            Self::LeakedAddress
            | Self::OrphanBlock
            | Self::DeselectedBlock
            | Self::UnconfirmedBlock
            | Self::StaleAffinity
            | Self::WrongHandle
            | Self::HalfDeleted => false,
        }
    }

    /// Returns the fault in a few words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeakedAddress => "the holder of an address is gone",
            Self::VanishedNode => "the node of an address is gone",
            Self::SharedAddress => "two pods have one address",
            Self::UnassignedAddress => "a pod has an address that was not assigned",
            Self::StolenAddress => "a pod has an address of somebody else",
            Self::LostAddress => "an address is neither free nor allocated",
            Self::UntidyBlock => "a block notes what belongs to no allocation",
            Self::OverlappingBlock => "two blocks overlap",
            Self::StrayBlock => "a block belongs to no pool",
            Self::OrphanBlock => "an empty block has no owner",
            Self::DeselectedBlock => "an empty block is of a pool that does not select its node",
            Self::UnconfirmedBlock => "a block's owner has no confirmed affinity",
            Self::StaleAffinity => "an affinity has no block",
            Self::AbandonedBlock => "the owner of a block is gone",
            Self::WrongHandle => "a handle counts wrongly",
            Self::CollidingHandle => "two handles have one name",
            Self::HalfDeleted => "a record is marked for deletion",
            Self::Unreadable => "a record cannot be read",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault.as_str(), self.subject)
    }
}
