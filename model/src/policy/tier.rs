//! Tiers: policies are asked tier by tier.

use serde::{Deserialize, Serialize};

/// The tier of policies that name none.
pub const DEFAULT_TIER: &str = "default";

/// The tier of ClusterNetworkPolicies of tier `Admin`.
pub const ADMIN_TIER: &str = "kube-admin";

/// The tier of ClusterNetworkPolicies of tier `Baseline`.
pub const BASELINE_TIER: &str = "kube-baseline";

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

impl Tier {
    /// Returns the tiers that every cluster has, with the order and the action that they cannot lose: Calico's.
    pub fn built_in() -> [Self; 3] {
        [
            (ADMIN_TIER, 1_000.0, TierAction::Pass),
            (DEFAULT_TIER, 1_000_000.0, TierAction::Deny),
            (BASELINE_TIER, 10_000_000.0, TierAction::Pass),
        ]
        .map(|(name, order, default_action)| Self {
            name: name.to_owned(),
            order: Some(order),
            default_action,
        })
    }

    /// Returns what a tier is taken for that policies name and that does not exist: the last, and it denies.
    pub fn missing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            order: None,
            default_action: TierAction::Deny,
        }
    }
}

/// What happens at the end of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TierAction {
    /// The packet is dropped.
    Deny,
    /// The next tier is asked.
    Pass,
}
