//! Many brains in virtual time: a store, a wire and kernels that are only data.
//!
//! ```text
//!  World ──Plan──▶ Machine (routes, rules, sets, chains, peers, in the stages of a real pass)
//!    ▲  └─Action─▶ Store (one log per kind) ──events, each kind in order, kinds in any order──▶ Worlds
//!    └──handshakes── Wire ◀── packets: does it leave, how, and does the other end take it?
//! ```
//!
//! Everything that can happen next is drawn from a seed: which node hears which kind, which action is
//! carried out, lost, or carried out without its answer; how far a pass over the plan has come.
//! Deliberately not here: any code that decides like the brain does. The machine interprets rows as
//! the kernel would.

pub mod big;
pub mod cluster;
pub mod dice;
pub mod machine;
pub mod packet;
pub mod store;

pub use big::Big;
pub use cluster::{Cluster, Layout};
pub use dice::Dice;
pub use packet::{Fate, Packet};
