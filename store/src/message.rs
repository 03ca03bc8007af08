//! Between the words of the protocol and ours.

use model::{Kind, Object, ObjectKey, Revision};
use prost::bytes::Bytes;
use tonic::{Code, Status};

use crate::{StoreError, backend::WatchEvent};

/// What `proto/store.proto` compiles to.
pub(crate) mod proto {
    #![expect(
        unreachable_pub,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]

    tonic::include_proto!("meshd.store.v1");
}

/// Largest message either side takes, in bytes: a page or a batch, and room for its frame.
pub(crate) const MESSAGE_MAX: usize = 2 * 1024 * 1024;

impl From<&ObjectKey> for proto::ObjectKey {
    fn from(key: &ObjectKey) -> Self {
        Self {
            kind: key.kind.as_str().to_owned(),
            namespace: key.namespace.clone().unwrap_or_default(),
            name: key.name.clone(),
        }
    }
}

impl TryFrom<proto::ObjectKey> for ObjectKey {
    type Error = StoreError;

    fn try_from(key: proto::ObjectKey) -> Result<Self, StoreError> {
        let namespace = (!key.namespace.is_empty()).then_some(key.namespace);

        Ok(Self {
            kind: parse_kind(&key.kind)?,
            namespace,
            name: key.name,
        })
    }
}

impl proto::Object {
    pub(crate) fn encode(object: &Object) -> Result<Self, StoreError> {
        let json =
            serde_json::to_vec(object).map_err(|error| StoreError::Internal(error.to_string()))?;

        Ok(Self {
            json: Bytes::from(json),
        })
    }

    pub(crate) fn decode(&self) -> Result<Object, StoreError> {
        serde_json::from_slice(&self.json)
            .map_err(|error| StoreError::invalid("", format!("not an object: {error}")))
    }
}

impl TryFrom<proto::WatchEvent> for WatchEvent {
    type Error = StoreError;

    fn try_from(event: proto::WatchEvent) -> Result<Self, StoreError> {
        use proto::watch_event::Change;
        let revision = Revision(event.revision);
        let change = event
            .change
            .ok_or_else(|| StoreError::Internal("an event without a change".to_owned()))?;

        Ok(match change {
            Change::Applied(object) => Self::Applied(object.decode()?),
            Change::Deleted(key) => Self::Deleted {
                key: key.try_into()?,
                revision,
            },
            Change::Bookmark(proto::Bookmark {}) => Self::Bookmark(revision),
        })
    }
}

/// Reads a kind's name.
pub(crate) fn parse_kind(text: &str) -> Result<Kind, StoreError> {
    text.parse()
        .map_err(|error| StoreError::invalid("kind", format!("{error}")))
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NotFound(_) => Code::NotFound,
            StoreError::AlreadyExists(_) => Code::AlreadyExists,
            StoreError::Conflict(_) => Code::Aborted,
            StoreError::Compacted(_) => Code::OutOfRange,
            StoreError::Forbidden { .. } => Code::PermissionDenied,
            StoreError::Unauthenticated(_) => Code::Unauthenticated,
            StoreError::Invalid(_) | StoreError::TooLarge { .. } => Code::InvalidArgument,
            StoreError::TooMany { .. } => Code::ResourceExhausted,
            StoreError::Unavailable(_) => Code::Unavailable,
            StoreError::Internal(_) => Code::Internal,
        };
        let details = serde_json::to_vec(&error).unwrap_or_default();

        Self::with_details(code, error.to_string(), Bytes::from(details))
    }
}

impl From<Status> for StoreError {
    fn from(status: Status) -> Self {
        if let Ok(error) = serde_json::from_slice(status.details()) {
            return error;
        }
        let text = describe(&status);
        match status.code() {
            Code::Unauthenticated => Self::Unauthenticated(text),
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Aborted => Self::Unavailable(text),
            Code::ResourceExhausted => Self::TooMany {
                what: format!("at once ({text})"),
                limit: 0,
            },
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => Self::Internal(text),
        }
    }
}

/// Returns the status's message and its causes, each once.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }

    text
}

#[cfg(test)]
mod tests {
    use model::kind::Scope;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_and_an_object_of_every_kind_survive_the_wire() {
        for kind in Kind::ALL.iter().copied() {
            let key = match kind.scope() {
                Scope::Cluster => ObjectKey::cluster(kind, "x"),
                Scope::Namespaced => ObjectKey::namespaced(kind, "n", "x"),
            };
            let object = Object::new(&key, json!({"a": 1}));

            let sent = proto::ObjectKey::from(&key);
            assert_eq!(ObjectKey::try_from(sent).unwrap(), key);
            let sent = proto::Object::encode(&object).unwrap();
            assert_eq!(sent.decode().unwrap(), object);
        }
    }
}
