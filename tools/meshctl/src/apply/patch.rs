//! The change that an apply makes: what the document says, and what its last version said and it no longer does.
//!
//! What others wrote (an agent's record, another tool's labels) is left alone.
//! The last version is kept in the annotation that kubectl uses for it.

use model::{Object, publication::merge};
use serde_json::{Map, Value};

/// Where the document last applied is kept, as kubectl does.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Parts of `metadata` that a store writes itself.
const STORE_OWNED: [&str; 4] = [
    "resourceVersion",
    "uid",
    "creationTimestamp",
    "managedFields",
];

/// Returns the object that a document asks for, as a value without what the store writes.
pub(super) fn wish(object: &Object) -> serde_json::Result<Value> {
    let mut object = object.clone();
    object.metadata.annotations.remove(LAST_APPLIED);
    let mut value = serde_json::to_value(object)?;
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.retain(|field, _| !STORE_OWNED.contains(&field.as_str()));
    }

    Ok(value)
}

/// Returns the wish with a note of itself: what is created.
pub(super) fn noted(wish: &Value) -> Value {
    let mut value = wish.clone();
    let note = serde_json::json!({"metadata": {"annotations": {LAST_APPLIED: wish.to_string()}}});
    merge(&mut value, &note);

    value
}

/// Returns the JSON merge patch from what is stored to what is wished; `None` when nothing changes.
pub(super) fn patch(stored: &Object, wish: &Value) -> serde_json::Result<Option<Value>> {
    let last = stored.metadata.annotations.get(LAST_APPLIED);
    // A note that cannot be read is no note.
    let last = last
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let current = serde_json::to_value(stored)?;
    let patch = difference(&current, &last, &noted(wish));

    Ok(if patch.is_empty() {
        None
    } else {
        Some(Value::Object(patch))
    })
}

/// Compares member by member; lists and plain values are whole.
fn difference(current: &Value, last: &Value, wish: &Value) -> Map<String, Value> {
    let mut patch = Map::new();
    for (name, wished) in members(wish) {
        let (now, before) = (&current[name], &last[name]);
        if now.is_object() && wished.is_object() {
            let inner = difference(now, before, wished);
            if !inner.is_empty() {
                patch.insert(name.clone(), Value::Object(inner));
            }
        } else if now != wished {
            patch.insert(name.clone(), wished.clone());
        }
    }
    for (name, _) in members(last) {
        if wish.get(name).is_none() && current.get(name).is_some() {
            patch.insert(name.clone(), Value::Null);
        }
    }

    patch
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use model::{Kind, ObjectKey};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_document_no_longer_says_goes_and_what_others_wrote_stays() {
        let first = wish(&node(json!({"zone": "a", "rack": "1"}))).unwrap();
        let mut stored: Object = serde_json::from_value(noted(&first)).unwrap();
        stored
            .metadata
            .annotations
            .insert("meshd.dev/record".into(), "{}".into());
        stored.metadata.labels.insert("tool".into(), "x".into());
        stored.metadata.resource_version = Some("7".into());
        stored.body.insert(
            "spec".into(),
            json!({"bgp": {"ipv4Address": "192.0.2.1/24"}}),
        );

        let patch = patch(&stored, &wish(&node(json!({"zone": "b"}))).unwrap())
            .unwrap()
            .unwrap();

        let mut value = serde_json::to_value(&stored).unwrap();
        merge(&mut value, &patch);
        let result: Object = serde_json::from_value(value).unwrap();
        assert_eq!(
            patch["metadata"]["labels"],
            json!({"zone": "b", "rack": null})
        );
        assert_eq!(result.metadata.annotations["meshd.dev/record"], "{}");
        assert_eq!(result.metadata.labels["tool"], "x");
        assert_eq!(result.body["spec"]["bgp"]["ipv4Address"], "192.0.2.1/24");
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let wish = wish(&node(json!({"zone": "a"}))).unwrap();
        let stored: Object = serde_json::from_value(noted(&wish)).unwrap();

        assert_eq!(patch(&stored, &wish).unwrap(), None);
    }

    #[test]
    fn what_was_stored_by_other_means_is_only_added_to() {
        let stored = node(json!({"made": "by-hand"}));

        let patch = patch(&stored, &wish(&node(json!({"zone": "a"}))).unwrap())
            .unwrap()
            .unwrap();

        assert_eq!(patch["metadata"]["labels"], json!({"zone": "a"}));
    }

    fn node(labels: Value) -> Object {
        let mut object = Object::new(&ObjectKey::cluster(Kind::Node, "n1"), json!({}));
        object.metadata.labels = serde_json::from_value(labels).unwrap();
        object
    }
}
