//! Makes the machine match the plan.
//!
//! The only crate that talks to the kernel and to the tunnel service. Each [`Target`] owns one kind
//! of object; a [`Reconciler`] keeps it equal to its part of the plan; the [`Dataplane`] runs them in
//! the order that never lets a route stand without its guard.
//!
//! ```text
//!            ┌─ sets ──────────────────────────────────────────────────────▶
//! Plan ──▶   nft → sysctls → pods → tunnels → addresses → peers → routes → rules
//!            ◀──────────────────────────────────────────────────── unsets ─┘
//! kernel notifications, UAPI ──▶ Events ──▶ KernelEvent (underlay, drift, handshake)
//! ```
//!
//! Everything here is synchronous and belongs on a thread of its own, in the network namespace that
//! it shall keep: sockets are opened where [`Dataplane::new`] is called.
//!
//! **Invariants:** decides nothing; everything it does is in the plan. Deletes nothing before the plan
//! is in sync. Only objects of ours are touched: two nftables tables, routes of our protocol, rules of
//! our protocol, devices and addresses that the plan names; and, where the plan says so, what stands in other
//! firewalls' extension points.

mod address;
mod conntrack;
mod dataplane;
mod events;
mod fight;
mod foreign;
mod generation;
mod link;
mod netlink;
mod nft;
mod pod;
mod reconciler;
mod route;
mod rule;
mod secret;
mod surrounding;
mod sysctl;
mod target;
mod wireguard;

pub use crate::{
    address::{AddressError, AddressTarget},
    conntrack::{Among, Conntrack, ConntrackError, Entry, Mark, Tally, Tuple, WayError, Ways},
    dataplane::{Component, Config, Dataplane, OpenError, Owned, RemovalError, Report},
    events::{KernelEvent, WatchError},
    foreign::{OpeningError, OpeningTarget},
    nft::{ChainRow, Counter, NftError, NftKey, NftRow, NftTarget, Ownership},
    pod::{InsideError, PodError, PodTarget},
    reconciler::{Outcome, Reconciler},
    route::{RouteError, RouteTarget},
    rule::{RuleError, RuleTarget},
    secret::{KeySource, PrivateKey},
    sysctl::{SysctlError, SysctlTarget, read as read_sysctl, write as write_sysctl},
    target::{Absent, Desired, Target},
    wireguard::{
        Backend, BackendError, Implementations, Kernel, NetlinkTraffic, PeerStatistics, PeerTarget,
        TunnelError, TunnelTarget, Userspace,
    },
};
