//! Addresses for a request: from the node's blocks, from new ones, or borrowed.
//!
//! ```text
//! what the handle holds ─▶ affine blocks ─▶ new block ─▶ … ─▶ enough, or why not
//!                                                  borrow, by the authority ─▶ any block
//! per block:  handle +n ─▶ block (at the revision it was read at) ─▶ done | read it again
//! ```
//!
//! The handle counts an address before the block has it, so that whoever holds
//! the handle's name finds every address again. A request is repeated with the
//! same handle after a crash: what it holds counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Family, NodeName,
    resource::{AffinityState, IpPool, IpamBlock},
};

use crate::{
    affinity::{BLOCKS_MAX, Claimed},
    allocation::{Exact, Holder, take, take_exact, thaw},
    pool::{NoPool, Preference, choose},
    session::{Failure, Rules, Session, TRIES},
    step::Operation,
};

/// Most addresses that one request may ask for.
const COUNT_MAX: u32 = 4096;

/// Addresses that are wanted, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The node that they are used on.
    pub node: NodeName,
    /// Who is to hold them.
    pub holder: Holder,
    /// How many, by family; at most 4096 of each are looked at.
    pub counts: BTreeMap<Family, u32>,
    /// From which pools.
    pub preference: Preference,
    /// Most blocks that the node may have, where the request knows better than the configuration.
    pub blocks_max: Option<u32>,
}

/// What a request came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The addresses, each with the length of its block's prefix.
    pub addresses: BTreeSet<IpNet>,
    /// Families that there are fewer addresses of than were wanted. What was assigned stays so.
    pub missing: BTreeMap<Family, Missing>,
}

/// Why there are not enough addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No pool may be used.
    #[error(transparent)]
    NoPool(NoPool),
    /// The node has as many blocks as it may have.
    #[error("the node has its limit of {0} blocks")]
    BlockLimit(u32),
    /// The node's blocks are full, and it claims none by itself.
    #[error("the node's blocks are full and spec.autoAllocateBlocks is false")]
    NoNewBlocks,
    /// No block is left in the pools: only borrowing helps.
    #[error("no block is left in {0}")]
    PoolsFull(Pools),
    /// Every address of every block is taken.
    #[error("no address is left in {0}")]
    Exhausted(Pools),
    /// Addresses of other nodes' blocks may not be used.
    #[error("spec.strictAffinity forbids addresses of other nodes' blocks")]
    StrictAffinity,
}

/// The names of pools, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools(pub Vec<String>);

/// One address that is wanted, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExactRequest {
    /// The node that it is used on.
    pub node: NodeName,
    /// Who is to hold it.
    pub holder: Holder,
    /// The address.
    pub address: IpAddr,
}

/// Why an address that was asked for by itself was not assigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No enabled pool has it.
    #[error("{0} is in no enabled pool")]
    NoPool(IpAddr),
    /// Somebody else has it.
    #[error("{address} is held by {}", holder.as_deref().unwrap_or("somebody without a handle"))]
    Held {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: Option<String>,
    },
    /// It was released a short while ago.
    #[error("{0} was released a short while ago")]
    Cooling(IpAddr),
    /// It is in a block of another node, or of nobody: the authority may assign it.
    #[error("{address} is in the block {block}, which is not the node's")]
    Foreign {
        /// The address.
        address: IpAddr,
        /// Its block.
        block: IpNet,
    },
    /// Addresses of other nodes' blocks may not be used.
    #[error("spec.strictAffinity forbids {0}, which is in a block of another node")]
    StrictAffinity(IpAddr),
}

