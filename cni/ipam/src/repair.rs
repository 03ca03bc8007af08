//! One thing put right, if it still is as it was seen.

use jiff::Timestamp;
use model::ObjectKey;

use crate::{
    affinity::GivenUp,
    allocation::lost,
    audit::Repair,
    block::prune,
    release::{Release, Released},
    session::{Failure, Rules, Session},
    step::Operation,
    stored::Stored,
};

/// What became of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// It is put right.
    Done,
    /// It was not as it had been seen; nothing was done.
    Outdated,
}

/// Puts one thing right. To repeat it is harmless.
///
/// The rules are the authority's: repairs reach into blocks of nodes that are gone.
pub fn repair(
    repair: Repair,
    rules: Rules,
    now: Timestamp,
) -> Operation<Result<Repaired, Failure>> {
    Operation::new(move |line| async move {
        let session = Session::new(line, rules, now);

        session.repair(&repair).await
    })
}

impl Session {
    async fn repair(&self, repair: &Repair) -> Result<Repaired, Failure> {
        match repair {
            Repair::Release {
                block,
                address,
                handle,
                sequence_number,
            } => {
                let mut released = Released::default();
                let release = Release {
                    address: *address,
                    handle: handle.clone(),
                    sequence_number: *sequence_number,
                };
                self.release_one(*block, &release, &mut released).await?;
                Ok(done_if(!released.freed.is_empty()))
            }
            Repair::CountHandle { id, at, blocks } => {
                let stored = self.handle(id).await?;
                let found = stored.as_ref().map(|it| it.revision().0);
                if found != *at {
                    return Ok(Repaired::Outdated);
                }
                let mut handle = match &stored {
                    Some(stored) => stored.value.clone(),
                    None => model::resource::IpamHandle::new(id.as_str()),
                };
                handle.blocks.clone_from(blocks);
                let written = self.write_handle(stored.as_ref(), &handle).await?;
                Ok(done_if(written))
            }
            Repair::Tidy { block, at } => match self.block(*block).await? {
                Some(stored) if stored.revision().0 == *at => self.tidy(&stored).await,
                Some(_) | None => Ok(Repaired::Outdated),
            },
            Repair::Remove { kind, name, at } => {
                let key = ObjectKey::cluster(*kind, name);
                let at = model::Revision(at.clone());
                Ok(done_if(self.delete(key, at).await?))
            }
            Repair::Claim { node, block } => {
                let owner = self.block(*block).await?.and_then(|it| it.value.affinity);
                if owner.as_ref() != Some(node) {
                    return Ok(Repaired::Outdated);
                }
                self.claim(node, *block).await?;
                Ok(Repaired::Done)
            }
            Repair::GiveUp {
                node,
                block,
                condition,
            } => {
                let outcome = self.give_up(node, *block, *condition).await?;
                Ok(done_if(outcome == GivenUp::Done))
            }
        }
    }

    /// Frees lost ordinals, and drops notes that belong to no allocation.
    async fn tidy(&self, stored: &Stored<model::resource::IpamBlock>) -> Result<Repaired, Failure> {
        let mut block = stored.value.clone();
        block.unallocated.extend(lost(&stored.value));
        prune(&mut block);
        let allocations = &block.allocations;
        block
            .sequence_number_for_allocation
            .retain(|ordinal, _| allocations.contains_key(ordinal));

        Ok(done_if(self.write_block(stored, block).await?.is_some()))
    }
}

const fn done_if(is_done: bool) -> Repaired {
    if is_done {
        Repaired::Done
    } else {
        Repaired::Outdated
    }
}
