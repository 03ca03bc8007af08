//! One call, as a line of text.

use model::{Kind, Object, ObjectKey, PublicKey};
use prost::Message as _;
use serde_json::{Value, json};
use store::{Caller, Door, Identity, Store as _};

use super::Everything;
use crate::{Dice, mutation, target::Broken};

/// A method of the store's service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Create,
    Update,
    Patch,
    Delete,
    Get,
    List,
    Watch,
    Raw,
}

/// A call.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) caller: String,
    pub(super) method: Method,
    body: Value,
    rest: String,
}

/// `{kind, namespace, name}`, the protocol's.
#[derive(Clone, PartialEq, prost::Message)]
struct Key {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    name: String,
}

/// The protocol's `Object`, and with one field its `ListRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Json {
    #[prost(bytes = "vec", tag = "1")]
    json: Vec<u8>,
}

/// The protocol's `PatchRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Patch {
    #[prost(message, optional, tag = "1")]
    key: Option<Key>,
    #[prost(bytes = "vec", tag = "2")]
    patch: Vec<u8>,
    #[prost(string, tag = "3")]
    revision: String,
}

/// The protocol's `DeleteRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Delete {
    #[prost(message, optional, tag = "1")]
    key: Option<Key>,
    #[prost(string, tag = "2")]
    revision: String,
}

impl Method {
    const ALL: [Self; 8] = [
        Self::Create,
        Self::Update,
        Self::Patch,
        Self::Delete,
        Self::Get,
        Self::List,
        Self::Watch,
        Self::Raw,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Raw => "raw",
        }
    }
}

impl Line {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (caller, text) = text.trim().split_once(' ')?;
        let (method, rest) = text.split_once(' ')?;
        let method = Method::ALL
            .into_iter()
            .find(|known| known.name() == method)?;
        Some(Self {
            caller: caller.to_owned(),
            method,
            body: serde_json::from_str(rest).unwrap_or_default(),
            rest: rest.to_owned(),
        })
    }

    pub(super) fn path(&self) -> String {
        let method = match self.method {
            Method::Create => "Create",
            Method::Update => "Update",
            Method::Patch => "Patch",
            Method::Delete => "Delete",
            Method::Get => "Get",
            Method::List => "List",
            // A watch that was accepted never ends: only one that is refused is called.
            Method::Watch => "Watch",
            Method::Raw => {
                let path = self.rest.split(' ').next().unwrap_or_default();
                return if path.ends_with("Watch") {
                    "/".into()
                } else {
                    path.to_owned()
                };
            }
        };
        format!("/meshd.store.v1.Store/{method}")
    }

    /// The message, as the protocol has it. An object without a revision is given that of the stored one.
    pub(super) fn message(&self, stored: &Everything) -> Vec<u8> {
        let text = |field: &str| self.body[field].as_str().unwrap_or_default().to_owned();
        let key = || Key {
            kind: text("kind"),
            namespace: text("namespace"),
            name: text("name"),
        };
        match self.method {
            Method::Create => Json {
                json: self.body.to_string().into(),
            }
            .encode_to_vec(),
            Method::Update => Json {
                json: self.revised(stored).into(),
            }
            .encode_to_vec(),
            Method::Patch => {
                let patch = self.body["patch"].to_string().into();
                Patch {
                    key: Some(key()),
                    patch,
                    revision: text("revision"),
                }
                .encode_to_vec()
            }
            Method::Delete => Delete {
                key: Some(key()),
                revision: text("revision"),
            }
            .encode_to_vec(),
            Method::Get => key().encode_to_vec(),
            Method::List => Json {
                json: text("kind").into(),
            }
            .encode_to_vec(),
            Method::Watch => [
                Json {
                    json: text("kind").into(),
                }
                .encode_to_vec(),
                // Its revision, which none of ours looks like.
                vec![0x12, 1, b'x'],
            ]
            .concat(),
            Method::Raw => {
                let bytes = self.rest.split(' ').nth(1).unwrap_or_default();
                hex::decode(bytes).unwrap_or_default()
            }
        }
    }

    fn revised(&self, stored: &Everything) -> String {
        let mut body = self.body.clone();
        let key = serde_json::from_value::<Object>(body.clone()).map(|object| object.key());
        let revision = key
            .ok()
            .and_then(|key| stored.get(&key)?.metadata.resource_version.clone());
        if let (Some(revision), Some(metadata)) = (revision, body.get_mut("metadata"))
            && let Some(members) = metadata.as_object_mut()
        {
            members
                .entry("resourceVersion")
                .or_insert_with(|| revision.into());
        }
        body.to_string()
    }
}

/// Another call out of one, with a part of a second.
pub(super) fn changed(dice: &mut Dice, one: &str, other: &str) -> String {
    let Some(mut line) = Line::parse(one) else {
        return one.to_owned();
    };
    let other = Line::parse(other).map_or(Value::Null, |line| line.body);
    if dice.one_in(6) {
        line.caller = ["admin", "n1", "n2", "n3", "-"][dice.roll(5)].to_owned();
    }
    if dice.one_in(16) {
        line.method = Method::ALL[dice.roll(Method::ALL.len())];
    }
    if line.method == Method::Raw {
        let (path, bytes) = line.rest.split_once(' ').unwrap_or((&line.rest, ""));
        let bytes = hex::decode(bytes).unwrap_or_default();
        let bytes = if dice.one_in(2) {
            mutation::bytes(dice, bytes)
        } else {
            bytes
        };
        return format!("{} raw {path} {}", line.caller, hex::encode(bytes));
    }
    for _ in 0..dice.roll(3) {
        mutation::change(dice, &mut line.body, &other);
    }
    format!("{} {} {}", line.caller, line.method.name(), line.body)
}

/// Who a line's first word means.
pub(super) fn caller(word: &str) -> Option<Identity> {
    match word {
        "admin" => Some(Identity::Admin("admin".to_owned())),
        "-" => None,
        name => name.parse().ok().map(Identity::Node),
    }
}

/// What is there before a story begins.
pub(super) async fn furnish(door: &Door) -> Result<(), Broken> {
    let session = door.store().session(Caller::local_admin());
    let pool = json!({"cidr": "10.65.0.0/16", "blockSize": 26, "natOutgoing": true});
    let mut objects = vec![Object::new(&ObjectKey::cluster(Kind::IPPool, "pool"), pool)];
    for (number, name) in [(1_u8, "n1"), (2, "n2")] {
        let node = ObjectKey::cluster(Kind::Node, name);
        let mut node = Object::new(&node, json!({}));
        node.metadata.labels.insert("zone".into(), "a".into());
        objects.push(node);
        let claim = ObjectKey::cluster(Kind::AddressClaim, format!("192.0.2.{number}"));
        objects.push(Object::new(&claim, json!({"node": name})));
        let key = PublicKey::new([number; 32]).map_err(|error| Broken(error.to_string()))?;
        let claim = ObjectKey::cluster(Kind::KeyClaim, key.claim_name());
        objects.push(Object::new(&claim, json!({"node": name})));
    }
    for object in objects {
        let key = object.key();
        let made = session.create(object).await;
        made.map_err(|error| Broken(format!("{key} is not made: {error}")))?;
    }
    Ok(())
}
