//! Claiming a block, one store operation at a time.
//!
//! ```text
//! list ─▶ own affinity, block missing      ─▶ [affinity pending] ─▶ create block ─▶ confirm ─▶ done
//!      ─▶ own affinity, own block          ─▶ [rewrite block ─▶ confirm] ─▶ done
//!      ─▶ own affinity, another's block    ─▶ delete affinity ─▶ list
//!      ─▶ none: next candidate             ─▶ create affinity ─▶ create block ─▶ confirm ─▶ done
//!      ─▶ no candidate left                ─▶ exhausted
//! ```
//!
//! Creating the block decides who owns it: the store lets one of any number of
//! creators succeed. Everything else can be found out again from a list, so a
//! claimer that dies between any two steps is continued by the next one of the
//! same node, and any surprise sends it back to the list.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{
    Kind, NodeName, Object, ObjectKey, Revision,
    resource::{AffinityState, BlockAffinity, IpPool, IpamBlock},
};

use crate::{block::new_block, candidate::Candidates};

/// A claim in progress.
#[derive(Clone, Debug)]
pub struct Claim {
    node: NodeName,
    pool: IpNet,
    block_size: u8,
    sequence_number: u64,
    claimed_at: Option<String>,
    /// Blocks that could not be created and that no list shows.
    lost: BTreeSet<IpNet>,
    step: Step,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimStep {
    /// Read every IPAMBlock and BlockAffinity from the store itself, not from a cache of it.
    List,
    /// Create the affinity.
    CreateAffinity(Object),
    /// Create the block; this must fail when one of that name is there.
    CreateBlock(Object),
    /// Replace the block if it has the revision that the object carries.
    UpdateBlock(Object),
    /// Replace the affinity if it has the revision that the object carries.
    UpdateAffinity(Object),
    /// Delete the affinity if it has this revision.
    DeleteAffinity(ObjectKey, Revision),
    /// The block belongs to the node.
    Done(IpNet),
    /// Every block of the pool belongs to somebody else.
    Exhausted,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub enum StepResult {
    /// What the store holds: blocks and affinities, at least those of the pool; other kinds are passed over.
    Listed(Vec<Object>),
    /// Created or replaced: the object as the store holds it now, with its revision.
    Stored(Box<Object>),
    /// Deleted.
    Deleted,
    /// Not created: there is one of that name.
    AlreadyExists,
    /// Not replaced or deleted: it has another revision.
    Conflict,
    /// Not replaced or deleted: there is none.
    NotFound,
    /// Nobody knows: the answer was lost.
    Unknown,
}

/// Where the claim stands.
#[derive(Clone, Debug)]
enum Step {
    List,
    CreateAffinity(BlockAffinity),
    /// The affinity, pending, as the store holds it.
    CreateBlock(Box<Object>, IpNet),
    Rewrite(Box<Object>, Box<Object>, IpNet),
    /// The affinity is to become pending again before the block is created.
    Reopen(Box<Object>, IpNet),
    Confirm(Box<Object>, IpNet),
    GiveUp(ObjectKey, Revision),
    Done(IpNet),
    Exhausted,
}

impl Claim {
    /// Begins to claim a block of a pool for a node.
    ///
    /// `sequence_number` is that of a block created by this claim: the time in
    /// nanoseconds since 1970. `claimed_at` is the same time, RFC 3339.
    pub fn new(
        node: NodeName,
        pool: IpNet,
        block_size: u8,
        sequence_number: u64,
        claimed_at: Option<String>,
    ) -> Self {
        let lost = BTreeSet::new();

        Self {
            node,
            pool,
            block_size,
            sequence_number,
            claimed_at,
            lost,
            step: Step::List,
        }
    }

    /// Returns what is to be done; the same again until [`told`](Self::told) how it ended.
    pub fn next(&self) -> ClaimStep {
        match &self.step {
            Step::List => ClaimStep::List,
            Step::CreateAffinity(affinity) => ClaimStep::CreateAffinity(affinity.to_object()),
            Step::CreateBlock(_, cidr) => ClaimStep::CreateBlock(self.new_block(*cidr)),
            Step::Rewrite(_, block, _) => ClaimStep::UpdateBlock(Object::clone(block)),
            Step::Reopen(affinity, _) => {
                ClaimStep::UpdateAffinity(with_state(affinity, AffinityState::Pending))
            }
            Step::Confirm(affinity, _) => {
                ClaimStep::UpdateAffinity(with_state(affinity, AffinityState::Confirmed))
            }
            Step::GiveUp(key, revision) => ClaimStep::DeleteAffinity(key.clone(), revision.clone()),
            Step::Done(cidr) => ClaimStep::Done(*cidr),
            Step::Exhausted => ClaimStep::Exhausted,
        }
    }

    /// Takes in how the step ended. A result that does not fit the step begins again with the list.
    pub fn told(&mut self, result: StepResult) {
        let step = std::mem::replace(&mut self.step, Step::List);
        self.step = match (step, result) {
            (Step::List, StepResult::Listed(objects)) => self.decide(&objects),
            (Step::CreateAffinity(affinity), StepResult::Stored(object)) => {
                Step::CreateBlock(object, affinity.cidr)
            }
            (Step::Reopen(_, cidr), StepResult::Stored(object)) => Step::CreateBlock(object, cidr),
            (Step::CreateBlock(affinity, cidr), StepResult::Stored(_)) => {
                Step::Confirm(affinity, cidr)
            }
            (Step::CreateBlock(_, cidr), StepResult::AlreadyExists) => {
                self.lost.insert(cidr);
                Step::List
            }
            (Step::Rewrite(affinity, _, cidr), StepResult::Stored(_)) => {
                Step::Confirm(affinity, cidr)
            }
            (Step::Confirm(_, cidr), StepResult::Stored(_)) => Step::Done(cidr),
            (done @ (Step::Done(_) | Step::Exhausted), _) => done,
            (
                Step::List
                | Step::CreateAffinity(_)
                | Step::CreateBlock(..)
                | Step::Rewrite(..)
                | Step::Reopen(..)
                | Step::Confirm(..)
                | Step::GiveUp(..),
                _,
            ) => Step::List,
        };
    }

    /// Chooses the step from what the store holds.
    fn decide(&self, objects: &[Object]) -> Step {
        let view = View::of(objects);
        let mine = view.affinities.iter().filter(|(_, affinity)| {
            affinity.node == self.node
                && self.pool.contains(&affinity.cidr)
                && affinity.cidr.prefix_len() == self.block_size
        });
        for (object, affinity) in mine {
            if let Some(step) = self.settle(object, affinity, &view) {
                return step;
            }
        }

        self.try_next(&view)
    }

    /// Returns what is to be done about an affinity of ours; `None` when its block is ours and full.
    fn settle(&self, object: &Object, affinity: &BlockAffinity, view: &View<'_>) -> Option<Step> {
        let give_up = || Some(Step::GiveUp(object.key(), object.revision()));
        if affinity.deleted {
            return give_up();
        }
        let confirmed = affinity.state == AffinityState::Confirmed;
        match view.blocks.get(&affinity.cidr) {
            None if self.lost.contains(&affinity.cidr) => give_up(),
            None if affinity.state == AffinityState::Pending => {
                Some(Step::CreateBlock(Box::new(object.clone()), affinity.cidr))
            }
            None => Some(Step::Reopen(Box::new(object.clone()), affinity.cidr)),
            Some((_, block)) if block.deleted || block.affinity.as_ref() != Some(&self.node) => {
                give_up()
            }
            Some((_, block)) if confirmed && block.unallocated.is_empty() => None,
            Some(_) if confirmed => Some(Step::Done(affinity.cidr)),
            Some((stored, block)) => Some(Step::Rewrite(
                Box::new(object.clone()),
                Box::new(rewritten(stored, block)),
                affinity.cidr,
            )),
        }
    }

    /// Chooses the next block of the pool that nobody has.
    fn try_next(&self, view: &View<'_>) -> Step {
        let free = Candidates::new(self.pool, self.block_size, &self.node)
            .find(|cidr| !view.overlaps(*cidr) && !self.lost.contains(cidr));

        match free {
            Some(cidr) => Step::CreateAffinity(BlockAffinity::pending(self.node.clone(), cidr)),
            None => Step::Exhausted,
        }
    }

    fn new_block(&self, cidr: IpNet) -> Object {
        let claimed_at = self.claimed_at.clone();

        new_block(cidr, self.node.clone(), self.sequence_number, claimed_at).to_object()
    }
}

/// What the store holds, read. Objects that cannot be read count as blocks where their range can.
struct View<'a> {
    affinities: Vec<(&'a Object, BlockAffinity)>,
    blocks: BTreeMap<IpNet, (&'a Object, IpamBlock)>,
    unreadable: Vec<IpNet>,
}

impl<'a> View<'a> {
    fn of(objects: &'a [Object]) -> Self {
        let mut view = Self {
            affinities: Vec::new(),
            blocks: BTreeMap::new(),
            unreadable: Vec::new(),
        };
        for object in objects {
            if object.kind == Kind::BlockAffinity {
                view.affinities
                    .extend(object.try_into().ok().map(|affinity| (object, affinity)));
            }
            if object.kind == Kind::IPAMBlock {
                match IpamBlock::try_from(object) {
                    Ok(block) => {
                        view.blocks.insert(block.cidr, (object, block));
                    }
                    Err(_) => view.unreadable.extend(range(object)),
                }
            }
        }
        view.affinities.sort_by_key(|(_, affinity)| affinity.cidr);

        view
    }

    /// Returns whether a block of any size is in the way.
    fn overlaps(&self, cidr: IpNet) -> bool {
        if self.blocks.contains_key(&cidr) {
            return true;
        }
        let family = model::Family::of_net(&cidr);
        let larger = IpPool::block_sizes(family)
            .filter(|size| *size < cidr.prefix_len())
            .filter_map(|size| IpNet::new(cidr.addr(), size).ok())
            .any(|net| self.blocks.contains_key(&net.trunc()));
        let smaller = self
            .blocks
            .range(cidr..)
            .take_while(|(net, _)| cidr.contains(&net.addr()))
            .any(|(net, _)| cidr.contains(net));
        let unreadable = self
            .unreadable
            .iter()
            .any(|net| net.contains(&cidr) || cidr.contains(net));

        larger || smaller || unreadable
    }
}

/// Returns the range that a block names, although the rest of it cannot be read.
fn range(object: &Object) -> Option<IpNet> {
    object.body.get("spec")?.get("cidr")?.as_str()?.parse().ok()
}

/// Returns the affinity with another state, otherwise as it was read.
fn with_state(affinity: &Object, state: AffinityState) -> Object {
    let mut object = affinity.clone();
    if let Some(spec) = object.body.get_mut("spec") {
        spec["state"] = state.as_str().into();
    }

    object
}

/// Returns the block as it was, with its sequence number raised: proof that nobody deletes it meanwhile.
fn rewritten(stored: &Object, block: &IpamBlock) -> Object {
    let mut object = stored.clone();
    if let Some(spec) = object.body.get_mut("spec") {
        spec["sequenceNumber"] = block.sequence_number.saturating_add(1).into();
    }

    object
}

#[cfg(test)]
mod tests;
