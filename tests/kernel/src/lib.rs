//! Is it true of the kernel's own WireGuard? Stories in network namespaces, for a kernel that has it; see `tests/`.
//!
//! They are those of `netns` in what only such a kernel can show: nodes that let the kernel carry packets beside nodes
//! where `meshwire` does, links that `tc` makes slow and lossy, and hours that pass in seconds. `tools/test-kernel`
//! runs them under the test kernel of `tools/uml`, with the stories of `netns` and the contract of `dataplane`.
//! On a machine
//! that lacks what they need they are listed as ignored, with the reason; one that is run there all the same fails and
//! says what is lacking.
//!
//! ```text
//! need     what a test cannot do without
//! Mix      a mesh in which some nodes use the kernel's WireGuard and others meshwire
//! Carrier  who carries a node's packets, as `ip` says
//! Line     an underlay device that is made slow and lossy, or counts what WireGuard sends
//! session  sessions as `wg` shows them, over virtual minutes
//! ```

pub use line::{Line, Sent};
pub use mix::{Carrier, await_carrier, carrier, choose, mixed};
pub use need::{Need, need};
pub use session::{age, handshakes, key, pass};

mod line;
mod mix;
mod need;
mod session;
