//! The protocol as a whole: tunnels against each other and against an independent implementation
//! (boringtun), over a virtual network and through virtual hours.
//!
//! `world` is the network and the clock, `host` a tunnel with a shell around it, `boring` the same
//! for boringtun. The other modules are the tests.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod boring;
mod collision;
mod configuration;
mod cookie;
mod host;
mod hours;
mod oracle;
mod roaming;
mod timer;
mod world;
