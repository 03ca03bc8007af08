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
    num::NonZeroU32,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

pub use agent::{Agent, AgentError};
pub use builtin::{Builtin, builtins};
pub use echo::{Echo, EchoError};
pub use layout::{Device, Host, Layout, LayoutError, Role, Route};
pub use link::{Link, LinkError};
pub use mesh::{MeshError, Service, server_place};
pub use mount::MountError;
pub use netns::{Netns, NetnsError};
pub use ping::{Fragments, Ping, PingError};
pub use probe::{Probe, ProbeError, RawReceiver, Receiver};
pub use process::{Place, Process, Program};
pub use runtime::{
    Engine, HostPort, IMAGE, NETWORK, RuntimeError, Sandbox, Started, Tools, Wanted,
};
pub use site::{Cable, Hands, Owner, Site, SiteError, remove, serve_link};
pub use sniffer::{
    Capture, Captured, Counts, Layer, Leak, LeakKind, Packet, Sniffer, SnifferError, Territory,
    Transport, Verdict, read_frame,
};
pub use spec::{Document, ReadError};
pub use state::{PodState, ProgramState, State, StateError, names};
pub use story::{Boot, End, Family, Lab, Node, Outside, Plaintext, Pod, Topology};
pub use stream::{BulkError, Canary, Carried, Ends, Report, Stream, StreamError};

mod agent;
mod builtin;
mod echo;
pub mod forge;
mod group;
mod layout;
mod link;
mod mesh;
mod mount;
mod netlink;
mod netns;
mod ping;
mod probe;
mod process;
mod runtime;
mod site;
mod sniffer;
pub mod spec;
mod state;
mod story;
mod stream;
mod sys;

/// Time between two looks at a condition.
const LOOK: Duration = Duration::from_millis(2);

/// How many times as long everything may take on this machine: a whole number, `1` where the variable is not set.
const SLOW: &str = "MESHD_SLOW";

/// How long something may take here that usually takes no longer than this: a machine that is known to be slow, such as
/// a guest, says so by the variable `MESHD_SLOW`.
///
/// # Panics
/// Where the variable holds something else than a whole number above zero.
pub fn patience(usual: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| {
        let said = std::env::var(SLOW).unwrap_or_else(|_| "1".to_owned());
        match said.parse::<NonZeroU32>() {
            Ok(times) => times.get(),
            Err(error) => panic!("{SLOW}={said}: {error}"),
        }
    });
    usual * *times
}

/// Looks at a condition again and again until it holds (true) or the time has come (false); a slow machine is given
/// [`patience`].
pub fn poll_until(deadline: Instant, mut holds: impl FnMut() -> bool) -> bool {
    let usual = deadline.saturating_duration_since(Instant::now());
    let deadline = Instant::now() + patience(usual);
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
