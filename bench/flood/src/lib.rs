//! Floods a WireGuard with what strangers may send: a load generator for tests and benchmarks.
//!
//! ```text
//!  Forger ─▶ a pool of datagrams, made beforehand ─▶ sendmmsg, at a steady rate ─▶ the target
//! ```
//!
//! Datagrams leave one by one (no segmentation offload), as those of many senders would: the target's kernel cannot
//! join them. It has no session with anybody and knows no key but the target's public one.

mod forger;
mod run;
mod sys;

pub use forger::{Forger, Kind};
pub use run::{FloodError, Plan, Sent, Sources, run};
