//! What a node may write. A node speaks only for itself.
//!
//! | kind | create | change | delete |
//! |---|---|---|---|
//! | Node | – | own: its words about itself, never labels | – |
//! | KeyClaim, AddressClaim | for itself | – | – |
//! | BlockAffinity | for itself | own | own |
//! | IPAMBlock | for itself, inside a pool that selects it | own, what is lent excepted | own, empty |
//! | IPAMHandle | for itself | own | own |
//! | WorkloadEndpoint | on itself | on itself | on itself |
//! | every other kind | – | – | – |

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use model::{
    Kind, NodeName, Object, ObjectKey, PublicKey, Record,
    constant::{ANNOTATION_PREFIX, RECORD_ANNOTATION},
    resource::{AddressClaim, KeyClaim, WorkloadEndpoint},
};
use serde_json::Value;

use super::{View, Write, address, block, difference::differences, handle};
use crate::{Denial, StoreError, caller::Origin};

/// Keys that a node may hold at once: two tunnels, each in rotation, and generous room.
const KEYS_MAX: usize = 16;

/// Addresses that a node may hold at once.
const ADDRESSES_MAX: usize = 32;

/// Endpoints that a node may hold at once.
const ENDPOINTS_MAX: usize = 1024;

/// Prefixes of the annotations that a node writes on itself.
const ANNOTATION_PREFIXES: [&str; 2] = [ANNOTATION_PREFIX, "projectcalico.org/"];

/// A node that wants to write.
pub(super) struct Node<'a> {
    pub(super) view: &'a dyn View,
    pub(super) name: &'a NodeName,
    pub(super) origin: Option<&'a Origin>,
}

