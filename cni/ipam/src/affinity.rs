//! Which node a block belongs to: claimed and given up in Calico's sequence.
//!
//! ```text
//! claim:    affinity pending ─▶ block created (or, being ours, rewritten) ─▶ affinity confirmed
//! give up:  affinity pendingDeletion ─▶ block deleted, or its owner cleared ─▶ affinity deleted
//! ```
//!
//! The block decides: the store lets one of any number of creators succeed, and
//! who gives it up deletes it at the revision at which it was empty. A rewrite
//! by its owner is enough to make that fail.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Family, Kind, NodeName, Object,
    resource::{AffinityState, BlockAffinity, IpPool, IpamBlock},
};

use crate::{
    allocation::{in_seconds, is_empty, thaw},
    block::new_block,
    candidate::Candidates,
    session::{Failure, Rules, Session, TRIES},
    step::Operation,
    stored::Stored,
};

/// Calico's own cap on the blocks of a node and family, where nothing names one.
pub(crate) const BLOCKS_MAX: u32 = 20;

/// How old an empty block of another node must be before it is reclaimed, in seconds.
const RECLAIM_AGE: i64 = 60;

/// Most blocks of a pool that are looked at to find a free one; more than a pool of 10.0.0.0/8 has.
const CANDIDATES_MAX: usize = 1 << 20;

/// What became of a claim to a certain block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The block belongs to the node.
    Ours,
    /// It belongs to somebody else, or to nobody.
    Foreign,
}

/// What became of a block that was to be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// The node has neither the block nor an affinity to it.
    Done,
    /// The block is in use, and was to be empty.
    InUse,
}

/// What giving up a block asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Nobody may hold an address of it.
    Empty,
    /// Nothing: those who hold addresses keep them, in a block without owner.
    Any,
}

/// Claims a block for a node, or finds out that it has it already.
pub fn claim_block(
    node: NodeName,
    cidr: IpNet,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Claimed, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);

        session.claim(&node, cidr).await
    })
}

/// Gives up a node's block.
///
/// The node does this itself; the authority does it to an empty block that another node needs, or for a node that is
/// gone. A node that uses the block meanwhile keeps it.
pub fn give_up_block(
    node: NodeName,
    cidr: IpNet,
    condition: Condition,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<GivenUp, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);

        session.give_up(&node, cidr, condition).await
    })
}

/// Takes an empty block away from a node that does not need it, so that another one may claim it.
///
/// Of the pools' blocks, in order, the first that has had its owner for a minute and that nobody holds an address of.
/// `None`: there is no such block.
pub fn reclaim_block(
    pools: Vec<IpPool>,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Option<IpNet>, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);
        let blocks = session.blocks().await?;
        for pool in &pools {
            let idle = blocks
                .iter()
                .filter(|it| pool.cidr.contains(&it.value.cidr));
            for block in idle.filter(|it| session.is_idle(&it.value)) {
                let Some(owner) = &block.value.affinity else {
                    continue;
                };
                let cidr = block.value.cidr;
                if session.give_up(owner, cidr, Condition::Empty).await? == GivenUp::Done {
                    return Ok(Some(cidr));
                }
            }
        }

        Ok(None)
    })
}

impl Session {
    /// Walks a block to a confirmed affinity.
    pub(crate) async fn claim(&self, node: &NodeName, cidr: IpNet) -> Result<Claimed, Failure> {
        for _ in 0..TRIES {
            let affinity = match self.announce(node, cidr).await? {
                Announced::Owned => return Ok(Claimed::Ours),
                Announced::Pending(affinity) => affinity,
                Announced::Again => continue,
            };
            let claimed_at = Some(in_seconds(self.now));
            let block = new_block(cidr, node.clone(), self.sequence(), claimed_at);
            if self.create(block.to_object()).await?.is_none() {
                let Some(block) = self.block(cidr).await? else {
                    continue;
                };
                if block.value.affinity.as_ref() != Some(node) {
                    self.delete(affinity.object.key(), affinity.revision())
                        .await?;
                    return Ok(Claimed::Foreign);
                }
                // Whoever means to delete the block must see that it is wanted.
                let rewritten = self.write_block(&block, block.value.clone());
                if rewritten.await?.is_none() {
                    continue;
                }
            }
            let confirmed = affinity.value.with(AffinityState::Confirmed);
            if self.update(affinity.replacing(&confirmed)).await?.is_some() {
                return Ok(Claimed::Ours);
            }
        }

        Err(Failure::Contended(cidr.to_string()))
    }

