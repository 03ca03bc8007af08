//! Blocks, affinities and addresses, decided purely.
//!
//! ```text
//!            pools, labels, settings, time
//!                        │
//! request ──▶ Operation ─┴─▶ Step ──▶ store ──▶ Answer ──▶ … ──▶ outcome
//! ```
//!
//! | operation | what it does |
//! |---|---|
//! | [`assign_addresses`], [`assign_exact`] | addresses of the node's own blocks, claiming blocks as needed |
//! | [`borrow_addresses`], [`reclaim_block`] | the authority's: addresses of any block; an idle block taken away |
//! | [`release_handle`], [`release_addresses`] | addresses given back, to rest for a while |
//! | [`claim_block`], [`ensure_block`], [`give_up_block`] | which node a block belongs to |
//! | [`repair`](repair()) | one thing that an [`audit`](audit()) found, put right |
//!
//! The records are those of Calico's IPAM, so that its nodes and ours share one
//! store: an affinity is announced, then the block created, then the affinity
//! confirmed; a handle counts an address before its block has it; everything is
//! written only at the revision at which it was read.
//!
//! **Invariants:** a block has one owner and an address one holder, whoever
//! crashes between which two steps; an ordinal is allocated or free, never
//! both; the address that has been free longest is handed out next; a node
//! writes only blocks that are affine to it.
//!
//! Deliberately not here: any I/O, any clock.

pub mod affinity;
pub mod allocation;
pub mod assign;
pub mod audit;
pub mod block;
pub mod candidate;
pub mod garbage;
pub mod handle;
pub mod memory;
pub mod pool;
pub mod release;
pub mod repair;
pub mod session;
pub mod step;
pub mod stored;

pub use affinity::{Claimed, Condition, GivenUp, claim_block, give_up_block, reclaim_block};
pub use allocation::Holder;
pub use assign::{
    Assigned, Denied, ExactRequest, Missing, Request, assign_addresses, assign_exact,
    borrow_addresses, ensure_block,
};
pub use audit::{Facts, Fault, Finding, Repair, Snapshot, audit};
pub use block::new_block;
pub use garbage::Collector;
pub use pool::{NoPool, Preference};
pub use release::{Kept, Release, Released, release_addresses, release_handle};
pub use repair::{Repaired, repair};
pub use session::{Failure, Rules, Writer};
pub use step::{Answer, Operation, Step, Turn};
pub use stored::Stored;
