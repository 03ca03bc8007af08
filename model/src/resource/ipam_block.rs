//! A piece of a pool, with who uses which address: Calico's IPAMBlock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{FieldError, field, ip_pool::IpPool};
use crate::{Family, Kind, NodeName, Object, ObjectKey};

/// Prefix of the affinity of a node.
const HOST_PREFIX: &str = "host:";

/// A block and its allocations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamBlock {
    /// The range.
    pub cidr: IpNet,
    /// The node it is affine to; `None` also for a block of Calico's LoadBalancer controller.
    pub affinity: Option<NodeName>,
    /// Marked for deletion: read it as absent.
    pub deleted: bool,
    /// For each allocated ordinal, the index of its attributes.
    pub allocations: BTreeMap<u32, usize>,
    /// Free ordinals, the longest free first.
    pub unallocated: Vec<u32>,
    /// Who holds allocated addresses.
    pub attributes: Vec<Attribute>,
    /// Rises by one with every write.
    pub sequence_number: u64,
    /// The block's sequence number when an ordinal was assigned.
    pub sequence_number_for_allocation: BTreeMap<u32, u64>,
    /// When the affinity was claimed, RFC 3339.
    pub affinity_claim_time: Option<String>,
}

/// Who holds an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// The handle it is released by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle_id: Option<String>,
    /// Facts about the holder: `pod`, `namespace`, `node`, `type`, `timestamp`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secondary: BTreeMap<String, String>,
    /// Facts about another holder that waits for the address (a migrating virtual machine); kept as it came.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        rename = "alternateOwnerAttrs"
    )]
    pub alternate: BTreeMap<String, String>,
    /// When it was released and began to cool down, RFC 3339.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        rename = "releasedAt"
    )]
    pub released_at: Option<String>,
}

/// The form in which a store keeps a block's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    cidr: Option<String>,
    affinity: Option<String>,
    host_affinity: Option<String>,
    #[serde(alias = "affinity_claim_time")]
    affinity_claim_time: Option<String>,
    allocations: Vec<Option<usize>>,
    unallocated: Vec<u32>,
    attributes: Option<Vec<StoredAttribute>>,
    sequence_number: Option<u64>,
    sequence_number_for_allocation: Option<BTreeMap<String, u64>>,
    deleted: Option<bool>,
}

/// An attribute whose maps may be `null`, as Go writes empty ones.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredAttribute {
    handle_id: Option<String>,
    secondary: Option<BTreeMap<String, String>>,
    #[serde(rename = "alternateOwnerAttrs")]
    alternate: Option<BTreeMap<String, String>>,
    #[serde(rename = "releasedAt")]
    released_at: Option<String>,
}

impl IpamBlock {
    /// Returns the name of the object for a range: `10-65-4-0-26`.
    pub fn object_name(cidr: IpNet) -> String {
        cidr.to_string().replace(['.', ':', '/'], "-")
    }

    /// Returns how many addresses a range has that a block may have: at most 4096.
    pub fn size_of(cidr: IpNet) -> u32 {
        1 << (Family::of_net(&cidr).bits() - cidr.prefix_len()).min(12)
    }

    /// Returns how many addresses the block has.
    pub fn size(&self) -> u32 {
        Self::size_of(self.cidr)
    }

    /// Returns the address with this place in the block; `None` beyond its end.
    pub fn address(&self, ordinal: u32) -> Option<IpAddr> {
        if ordinal >= self.size() {
            return None;
        }

        Some(match self.cidr.network() {
            IpAddr::V4(first) => IpAddr::from((u32::from(first) + ordinal).to_be_bytes()),
            IpAddr::V6(first) => {
                IpAddr::from((u128::from(first) + u128::from(ordinal)).to_be_bytes())
            }
        })
    }

    /// Returns the place of an address in the block; `None` for an address outside.
    pub fn ordinal(&self, address: IpAddr) -> Option<u32> {
        if !self.cidr.contains(&address) {
            return None;
        }
        let place = match (address, self.cidr.network()) {
            (IpAddr::V4(address), IpAddr::V4(first)) => {
                u128::from(u32::from(address) - u32::from(first))
            }
            (IpAddr::V6(address), IpAddr::V6(first)) => u128::from(address) - u128::from(first),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };

        u32::try_from(place).ok()
    }

