//! YAML and JSON documents → objects, with errors that name file, document and field.
//!
//! ```text
//! text ──parse──▶ Documents ──validate_all──▶ objects that a store may take
//! ```
//!
//! Strict: an unknown field, a key that stands twice, a wrong type or a value
//! out of range is an error, and every error of a file is reported at once.
//! What an object is allowed to say about *other* objects is checked by
//! [`validate`], which whoever stores objects calls again.

mod defaults;
mod document;
mod metadata;
mod policy;
mod validation;

use std::fmt;

use serde_json::Value;

pub use self::validation::{check, neighbours, validate, validate_all};
use crate::{Kind, Object, resource::FieldError, resource::field::expected};

/// Largest file that is read, in bytes.
pub const FILE_MAX: usize = 16 << 20;

/// Largest object, in bytes of JSON.
pub const OBJECT_MAX: usize = 256 << 10;

/// Most objects of one file.
pub const OBJECTS_MAX: usize = 100_000;

/// The group and version of Calico's kinds as older clusters store them.
const CALICO_STORED: &str = "crd.projectcalico.org/v1";

/// An object and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The object, with defaults filled in.
    pub object: Object,
    /// Where it stands.
    pub position: Position,
}

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file, as it was named to us; `-` is the standard input.
    pub file: String,
    /// Which document of the file, from 1.
    pub document: usize,
    /// Which item of that document, from 1, when it is a list.
    pub item: Option<usize>,
}

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {error}")]
pub struct ManifestError {
    /// Where.
    pub position: Position,
    /// What.
    pub error: Fault,
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is too large, or not YAML or JSON at all.
    #[error("{0}")]
    Text(String),
    /// One field is wrong.
    #[error(transparent)]
    Field(FieldError),
}

/// Reads every object of a file: YAML documents, or JSON values one after the other; lists are taken apart.
///
/// Each object is complete and valid by itself. Errors come in the order of the file.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Vec<ManifestError>> {
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for (index, value) in document::split(text).into_iter().enumerate() {
        let mut position = Position {
            file: file.to_owned(),
            document: index + 1,
            item: None,
        };
        match value.and_then(items) {
            Ok(Items::None) => {}
            Ok(Items::One(value)) => read(value, &position, &mut documents, &mut errors),
            Ok(Items::Many(values)) => {
                for (index, value) in values.into_iter().enumerate() {
                    position.item = Some(index + 1);
                    read(value, &position, &mut documents, &mut errors);
                }
            }
            Err(error) => errors.push(ManifestError {
                position: position.clone(),
                error,
            }),
        }
        if documents.len() > OBJECTS_MAX {
            let error = Fault::Text(format!("more than {OBJECTS_MAX} objects in one file"));
            return Err(vec![ManifestError { position, error }]);
        }
    }

    if errors.is_empty() {
        Ok(documents)
    } else {
        Err(errors)
    }
}

/// Splits a text into the values of its documents, of whatever kind they are: keys that stand twice are refused, empty
/// documents passed over. Nothing follows the first that cannot be read.
pub fn values(text: &str) -> Vec<Result<Value, Fault>> {
    let mut values = document::split(text);
    values.retain(|value| value.as_ref().map_or(true, |value| !value.is_null()));

    values
}

/// Reads one object from a value, fills in its defaults and checks it by itself.
pub fn object(value: Value) -> Result<Object, FieldError> {
    let Value::Object(mut fields) = value else {
        return Err(FieldError::new(
            "kind",
            "expected an object with apiVersion, kind and metadata",
        ));
    };
    let api_version = fields.remove("apiVersion").unwrap_or_default();
    let kind = kind(fields.remove("kind").unwrap_or_default(), &api_version)?;
    let metadata = fields.remove("metadata").unwrap_or_default();
    let metadata = if api_version == CALICO_STORED {
        let tier = fields.get("spec").and_then(|spec| spec.get("tier"));
        metadata::read_stored(kind, metadata, tier.and_then(Value::as_str))?
    } else {
        metadata::read(kind, metadata)?
    };
    check_version(kind, api_version)?;
    let mut object = Object {
        api_version: kind.api_version().to_owned(),
        kind,
        metadata,
        body: fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect(),
    };
    defaults::fill_in(&mut object);
    check(&object)?;

    Ok(object)
}

fn read(
    value: Value,
    position: &Position,
    documents: &mut Vec<Document>,
    errors: &mut Vec<ManifestError>,
) {
    match object(value) {
        Ok(object) => documents.push(Document {
            object,
            position: position.clone(),
        }),
        Err(error) => {
            let error = Fault::Field(error);
            errors.push(ManifestError {
                position: position.clone(),
                error,
            });
        }
    }
}

/// What a document holds.
enum Items {
    None,
    One(Value),
    Many(Vec<Value>),
}

/// Takes a list (`kind: List`, or a kind followed by `List`) apart.
fn items(mut value: Value) -> Result<Items, Fault> {
    if value.is_null() {
        return Ok(Items::None);
    }
    let is_list = value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| {
            kind.strip_suffix("List")
                .is_some_and(|kind| kind.is_empty() || is_kind(kind))
        });
    if !is_list {
        return Ok(Items::One(value));
    }

    match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(Items::Many(items)),
        None | Some(Value::Null) => Ok(Items::None),
        Some(other) => Err(Fault::Field(expected("items", "a list of objects", other))),
    }
}

fn is_kind(name: &str) -> bool {
    Kind::ALL.iter().any(|kind| kind.manifest_name() == name)
}

/// Reads which kind an object is of: by `kind`, and by `apiVersion` where two kinds are written alike.
fn kind(found: Value, api_version: &Value) -> Result<Kind, FieldError> {
    let name = found.as_str().unwrap_or_default();
    let version = api_version.as_str().unwrap_or_default();
    if let Ok(kind) = Kind::from_manifest(version, name) {
        return Ok(kind);
    }
    let mut written: Vec<_> = Kind::ALL.iter().map(|kind| kind.manifest_name()).collect();
    if written.contains(&name) {
        let alike = Kind::ALL.iter().filter(|kind| kind.manifest_name() == name);
        let versions: Vec<_> = alike.map(|kind| kind.api_version()).collect();
        let known = format!("{} for kind {name}", versions.join(" or "));
        return Err(expected("apiVersion", &known, api_version.clone()));
    }
    written.dedup();

    Err(expected(
        "kind",
        &format!("one of {}", written.join(", ")),
        found,
    ))
}

fn check_version(kind: Kind, found: Value) -> Result<(), FieldError> {
    let ours = kind.api_version();
    let calico = ours == "projectcalico.org/v3";
    match found.as_str() {
        Some(version) if version == ours => Ok(()),
        Some(CALICO_STORED) if calico => Ok(()),
        Some(_) | None => {
            let known = if calico {
                format!("{ours} or {CALICO_STORED}")
            } else {
                ours.to_owned()
            };
            let name = kind.manifest_name();
            Err(expected(
                "apiVersion",
                &format!("{known} for kind {name}"),
                found,
            ))
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file == "-" {
            "standard input"
        } else {
            &self.file
        };
        write!(f, "{file}, document {}", self.document)?;
        match self.item {
            Some(item) => write!(f, ", item {item}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
