//! Does the ruleset say what the evaluator says?
//!
//! ```text
//! seed ──Chance──▶ Cluster ──compile──▶ rows ──▶ kernel ──nft -j──▶ rows ──▶ Machines ─┐
//!            └────▶ Packet ──────────────────────────────────────────────────────────────┼── same verdict?
//!                      └──────────────────────────────────────────────────▶ Evaluator ─┘
//! ```
//!
//! [`Machines`] walks packets through rows as a kernel does; it shares nothing with the compiler. The rows are those
//! that were compiled, or those that the kernel has, as `nft` lists them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chance;
mod document;
pub mod frame;
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a word that is not known here fails the test"
)]
pub mod listing;
mod shrink;
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a word that is not known here fails the test"
)]
mod simulator;
mod way;

pub use self::{
    chance::Chance,
    document::document,
    shrink::shrink,
    way::{Hop, Machines},
};
