//! Tiers: the built-in ones stay, and one goes only when no policy names it.

use model::{
    Kind, Object,
    policy::{Policy, Tier},
};

use super::View;
use crate::{Denial, StoreError};

/// The kinds of policies that name a tier of the administrator's.
const TIERED: [Kind; 4] = [
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
];

/// Checks that a tier may be deleted: what its policies decide would be decided elsewhere, or not at all.
pub(super) fn check_delete(view: &dyn View, tier: &Object) -> Result<(), StoreError> {
    let name = tier.metadata.name.as_str();
    if Tier::built_in().iter().any(|tier| tier.name == name) {
        let message = format!("tier {name} is built in and cannot be deleted");
        return Err(StoreError::denied(Denial::TierBuiltIn, message));
    }
    for kind in TIERED {
        let policies = view.list(kind)?;
        let user = policies
            .iter()
            .filter_map(|object| Policy::try_from(object).ok())
            .find(|policy| policy.tier == name);
        if let Some(policy) = user {
            let message = format!("{} is in tier {name}: delete it first", policy.key);
            return Err(StoreError::denied(Denial::TierInUse, message));
        }
    }

    Ok(())
}
