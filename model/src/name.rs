//! Names that cannot be malformed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest DNS subdomain (RFC 1123, as Kubernetes applies it to object names).
const SUBDOMAIN_MAX: usize = 253;

/// Longest interface name without the terminating NUL (`IFNAMSIZ` of linux/if.h, less one).
const INTERFACE_MAX: usize = 15;

/// The name of a node, unique in the cluster: a DNS subdomain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// The name of a network interface: 1 to 15 bytes, no `/`, no blanks, not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// A pod: its namespace and its name, written `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name in its namespace.
    pub name: String,
}

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct NameError {
    /// What was given, cut at 64 characters.
    pub text: String,
    /// What would have been right.
    pub expected: &'static str,
}

/// Returns whether a text is a DNS-1123 subdomain of at most 253 bytes.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_dns_label)
}

/// Returns whether a text may name an object: a DNS-1123 subdomain as Kubernetes checks it.
///
/// Its labels may be longer than 63 bytes.
pub fn is_object_name(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();

    text.len() <= SUBDOMAIN_MAX
        && text.split('.').map(str::as_bytes).all(|label| {
            label.first().is_some_and(alphanumeric)
                && label.last().is_some_and(alphanumeric)
                && label.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        })
}

/// Returns whether a text is a label or annotation key of Kubernetes: `[DNS-SUBDOMAIN/]NAME`.
///
/// The name has at most 63 bytes.
pub fn is_qualified_name(text: &str) -> bool {
    let name = match text.split_once('/') {
        Some((prefix, name)) if is_object_name(prefix) => name,
        Some(_) => return false,
        None => text,
    };

    !name.is_empty() && is_label_value(name)
}

/// Returns whether a text may be a label's value.
///
/// Empty, or at most 63 letters, digits, `-`, `_` and `.` with a letter or digit at both ends.
pub fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);

    bytes.len() <= 63
        && ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Returns whether a text is one label of a DNS-1123 subdomain.
pub fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();

    bytes.len() <= 63
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

impl NodeName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !is_dns_subdomain(text) {
            return Err(NameError::new(
                text,
                "a node name (a lower-case DNS subdomain)",
            ));
        }

        Ok(Self(text.to_owned()))
    }
}

impl InterfaceName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let valid = (1..=INTERFACE_MAX).contains(&text.len())
            && text != "."
            && text != ".."
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if !valid {
            return Err(NameError::new(
                text,
                "an interface name (1 to 15 characters, no `/`)",
            ));
        }

        Ok(Self(text.to_owned()))
    }
}

impl PodName {
    /// Parses `namespace/name`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::new(text, "a pod (NAMESPACE/NAME)");
        let (namespace, name) = text.split_once('/').ok_or_else(wrong)?;
        if !is_dns_label(namespace) || !is_dns_subdomain(name) {
            return Err(wrong());
        }

        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl NameError {
    /// Says that `text` is not what was `expected`.
    pub fn new(text: &str, expected: &'static str) -> Self {
        Self {
            text: text.chars().take(64).collect(),
            expected,
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_dns_subdomain() {
        for good in ["n1", "node-1.rack-2.example", "1"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "N1", "-a", "a-", "a..b", "a/b", "a_b", &"a".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_object_name_may_be_a_hash() {
        for good in [
            &"a".repeat(64),
            "10-65-4-0-26",
            "n--1-k8s-web--0-eth0",
            "a.b",
        ] {
            assert!(is_object_name(good), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", "a_b", "a/b", &"a".repeat(254)] {
            assert!(!is_object_name(bad), "{bad}");
        }
    }

    #[test]
    fn label_keys_and_values_are_those_of_kubernetes() {
        for good in ["app", "projectcalico.org/IPv4Address", "a_b.c-d"] {
            assert!(is_qualified_name(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a/b/c",
            "A.b/c",
            "-a",
            "a b",
            &"a".repeat(64),
        ] {
            assert!(!is_qualified_name(bad), "{bad}");
        }
        assert!(is_label_value("") && is_label_value("Web_1.a"));
        assert!(!is_label_value("-") && !is_label_value("a b") && !is_label_value(&"a".repeat(64)));
    }

    #[test]
    fn an_interface_name_fits_the_kernel() {
        assert!("wireguard.cali".parse::<InterfaceName>().is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-letters-"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }
}
