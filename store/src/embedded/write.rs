//! The writes of the contract, each within a transaction.

use std::collections::BTreeSet;

use jiff::Timestamp;
use model::{Kind, Object, ObjectKey, resource::IpamBlock};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;

use super::{member, namespace, shape, writer::Writing};
use crate::{
    Caller, StoreError,
    authority::{self, View, Write},
    backend::Precondition,
};

/// Kinds whose objects belong to a node and go with it.
const BELONGINGS: [Kind; 6] = [
    Kind::WorkloadEndpoint,
    Kind::KeyClaim,
    Kind::AddressClaim,
    Kind::IPAMBlock,
    Kind::BlockAffinity,
    Kind::IPAMHandle,
];

/// Creates an object.
pub(super) fn create(
    writing: &mut Writing<'_>,
    caller: &Caller,
    mut object: Object,
) -> Result<Object, StoreError> {
    member::check_good(writing, caller.certificate.as_deref())?;
    shape::check(&mut object)?;
    let key = object.key();
    if writing.object(&key)?.is_some() {
        return Err(StoreError::AlreadyExists(key));
    }
    authority::check(&*writing, caller, Write::Create(&object))?;
    object.metadata.uid = Some(uid()?);
    object.metadata.creation_timestamp = Some(seconds(writing.now));
    if key.kind == Kind::WorkloadEndpoint {
        namespace::ensure(writing, &key)?;
    }

    writing.put(object)
}

/// Replaces an object.
pub(super) fn update(
    writing: &mut Writing<'_>,
    caller: &Caller,
    mut object: Object,
) -> Result<Object, StoreError> {
    member::check_good(writing, caller.certificate.as_deref())?;
    shape::check(&mut object)?;
    let expected = object.revision();
    if expected.0.is_empty() {
        let message = "expected the revision that the object was read at";
        return Err(StoreError::invalid("metadata.resourceVersion", message));
    }
    let old = stored(writing, &object.key(), &Precondition::Revision(expected))?;

    replace(writing, caller, &old, object)
}

/// Patches an object.
pub(super) fn patch(
    writing: &mut Writing<'_>,
    caller: &Caller,
    key: &ObjectKey,
    merge_patch: &Value,
    expected: &Precondition,
) -> Result<Object, StoreError> {
    member::check_good(writing, caller.certificate.as_deref())?;
    shape::check_key(key)?;
    let old = stored(writing, key, expected)?;
    let internal = |error: serde_json::Error| StoreError::Internal(error.to_string());
    let mut value = serde_json::to_value(&old).map_err(internal)?;
    model::publication::merge(&mut value, merge_patch);
    let mut new: Object = serde_json::from_value(value)
        .map_err(|error| StoreError::invalid("", format!("the patched object: {error}")))?;
    if new.key() != *key {
        let message = "a patch cannot change what an object is called";
        return Err(StoreError::invalid("metadata.name", message));
    }
    shape::check(&mut new)?;

    replace(writing, caller, &old, new)
}

/// Removes an object, and with a Node what belongs to it.
pub(super) fn delete(
    writing: &mut Writing<'_>,
    caller: &Caller,
    key: &ObjectKey,
    expected: &Precondition,
) -> Result<(), StoreError> {
    member::check_good(writing, caller.certificate.as_deref())?;
    shape::check_key(key)?;
    let old = stored(writing, key, expected)?;
    authority::check(&*writing, caller, Write::Delete(&old))?;
    if key.kind == Kind::Node {
        remove_belongings(writing, &key.name)?;
        member::revoke(writing, "node", &key.name)?;
    }

    remove(writing, key.clone())
}

/// Removes the claims, blocks and endpoints of a node.
pub(super) fn remove_belongings(writing: &mut Writing<'_>, node: &str) -> Result<(), StoreError> {
    for kind in BELONGINGS {
        for object in writing.objects_of(kind, node)? {
            match without_owner(&object) {
                Some(block) => drop(writing.put(block)?),
                None => remove(writing, object.key())?,
            }
        }
    }

    Ok(())
}