    /// Returns the addresses that a handle holds, in order.
    pub fn addresses_of(&self, handle: &str) -> impl Iterator<Item = IpAddr> {
        self.allocations.iter().filter_map(move |(ordinal, index)| {
            let holder = self.attributes.get(*index)?.handle_id.as_deref()?;
            if holder == handle {
                self.address(*ordinal)
            } else {
                None
            }
        })
    }

    /// Returns the addresses that another node than the block's owner uses, and which, in order.
    ///
    /// The allocation's `node` is the record of the loan; in a block of nobody's, every holder has borrowed.
    pub fn loans(&self) -> impl Iterator<Item = (IpAddr, NodeName)> {
        self.allocations.iter().filter_map(|(ordinal, index)| {
            let node = self.attributes.get(*index)?.node()?;
            let is_lent = self.affinity.as_ref() != Some(&node);

            is_lent.then_some((self.address(*ordinal)?, node))
        })
    }

    /// Returns the object that a store keeps.
    pub fn to_object(&self) -> Object {
        let key = ObjectKey::cluster(Kind::IPAMBlock, Self::object_name(self.cidr));
        let allocations: Vec<Option<usize>> = (0..self.size())
            .map(|ordinal| self.allocations.get(&ordinal).copied())
            .collect();
        let mut spec = json!({
            "cidr": self.cidr,
            "allocations": allocations,
            "unallocated": self.unallocated,
            "attributes": self.attributes,
            "sequenceNumber": self.sequence_number,
            "sequenceNumberForAllocation": self.sequence_number_for_allocation,
            "deleted": self.deleted,
        });
        if let Some(node) = &self.affinity {
            spec["affinity"] = Value::from(format!("{HOST_PREFIX}{node}"));
        }
        if let Some(time) = &self.affinity_claim_time {
            spec["affinityClaimTime"] = Value::from(time.as_str());
        }

        Object::new(&key, spec)
    }
}

impl TryFrom<&Object> for IpamBlock {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let cidr = field::required(stored.cidr, "spec.cidr", "a network")?;
        let cidr = field::network(&cidr, "spec.cidr")?;
        // The name is what the store keeps unique: under another one, a range could be claimed twice.
        let name = Self::object_name(cidr);
        if object.metadata.name != name {
            let follows = format!("{name}, which follows from spec.cidr");
            let found = object.metadata.name.as_str();
            return Err(field::expected("metadata.name", &follows, found));
        }
        let sizes = IpPool::block_sizes(Family::of_net(&cidr));
        if !sizes.contains(&cidr.prefix_len()) {
            let range = format!("a network of /{} to /{}", sizes.start(), sizes.end());
            return Err(field::expected("spec.cidr", &range, cidr.to_string()));
        }
        let size = Self::size_of(cidr);
        let attributes: Vec<Attribute> = stored
            .attributes
            .unwrap_or_default()
            .into_iter()
            .map(Attribute::from)
            .collect();
        let allocations = allocations(&stored.allocations, size, attributes.len())?;
        check_unallocated(&stored.unallocated, size, &allocations)?;

        Ok(Self {
            cidr,
            affinity: affinity(stored.affinity, stored.host_affinity)?,
            deleted: stored.deleted.unwrap_or(false),
            allocations,
            unallocated: stored.unallocated,
            attributes,
            sequence_number: stored.sequence_number.unwrap_or(0),
            sequence_number_for_allocation: sequence_numbers(
                stored.sequence_number_for_allocation.unwrap_or_default(),
                size,
            )?,
            affinity_claim_time: stored.affinity_claim_time,
        })
    }
}

impl Attribute {
    /// Returns the node that the address is used on; `None` where it does not say, or cools down.
    pub fn node(&self) -> Option<NodeName> {
        self.secondary.get("node")?.parse().ok()
    }
}

