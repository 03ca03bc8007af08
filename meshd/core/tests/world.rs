//! The brain of node `a`, told by hand what a mesh of three looks like.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail as tests do"
)]

#[path = "world/fixture.rs"]
mod fixture;

#[path = "world/claim.rs"]
mod claim;
#[path = "world/conflict.rs"]
mod conflict;
#[path = "world/family.rs"]
mod family;
#[path = "world/foreign.rs"]
mod foreign;
#[path = "world/guard.rs"]
mod guard;
#[path = "world/handshake.rs"]
mod handshake;
#[path = "world/mtu.rs"]
mod mtu;
#[path = "world/pod.rs"]
mod pod;
#[path = "world/policy.rs"]
mod policy;
#[path = "world/switch.rs"]
mod switch;
#[path = "world/way.rs"]
mod way;