/// Assigns addresses to a handle, from the node's own blocks and from new ones.
///
/// Asking again with the same handle is asking once: what it holds counts.
pub fn assign_addresses(
    request: Request,
    pools: Vec<IpPool>,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Assigned, Failure>> {
    gather(request, pools, rules, now, Source::OwnBlocks)
}

/// Assigns addresses of any block of the pools, as the authority does for a node whose own are full.
///
/// The attributes name the node that uses the address: that is the record of the loan. What the handle holds counts.
pub fn borrow_addresses(
    request: Request,
    pools: Vec<IpPool>,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Assigned, Failure>> {
    gather(request, pools, rules, now, Source::AnyBlock)
}

/// Returns what the handle holds, and what is missing from that taken from `source`.
fn gather(
    request: Request,
    pools: Vec<IpPool>,
    rules: Rules,
    now: Timestamp,
    source: Source,
) -> Operation<Result<Assigned, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);
        let mut assigned = Assigned::default();
        let held = session.held(&request.holder.handle).await?;
        for (family, count) in &request.counts {
            let have = held.iter().filter(|it| Family::of_net(it) == *family);
            let before = assigned.addresses.len();
            assigned.addresses.extend(have);
            let have = assigned.addresses.len() - before;
            let want = usize::try_from((*count).min(COUNT_MAX)).unwrap_or(0);
            if have >= want {
                continue;
            }
            let want = want - have;
            let outcome = match source {
                Source::OwnBlocks => session.fill(&request, *family, &pools, want).await?,
                Source::AnyBlock => session.borrow(&request, *family, &pools, want).await?,
            };
            assigned.addresses.extend(outcome.addresses);
            assigned
                .missing
                .extend(outcome.missing.map(|why| (*family, why)));
        }

        Ok(assigned)
    })
}

/// Assigns one certain address, whose block is claimed if nobody has it.
///
/// Reservations and selectors are not asked: whoever names an address means it.
pub fn assign_exact(
    request: ExactRequest,
    pools: Vec<IpPool>,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Result<IpNet, Denied>, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);

        session.exact(&request, &pools).await
    })
}

/// Sees to it that a node has a block of a pool, which is claimed when it has none.
///
/// So its first pods and its tunnel device need not wait for one.
pub fn ensure_block(
    node: NodeName,
    pool: IpPool,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Result<IpNet, Missing>, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);

        session.ensure(&node, &pool).await
    })
}

/// Where addresses are taken from.
#[derive(Clone, Copy)]
enum Source {
    /// The node's own blocks, and new ones.
    OwnBlocks,
    /// Any block of the pools.
    AnyBlock,
}

/// What one family came to.
struct Outcome {
    addresses: Vec<IpNet>,
    missing: Option<Missing>,
}

impl Session {
    /// Returns the addresses that a handle holds, by its record; a count that is too high is put right.
    async fn held(&self, handle: &str) -> Result<Vec<IpNet>, Failure> {
        let Some(stored) = self.handle(handle).await? else {
            return Ok(Vec::new());
        };
        let mut held = Vec::new();
        let mut exact = stored.value.clone();
        for (cidr, count) in &stored.value.blocks {
            let found = match self.block(*cidr).await? {
                Some(block) => addresses_of(&block.value, handle),
                None => Vec::new(),
            };
            let number = u32::try_from(found.len()).unwrap_or(u32::MAX);
            if number == 0 {
                exact.blocks.remove(cidr);
            } else if number < *count {
                exact.blocks.insert(*cidr, number);
            }
            held.extend(found);
        }
        self.write_handle(Some(&stored), &exact).await?;

        Ok(held)
    }

