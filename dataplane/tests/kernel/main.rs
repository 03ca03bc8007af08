//! Is it true of the kernel? Every test has a network namespace of its own, in a thread of its own,
//! and asks `ip`, `nft`, `wg` and `/proc` rather than us. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod address;
mod conntrack;
mod contract;
mod edit;
mod event;
mod flush;
mod handover;
mod namespace;
mod nft;
mod pass;
mod pod;
mod route;
mod rule;
mod ruleset;
mod surrounding;
mod sysctl;
mod tunnel;
mod wireguard;
