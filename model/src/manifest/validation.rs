//! What an object may say by itself, and beside the objects that are there.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::Value;

use super::{Document, Fault, ManifestError, OBJECT_MAX, Position, metadata, policy};
use crate::{
    Kind, Object, ObjectKey, Resource,
    policy::{Policy, Tier},
    resource::{
        AddressClaim, FieldError, IpPool, IpamBlock, WorkloadEndpoint, field::expected,
        ip_pool::AllowedUse,
    },
    schema,
    selector::NAMESPACE_LABEL,
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
        | Resource::Namespace(_)
        | Resource::ServiceAccount(_)
        | Resource::Service(_)
        | Resource::EndpointSlice(_)
        | Resource::HostEndpoint(_)
        | Resource::Opaque(_) => Ok(()),
        Resource::Tier(tier) => policy::check_tier(&tier),
        Resource::Policy(read) => first(&read.invalid).and_then(|()| policy::check(&read, object)),
        Resource::NetworkSet(set) => first(&set.invalid).and_then(|()| check_set(object)),
        Resource::Profile(profile) => {
            first(&profile.invalid).and_then(|()| policy::check_profile(&profile, object))
        }
    }
}

/// Returns the kinds of which an object of a kind may contradict, or need, an object.
pub const fn neighbours(kind: Kind) -> &'static [Kind] {
    match kind {
        Kind::IPPool => &[Kind::IPPool, Kind::IPAMBlock, Kind::AddressClaim],
        Kind::IPAMBlock => &[Kind::IPAMBlock],
        Kind::AddressClaim => &[Kind::IPPool],
        Kind::NetworkPolicy
        | Kind::GlobalNetworkPolicy
        | Kind::StagedNetworkPolicy
        | Kind::StagedGlobalNetworkPolicy => &[Kind::Tier],
        Kind::Node
        | Kind::MeshNode
        | Kind::BlockAffinity
        | Kind::IPAMHandle
        | Kind::IPAMConfiguration
        | Kind::IPReservation
        | Kind::WorkloadEndpoint
        | Kind::FelixConfiguration
        | Kind::ClusterInformation
        | Kind::MeshConfiguration
        | Kind::KeyClaim
        | Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Pod
        | Kind::EndpointSlice
        | Kind::Tier
        | Kind::KubernetesNetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::StagedKubernetesNetworkPolicy
        | Kind::NetworkSet
        | Kind::GlobalNetworkSet
        | Kind::HostEndpoint
        | Kind::Profile => &[],
    }
}

/// Checks an object by itself and beside those that a store holds.
///
/// `existing` may hold objects of any kind, the older version of `new` among
/// them; needed are its [`neighbours`]. Objects that cannot be read are passed
/// over.
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
    // A tier may stand behind its policies: whoever stores them stores it first.
    let tiers = documents.iter().map(|document| &document.object);
    for tier in tiers.filter(|object| object.kind == Kind::Tier) {
        neighbours.extend(Neighbour::of(tier).map(|neighbour| (tier.key(), neighbour)));
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
    Tier(String),
}

impl Neighbour {
    fn of(object: &Object) -> Option<Self> {
        match Resource::try_from(object).ok()? {
            Resource::IpPool(pool) => Some(Self::Pool(pool)),
            Resource::IpamBlock(block) if block.deleted => None,
            Resource::IpamBlock(block) => Some(Self::Block(block.cidr)),
            Resource::AddressClaim(claim) => Some(Self::Address(claim)),
            Resource::Tier(tier) => Some(Self::Tier(tier.name)),
            Resource::Node(_)
            | Resource::BlockAffinity(_)
            | Resource::FelixConfiguration(_)
            | Resource::MeshConfiguration(_)
            | Resource::KeyClaim(_)
            | Resource::WorkloadEndpoint(_)
            | Resource::Namespace(_)
            | Resource::ServiceAccount(_)
            | Resource::Service(_)
            | Resource::EndpointSlice(_)
            | Resource::Policy(_)
            | Resource::NetworkSet(_)
            | Resource::HostEndpoint(_)
            | Resource::Profile(_)
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
        (Resource::Policy(policy), before) => {
            let tier = |old: &Object| Policy::try_from(old).map(|policy| policy.tier);
            let stays = before.is_some_and(|old| tier(old).as_ref() == Ok(&policy.tier));
            if stays {
                Ok(())
            } else {
                policy_beside(&policy, others)
            }
        }
        (Resource::IpamBlock(_), Some(_)) | (Resource::KeyClaim(_), None) => Ok(()),
        (
            Resource::Node(_)
            | Resource::BlockAffinity(_)
            | Resource::FelixConfiguration(_)
            | Resource::MeshConfiguration(_)
            | Resource::WorkloadEndpoint(_)
            | Resource::Namespace(_)
            | Resource::ServiceAccount(_)
            | Resource::Service(_)
            | Resource::EndpointSlice(_)
            | Resource::Tier(_)
            | Resource::NetworkSet(_)
            | Resource::HostEndpoint(_)
            | Resource::Profile(_)
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
        Neighbour::Pool(_) | Neighbour::Block(_) | Neighbour::Address(_) | Neighbour::Tier(_) => {
            Ok(())
        }
    }
}

fn block_beside(block: &IpamBlock, old: &Neighbour) -> Result<(), FieldError> {
    match old {
        Neighbour::Block(other) if overlap(block.cidr, *other) => {
            let free = format!("a network that does not overlap block {other}");
            Err(expected("spec.cidr", &free, block.cidr.to_string()))
        }
        Neighbour::Pool(_) | Neighbour::Block(_) | Neighbour::Address(_) | Neighbour::Tier(_) => {
            Ok(())
        }
    }
}

fn address_beside(claim: &AddressClaim, old: &Neighbour) -> Result<(), FieldError> {
    match old {
        Neighbour::Pool(pool) if pool.cidr.contains(&claim.address) => {
            let free = format!("an address outside pool {} ({})", pool.name, pool.cidr);
            Err(expected("metadata.name", &free, claim.address.to_string()))
        }
        Neighbour::Pool(_) | Neighbour::Block(_) | Neighbour::Address(_) | Neighbour::Tier(_) => {
            Ok(())
        }
    }
}

/// A policy's tier is there: one that every cluster has, or one that somebody made.
fn policy_beside<'a>(
    policy: &Policy,
    mut others: impl Iterator<Item = &'a Neighbour>,
) -> Result<(), FieldError> {
    let built_in = Tier::built_in().iter().any(|tier| tier.name == policy.tier);
    let is_it = |other: &Neighbour| matches!(other, Neighbour::Tier(name) if *name == policy.tier);
    if built_in || others.any(is_it) {
        return Ok(());
    }

    Err(expected(
        "spec.tier",
        "a tier that exists",
        policy.tier.as_str(),
    ))
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

/// The namespace of a set is told by where it lives.
fn check_set(object: &Object) -> Result<(), FieldError> {
    if object.metadata.labels.contains_key(NAMESPACE_LABEL) {
        let path = format!("metadata.labels.{NAMESPACE_LABEL}");
        return Err(FieldError::new(
            path,
            "expected none: a set has the label of its namespace by itself",
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
