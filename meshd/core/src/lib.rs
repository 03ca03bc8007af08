//! The brain of the agent: what the cluster is, and therefore what this node should do.
//!
//! ```text
//!              ┌──────────────────────── World ────────────────────────┐
//! Event ─────▶ │ facts ─▶ judge (claims, blocks) ─▶ phases ─▶ rows, tasks │ ─▶ Plan, Action
//!              └───────────────────────────────────────────────────────┘
//! ```
//!
//! [`World`] is fed [`Event`](model::Event)s, keeps a [`Plan`](model::Plan) up to date and asks for
//! [`Action`](model::Action)s. Deliberately not here: sockets, files, clocks, netlink, retries of the plan.
//!
//! **Invariants**
//! - The plan is a function of the set of facts, not of the order in which they came; what has to
//!   remember (which peers were switched, what was published) is kept in one place, the phases.
//! - No I/O and no clock: functions that need the time are told it.
//! - The cost of an event follows what it changes, not the size of the cluster.
//! - Nothing is planned before everything that the store held at the start was seen: absence means
//!   "not heard of yet" until then, and what the machine already does goes on.

mod applied;
mod config;
mod conflict;
mod enforce;
mod fact;
mod foreign;
mod guard;
mod lapse;
mod ledger;
mod machine;
mod member;
mod mtu;
#[cfg(test)]
mod oracle;
mod own;
mod peer;
mod phase;
mod pod;
mod pool;
mod publish;
mod reason;
mod report;
mod route;
mod task;
mod translation;
pub mod why;
mod wish;
mod world;

pub use config::Config;
pub use reason::Reason;
pub use world::{WATCHED, World};
