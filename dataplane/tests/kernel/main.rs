//! Is it true of the kernel? Every test has a network namespace of its own, in a thread of its own,
//! and asks `ip`, `nft` and `/proc` rather than us. Needs root.

mod address;
mod contract;
mod namespace;
mod nft;
mod pass;
mod route;
mod rule;
mod sysctl;
