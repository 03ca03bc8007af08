//! What an object may say by itself, and beside the objects that are there.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::Value;

use super::{Document, Fault, ManifestError, OBJECT_MAX, Position, metadata};
use crate::{
    Object, ObjectKey, Resource,
    resource::{
        AddressClaim, FieldError, IpPool, IpamBlock, WorkloadEndpoint, field::expected,
        ip_pool::AllowedUse,
    },
    schema,
};

/// Checks an object by itself: size, metadata, every field, and what its fields say about each other.
pub fn check(object: &Object) -> Result<(), FieldError> {
    let size = serde_json::to_vec(object).map_or(usize::MAX, |text| text.len());
    if size > OBJECT_MAX {
        return Err(expected(
            "metadata",
            &format!("at most {OBJECT_MAX} bytes in all"),
            size,
        ));
    }
    metadata::check(object)?;
    schema::check(object)?;

    match Resource::try_from(object)? {
        // A record that cannot be used disables itself; whoever writes it, or reads it, says why.
        Resource::Node(node) => first(&node.invalid),
        Resource::FelixConfiguration(settings) => first(&settings.invalid),
        Resource::IpPool(pool) => check_pool(&pool, object),
        Resource::WorkloadEndpoint(endpoint) => check_endpoint(&endpoint),
        Resource::IpamBlock(_)
        | Resource::BlockAffinity(_)
        | Resource::MeshConfiguration(_)
        | Resource::KeyClaim(_)
        | Resource::AddressClaim(_)
        | Resource::Opaque(_) => Ok(()),
    }
}

/// Checks an object by itself and beside those that a store holds.
///
/// `existing` may hold objects of any kind, the older version of `new` among
/// them; needed are pools, blocks and claims. Objects that cannot be read are
/// passed over.
pub fn validate<'a>(
    new: &Object,
    existing: impl Iterator<Item = &'a Object>,
) -> Result<(), FieldError> {
    check(new)?;
    let (mut before, mut neighbours) = (None, Vec::new());
    for old in existing {
        if old.kind == new.kind && old.key() == new.key() {
            before = Some(old);
        } else {
            neighbours.extend(Neighbour::of(old));
        }
    }

    beside(new, before, neighbours.iter())
}

/// Checks the objects of one `apply` beside those that a store holds and beside each other.
///
/// Each document is already valid by itself, as [`parse`](super::parse) returns it.
pub fn validate_all<'a>(
    documents: &'a [Document],
    existing: impl Iterator<Item = &'a Object>,
) -> Result<(), Vec<ManifestError>> {
    let mut errors = Vec::new();
    let mut stored: BTreeMap<ObjectKey, &Object> = BTreeMap::new();
    let mut neighbours: BTreeMap<ObjectKey, Neighbour> = BTreeMap::new();
    for old in existing {
        neighbours.extend(Neighbour::of(old).map(|neighbour| (old.key(), neighbour)));
        stored.insert(old.key(), old);
    }
    let mut seen: BTreeMap<ObjectKey, &Position> = BTreeMap::new();
    for Document { object, position } in documents {
        let key = object.key();
        let result = match seen.insert(key.clone(), position) {
            Some(first) => {
                let message = format!("{key} stands in {first} already");
                Err(FieldError::new("metadata.name", message))
            }
            None => {
                let others = neighbours.iter().filter(|(other, _)| **other != key);
                beside(
                    object,
                    stored.get(&key).copied(),
                    others.map(|(_, neighbour)| neighbour),
                )
            }
        };
        if let Err(error) = result {
            errors.push(ManifestError {
                position: position.clone(),
                error: Fault::Field(error),
            });
        }
        neighbours.extend(Neighbour::of(object).map(|neighbour| (key, neighbour)));
    }

    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// An object that another may get in the way of.
enum Neighbour {
    Pool(IpPool),
    Block(IpNet),
    Address(AddressClaim),
}

impl Neighbour {
    fn of(object: &Object) -> Option<Self> {
        match Resource::try_from(object).ok()? {
            Resource::IpPool(pool) => Some(Self::Pool(pool)),
            Resource::IpamBlock(block) if block.deleted => None,
            Resource::IpamBlock(block) => Some(Self::Block(block.cidr)),
            Resource::AddressClaim(claim) => Some(Self::Address(claim)),
            Resource::Node(_)
            | Resource::BlockAffinity(_)
            | Resource::FelixConfiguration(_)
            | Resource::MeshConfiguration(_)
            | Resource::KeyClaim(_)
            | Resource::WorkloadEndpoint(_)
            | Resource::Opaque(_) => None,
        }
    }
}

/// Checks an object that is valid by itself after its older version, or, if it is new, beside others.
///
/// What does not change was accepted once, and may have to be edited all the more.
fn beside<'a>(
    new: &Object,
    before: Option<&Object>,
    mut others: impl Iterator<Item = &'a Neighbour>,
) -> Result<(), FieldError> {
    match (Resource::try_from(new)?, before) {
        (Resource::IpPool(pool), Some(old)) => {
            IpPool::try_from(old).map_or(Ok(()), |old| pool_after(&pool, &old))
        }
        (Resource::KeyClaim(_) | Resource::AddressClaim(_), Some(old)) => claim_after(new, old),
        (Resource::IpPool(pool), None) => others.try_for_each(|old| pool_beside(&pool, old)),
        (Resource::IpamBlock(block), None) => others.try_for_each(|old| block_beside(&block, old)),
        (Resource::AddressClaim(claim), None) => {
            others.try_for_each(|old| address_beside(&claim, old))
        }
        (Resource::IpamBlock(_), Some(_)) | (Resource::KeyClaim(_), None) => Ok(()),
        (
            Resource::Node(_)
            | Resource::BlockAffinity(_)
            | Resource::FelixConfiguration(_)
            | Resource::MeshConfiguration(_)
            | Resource::WorkloadEndpoint(_)
            | Resource::Opaque(_),
            _,
        ) => Ok(()),
    }
}

