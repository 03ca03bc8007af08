//! Reading single fields of stored objects, with messages that say what was expected.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::FieldError;
use crate::{NodeName, Object};

/// Longest text that an error repeats.
const SHOWN_MAX: usize = 64;

/// Reads one top-level part (`spec`, `status`) of an object; a missing part reads as an empty one.
pub(super) fn part<T: DeserializeOwned>(
    object: &Object,
    name: &'static str,
) -> Result<T, FieldError> {
    let empty = Value::Object(Map::new());
    let value = match object.body.get(name) {
        None | Some(Value::Null) => &empty,
        Some(value) => value,
    };

    member(value, name)
}

/// Reads a value that stands at `path`.
pub(crate) fn member<T: DeserializeOwned>(value: &Value, path: &str) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let field = match inner.as_str() {
            "." => path.to_owned(),
            inner if inner.starts_with('[') => format!("{path}{inner}"),
            inner => format!("{path}.{inner}"),
        };
        FieldError::new(field, shown(error.inner()))
    })
}

/// Reads the namespace of an object that lives in one.
pub(super) fn namespace(object: &Object) -> Result<String, FieldError> {
    required(
        object.metadata.namespace.clone(),
        "metadata.namespace",
        "a namespace",
    )
}

/// Says that a required field is missing.
pub(super) fn required<T>(value: Option<T>, field: &str, expected: &str) -> Result<T, FieldError> {
    value.ok_or_else(|| FieldError::new(field, format!("expected {expected}, found nothing")))
}

/// Reads a network whose host bits are zero.
pub(super) fn network(text: &str, field: &str) -> Result<IpNet, FieldError> {
    let net: IpNet = text
        .parse()
        .map_err(|_| expected(field, "a network such as 10.65.0.0/16", text))?;
    if net.addr() != net.network() {
        return Err(expected(
            field,
            &format!("a network without host bits ({})", net.trunc()),
            text,
        ));
    }

    Ok(net)
}

/// Reads an address with its subnet; without one it stands alone (/32, /128).
pub(super) fn interface(text: &str, field: &str) -> Result<IpNet, FieldError> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            expected(
                field,
                "an address with its subnet such as 192.0.2.1/24",
                text,
            )
        })
}

/// Reads a network, or an address, which is a network of its own.
pub(super) fn network_or_address(text: &str, field: &str) -> Result<IpNet, FieldError> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| expected(field, "a network such as 10.65.0.0/16, or an address", text))
}

/// Reads an address.
pub(super) fn address(text: &str, field: &str) -> Result<IpAddr, FieldError> {
    text.parse()
        .map_err(|_| expected(field, "an address such as 192.0.2.1", text))
}

/// Reads the name of a node.
pub(super) fn node(text: &str, field: &str) -> Result<NodeName, FieldError> {
    text.parse()
        .map_err(|_| expected(field, "the name of a node (a lower-case DNS name)", text))
}

/// Says what was expected instead of `found`, which is cut to a readable length.
pub(crate) fn expected(field: &str, expected: &str, found: impl Into<Value>) -> FieldError {
    FieldError::new(
        field,
        format!("expected {expected}, found {}", shown(found.into())),
    )
}

/// Renders untrusted text, cut at 64 characters.
pub(super) fn shown(value: impl fmt::Display) -> String {
    let text = value.to_string();
    let mut cut: String = text.chars().take(SHOWN_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }

    cut
}
