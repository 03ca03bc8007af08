//! A range that pods' addresses come from.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{FieldError, field};
use crate::{Family, Object};

/// A pool of addresses: Calico's IPPool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpPool {
    /// Its name.
    pub name: String,
    /// The range; host bits are zero.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_size: u8,
    /// Masquerade towards destinations outside all pools.
    pub nat_outgoing: bool,
    /// Takes no new allocations; those that exist stay routable.
    pub disabled: bool,
    /// What its addresses may be used for.
    pub allowed_uses: Vec<AllowedUse>,
    /// Which nodes may claim blocks (source text of a Calico selector).
    pub node_selector: String,
    /// Pods of which namespaces get its addresses (source text of a Calico selector); empty means all.
    #[serde(default)]
    pub namespace_selector: String,
    /// Whether addresses are handed out without being asked for by pool.
    pub automatic: bool,
}

/// What a pool's addresses may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AllowedUse {
    /// Pods.
    Workload,
    /// Tunnel devices.
    Tunnel,
    /// Services of type LoadBalancer.
    LoadBalancer,
}

/// The form in which a store keeps a pool's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    cidr: Option<String>,
    block_size: Option<u8>,
    nat_outgoing: Option<bool>,
    disabled: Option<bool>,
    allowed_uses: Option<Vec<AllowedUse>>,
    node_selector: Option<String>,
    namespace_selector: Option<String>,
    assignment_mode: Option<AssignmentMode>,
}

#[derive(Deserialize, PartialEq)]
enum AssignmentMode {
    Automatic,
    Manual,
}

impl IpPool {
    /// Returns the block size that a pool has when it does not say: 64 addresses.
    pub const fn default_block_size(family: Family) -> u8 {
        match family {
            Family::V4 => 26,
            Family::V6 => 122,
        }
    }

    /// Returns the prefix lengths that a block may have.
    pub const fn block_sizes(family: Family) -> std::ops::RangeInclusive<u8> {
        match family {
            Family::V4 => 20..=32,
            Family::V6 => 116..=128,
        }
    }
}

impl TryFrom<&Object> for IpPool {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let cidr = field::required(stored.cidr, "spec.cidr", "a network")?;
        let cidr = field::network(&cidr, "spec.cidr")?;
        let family = Family::of_net(&cidr);
        let block_size = stored
            .block_size
            .unwrap_or(Self::default_block_size(family));
        let sizes = Self::block_sizes(family);
        if !sizes.contains(&block_size) {
            let range = format!("a number from {} to {}", sizes.start(), sizes.end());
            return Err(field::expected("spec.blockSize", &range, block_size));
        }
        let disabled = stored.disabled.unwrap_or(false);
        if cidr.prefix_len() > block_size && !disabled {
            let fitting = format!("a network of /{block_size} or larger, as spec.blockSize is");
            return Err(field::expected("spec.cidr", &fitting, cidr.to_string()));
        }

        Ok(Self {
            name: object.metadata.name.clone(),
            cidr,
            block_size,
            nat_outgoing: stored.nat_outgoing.unwrap_or(false),
            disabled,
            allowed_uses: stored
                .allowed_uses
                .filter(|uses| !uses.is_empty())
                .unwrap_or_else(|| vec![AllowedUse::Workload, AllowedUse::Tunnel]),
            node_selector: stored.node_selector.unwrap_or_default(),
            namespace_selector: stored.namespace_selector.unwrap_or_default(),
            automatic: stored.assignment_mode != Some(AssignmentMode::Manual),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn a_pool_that_only_names_its_range_has_calicos_defaults() {
        let pool = pool(json!({"cidr": "10.65.0.0/16"})).unwrap();

        assert_eq!(
            pool,
            IpPool {
                name: "p".into(),
                cidr: "10.65.0.0/16".parse().unwrap(),
                block_size: 26,
                nat_outgoing: false,
                disabled: false,
                allowed_uses: vec![AllowedUse::Workload, AllowedUse::Tunnel],
                node_selector: String::new(),
                namespace_selector: String::new(),
                automatic: true,
            }
        );
    }

    #[test]
    fn a_bad_pool_says_which_field_and_what_was_expected() {
        for (spec, message) in [
            (json!({}), "spec.cidr: expected a network, found nothing"),
            (
                json!({"cidr": "10.65.0.1/16"}),
                "spec.cidr: expected a network without host bits (10.65.0.0/16), found \"10.65.0.1/16\"",
            ),
            (
                json!({"cidr": "10.65.0.0/16", "blockSize": 12}),
                "spec.blockSize: expected a number from 20 to 32, found 12",
            ),
            (
                json!({"cidr": "10.65.0.0/28"}),
                "spec.cidr: expected a network of /26 or larger, as spec.blockSize is, found \"10.65.0.0/28\"",
            ),
        ] {
            assert_eq!(pool(spec).unwrap_err().to_string(), message);
        }
    }

    fn pool(spec: serde_json::Value) -> Result<IpPool, FieldError> {
        IpPool::try_from(&Object::new(&ObjectKey::cluster(Kind::IPPool, "p"), spec))
    }
}