    /// Takes addresses of the node's blocks, claiming more as long as that is allowed.
    async fn fill(
        &self,
        request: &Request,
        family: Family,
        pools: &[IpPool],
        want: usize,
    ) -> Result<Outcome, Failure> {
        let mut outcome = Outcome {
            addresses: Vec::new(),
            missing: None,
        };
        let pools = match choose(pools, family, &request.preference) {
            Ok(pools) => pools,
            Err(none) => {
                outcome.missing = Some(Missing::NoPool(none));
                return Ok(outcome);
            }
        };
        let affinities = self.affinities(&request.node, family).await?;
        for pool in &pools {
            let inside = affinities
                .iter()
                .filter(|it| pool.cidr.contains(&it.value.cidr));
            for affinity in inside {
                let missing = want - outcome.addresses.len();
                if missing == 0 {
                    return Ok(outcome);
                }
                let state = affinity.value.state;
                let taken = self.take_of_ours(request, affinity.value.cidr, state, missing);
                outcome.addresses.extend(taken.await?);
            }
        }
        let mut blocks = u32::try_from(affinities.len()).unwrap_or(u32::MAX);
        let limit = self.blocks_max(request);
        let mut tried = affinities.iter().map(|it| it.value.cidr).collect();
        while outcome.addresses.len() < want {
            let missing = want - outcome.addresses.len();
            let why = self.may_claim(blocks, limit);
            let claimed = match why {
                None => self.claim_next(&request.node, &pools, &mut tried).await?,
                Some(why) => {
                    outcome.missing = Some(why);
                    return Ok(outcome);
                }
            };
            let Some(cidr) = claimed else {
                outcome.missing = Some(Missing::PoolsFull(names(&pools)));
                return Ok(outcome);
            };
            blocks = blocks.saturating_add(1);
            let state = AffinityState::Confirmed;
            let taken = self.take_of_ours(request, cidr, state, missing).await?;
            outcome.addresses.extend(taken);
        }

        Ok(outcome)
    }

    /// Returns a block of a pool that the node has, or one that it claimed just now.
    async fn ensure(
        &self,
        node: &NodeName,
        pool: &IpPool,
    ) -> Result<Result<IpNet, Missing>, Failure> {
        let affinities = self.affinities(node, Family::of_net(&pool.cidr)).await?;
        let inside = affinities
            .iter()
            .filter(|it| pool.cidr.contains(&it.value.cidr));
        for affinity in inside {
            if self.claim(node, affinity.value.cidr).await? == Claimed::Ours {
                return Ok(Ok(affinity.value.cidr));
            }
        }
        let blocks = u32::try_from(affinities.len()).unwrap_or(u32::MAX);
        if let Some(why) = self.may_claim(blocks, self.limit()) {
            return Ok(Err(why));
        }
        let mut tried = affinities.iter().map(|it| it.value.cidr).collect();
        let claimed = self.claim_next(node, &[pool], &mut tried).await?;

        Ok(claimed.ok_or_else(|| Missing::PoolsFull(names(&[pool]))))
    }

    /// Takes addresses of a block that the node has an affinity to.
    async fn take_of_ours(
        &self,
        request: &Request,
        cidr: IpNet,
        state: AffinityState,
        want: usize,
    ) -> Result<Vec<IpNet>, Failure> {
        let is_ours = |block: &IpamBlock| block.affinity.as_ref() == Some(&request.node);
        let is_settled = match state {
            AffinityState::Confirmed => true,
            AffinityState::Pending | AffinityState::PendingDeletion => false,
        };
        if is_settled {
            match self.take(cidr, &request.holder, want, is_ours).await? {
                Took::Addresses(addresses) => return Ok(addresses),
                Took::Unusable => {}
            }
        }
        // The block is missing, or not ours, or nobody confirmed that it is.
        if self.claim(&request.node, cidr).await? == Claimed::Foreign {
            return Ok(Vec::new());
        }

        Ok(
            match self.take(cidr, &request.holder, want, is_ours).await? {
                Took::Addresses(addresses) => addresses,
                Took::Unusable => Vec::new(),
            },
        )
    }

    /// Takes up to so many addresses of a block, which is read again as long as others write it.
    async fn take(
        &self,
        cidr: IpNet,
        holder: &Holder,
        want: usize,
        may_use: impl Fn(&IpamBlock) -> bool,
    ) -> Result<Took, Failure> {
        let mut counted = 0;
        for _ in 0..TRIES {
            let stored = self.block(cidr).await?;
            let Some(stored) = stored.filter(|it| may_use(&it.value)) else {
                self.count_for(holder, cidr, counted, 0).await?;
                return Ok(Took::Unusable);
            };
            let mut block = stored.value.clone();
            thaw(&mut block, self.rules.configuration.cooldown, self.now);
            let taken = take(&mut block, want, holder, |it| self.rules.is_reserved(it));
            let number = u32::try_from(taken.len()).unwrap_or(u32::MAX);
            self.count_for(holder, cidr, counted, number).await?;
            counted = number;
            if taken.is_empty() {
                return Ok(Took::Addresses(Vec::new()));
            }
            if self.write_block(&stored, block).await?.is_some() {
                return Ok(Took::Addresses(in_block(&taken, cidr)));
            }
        }
        self.count_for(holder, cidr, counted, 0).await?;

        Err(Failure::Contended(cidr.to_string()))
    }

