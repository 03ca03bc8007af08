//! The words meshd is written in.
//!
//! Names, keys, the resources that operators write, what sources report
//! ([`Event`]), what must be true on a machine ([`Plan`]) and what must happen
//! once ([`Action`]). Nothing here does anything to the world.
//!
//! ```text
//! store, kernel, pods, timers ──Event──▶ World ──Plan──▶ dataplane
//!                                          └──Action──▶ store, local API
//! ```
//!
//! **Invariants:** no I/O, no clock, no threads; no dependency on any other
//! crate of this workspace. Whatever comes from outside is parsed here, once,
//! into types that cannot be wrong.

pub mod action;
pub mod cni;
pub mod conflict;
pub mod constant;
pub mod duration;
pub mod event;
pub mod family;
pub mod firewall;
pub mod ipam;
pub mod key;
pub mod kind;
pub mod manifest;
pub mod moment;
pub mod name;
pub mod nft;
pub mod object;
pub mod overhead;
pub mod pass;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod publication;
pub mod record;
pub mod recording;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod settings;
pub mod status;
pub mod table;

pub use action::{Action, ActionId, ActionKind, ActionResult};
pub use event::Event;
pub use family::Family;
pub use key::PublicKey;
pub use kind::Kind;
pub use moment::Moment;
pub use name::{InterfaceName, NodeName, PodName};
pub use object::{Object, ObjectKey, Revision};
pub use pass::Pass;
pub use plan::Plan;
pub use record::{Phase, Record};
pub use resource::Resource;
pub use selector::Selector;
pub use table::{Change, Table};