    /// Brings the affinity to `pending`, unless the block is the node's already.
    async fn announce(&self, node: &NodeName, cidr: IpNet) -> Result<Announced, Failure> {
        let Some(affinity) = self.affinity(node, cidr).await? else {
            let pending = BlockAffinity::pending(node.clone(), cidr);
            return Ok(match self.create(pending.to_object()).await? {
                Some(object) => Announced::Pending(Box::new(crate::session::read(object)?)),
                None => Announced::Again,
            });
        };
        match affinity.value.state {
            AffinityState::Pending => return Ok(Announced::Pending(Box::new(affinity))),
            AffinityState::Confirmed => {
                let block = self.block(cidr).await?;
                if block.is_some_and(|it| it.value.affinity.as_ref() == Some(node)) {
                    return Ok(Announced::Owned);
                }
            }
            AffinityState::PendingDeletion => {}
        }
        let pending = affinity.value.with(AffinityState::Pending);
        let written = self.update(affinity.replacing(&pending)).await?;

        Ok(match written {
            Some(object) => Announced::Pending(Box::new(crate::session::read(object)?)),
            None => Announced::Again,
        })
    }

    /// Claims the next block of the pools that nobody has, or that is the node's although its affinity was lost; `None`
    /// when there is none. Those that were `tried` are passed over.
    pub(crate) async fn claim_next(
        &self,
        node: &NodeName,
        pools: &[&IpPool],
        tried: &mut BTreeSet<IpNet>,
    ) -> Result<Option<IpNet>, Failure> {
        let objects = self.list(Kind::IPAMBlock, None).await?;
        let occupied = Occupied::of(&objects);
        for pool in pools {
            let candidates = Candidates::new(pool.cidr, pool.block_size, node);
            let free = candidates.take(CANDIDATES_MAX).filter(|cidr| {
                !occupied.overlaps(*cidr, node) && !self.rules.is_all_reserved(*cidr)
            });
            for cidr in free.take(TRIES) {
                if tried.insert(cidr) && self.claim(node, cidr).await? == Claimed::Ours {
                    return Ok(Some(cidr));
                }
            }
        }

        Ok(None)
    }

    /// Gives up a block.
    pub(crate) async fn give_up(
        &self,
        node: &NodeName,
        cidr: IpNet,
        condition: Condition,
    ) -> Result<GivenUp, Failure> {
        for _ in 0..TRIES {
            // The block first: whoever claims it anew behind this line changes its revision before the affinity says
            // "confirmed" again.
            let block = self.block(cidr).await?;
            let affinity = self.affinity(node, cidr).await?;
            let Some(block) = block.filter(|it| it.value.affinity.as_ref() == Some(node)) else {
                match affinity {
                    None => return Ok(GivenUp::Done),
                    Some(affinity) if self.forget(&affinity).await? => return Ok(GivenUp::Done),
                    Some(_) => continue,
                }
            };
            let mut value = block.value.clone();
            thaw(&mut value, self.rules.configuration.cooldown, self.now);
            let is_empty = is_empty(&value);
            if !is_empty && condition == Condition::Empty {
                self.keep(affinity).await?;
                return Ok(GivenUp::InUse);
            }
            let Some(affinity) = self.withdraw(affinity).await? else {
                continue;
            };
            let is_gone = if is_empty {
                self.delete(block.object.key(), block.revision()).await?
            } else {
                value.affinity = None;
                value.affinity_claim_time = None;
                self.write_block(&block, value).await?.is_some()
            };
            if !is_gone {
                continue;
            }
            match affinity {
                Withdrawn::None => return Ok(GivenUp::Done),
                Withdrawn::Leaving(affinity) if self.forget(&affinity).await? => {
                    return Ok(GivenUp::Done);
                }
                Withdrawn::Leaving(_) => {}
            }
        }

        Err(Failure::Contended(cidr.to_string()))
    }

    /// Brings an affinity to `pendingDeletion`; `None` when somebody else wrote it.
    async fn withdraw(
        &self,
        affinity: Option<Stored<BlockAffinity>>,
    ) -> Result<Option<Withdrawn>, Failure> {
        let Some(affinity) = affinity else {
            return Ok(Some(Withdrawn::None));
        };
        if affinity.value.state == AffinityState::PendingDeletion {
            return Ok(Some(Withdrawn::Leaving(Box::new(affinity))));
        }
        let leaving = affinity.value.with(AffinityState::PendingDeletion);
        let written = self.update(affinity.replacing(&leaving)).await?;

        Ok(match written {
            Some(object) => {
                let leaving = crate::session::read(object)?;
                Some(Withdrawn::Leaving(Box::new(leaving)))
            }
            None => None,
        })
    }

