//! Addresses given back: by their handle, or one by one.
//!
//! The block lets go of an address before the handle forgets it, so that a
//! release that was cut short can be repeated by the handle.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Family, NodeName,
    resource::{IpPool, IpamBlock},
};

use crate::{
    allocation::{give_back, is_empty, owner, thaw},
    session::{Failure, Rules, Session, TRIES, Writer},
    step::Operation,
    stored::Stored,
};

/// An address to be given back, and what must be true of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The address.
    pub address: IpAddr,
    /// Who must hold it; `None`: whoever does.
    pub handle: Option<String>,
    /// The sequence number that it must have been assigned at; `None`: any.
    pub sequence_number: Option<u64>,
}

/// What became of addresses that were to be given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Nobody holds these any more, and somebody did.
    pub freed: Vec<IpAddr>,
    /// Nobody held these, which is as good.
    pub unallocated: Vec<IpAddr>,
    /// These stay, and why.
    pub kept: BTreeMap<IpAddr, Kept>,
}

/// Why an address was not given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Kept {
    /// Another handle holds it.
    #[error("it is held by {}", .0.as_deref().unwrap_or("somebody without a handle"))]
    Handle(Option<String>),
    /// It was assigned anew since.
    #[error("it was assigned at {0:?}, not at the sequence number that was named")]
    Sequence(Option<u64>),
    /// It is in a block that the writer may not write: the authority may.
    #[error("it is in the block {0}, which is not the node's")]
    Foreign(IpNet),
}

/// Gives back every address that a handle holds. A handle that holds nothing is a success.
///
/// Where the handle has no record, a node looks through its own blocks, the authority through all.
pub fn release_handle(
    handle: String,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Released, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);
        let mut released = Released::default();
        let blocks = match session.handle(&handle).await? {
            Some(stored) => stored.value.blocks.into_keys().collect(),
            None => session.own_blocks().await?,
        };
        for cidr in blocks {
            session.release_in(cidr, &handle, &mut released).await?;
        }

        Ok(released)
    })
}

/// Gives back single addresses, each under its own condition.
pub fn release_addresses(
    releases: Vec<Release>,
    pools: Vec<IpPool>,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Released, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);
        let mut released = Released::default();
        for release in releases {
            let Some(cidr) = session.block_of(release.address, &pools).await? else {
                released.unallocated.push(release.address);
                continue;
            };
            session.release_one(cidr, &release, &mut released).await?;
        }

        Ok(released)
    })
}

impl Session {
    /// Gives back what a handle holds in a block, then takes the block out of the handle's record.
    async fn release_in(
        &self,
        cidr: IpNet,
        handle: &str,
        released: &mut Released,
    ) -> Result<(), Failure> {
        for _ in 0..TRIES {
            let Some(stored) = self.block(cidr).await? else {
                return self.forget_block(handle, cidr).await;
            };
            let addresses: Vec<IpAddr> = stored.value.addresses_of(handle).collect();
            if addresses.is_empty() {
                return self.forget_block(handle, cidr).await;
            }
            if !self.rules.may_write(stored.value.affinity.as_ref()) {
                let foreign = addresses.iter().map(|it| (*it, Kept::Foreign(cidr)));
                released.kept.extend(foreign);
                return Ok(());
            }
            if self.let_go(&stored, &addresses).await? {
                released.freed.extend(addresses);
                return self.forget_block(handle, cidr).await;
            }
        }

        Err(Failure::Contended(cidr.to_string()))
    }