    /// Changes by how many addresses of a block a holder's handle is counted.
    async fn count_for(
        &self,
        holder: &Holder,
        cidr: IpNet,
        before: u32,
        after: u32,
    ) -> Result<(), Failure> {
        let node = holder.node();

        self.count(&holder.handle, node.as_ref(), cidr, before, after)
            .await
    }

    /// Changes by how many addresses of a block a handle is counted; a new one is the node's.
    pub(crate) async fn count(
        &self,
        handle: &str,
        node: Option<&NodeName>,
        cidr: IpNet,
        before: u32,
        after: u32,
    ) -> Result<(), Failure> {
        if before == after {
            return Ok(());
        }
        let change = |it: &mut model::resource::IpamHandle| {
            let count = it.blocks.get(&cidr).copied().unwrap_or(0);
            match count.saturating_sub(before).saturating_add(after) {
                0 => it.blocks.remove(&cidr),
                count => it.blocks.insert(cidr, count),
            };
        };

        self.change_handle(handle, node, change).await
    }

    /// Takes addresses of any block of the pools, in the node's own order.
    async fn borrow(
        &self,
        request: &Request,
        family: Family,
        pools: &[IpPool],
        want: usize,
    ) -> Result<Outcome, Failure> {
        let mut outcome = Outcome {
            addresses: Vec::new(),
            missing: None,
        };
        if self.rules.configuration.strict_affinity {
            outcome.missing = Some(Missing::StrictAffinity);
            return Ok(outcome);
        }
        let pools = match choose(pools, family, &request.preference) {
            Ok(pools) => pools,
            Err(none) => {
                outcome.missing = Some(Missing::NoPool(none));
                return Ok(outcome);
            }
        };
        let blocks = self.blocks().await?;
        for pool in &pools {
            let mut inside: Vec<IpNet> = blocks
                .iter()
                .filter(|it| pool.cidr.contains(&it.value.cidr) && !it.is_virtual())
                .map(|it| it.value.cidr)
                .collect();
            crate::candidate::rotate(&mut inside, pool.cidr, pool.block_size, &request.node);
            for cidr in inside {
                let missing = want - outcome.addresses.len();
                if missing == 0 {
                    return Ok(outcome);
                }
                let may_use = |block: &IpamBlock| self.rules.may_write(block.affinity.as_ref());
                if let Took::Addresses(taken) =
                    self.take(cidr, &request.holder, missing, may_use).await?
                {
                    outcome.addresses.extend(taken);
                }
            }
        }
        if outcome.addresses.len() < want {
            outcome.missing = Some(Missing::Exhausted(names(&pools)));
        }

        Ok(outcome)
    }

