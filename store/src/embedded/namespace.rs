//! Namespaces that come with their first endpoint and go with their last.
//!
//! Kubernetes makes a namespace before any pod in it. On hosts without Kubernetes nobody does, and an endpoint whose
//! namespace does not exist has no profile that allows anything: it would stay closed for ever. So the store makes the
//! namespace itself, marked with an annotation. Once an administrator has written it, it is an ordinary one.

use model::{Kind, Object, ObjectKey, constant::ANNOTATION_PREFIX, kind::Scope};
use rusqlite::params;
use serde_json::json;

use super::{
    write::{seconds, uid},
    writer::Writing,
};
use crate::StoreError;

/// What the store's own namespaces are marked with, behind [`ANNOTATION_PREFIX`].
const MARK: &str = "made-for-endpoints";

/// Makes the namespace of an endpoint, if there is none.
pub(super) fn ensure(writing: &mut Writing<'_>, endpoint: &ObjectKey) -> Result<(), StoreError> {
    let Some(name) = &endpoint.namespace else {
        return Ok(());
    };
    let key = ObjectKey::cluster(Kind::Namespace, name);
    if writing.object(&key)?.is_some() {
        return Ok(());
    }
    let mut object = Object::new(&key, json!({}));
    object
        .metadata
        .annotations
        .insert(mark(), "true".to_owned());
    object.metadata.uid = Some(uid()?);
    object.metadata.creation_timestamp = Some(seconds(writing.now));
    writing.put(object)?;

    Ok(())
}

/// Makes the namespaces of all endpoints: a store of an earlier version of meshd has none.
pub(super) fn ensure_all(writing: &mut Writing<'_>) -> Result<(), StoreError> {
    for endpoint in writing.objects(Kind::WorkloadEndpoint)? {
        ensure(writing, &endpoint.key())?;
    }

    Ok(())
}

/// Removes the namespace of an endpoint that is gone, if the store made it, nobody wrote it since, and nothing is left
/// in it.
pub(super) fn drop_empty(
    writing: &mut Writing<'_>,
    endpoint: &ObjectKey,
) -> Result<(), StoreError> {
    let Some(name) = &endpoint.namespace else {
        return Ok(());
    };
    let key = ObjectKey::cluster(Kind::Namespace, name);
    let Some(namespace) = writing.object(&key)? else {
        return Ok(());
    };
    if !is_as_made(&namespace) || holds_anything(writing, name)? {
        return Ok(());
    }

    writing.remove(key)
}

fn mark() -> String {
    format!("{ANNOTATION_PREFIX}{MARK}")
}

fn is_as_made(namespace: &Object) -> bool {
    let metadata = &namespace.metadata;

    metadata.labels.is_empty()
        && metadata.annotations.len() == 1
        && metadata.annotations.contains_key(&mark())
}

fn holds_anything(writing: &Writing<'_>, namespace: &str) -> Result<bool, StoreError> {
    let namespaced = Kind::ALL
        .iter()
        .filter(|kind| kind.scope() == Scope::Namespaced);
    for kind in namespaced {
        let sql = "SELECT EXISTS (SELECT 1 FROM object WHERE kind = ? AND namespace = ?)";
        let found = writing
            .connection
            .prepare_cached(sql)?
            .query_row(params![kind.as_str(), namespace], |row| row.get(0))?;
        if found {
            return Ok(true);
        }
    }

    Ok(false)
}
