//! Which revision of every object this agent has seen: what `meshctl lab wait` asks for.

use std::collections::BTreeMap;

use model::{Object, ObjectKey, status::Held};

/// The newest revision seen of every object.
#[derive(Debug, Default)]
pub(crate) struct HeldRevisions(BTreeMap<ObjectKey, u64>);

impl HeldRevisions {
    /// Notes a version of an object.
    pub(crate) fn applied(&mut self, object: &Object) {
        self.0.insert(object.key(), number(&object.revision().0));
    }

    /// Forgets an object that is gone.
    pub(crate) fn deleted(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }

    /// Returns the objects of which an older revision, or none, was seen.
    ///
    /// Revisions are opaque to everybody else. Here both come from one embedded store, which counts;
    /// one that does not count gives zero, and any version that was seen is taken for new enough.
    pub(crate) fn missing(&self, wanted: &[Held]) -> Vec<ObjectKey> {
        wanted
            .iter()
            .filter(|held| {
                self.0
                    .get(&held.key)
                    .is_none_or(|seen| *seen < number(&held.revision))
            })
            .map(|held| held.key.clone())
            .collect()
    }
}

fn number(revision: &str) -> u64 {
    revision.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use model::Kind;
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_older_or_unknown_object_is_missing_a_newer_one_is_not() {
        let mut held = HeldRevisions::default();
        let key = ObjectKey::cluster(Kind::IPPool, "pods");
        let mut object = Object::new(&key, Value::Null);
        object.metadata.resource_version = Some("9".to_owned());
        held.applied(&object);

        let wanted = |revision: &str| {
            [Held {
                key: key.clone(),
                revision: revision.to_owned(),
            }]
        };
        assert_eq!(held.missing(&wanted("8")), []);
        assert_eq!(held.missing(&wanted("9")), []);
        assert_eq!(held.missing(&wanted("10")), vec![key.clone()]);
        held.deleted(&key);
        assert_eq!(held.missing(&wanted("8")), [key]);
    }
}