impl From<StoredAttribute> for Attribute {
    fn from(stored: StoredAttribute) -> Self {
        Self {
            // Old versions of Calico wrote rubbish behind a carriage return.
            handle_id: stored
                .handle_id
                .map(|handle| handle.split('\r').next().unwrap_or_default().to_owned()),
            secondary: stored.secondary.unwrap_or_default(),
            alternate: stored.alternate.unwrap_or_default(),
            released_at: stored.released_at,
        }
    }
}

/// Reads `host:NODE`; a virtual owner is no node, the deprecated `hostAffinity` is a bare name.
fn affinity(
    affinity: Option<String>,
    deprecated: Option<String>,
) -> Result<Option<NodeName>, FieldError> {
    match (affinity.filter(|text| !text.is_empty()), deprecated) {
        (Some(text), _) if text.starts_with("virtual:") => Ok(None),
        (Some(text), _) => {
            let wrong =
                || field::expected("spec.affinity", "host:NODE or virtual:NAME", text.as_str());
            let node = text.strip_prefix(HOST_PREFIX).ok_or_else(wrong)?;
            node.parse().map(Some).map_err(|_| wrong())
        }
        (None, Some(node)) => field::node(&node, "spec.hostAffinity").map(Some),
        (None, None) => Ok(None),
    }
}

/// Checks the array of attribute indexes: one place per address, each within the attributes.
fn allocations(
    stored: &[Option<usize>],
    size: u32,
    attributes: usize,
) -> Result<BTreeMap<u32, usize>, FieldError> {
    if stored.len() != size as usize {
        let length = format!("{size} entries, one for each address");
        return Err(field::expected("spec.allocations", &length, stored.len()));
    }
    let mut allocations = BTreeMap::new();
    for (ordinal, index) in (0..size).zip(stored) {
        let Some(index) = *index else { continue };
        if index >= attributes {
            let path = format!("spec.allocations[{ordinal}]");
            let range = format!("null or an index of one of {attributes} attributes");
            return Err(field::expected(&path, &range, index));
        }
        allocations.insert(ordinal, index);
    }

    Ok(allocations)
}

/// Checks that each free ordinal is inside the block, free, and named once.
fn check_unallocated(
    unallocated: &[u32],
    size: u32,
    allocations: &BTreeMap<u32, usize>,
) -> Result<(), FieldError> {
    let mut seen = BTreeSet::new();
    for (place, ordinal) in unallocated.iter().enumerate() {
        if *ordinal >= size || allocations.contains_key(ordinal) || !seen.insert(ordinal) {
            let path = format!("spec.unallocated[{place}]");
            let free = format!("a number below {size} that is not allocated and named once");
            return Err(field::expected(&path, &free, *ordinal));
        }
    }

    Ok(())
}

