//! Which pools a request may draw from.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use model::{
    Family, Selector,
    resource::{IpPool, ip_pool::AllowedUse},
};

/// What decides about pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// What the address is for.
    pub purpose: AllowedUse,
    /// Pools that were asked for by their ranges; a family without any: whichever select the node and the namespace.
    pub named: Vec<IpNet>,
    /// The node's labels.
    pub node_labels: BTreeMap<String, String>,
    /// The namespace's labels; none where there is no namespace.
    pub namespace_labels: BTreeMap<String, String>,
}

/// Why no pool is left, and what spoke against each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NoPool {
    /// The family.
    pub family: Family,
    /// Every pool of the family with the reason, and every range that was asked for in vain.
    pub against: Vec<(String, Against)>,
}

/// What speaks against a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// It is disabled.
    Disabled,
    /// It is used only by those who name it.
    Manual,
    /// It is for other uses.
    Use,
    /// It does not select the node.
    Node,
    /// It does not select the namespace.
    Namespace,
    /// Other pools were asked for.
    NotNamed,
    /// No enabled pool has this range.
    Unknown,
}

/// Returns the pools of a family that a request may draw from, in the order of their names.
///
/// Pools that were asked for by name need not select anybody, but must be there, enabled and for this use.
pub fn choose<'a>(
    pools: &'a [IpPool],
    family: Family,
    preference: &Preference,
) -> Result<Vec<&'a IpPool>, NoPool> {
    let of_family = |net: &IpNet| Family::of_net(net) == family;
    let mut against = Vec::new();
    let named: Vec<IpNet> = preference.named.iter().copied().filter(of_family).collect();
    for named in &named {
        if !pools
            .iter()
            .any(|pool| pool.cidr == *named && !pool.disabled)
        {
            against.push((named.to_string(), Against::Unknown));
        }
    }
    let is_unknown = !against.is_empty();
    let mut chosen = Vec::new();
    for pool in pools.iter().filter(|pool| of_family(&pool.cidr)) {
        match objection(pool, &named, preference) {
            None => chosen.push(pool),
            Some(reason) => against.push((pool.name.clone(), reason)),
        }
    }
    if chosen.is_empty() || is_unknown {
        return Err(NoPool { family, against });
    }
    chosen.sort_by(|one, other| one.name.cmp(&other.name));

    Ok(chosen)
}

/// Returns what speaks against a pool.
fn objection(pool: &IpPool, named: &[IpNet], preference: &Preference) -> Option<Against> {
    let selects = |selector: &str, labels| {
        // A selector that cannot be read selects nobody.
        selector
            .parse::<Selector>()
            .is_ok_and(|it| it.matches(labels))
    };
    if pool.disabled {
        return Some(Against::Disabled);
    }
    if !pool.allowed_uses.contains(&preference.purpose) {
        return Some(Against::Use);
    }
    if !named.is_empty() {
        return (!named.contains(&pool.cidr)).then_some(Against::NotNamed);
    }
    if !pool.automatic {
        return Some(Against::Manual);
    }
    if !selects(&pool.node_selector, &preference.node_labels) {
        return Some(Against::Node);
    }
    if !selects(&pool.namespace_selector, &preference.namespace_labels) {
        return Some(Against::Namespace);
    }

    None
}

impl fmt::Display for NoPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} pool may be used", self.family)?;
        for (place, (pool, reason)) in self.against.iter().enumerate() {
            let sign = if place == 0 { ": " } else { "; " };
            write!(f, "{sign}{pool} {reason}")?;
        }

        Ok(())
    }
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "is disabled",
            Self::Manual => "is only for those who name it",
            Self::Use => "is for other uses",
            Self::Node => "does not select the node",
            Self::Namespace => "does not select the namespace",
            Self::NotNamed => "was not asked for",
            Self::Unknown => "is not the range of an enabled pool",
        })
    }
}
