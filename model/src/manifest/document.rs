//! Text → values, refusing keys that stand twice.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::{FILE_MAX, Fault};

/// Splits a text into its documents; nothing follows the first that cannot be read.
pub(super) fn split(text: &str) -> Vec<Result<Value, Fault>> {
    if text.len() > FILE_MAX {
        let fault = Fault::Text(format!("{} bytes; at most {FILE_MAX} are read", text.len()));
        return vec![Err(fault)];
    }
    if text.trim_start().starts_with('{') {
        return until_error(serde_json::Deserializer::from_str(text).into_iter());
    }

    until_error(serde_yaml_ng::Deserializer::from_str(text).map(Strict::deserialize))
}

/// Collects values. After an error the parser is not asked again: it may panic.
fn until_error<E: fmt::Display>(
    mut values: impl Iterator<Item = Result<Strict, E>>,
) -> Vec<Result<Value, Fault>> {
    let mut documents = Vec::new();
    loop {
        match values.next() {
            Some(Ok(Strict(value))) => documents.push(Ok(value)),
            Some(Err(error)) => {
                documents.push(Err(Fault::Text(error.to_string())));
                return documents;
            }
            None => return documents,
        }
    }
}

/// A value whose objects have each key once.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is infinite or not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }

        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(Key(key)) = entries.next_key()? {
            let Strict(value) = entries.next_value()?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("the key {key:?} stands twice")));
            }
            map.insert(key, value);
        }

        Ok(Value::Object(map))
    }
}

/// A key; plain numbers and booleans are keys of YAML and are taken as they are written.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Strict::deserialize(deserializer)?.0 {
            Value::String(key) => Ok(Self(key)),
            value @ (Value::Number(_) | Value::Bool(_)) => Ok(Self(value.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                Err(de::Error::custom("a key that is no text"))
            }
        }
    }
}
