//! `meshwire`, the userspace tunnel.
//!
//! The protocol is `wire-core`'s; here is what it needs of a machine: a TUN device, UDP sockets, threads, clocks, and
//! the ways to be told what to do.
//!
//! ```text
//!   wg(8), meshd ──▶ uapi ──┐                       ┌── tun      inner packets
//!                           ├──▶ device ── Tunnel ──┤
//!   meshd ──▶ supervise ────┘      │                └── socket   outer datagrams
//!                 ▲                ├── packet   cuts and joins super-frames
//!                 └───── event ────┘── link     up, down, MTU, gone
//! ```
//!
//! * [`device`] is one running tunnel; [`uapi`] configures it, with `wg` or with [`uapi::Client`].
//! * [`supervise`] is the service that makes devices for the agent and outlives it, and [`supervise::Client`].
//!
//! What it deliberately does not do: addresses, routes, rules and firewalls belong to whoever asked for the device; it
//! knows nothing of the mesh. A packet without a peer is dropped and counted.
//!
//! `unsafe` lives in the files named `sys.rs` alone: requests of TUN devices, `sendmsg` and `recvmsg`, `fork`.

mod credential;
pub mod daemon;
pub mod device;
pub mod event;
mod link;
mod packet;
mod socket;
pub mod supervise;
pub mod tun;
pub mod uapi;
mod waker;
