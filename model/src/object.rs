//! An object as a store keeps it: metadata that we read, and a body that its kind reads.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Kind, kind::UnknownKind};

/// What tells two objects of a store apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The object's kind.
    pub kind: Kind,
    /// Its namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// How new an object is. Opaque: compare for equality only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revision(pub String);

/// Any object: `apiVersion`, `kind`, `metadata` and whatever else its kind has.
///
/// Written as Kubernetes writes objects: two kinds may have one name there, and `apiVersion` tells them apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Object {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: Kind,
    /// Name, labels, annotations, revision.
    pub metadata: Metadata,
    /// Every other top-level field: `spec`, `status`, `subsets`, …
    pub body: BTreeMap<String, Value>,
}

/// An object as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(flatten)]
    body: BTreeMap<String, Value>,
}

/// The part of `metadata` that meshd reads; the rest is kept as it came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The object's name.
    pub name: String,
    /// The namespace, for namespaced kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The revision it was read at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Unique over time: a re-created object gets another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// When it was created, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// Fields of Kubernetes' ObjectMeta that meshd only stores.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl ObjectKey {
    /// Returns the key of a cluster-scoped object.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: None,
            name: name.into(),
        }
    }

    /// Returns the key of a namespaced object.
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: Some(namespace.into()),
            name: name.into(),
        }
    }
}

impl Object {
    /// Creates an object with a name and a `spec`, and nothing else.
    pub fn new(key: &ObjectKey, spec: Value) -> Self {
        Self {
            api_version: key.kind.api_version().to_owned(),
            kind: key.kind,
            metadata: Metadata {
                name: key.name.clone(),
                namespace: key.namespace.clone(),
                ..Metadata::default()
            },
            body: BTreeMap::from([("spec".to_owned(), spec)]),
        }
    }

    /// Returns what tells the object apart.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind,
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
        }
    }

    /// Returns the revision it was read at; empty for an object that was never stored.
    pub fn revision(&self) -> Revision {
        Revision(self.metadata.resource_version.clone().unwrap_or_default())
    }
}

impl TryFrom<Written> for Object {
    type Error = UnknownKind;

    fn try_from(written: Written) -> Result<Self, UnknownKind> {
        Ok(Self {
            kind: Kind::from_manifest(&written.api_version, &written.kind)?,
            api_version: written.api_version,
            metadata: written.metadata,
            body: written.body,
        })
    }
}

impl From<Object> for Written {
    fn from(object: Object) -> Self {
        Self {
            api_version: object.api_version,
            kind: object.kind.manifest_name().to_owned(),
            metadata: object.metadata,
            body: object.body,
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}
