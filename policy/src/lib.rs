//! What policy means: the verdict on a packet, found slowly and obviously.
//!
//! ```text
//! topology + objects ──scenario──▶ Cluster ─┐
//!                                           ├─evaluate─▶ verdict, and who decided, in packet order
//! probe ─────────────scenario────▶ Packet ──┘
//! ```
//!
//! [`evaluate`] follows a packet from hook to hook as Calico orders them and asks at each one every policy there is. It
//! has no index and no cache, so that a reader can hold it against the documentation; it is the oracle of everything
//! that answers the same question fast. [`scenario`] is the file format of `meshctl policy test`.
//!
//! **Invariants:** no I/O, no clock; of this workspace it imports `model` alone. What nothing allows is denied.

pub mod cluster;
pub mod compile;
pub mod compiler;
pub mod decision;
pub mod effect;
pub mod evaluate;
pub mod explain;
pub mod judge;
pub mod packet;
pub mod scenario;

pub use cluster::Cluster;
pub use compiler::Compiler;
pub use decision::{Cause, Decision, Outcome, Point, Verdict};
pub use effect::{Effect, Effects};
pub use evaluate::Evaluator;
pub use judge::Judge;
pub use packet::{Header, Packet, Place, Translation, Translator};
