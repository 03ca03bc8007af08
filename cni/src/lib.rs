//! The CNI plugin: what a container runtime says, checked and handed to the agent; what the agent answers, in the
//! words of the specification's version that the runtime speaks.
//!
//! ```text
//! runtime ──CNI_*, configuration──▶ Environment, Network ──Attachment──▶ agent's socket
//!         ◀──result or error──────── answer ◀──────────── Attached, Failure
//! ```
//!
//! It holds no credentials and decides nothing. The specification is CNI 1.1.0, of which it speaks all versions from
//! 0.3.0 on.
//!
//! **Invariants:** nothing is asked of the kernel or of the store; the only files it writes are tombstones, so that a
//! removal counts although no agent runs.

pub mod agent;
pub mod answer;
pub mod environment;
pub mod network;
pub mod plugin;
pub mod tombstone;
pub mod version;

pub use agent::Agent;
pub use environment::Environment;
pub use network::Network;
pub use plugin::{Outcome, Plugin};
pub use tombstone::Tombstones;
pub use version::Version;