impl Node<'_> {
    /// Checks one write.
    pub(super) fn check(&self, write: Write<'_>) -> Result<(), StoreError> {
        match write.kind() {
            Kind::Node => self.check_node(write),
            Kind::KeyClaim => self.check_key_claim(write),
            Kind::AddressClaim => self.check_address_claim(write),
            Kind::BlockAffinity => block::check_affinity(self.view, self.name, write),
            Kind::IPAMBlock => block::check_block(self.view, self.name, write),
            Kind::IPAMHandle => handle::check(self.view, self.name, write),
            Kind::WorkloadEndpoint => self.check_endpoint(write),
            Kind::MeshNode
            | Kind::IPPool
            | Kind::IPAMConfiguration
            | Kind::IPReservation
            | Kind::FelixConfiguration
            | Kind::ClusterInformation
            | Kind::MeshConfiguration
            | Kind::Namespace
            | Kind::ServiceAccount
            | Kind::Service
            | Kind::Pod
            | Kind::EndpointSlice
            | Kind::Tier
            | Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::KubernetesNetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy
            | Kind::NetworkSet
            | Kind::GlobalNetworkSet
            | Kind::HostEndpoint
            | Kind::Profile => Err(administrator_only(write)),
        }
    }

    fn check_key_claim(&self, write: Write<'_>) -> Result<(), StoreError> {
        let object = claim(write)?;
        let claim = KeyClaim::try_from(object).map_err(StoreError::Invalid)?;
        check_owner(self.name, &claim.node)?;

        check_limit(self.view, Kind::KeyClaim, self.name, KEYS_MAX)
    }

    fn check_address_claim(&self, write: Write<'_>) -> Result<(), StoreError> {
        let object = claim(write)?;
        let claim = AddressClaim::try_from(object).map_err(StoreError::Invalid)?;
        check_owner(self.name, &claim.node)?;
        address::check(self.view, self.origin, claim.address)?;

        check_limit(self.view, Kind::AddressClaim, self.name, ADDRESSES_MAX)
    }

    fn check_endpoint(&self, write: Write<'_>) -> Result<(), StoreError> {
        let parse = |object| WorkloadEndpoint::try_from(object).map_err(StoreError::Invalid);
        let old = match write {
            Write::Create(_) => None,
            Write::Change { old, .. } | Write::Delete(old) => Some(parse(old)?),
        };
        if let Some(old) = &old {
            check_owner(self.name, &old.node)?;
        }
        let new = match write {
            Write::Create(new) | Write::Change { new, .. } => parse(new)?,
            Write::Delete(_) => return Ok(()),
        };
        check_owner(self.name, &new.node)?;
        let expected = WorkloadEndpoint::object_name(self.name, &new.pod);
        if new.name != expected {
            let message = format!("expected the name {expected}, found {}", new.name);
            return Err(StoreError::denied(Denial::Name, message));
        }
        let before = old
            .as_ref()
            .map(|old| old.addresses.clone())
            .unwrap_or_default();
        for network in new
            .addresses
            .iter()
            .filter(|network| !before.contains(network))
        {
            block::check_inside(self.view, self.name, network.addr())?;
        }
        match old {
            Some(_) => Ok(()),
            None => check_limit(self.view, Kind::WorkloadEndpoint, self.name, ENDPOINTS_MAX),
        }
    }

    fn check_node(&self, write: Write<'_>) -> Result<(), StoreError> {
        let Write::Change { old, new } = write else {
            return Err(administrator_only(write));
        };
        if new.metadata.name != self.name.as_str() {
            let message = format!("{} may not write {}", self.name, new.key());
            return Err(StoreError::denied(Denial::NotYourNode, message));
        }
        check_fields(old, new)?;
        self.check_record(old, new)?;
        self.check_addresses(old, new)?;

        self.check_keys(old, new)
    }

    /// The record can be read, its epoch rises, and what it newly names is granted.
    fn check_record(&self, old: &Object, new: &Object) -> Result<(), StoreError> {
        let text = |object: &Object| object.metadata.annotations.get(RECORD_ANNOTATION).cloned();
        let (before, after) = (text(old), text(new));
        if before == after {
            return Ok(());
        }
        let bad = |message: String| StoreError::denied(Denial::Record, message);
        let Some(after) = after else {
            return Err(bad("a record is replaced, never removed".to_owned()));
        };
        let new = Record::parse(&after, self.name).map_err(|error| bad(error.to_string()))?;
        // A record that nobody can read grants nothing, and orders nothing.
        let old = before.and_then(|text| Record::parse(&text, self.name).ok());
        if let Some(old) = &old
            && new.epoch <= old.epoch
        {
            let message = format!("expected an epoch above {}, found {}", old.epoch, new.epoch);
            return Err(StoreError::denied(Denial::Epoch, message));
        }
        let words = old.as_ref().map(Words::of).unwrap_or_default();
        for key in Words::of(&new).keys.difference(&words.keys) {
            self.check_key_granted(key)?;
        }
        for address in Words::of(&new).addresses.difference(&words.addresses) {
            address::check_granted(self.view, self.name, *address)?;
        }

        Ok(())
    }

    /// `spec.bgp` and `spec.addresses` newly name only granted addresses, `spec.wireguard` only own blocks'.
    fn check_addresses(&self, old: &Object, new: &Object) -> Result<(), StoreError> {
        let known = own_addresses(old)?;
        for address in own_addresses(new)?.difference(&known) {
            address::check_granted(self.view, self.name, *address)?;
        }
        let known = tunnel_addresses(old)?;
        for address in tunnel_addresses(new)?.difference(&known) {
            block::check_inside(self.view, self.name, *address)?;
        }

        Ok(())
    }

    /// `status` newly names only granted keys.
    fn check_keys(&self, old: &Object, new: &Object) -> Result<(), StoreError> {
        for field in ["wireguardPublicKey", "wireguardPublicKeyV6"] {
            let path = ["status", field];
            if at(old, &path) == at(new, &path) {
                continue;
            }
            let Some(text) = text_at(new, &path)?.filter(|text| !text.is_empty()) else {
                continue;
            };
            let key: PublicKey = text
                .parse()
                .map_err(|error| StoreError::invalid(&path.join("."), format!("{error}")))?;
            self.check_key_granted(&key)?;
        }

        Ok(())
    }

    fn check_key_granted(&self, key: &PublicKey) -> Result<(), StoreError> {
        let claim = self
            .view
            .get(&ObjectKey::cluster(Kind::KeyClaim, key.claim_name()))?;
        let owner = claim
            .as_ref()
            .and_then(|claim| KeyClaim::try_from(claim).ok());
        if owner.is_some_and(|claim| claim.node == *self.name) {
            return Ok(());
        }
        let message = format!(
            "{key} is not granted to {}: create its KeyClaim first",
            self.name
        );

        Err(StoreError::denied(Denial::KeyNotGranted, message))
    }
}

/// What a record says that needs a grant.
#[derive(Default)]
struct Words {
    keys: BTreeSet<PublicKey>,
    addresses: BTreeSet<IpAddr>,
}

impl Words {
    fn of(record: &Record) -> Self {
        Self {
            keys: record.tunnels.iter().map(|tunnel| tunnel.key).collect(),
            addresses: record
                .endpoints
                .iter()
                .chain(&record.addresses)
                .copied()
                .collect(),
        }
    }
}

impl Write<'_> {
    fn object(&self) -> &Object {
        match self {
            Self::Create(object) | Self::Change { new: object, .. } | Self::Delete(object) => {
                object
            }
        }
    }

    fn kind(&self) -> Kind {
        self.object().kind
    }
}

/// Checks that an object names the node that writes it.
pub(super) fn check_owner(node: &NodeName, named: &NodeName) -> Result<(), StoreError> {
    if node == named {
        return Ok(());
    }
    let message = format!("{node} may not write what names {named}");

    Err(StoreError::denied(Denial::NotYourNode, message))
}

/// Checks that a node may hold one more object of a kind.
pub(super) fn check_limit(
    view: &dyn View,
    kind: Kind,
    node: &NodeName,
    limit: usize,
) -> Result<(), StoreError> {
    if view.count_of(kind, node.as_str())? < limit {
        return Ok(());
    }
    let message = format!("{node} holds {limit} of {kind}, and may hold no more");

    Err(StoreError::denied(Denial::Limit, message))
}