    /// Gives back one address.
    pub(crate) async fn release_one(
        &self,
        cidr: IpNet,
        release: &Release,
        released: &mut Released,
    ) -> Result<(), Failure> {
        let address = release.address;
        for _ in 0..TRIES {
            let stored = self.block(cidr).await?;
            let held = stored.as_ref().and_then(|it| Held::of(&it.value, address));
            let (Some(stored), Some(held)) = (stored, held) else {
                released.unallocated.push(address);
                return Ok(());
            };
            if let Some(kept) = held.objection(release) {
                released.kept.insert(address, kept);
                return Ok(());
            }
            if !self.rules.may_write(stored.value.affinity.as_ref()) {
                released.kept.insert(address, Kept::Foreign(cidr));
                return Ok(());
            }
            if self.let_go(&stored, &[address]).await? {
                released.freed.push(address);
                if let Some(handle) = held.handle {
                    self.count(&handle, None, cidr, 1, 0).await?;
                }
                return Ok(());
            }
        }

        Err(Failure::Contended(cidr.to_string()))
    }

    /// Writes a block without these addresses; one that is empty and nobody's is deleted.
    async fn let_go(
        &self,
        stored: &Stored<IpamBlock>,
        addresses: &[IpAddr],
    ) -> Result<bool, Failure> {
        let cooldown = self.rules.configuration.cooldown;
        let mut block = stored.value.clone();
        thaw(&mut block, cooldown, self.now);
        for ordinal in addresses.iter().filter_map(|it| stored.value.ordinal(*it)) {
            give_back(&mut block, ordinal, cooldown, self.now);
        }
        if block.affinity.is_none() && !stored.is_virtual() && is_empty(&block) {
            return self.delete(stored.object.key(), stored.revision()).await;
        }

        Ok(self.write_block(stored, block).await?.is_some())
    }

    /// Takes a block out of a handle's record.
    async fn forget_block(&self, handle: &str, cidr: IpNet) -> Result<(), Failure> {
        self.change_handle(handle, None, |it| {
            it.blocks.remove(&cidr);
        })
        .await
    }

    /// Returns the blocks to look through for a handle without a record.
    async fn own_blocks(&self) -> Result<Vec<IpNet>, Failure> {
        let node: NodeName = match &self.rules.writer {
            Writer::Node(node) => node.clone(),
            Writer::Authority => {
                let blocks = self.blocks().await?;
                return Ok(blocks.into_iter().map(|it| it.value.cidr).collect());
            }
        };
        let mut blocks = Vec::new();
        for family in Family::BOTH {
            let affinities = self.affinities(&node, family).await?;
            blocks.extend(affinities.into_iter().map(|it| it.value.cidr));
        }

        Ok(blocks)
    }

    /// Returns the block that has an address: by its pool, or, where that has changed, among all.
    async fn block_of(&self, address: IpAddr, pools: &[IpPool]) -> Result<Option<IpNet>, Failure> {
        let inside = pools.iter().filter(|pool| pool.cidr.contains(&address));
        for pool in inside {
            let cidr = IpNet::new(address, pool.block_size).map(|net| net.trunc());
            if let Ok(cidr) = cidr
                && self.block(cidr).await?.is_some()
            {
                return Ok(Some(cidr));
            }
        }
        let blocks = self.blocks().await?;
        let found = blocks.iter().find(|it| it.value.cidr.contains(&address));

        Ok(found.map(|it| it.value.cidr))
    }
}

/// How an address is held.
struct Held {
    handle: Option<String>,
    sequence: Option<u64>,
}

impl Held {
    /// Returns how an address is held; `None` when it is free, or cools down.
    fn of(block: &IpamBlock, address: IpAddr) -> Option<Self> {
        let ordinal = block.ordinal(address)?;
        let holder = owner(block, ordinal)?;
        if holder.handle_id.is_none() && holder.released_at.is_some() {
            return None;
        }

        Some(Self {
            handle: holder.handle_id.clone(),
            sequence: block.sequence_number_for_allocation.get(&ordinal).copied(),
        })
    }

    /// Returns what speaks against giving it back.
    fn objection(&self, release: &Release) -> Option<Kept> {
        if release.handle.is_some() && release.handle != self.handle {
            return Some(Kept::Handle(self.handle.clone()));
        }
        if release.sequence_number.is_some() && release.sequence_number != self.sequence {
            return Some(Kept::Sequence(self.sequence));
        }

        None
    }
}
