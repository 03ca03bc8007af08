//! Blocks, affinities and addresses, decided purely.
//!
//! ```text
//! pool ──Claim──▶ block of this node ──assign──▶ address ──release──▶ free again
//!        │  ▲
//!   one step  its result        whoever drives it talks to the store
//! ```
//!
//! The records are those of Calico's IPAM, so that its nodes and ours share one
//! store: an affinity is announced, then the block created, then the affinity
//! confirmed; a block is written only with the revision it was read at.
//!
//! **Invariants:** a block has one owner, whoever crashes between which two
//! steps; an ordinal is allocated or free, never both; the address that has
//! been free longest is handed out next.
//!
//! Deliberately not here: any I/O, any clock, borrowed addresses, garbage.

pub mod block;
pub mod candidate;
pub mod claim;
pub mod handle;

pub use block::{AssignError, Assigned, assign, new_block, release};
pub use claim::{Claim, ClaimStep, StepResult};