    /// Confirms an affinity again that was about to be given up: its block is in use.
    async fn keep(&self, affinity: Option<Stored<BlockAffinity>>) -> Result<(), Failure> {
        let Some(affinity) = affinity else {
            return Ok(());
        };
        if affinity.value.state == AffinityState::PendingDeletion {
            self.claim(&affinity.value.node, affinity.value.cidr)
                .await?;
        }

        Ok(())
    }

    async fn forget(&self, affinity: &Stored<BlockAffinity>) -> Result<bool, Failure> {
        self.delete(affinity.object.key(), affinity.revision())
            .await
    }

    /// Reads every block; those that cannot be read are left out.
    pub(crate) async fn blocks(&self) -> Result<Vec<Stored<IpamBlock>>, Failure> {
        let objects = self.list(Kind::IPAMBlock, None).await?;
        let mut blocks: Vec<Stored<IpamBlock>> = objects
            .into_iter()
            .filter_map(|it| Stored::read(it).ok())
            .collect();
        blocks.sort_by_key(|block| block.value.cidr);

        Ok(blocks)
    }

    /// Reads a node's affinities of a family, in the order of their blocks.
    pub(crate) async fn affinities(
        &self,
        node: &NodeName,
        family: Family,
    ) -> Result<Vec<Stored<BlockAffinity>>, Failure> {
        let objects = self.list(Kind::BlockAffinity, Some(node)).await?;
        let mut affinities: Vec<Stored<BlockAffinity>> = objects
            .into_iter()
            .filter_map(|object| Stored::read(object).ok())
            .filter(|it: &Stored<BlockAffinity>| {
                it.value.node == *node && Family::of_net(&it.value.cidr) == family
            })
            .collect();
        affinities.sort_by_key(|affinity| affinity.value.cidr);

        Ok(affinities)
    }

    /// Returns whether a block is old enough, and empty, to be taken away.
    fn is_idle(&self, block: &IpamBlock) -> bool {
        let mut block = block.clone();
        thaw(&mut block, self.rules.configuration.cooldown, self.now);
        let claimed = block.affinity_claim_time.as_deref();
        let claimed = claimed.and_then(|text| text.parse::<Timestamp>().ok());
        let age = claimed.map(|claimed| self.now.duration_since(claimed).as_secs());

        is_empty(&block) && age.is_none_or(|age| age >= RECLAIM_AGE)
    }
}

/// How far an affinity came on the way to a claim.
enum Announced {
    /// The node has the block.
    Owned,
    /// The claim is announced.
    Pending(Box<Stored<BlockAffinity>>),
    /// Somebody else was faster.
    Again,
}

/// An affinity on its way out.
enum Withdrawn {
    /// There was none.
    None,
    /// It is marked as going.
    Leaving(Box<Stored<BlockAffinity>>),
}

/// What stands in the way of a new block.
struct Occupied {
    blocks: BTreeSet<IpNet>,
    /// Blocks with their owner, to find those of ours that lost their affinity.
    owned: BTreeMap<IpNet, NodeName>,
}

impl Occupied {
    fn of(objects: &[Object]) -> Self {
        let mut occupied = Self {
            blocks: BTreeSet::new(),
            owned: BTreeMap::new(),
        };
        for object in objects {
            match IpamBlock::try_from(object) {
                Ok(block) => {
                    occupied.blocks.insert(block.cidr);
                    if let Some(owner) = block.affinity.filter(|_| !block.unallocated.is_empty()) {
                        occupied.owned.insert(block.cidr, owner);
                    }
                }
                // What cannot be read is in the way where its range can.
                Err(_) => occupied.blocks.extend(range(object)),
            }
        }

        occupied
    }

    /// Returns whether a block of any size is in the way; the node's own with free addresses is not.
    fn overlaps(&self, cidr: IpNet, node: &NodeName) -> bool {
        if self.blocks.contains(&cidr) {
            return self.owned.get(&cidr) != Some(node);
        }
        let first = IpPool::block_sizes(Family::of_net(&cidr));
        let larger = (*first.start()..cidr.prefix_len())
            .filter_map(|size| IpNet::new(cidr.addr(), size).ok())
            .any(|net| self.blocks.contains(&net.trunc()));
        let smaller = self
            .blocks
            .range(cidr..)
            .take_while(|net| cidr.contains(&net.addr()))
            .any(|net| cidr.contains(net));

        larger || smaller
    }
}

/// Returns the range that a block names, although the rest of it cannot be read.
fn range(object: &Object) -> Option<IpNet> {
    let cidr: IpNet = object
        .body
        .get("spec")?
        .get("cidr")?
        .as_str()?
        .parse()
        .ok()?;

    Some(cidr.trunc())
}
