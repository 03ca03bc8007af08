//! What comes from outside never harms: targets for random input, on stable Rust.
//!
//! ```text
//!  corpus ─┐                       ┌─▶ Target::run ─▶ what became of it (counted)
//!          ├─ Target::generate ────┤         └─ a promise broken, a panic, too much time or memory:
//!  dice ───┘   lines, trees, bytes │            the input is written to a file, with how to replay it
//!                                  └── an input with a new fate joins the corpus for this run
//! ```
//!
//! An input is text wherever that is possible: UAPI and YAML as they are, and for the protocol a *story*,
//! one step a line, that is carried out on two live tunnels. So a case of the corpus can be read, and an input
//! that broke something can be cut down by hand. A seed repeats a run; `MESHD_FUZZ_SEED` and
//! `MESHD_FUZZ_SECONDS` set seed and time.
//!
//! Beside "no panic" every target has promises of its own, each checked against something slow and obvious
//! that shares no code with what is tested. Deliberately not here: coverage by instrumentation (see README.md
//! for what stands in for it), and sockets; what meshwire does with both is told in `tests/wireguard`.

pub mod dice;
pub mod driver;
pub mod meter;
pub mod mutation;
pub mod story;
mod sys;
pub mod target;

pub use dice::Dice;
pub use driver::{Budget, Run};
pub use target::{Broken, Fate, Target};
