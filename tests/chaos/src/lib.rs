//! Random faults under traffic: a mesh is hurt in waves, and after each it must be whole again.
//!
//! ```text
//! seed ─▶ Schedule (waves of faults on different nodes, pure) ─▶ Run: strike, heal, look
//!                                                                  ├─ Traffic: streams between all
//!                                                                  ├─ Rogue: who writes what he may not
//!                                                                  └─ whole: every pair, both families
//! ```
//!
//! A seed names a run: the same seed makes the same faults in the same order. Assertions ask the kernel,
//! the wire and the streams, never our own code alone; the sniffers watch from the first fault to the last.

pub use host::Sender;
pub use run::Run;
pub use schedule::{Fault, Kind, Schedule, Wave};
pub use traffic::Traffic;
pub use whole::{await_whole, topology};

mod host;
mod rogue;
mod run;
mod schedule;
mod strike;
mod traffic;
mod whole;
