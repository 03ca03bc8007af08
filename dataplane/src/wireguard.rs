//! WireGuard devices and their peers, over whichever implementation carries them.
//!
//! Nothing here ever replaces all peers or sets what is already so: a restarted agent leaves running
//! sessions alone, and an endpoint that roamed stays where an authenticated packet put it.

mod backend;
mod belief;
mod implementation;
mod kernel;
mod peer;
mod port;
mod tunnel;
mod userspace;

pub use backend::{Backend, BackendError};
pub use implementation::Implementations;
pub use kernel::{Kernel, NetlinkTraffic};
pub use peer::{PeerStatistics, PeerTarget};
pub use tunnel::{TunnelError, TunnelTarget};
pub use userspace::Userspace;

pub(crate) use belief::Fingerprint;