fn pool_beside(pool: &IpPool, old: &Neighbour) -> Result<(), FieldError> {
    match old {
        Neighbour::Pool(other) if overlap(pool.cidr, other.cidr) => {
            let free = format!(
                "a network that does not overlap pool {} ({})",
                other.name, other.cidr
            );
            Err(expected("spec.cidr", &free, pool.cidr.to_string()))
        }
        Neighbour::Block(block)
            if overlap(pool.cidr, *block) && block.prefix_len() != pool.block_size =>
        {
            let size = format!("{}, as block {block} has", block.prefix_len());
            Err(expected("spec.blockSize", &size, pool.block_size))
        }
        Neighbour::Address(AddressClaim { address, node }) if pool.cidr.contains(address) => {
            let free = format!("a network without {address}, an address of node {node}");
            Err(expected("spec.cidr", &free, pool.cidr.to_string()))
        }
        Neighbour::Pool(_) | Neighbour::Block(_) | Neighbour::Address(_) => Ok(()),
    }
}

fn block_beside(block: &IpamBlock, old: &Neighbour) -> Result<(), FieldError> {
    match old {
        Neighbour::Block(other) if overlap(block.cidr, *other) => {
            let free = format!("a network that does not overlap block {other}");
            Err(expected("spec.cidr", &free, block.cidr.to_string()))
        }
        Neighbour::Pool(_) | Neighbour::Block(_) | Neighbour::Address(_) => Ok(()),
    }
}

fn address_beside(claim: &AddressClaim, old: &Neighbour) -> Result<(), FieldError> {
    match old {
        Neighbour::Pool(pool) if pool.cidr.contains(&claim.address) => {
            let free = format!("an address outside pool {} ({})", pool.name, pool.cidr);
            Err(expected("metadata.name", &free, claim.address.to_string()))
        }
        Neighbour::Pool(_) | Neighbour::Block(_) | Neighbour::Address(_) => Ok(()),
    }
}

/// Checks what of a pool may change.
fn pool_after(new: &IpPool, old: &IpPool) -> Result<(), FieldError> {
    if new.cidr != old.cidr {
        let same = format!("{}: the range of a pool cannot change", old.cidr);
        return Err(expected("spec.cidr", &same, new.cidr.to_string()));
    }
    if new.block_size != old.block_size {
        let same = format!("{}: the block size of a pool cannot change", old.block_size);
        return Err(expected("spec.blockSize", &same, new.block_size));
    }
    let balances = |pool: &IpPool| pool.allowed_uses.contains(&AllowedUse::LoadBalancer);
    if balances(old) && !balances(new) {
        let message = "a pool for LoadBalancer cannot become one for anything else";
        return Err(FieldError::new("spec.allowedUses", message));
    }

    Ok(())
}

/// Refuses to hand a claim from one node to another.
fn claim_after(new: &Object, old: &Object) -> Result<(), FieldError> {
    let node = |object: &Object| {
        object
            .body
            .get("spec")
            .and_then(|spec| spec.get("node"))
            .cloned()
    };
    if node(old) != node(new) {
        let holder = node(old)
            .as_ref()
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let same = format!("{holder}, who holds the claim; delete it to grant it anew");
        return Err(expected("spec.node", &same, node(new).unwrap_or_default()));
    }

    Ok(())
}

/// Checks what Calico forbids between the fields of a pool.
fn check_pool(pool: &IpPool, object: &Object) -> Result<(), FieldError> {
    let mode = |field: &str| {
        let value = object.body.get("spec").and_then(|spec| spec.get(field));
        value
            .and_then(Value::as_str)
            .is_some_and(|mode| mode != "Never")
    };
    for link_local in ["169.254.0.0/16", "fe80::/10"] {
        let net: IpNet = link_local.parse().expect("the two literals are networks");
        if overlap(pool.cidr, net) {
            let free = format!("a network that does not overlap {link_local}");
            return Err(expected("spec.cidr", &free, pool.cidr.to_string()));
        }
    }
    if mode("ipipMode") && mode("vxlanMode") {
        return Err(FieldError::new(
            "spec.vxlanMode",
            "expected Never, as spec.ipipMode is set",
        ));
    }
    if mode("ipipMode") && pool.cidr.addr().is_ipv6() {
        return Err(FieldError::new(
            "spec.ipipMode",
            "expected Never: IPIP carries no IPv6",
        ));
    }
    let balances = pool.allowed_uses.contains(&AllowedUse::LoadBalancer);
    if balances && pool.allowed_uses.len() > 1 {
        let message = "expected LoadBalancer alone: it goes with no other use";
        return Err(FieldError::new("spec.allowedUses", message));
    }
    if balances && (mode("ipipMode") || mode("vxlanMode")) {
        let message = "LoadBalancer goes with no encapsulation";
        return Err(FieldError::new("spec.allowedUses", message));
    }

    Ok(())
}

fn check_endpoint(endpoint: &WorkloadEndpoint) -> Result<(), FieldError> {
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    addresses.dedup();
    if addresses.len() < endpoint.addresses.len() {
        return Err(FieldError::new(
            "spec.ipNetworks",
            "expected each address once",
        ));
    }

    Ok(())
}

fn first(invalid: &BTreeMap<String, String>) -> Result<(), FieldError> {
    match invalid.first_key_value() {
        Some((field, message)) => Err(FieldError::new(field, message)),
        None => Ok(()),
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}
