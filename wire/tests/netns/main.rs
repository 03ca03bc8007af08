//! `meshwire` on a real kernel, beside other people's WireGuards. Needs root, `ip`, `nft`, `wg`, `wireguard-go`, and
//! boringtun-cli 0.7.1 (in `$MESHD_TOOLS/bin`, by default `~/.cache/meshd/tools/bin`, or on the `PATH`).
//!
//! Every story happens in network namespaces of its own, which its end removes:
//!
//! ```text
//!  ┌─ a ───────────────────┐           ┌─ b ───────────────────┐
//!  │ tunnel  10.5.0.1      │           │ tunnel  10.5.0.2      │   inside: both families
//!  │         fd05::1       │           │         fd05::2       │
//!  │ eth0    192.0.2.1     │───────────│ eth0    192.0.2.2     │   outside: one of the two
//!  │         2001:db8::1   │           │         2001:db8::2   │
//!  └───────────────────────┘           └───────────────────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attack;
mod capture;
mod command;
mod configuration;
mod crowd;
mod interop;
mod namespace;
mod packet;
mod pair;
mod refusal;
mod roaming;
mod standalone;
mod supervise;
mod sys;
mod three;
mod traffic;
mod tunnel;
mod wait;
