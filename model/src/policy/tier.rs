//! Tiers: policies are asked tier by tier.

use serde::{Deserialize, Serialize};

/// A tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// Its place, smallest first; without one it stands behind all that have one.
    pub order: Option<f64>,
    /// What happens at its end to a packet of an endpoint that one of its policies selects.
    pub default_action: TierAction,
}

/// What happens at the end of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TierAction {
    /// The packet is dropped.
    Deny,
    /// The next tier is asked.
    Pass,
}