/// Reads sequence numbers by ordinal, written as text.
fn sequence_numbers(
    stored: BTreeMap<String, u64>,
    size: u32,
) -> Result<BTreeMap<u32, u64>, FieldError> {
    stored
        .into_iter()
        .map(|(text, number)| match text.parse::<u32>() {
            Ok(ordinal) if ordinal < size => Ok((ordinal, number)),
            Ok(_) | Err(_) => {
                let range = format!("keys from 0 to {}", size - 1);
                Err(field::expected(
                    "spec.sequenceNumberForAllocation",
                    &range,
                    text,
                ))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_calico_wrote_is_read_and_written_back_alike() {
        let spec = json!({
            "cidr": "10.65.4.0/30",
            "affinity": "host:node-a",
            "affinityClaimTime": "2026-01-01T00:00:00Z",
            "allocations": [0, null, 1, null],
            "unallocated": [3, 1],
            "attributes": [
                {
                    "handle_id": "k8s-pod-network.c0ffee",
                    "secondary": {"pod": "web-0", "namespace": "shop", "node": "node-a"},
                },
                {"releasedAt": "2026-01-01T00:10:00Z"},
            ],
            "sequenceNumber": 1767225600000000123u64,
            "sequenceNumberForAllocation": {"0": 1767225600000000120u64, "2": 1767225600000000122u64},
            "deleted": false,
        });
        let object = object(spec);

        let block = IpamBlock::try_from(&object).unwrap();

        assert_eq!(block.affinity, Some("node-a".parse().unwrap()));
        assert_eq!(block.allocations, BTreeMap::from([(0, 0), (2, 1)]));
        assert_eq!(
            block
                .addresses_of("k8s-pod-network.c0ffee")
                .collect::<Vec<_>>(),
            ["10.65.4.0".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(block.to_object(), object);
    }

    #[test]
    fn a_block_whose_parts_contradict_each_other_is_refused() {
        for (change, field) in [
            (json!({"allocations": [0, null, null]}), "spec.allocations"),
            (
                json!({"allocations": [1, null, null, null]}),
                "spec.allocations[0]",
            ),
            (json!({"unallocated": [1, 0]}), "spec.unallocated[1]"),
            (json!({"unallocated": [1, 1]}), "spec.unallocated[1]"),
            (json!({"unallocated": [4]}), "spec.unallocated[0]"),
            (json!({"affinity": "node-a"}), "spec.affinity"),
            (json!({"cidr": "10.0.0.0/8"}), "spec.cidr"),
            (
                json!({"sequenceNumberForAllocation": {"9": 1}}),
                "spec.sequenceNumberForAllocation",
            ),
        ] {
            let mut spec = json!({
                "cidr": "10.65.4.0/30",
                "affinity": "host:n1",
                "allocations": [0, null, null, null],
                "unallocated": [1, 2, 3],
                "attributes": [{"handle_id": "h"}],
            });
            for (name, value) in change.as_object().unwrap() {
                spec[name] = value.clone();
            }

            assert_eq!(IpamBlock::try_from(&object(spec)).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_block_under_the_name_of_another_range_is_refused() {
        for (cidr, name) in [
            ("10.244.0.0/26", "10-244-0-0-26"),
            ("fd00:65::40/122", "fd00-65--40-122"),
        ] {
            let spec = json!({"cidr": cidr, "allocations": vec![Value::Null; 64]});
            let named = |name: &str| {
                let key = ObjectKey::cluster(Kind::IPAMBlock, name.to_owned());
                IpamBlock::try_from(&Object::new(&key, spec.clone()))
            };

            assert_eq!(named(name).unwrap().cidr, cidr.parse().unwrap());
            for other in ["10-244-0-64-26", "10-244-0-0-27", "fd00-65--122", "block"] {
                assert_eq!(named(other).unwrap_err().field, "metadata.name", "{other}");
            }
        }
    }

    #[test]
    fn a_virtual_owner_is_no_node_and_an_old_one_is() {
        let block = |affinity: Value| {
            let mut spec = json!({"cidr": "10.65.4.0/32", "allocations": [null]});
            for (name, value) in affinity.as_object().unwrap() {
                spec[name] = value.clone();
            }
            IpamBlock::try_from(&object(spec)).unwrap().affinity
        };

        assert_eq!(block(json!({"affinity": "virtual:load-balancer"})), None);
        assert_eq!(
            block(json!({"hostAffinity": "n1"})),
            Some("n1".parse().unwrap())
        );
    }

    #[test]
    fn ordinals_and_addresses_are_two_names_of_one_thing() {
        for cidr in ["10.65.4.64/26", "fd00:65::40/122", "10.0.0.0/20"] {
            let block = IpamBlock {
                cidr: cidr.parse().unwrap(),
                affinity: None,
                deleted: false,
                allocations: BTreeMap::new(),
                unallocated: Vec::new(),
                attributes: Vec::new(),
                sequence_number: 0,
                sequence_number_for_allocation: BTreeMap::new(),
                affinity_claim_time: None,
            };
            for ordinal in 0..block.size() {
                let address = block.address(ordinal).unwrap();
                assert_eq!(block.ordinal(address), Some(ordinal));
            }
            assert_eq!(block.address(block.size()), None);
            assert_eq!(block.ordinal("192.0.2.1".parse().unwrap()), None);
        }
    }

    fn object(spec: Value) -> Object {
        let cidr = spec["cidr"].as_str().unwrap().parse().unwrap();
        Object::new(
            &ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(cidr)),
            spec,
        )
    }
}