/// Returns the claim that is created: no other write is a node's, and a claim says nothing else.
fn claim<'a>(write: Write<'a>) -> Result<&'a Object, StoreError> {
    let object = match write {
        Write::Create(object) => object,
        Write::Change { .. } => {
            let message = "a claim is created once and never changed";
            return Err(StoreError::denied(Denial::CreateOnly, message));
        }
        Write::Delete(_) => {
            let message = "only an administrator deletes a claim";
            return Err(StoreError::denied(Denial::CreateOnly, message));
        }
    };
    let spec = object.body.get("spec").and_then(Value::as_object);
    let bare = object.metadata.labels.is_empty()
        && object.metadata.annotations.is_empty()
        && object.metadata.other.is_empty();
    if !bare || object.body.len() != 1 || spec.is_none_or(|spec| spec.len() != 1) {
        let message = "a claim has a name and spec.node, and nothing else";
        return Err(StoreError::denied(Denial::FieldNotYours, message));
    }

    Ok(object)
}

fn administrator_only(write: Write<'_>) -> StoreError {
    let verb = match write {
        Write::Create(_) => "creates",
        Write::Change { .. } => "changes",
        Write::Delete(_) => "deletes",
    };
    let message = format!("only an administrator {verb} a {}", write.kind());

    StoreError::denied(Denial::AdministratorOnly, message)
}

/// Checks that two versions of a Node differ only in the node's words about itself.
fn check_fields(old: &Object, new: &Object) -> Result<(), StoreError> {
    let internal = |error: serde_json::Error| StoreError::Internal(error.to_string());
    let [before, after] = [serde_json::to_value(old), serde_json::to_value(new)];
    let mut result = Ok(());
    let after = after.map_err(internal)?;
    differences(&before.map_err(internal)?, &after, &mut |path| {
        if result.is_ok() {
            result = check_field(path, &after);
        }
    });

    result
}

fn check_field(path: &[&str], new: &Value) -> Result<(), StoreError> {
    let allowed = match path {
        ["metadata", "labels", ..] => {
            let message = "only an administrator writes a node's labels";
            return Err(StoreError::denied(Denial::Labels, message));
        }
        ["metadata", "annotations", name] => ANNOTATION_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix)),
        ["spec", "bgp", "ipv4Address" | "ipv6Address"]
        | [
            "spec",
            "wireguard",
            "interfaceIPv4Address" | "interfaceIPv6Address",
        ]
        | ["spec", "addresses"] => true,
        ["status", _, ..] => true,
        // An empty object on the way to such a field may come and go; nothing else may take its place.
        ["metadata", "annotations"] | ["spec"] | ["spec", "bgp" | "wireguard"] | ["status"] => {
            let value = path.iter().try_fold(new, |value, name| value.get(name));
            value.is_none_or(Value::is_object)
        }
        _ => false,
    };
    if allowed {
        return Ok(());
    }
    let message = format!("a node may not write {} of its Node", path.join("."));

    Err(StoreError::denied(Denial::FieldNotYours, message))
}

/// Returns the addresses that a Node says are its own.
fn own_addresses(node: &Object) -> Result<BTreeSet<IpAddr>, StoreError> {
    let mut addresses = BTreeSet::new();
    for field in ["ipv4Address", "ipv6Address"] {
        let path = ["spec", "bgp", field];
        addresses.extend(parse_address(text_at(node, &path)?, &path)?);
    }
    let Some(list) = at(node, &["spec", "addresses"]) else {
        return Ok(addresses);
    };
    let malformed = || StoreError::invalid("spec.addresses", "expected a list of {address, type}");
    for entry in list.as_array().ok_or_else(malformed)? {
        let text = entry
            .get("address")
            .and_then(Value::as_str)
            .ok_or_else(malformed)?;
        addresses.extend(parse_address(Some(text), &["spec", "addresses"])?);
    }

    Ok(addresses)
}

fn tunnel_addresses(node: &Object) -> Result<BTreeSet<IpAddr>, StoreError> {
    let mut addresses = BTreeSet::new();
    for field in ["interfaceIPv4Address", "interfaceIPv6Address"] {
        let path = ["spec", "wireguard", field];
        addresses.extend(parse_address(text_at(node, &path)?, &path)?);
    }

    Ok(addresses)
}

/// Reads an address, with or without its subnet; an empty text is none.
fn parse_address(text: Option<&str>, path: &[&str]) -> Result<Option<IpAddr>, StoreError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let address = text
        .parse::<IpNet>()
        .map(|network| network.addr())
        .or_else(|_| text.parse());

    address
        .map(Some)
        .map_err(|_| StoreError::invalid(&path.join("."), format!("{text:.64?} is no address")))
}

fn at<'a>(object: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = rest
        .iter()
        .try_fold(object.body.get(*first)?, |value, name| value.get(name))?;

    (!value.is_null()).then_some(value)
}

fn text_at<'a>(object: &'a Object, path: &[&str]) -> Result<Option<&'a str>, StoreError> {
    let Some(value) = at(object, path) else {
        return Ok(None);
    };
    let text = value.as_str();

    text.map(Some)
        .ok_or_else(|| StoreError::invalid(&path.join("."), "expected a text"))
}