/// Returns a block as nobody's, with what others borrowed of it; `None` for one that nobody else uses.
///
/// Without it the addresses that others use would be handed out again.
fn without_owner(object: &Object) -> Option<Object> {
    if object.kind != Kind::IPAMBlock {
        return None;
    }
    let mut block = IpamBlock::try_from(object).ok()?;
    let lent: BTreeSet<u32> = block
        .loans()
        .filter_map(|(address, _)| block.ordinal(address))
        .collect();
    if lent.is_empty() {
        return None;
    }
    let free = (0..block.size()).filter(|it| !lent.contains(it));
    block.unallocated = free.collect();
    block
        .allocations
        .retain(|ordinal, _| lent.contains(ordinal));
    block
        .sequence_number_for_allocation
        .retain(|ordinal, _| lent.contains(ordinal));
    block.affinity = None;
    block.affinity_claim_time = None;
    block.sequence_number = block.sequence_number.saturating_add(1);
    let mut nobodys = block.to_object();
    nobodys.metadata = object.metadata.clone();

    Some(nobodys)
}

fn remove(writing: &mut Writing<'_>, key: ObjectKey) -> Result<(), StoreError> {
    writing.remove(key.clone())?;
    if key.kind == Kind::WorkloadEndpoint {
        namespace::drop_empty(writing, &key)?;
    }

    Ok(())
}

/// Stores a new version of an object; one that is the same is not written.
pub(super) fn replace(
    writing: &mut Writing<'_>,
    caller: &Caller,
    old: &Object,
    mut new: Object,
) -> Result<Object, StoreError> {
    new.metadata.uid.clone_from(&old.metadata.uid);
    new.metadata
        .creation_timestamp
        .clone_from(&old.metadata.creation_timestamp);
    new.metadata
        .resource_version
        .clone_from(&old.metadata.resource_version);
    if new == *old {
        return Ok(new);
    }
    authority::check(&*writing, caller, Write::Change { old, new: &new })?;

    writing.put(new)
}

/// Returns the stored object if it is what the caller expects.
fn stored(
    writing: &Writing<'_>,
    key: &ObjectKey,
    expected: &Precondition,
) -> Result<Object, StoreError> {
    let old = writing
        .object(key)?
        .ok_or_else(|| StoreError::NotFound(key.clone()))?;
    match expected {
        Precondition::Revision(revision) if *revision != old.revision() => {
            Err(StoreError::Conflict(key.clone()))
        }
        Precondition::Revision(_) | Precondition::Any => Ok(old),
    }
}

impl View for Writing<'_> {
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        self.object(key)
    }

    fn list(&self, kind: Kind) -> Result<Vec<Object>, StoreError> {
        self.objects(kind)
    }

    fn list_of(&self, kind: Kind, node: &str) -> Result<Vec<Object>, StoreError> {
        self.objects_of(kind, node)
    }

    fn count_of(&self, kind: Kind, node: &str) -> Result<usize, StoreError> {
        let count: i64 = self
            .connection
            .prepare_cached("SELECT count(*) FROM object WHERE node = ? AND kind = ?")?
            .query_row((node, kind.as_str()), |row| row.get(0))?;

        usize::try_from(count).map_err(|error| StoreError::Internal(error.to_string()))
    }

    fn overlapping_block(
        &self,
        cidr: ipnet::IpNet,
        except: &str,
    ) -> Result<Option<String>, StoreError> {
        Ok(super::range::overlapping(self.connection, cidr, except)?)
    }
}

/// Returns a time as Kubernetes writes creation times: RFC 3339, whole seconds.
pub(super) fn seconds(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

/// Returns a random UUID (version 4, RFC 9562 §5.4).
pub(super) fn uid() -> Result<String, StoreError> {
    let mut bytes = [0_u8; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StoreError::Internal("the system gave no randomness".to_owned()))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);

    Ok([
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-"))
}
