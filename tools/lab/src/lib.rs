//! Whole meshes in network namespaces: for tests, for demonstrations, for a user's laptop.
//!
//! ```text
//! lab file ─▶ spec ─▶ layout (addresses, routes; pure) ─▶ site (namespaces, links, pods)
//!                                                           ├─▶ mesh (the real programs)
//!                                                           ├─▶ stream, ping, echo (traffic)
//!                                                           └─▶ sniffer (what is on the underlay)
//! ```
//!
//! [`Lab`] is how tests speak of a lab: it panics where something fails, and asserts, when it is
//! dropped, that nothing leaked and that nothing is left behind. [`Site`] is the same without opinions;
//! `meshctl lab` stands on it.
//!
//! Not done here: anything to the machine's own network namespace. Every device, route, rule and socket
//! of a lab is inside a namespace that the lab made.

use std::{
    thread,
    time::{Duration, Instant},
};

pub use agent::{Agent, AgentError};
pub use builtin::{Builtin, builtins};
pub use echo::{Echo, EchoError};
pub use layout::{Host, Layout, LayoutError, Role, Route};
pub use link::{Link, LinkError};
pub use mesh::{MeshError, Service, server_place};
pub use mount::MountError;
pub use netns::{Netns, NetnsError};
pub use ping::{Ping, PingError};
pub use process::{Place, Process, Program};
pub use site::{Cable, Hands, Owner, Site, SiteError, remove, serve_link};
pub use sniffer::{
    Capture, Captured, Counts, Layer, Leak, LeakKind, Packet, Sniffer, SnifferError, Territory,
    Transport, Verdict, read_frame,
};
pub use spec::{Document, ReadError};
pub use state::{PodState, ProgramState, State, StateError, names};
pub use story::{End, Family, Lab, Node, Outside, Plaintext, Pod, Topology};
pub use stream::{Canary, Ends, Report, Stream, StreamError};

mod agent;
mod builtin;
mod echo;
pub mod forge;
mod layout;
mod link;
mod mesh;
mod mount;
mod netlink;
mod netns;
mod ping;
mod process;
mod site;
mod sniffer;
pub mod spec;
mod state;
mod story;
mod stream;
mod sys;

/// Time between two looks at a condition.
const LOOK: Duration = Duration::from_millis(2);

/// Looks at a condition again and again until it holds (true) or the time has come (false).
pub fn poll_until(deadline: Instant, mut holds: impl FnMut() -> bool) -> bool {
    loop {
        if holds() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        thread::park_timeout(left.min(LOOK));
    }
}