    /// Assigns one certain address.
    async fn exact(
        &self,
        request: &ExactRequest,
        pools: &[IpPool],
    ) -> Result<Result<IpNet, Denied>, Failure> {
        let address = request.address;
        let pool = pools
            .iter()
            .find(|pool| !pool.disabled && pool.cidr.contains(&address));
        let cidr = pool.and_then(|pool| IpNet::new(address, pool.block_size).ok());
        let Some(cidr) = cidr.map(|cidr| cidr.trunc()) else {
            return Ok(Err(Denied::NoPool(address)));
        };
        let mut counted = 0;
        for _ in 0..TRIES {
            let Some(stored) = self.block(cidr).await? else {
                self.claim(&request.node, cidr).await?;
                continue;
            };
            let outcome = self.judge(request, cidr, &stored.value);
            let mut block = stored.value.clone();
            thaw(&mut block, self.rules.configuration.cooldown, self.now);
            let took = outcome.map(|()| take_exact(&mut block, address, &request.holder));
            let denied = match took {
                Ok(Some(Exact::Taken)) => None,
                Ok(Some(Exact::Held)) => {
                    self.count_for(&request.holder, cidr, counted, 0).await?;
                    return Ok(Ok(in_prefix(address, cidr)));
                }
                Ok(Some(Exact::HeldBy(holder))) => Some(Denied::Held { address, holder }),
                Ok(Some(Exact::Cooling)) => Some(Denied::Cooling(address)),
                Ok(None) => Some(Denied::NoPool(address)),
                Err(denied) => Some(denied),
            };
            if let Some(denied) = denied {
                self.count_for(&request.holder, cidr, counted, 0).await?;
                return Ok(Err(denied));
            }
            self.count_for(&request.holder, cidr, counted, 1).await?;
            counted = 1;
            if self.write_block(&stored, block).await?.is_some() {
                return Ok(Ok(in_prefix(address, cidr)));
            }
        }
        self.count_for(&request.holder, cidr, counted, 0).await?;

        Err(Failure::Contended(cidr.to_string()))
    }

    /// Says whether an address of a block may be given to a node at all.
    fn judge(&self, request: &ExactRequest, cidr: IpNet, block: &IpamBlock) -> Result<(), Denied> {
        let address = request.address;
        if block.affinity.as_ref() == Some(&request.node) {
            return Ok(());
        }
        if self.rules.configuration.strict_affinity {
            return Err(Denied::StrictAffinity(address));
        }
        if !self.rules.may_write(block.affinity.as_ref()) {
            let block = cidr;
            return Err(Denied::Foreign { address, block });
        }

        Ok(())
    }

    fn blocks_max(&self, request: &Request) -> u32 {
        let asked = request.blocks_max.unwrap_or(u32::MAX);
        match self.rules.configuration.max_blocks_per_host {
            None if request.blocks_max.is_some() => asked,
            Some(_) | None => self.limit().min(asked),
        }
    }

    /// Returns how many blocks of a family a node may have, as far as the configuration says.
    fn limit(&self) -> u32 {
        let configured = self.rules.configuration.max_blocks_per_host;

        configured.unwrap_or(BLOCKS_MAX)
    }

    /// Returns why the node may not claim another block.
    fn may_claim(&self, blocks: u32, limit: u32) -> Option<Missing> {
        if blocks >= limit {
            return Some(Missing::BlockLimit(limit));
        }
        if !self.rules.configuration.auto_allocate_blocks {
            return Some(Missing::NoNewBlocks);
        }

        None
    }
}

/// What was taken of a block.
enum Took {
    /// These: none when it is full.
    Addresses(Vec<IpNet>),
    /// The block is not there, or not to be used.
    Unusable,
}

/// Returns the addresses of a block that a handle holds, with the block's prefix.
fn addresses_of(block: &IpamBlock, handle: &str) -> Vec<IpNet> {
    let addresses: Vec<IpAddr> = block.addresses_of(handle).collect();

    in_block(&addresses, block.cidr)
}

fn in_block(addresses: &[IpAddr], cidr: IpNet) -> Vec<IpNet> {
    addresses.iter().map(|it| in_prefix(*it, cidr)).collect()
}

fn in_prefix(address: IpAddr, cidr: IpNet) -> IpNet {
    IpNet::new(address, cidr.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
}

fn names(pools: &[&IpPool]) -> Pools {
    Pools(pools.iter().map(|pool| pool.name.clone()).collect())
}

impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {}", self.0.join(", "))
    }
}

impl Missing {
    /// Returns whether the authority could lend an address.
    pub const fn is_lendable(&self) -> bool {
        match self {
            Self::NoNewBlocks | Self::PoolsFull(_) => true,
            Self::NoPool(_) | Self::BlockLimit(_) | Self::Exhausted(_) | Self::StrictAffinity => {
                false
            }
        }
    }
}
