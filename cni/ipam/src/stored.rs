//! Objects as they were read, so that they can be written back at the same revision.

use model::{
    Object, Revision,
    resource::{BlockAffinity, FieldError, IpamBlock, IpamHandle},
};
use serde_json::Value;

/// Fields of a block that say whose it is.
const OWNER_FIELDS: [&str; 3] = ["affinity", "hostAffinity", "affinityClaimTime"];

/// A parsed object beside the one that it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// As the store has it.
    pub object: Object,
    /// What it says.
    pub value: T,
}

impl<T> Stored<T>
where
    T: for<'a> TryFrom<&'a Object, Error = FieldError>,
{
    /// Reads an object.
    pub fn read(object: Object) -> Result<Self, FieldError> {
        let value = T::try_from(&object)?;

        Ok(Self { object, value })
    }

    /// Returns the revision that it was read at.
    pub fn revision(&self) -> Revision {
        self.object.revision()
    }
}

impl Stored<IpamBlock> {
    /// Returns the object that replaces the block; fields that did not change stay as they came.
    pub(crate) fn replacing(&self, block: &IpamBlock) -> Object {
        let mut object = self.over(block.to_object());
        let owner_changed = block.affinity != self.value.affinity;
        let old = self.object.body.get("spec").and_then(Value::as_object);
        let new = object.body.get_mut("spec").and_then(Value::as_object_mut);
        if let (Some(old), Some(new)) = (old, new) {
            for (name, value) in old {
                let is_owner = OWNER_FIELDS.contains(&name.as_str());
                let is_kept = if is_owner {
                    !owner_changed
                } else {
                    !new.contains_key(name)
                };
                if is_kept {
                    new.insert(name.clone(), value.clone());
                }
            }
        }

        object
    }

    /// Returns whether the block belongs to one of Calico's pseudo-hosts, such as its LoadBalancer controller.
    pub fn is_virtual(&self) -> bool {
        let affinity = self
            .object
            .body
            .get("spec")
            .and_then(|spec| spec.get("affinity"));

        affinity
            .and_then(Value::as_str)
            .is_some_and(|owner| owner.starts_with("virtual:"))
    }
}

impl Stored<BlockAffinity> {
    /// Returns the object that replaces the affinity.
    pub(crate) fn replacing(&self, affinity: &BlockAffinity) -> Object {
        let mut object = self.object.clone();
        let new = affinity.to_object();
        object.metadata.labels.extend(new.metadata.labels);
        if let Some(spec) = object.body.get_mut("spec") {
            spec["state"] = affinity.state.as_str().into();
        }

        object
    }
}

impl Stored<IpamHandle> {
    /// Returns the object that replaces the handle.
    pub(crate) fn replacing(&self, handle: &IpamHandle) -> Object {
        self.over(handle.to_object())
    }
}

impl<T> Stored<T> {
    /// Puts new contents under the metadata that was read.
    fn over(&self, mut object: Object) -> Object {
        object.api_version.clone_from(&self.object.api_version);
        object.metadata = self.object.metadata.clone();

        object
    }
}

/// Returns whether an object is marked for deletion: whoever reads it reads nothing.
pub(crate) fn is_marked(object: &Object) -> bool {
    match object.body.get("spec").and_then(|spec| spec.get("deleted")) {
        Some(Value::Bool(marked)) => *marked,
        Some(Value::String(text)) => text == "true",
        Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => false,
    }
}
