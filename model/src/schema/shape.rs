//! What a value may be, and how to say so when it is not.

use serde_json::Value;

use super::text::{
    in_range, is_as_number, is_host_interface, is_mac, is_port_range, is_rule_port,
    is_service_name, network,
};
use crate::{
    InterfaceName, NodeName, PublicKey, Selector, duration,
    policy::{PortMatch, Protocol, UnknownProtocol},
    resource::{FieldError, field::expected},
    selector::Expression,
};

/// Most differences at which an unknown name is taken for a misspelt one.
const TYPO_MAX: usize = 2;

/// Longest selector of a policy, in bytes (Calico's bound).
const SELECTOR_MAX: usize = 1024;

/// A field: its name and what it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name; one that ends in `*` stands for every name with that beginning.
    pub name: &'static str,
    /// What it may hold.
    pub shape: Shape,
    /// Whether it must be there.
    pub required: bool,
}

/// What a value may be. `null` is always allowed and means "not set".
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Anything; stored, not read.
    Any,
    /// `true` or `false`.
    Bool,
    /// `true`, `false`, or the same as text.
    Flag,
    /// Any text.
    Text,
    /// A whole number of this range, ends included.
    Number(i64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words in any case, or nothing.
    AnyCase(&'static [&'static str]),
    /// A network without host bits.
    Network,
    /// A network, or an address.
    NetworkOrAddress,
    /// An address.
    Address,
    /// An address with its subnet.
    Interface,
    /// The name of a node.
    Node,
    /// The name of a network interface.
    InterfaceName,
    /// A selector without `global()`.
    NodeSelector,
    /// A duration as Go writes it.
    Duration,
    /// A WireGuard public key; an empty text is none.
    Key,
    /// A MAC address.
    Mac,
    /// A port, or a range of ports `min:max`.
    Ports,
    /// An AS number, plain or dotted.
    AsNumber,
    /// A text of at most so many bytes.
    ShortText(usize),
    /// A number, whole or not.
    Order,
    /// A network, with host bits or without; no bare address.
    AnyNetwork,
    /// A protocol: a name in any case, or a number.
    Protocol,
    /// A port, a range or a name, as Calico's rules have them.
    RulePort,
    /// A port or a name, as Kubernetes' rules have them.
    PortOrName,
    /// The name of a port.
    PortName,
    /// The name of a network interface, or `*`.
    HostInterface,
    /// A selector of at most 1024 characters, without `global()`.
    Selector,
    /// The same, or `global()` alone.
    NamespaceSelector,
    /// A list of at most so many values.
    List(&'static Self, usize),
    /// A map from any text.
    Map(&'static Self),
    /// These fields and no others.
    Fields(&'static [Field]),
}

impl Field {
    /// Declares a field that may be left out.
    pub const fn optional(name: &'static str, shape: Shape) -> Self {
        Self {
            name,
            shape,
            required: false,
        }
    }

    /// Declares a field that must be there.
    pub const fn required(name: &'static str, shape: Shape) -> Self {
        Self {
            name,
            shape,
            required: true,
        }
    }

    fn names(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.name == name,
        }
    }
}

impl Shape {
    /// Checks a value that stands at `path`.
    pub fn check(&self, value: &Value, path: &str) -> Result<(), FieldError> {
        if value.is_null() {
            return Ok(());
        }
        match self {
            Self::List(shape, most) => check_list(value, shape, *most, path),
            Self::Map(shape) => check_map(value, shape, path),
            Self::Fields(fields) => {
                let members = value
                    .as_object()
                    .ok_or_else(|| expected(path, "fields with names", value.clone()))?;
                check_fields(members.iter().map(|(k, v)| (k.as_str(), v)), fields, path)
            }
            Self::NodeSelector => check_selector(value, path, usize::MAX, Global::Nowhere),
            Self::Selector => check_selector(value, path, SELECTOR_MAX, Global::Nowhere),
            Self::NamespaceSelector => check_selector(value, path, SELECTOR_MAX, Global::Alone),
            Self::Any
            | Self::Bool
            | Self::Flag
            | Self::Text
            | Self::Number(..)
            | Self::Word(_)
            | Self::AnyCase(_)
            | Self::Network
            | Self::NetworkOrAddress
            | Self::Address
            | Self::Interface
            | Self::Node
            | Self::InterfaceName
            | Self::Duration
            | Self::Key
            | Self::Mac
            | Self::Ports
            | Self::AsNumber
            | Self::ShortText(_)
            | Self::Order
            | Self::AnyNetwork
            | Self::Protocol
            | Self::RulePort
            | Self::PortOrName
            | Self::PortName
            | Self::HostInterface => {
                if self.admits(value) {
                    Ok(())
                } else {
                    Err(expected(path, &self.wording(), value.clone()))
                }
            }
        }
    }

    /// Returns whether a value without parts is one of these.
    fn admits(&self, value: &Value) -> bool {
        let text = value.as_str();
        match self {
            Self::Any => true,
            Self::Bool => value.is_boolean(),
            Self::Flag => value.is_boolean() || matches!(text, Some("true" | "false" | "")),
            Self::Text => text.is_some(),
            Self::Number(least, most) => in_range(value, *least, *most),
            Self::Word(words) => text.is_some_and(|text| words.contains(&text)),
            Self::AnyCase(words) => text.is_some_and(|text| {
                text.is_empty() || words.iter().any(|word| word.eq_ignore_ascii_case(text))
            }),
            Self::Network => text.is_some_and(|text| network(text).is_some()),
            Self::NetworkOrAddress => text.is_some_and(|text| {
                text.parse::<ipnet::IpNet>().is_ok() || text.parse::<std::net::IpAddr>().is_ok()
            }),
            Self::Address => text.is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok()),
            Self::Interface => text.is_some_and(|text| {
                text.parse::<ipnet::IpNet>().is_ok() || text.parse::<std::net::IpAddr>().is_ok()
            }),
            Self::Node => text.is_some_and(|text| text.parse::<NodeName>().is_ok()),
            Self::InterfaceName => text.is_some_and(|text| text.parse::<InterfaceName>().is_ok()),
            Self::Duration => text.is_some_and(|text| duration::parse(text).is_some()),
            Self::Key => {
                text.is_some_and(|text| text.is_empty() || text.parse::<PublicKey>().is_ok())
            }
            Self::Mac => text.is_some_and(is_mac),
            Self::Ports => in_range(value, 0, 65535) || text.is_some_and(is_port_range),
            Self::AsNumber => in_range(value, 0, u32::MAX.into()) || text.is_some_and(is_as_number),
            Self::ShortText(most) => text.is_some_and(|text| text.len() <= *most),
            Self::Order => value.as_f64().is_some_and(f64::is_finite),
            Self::AnyNetwork => text.is_some_and(|text| text.parse::<ipnet::IpNet>().is_ok()),
            Self::Protocol => {
                in_range(value, 1, 255) || text.is_some_and(|text| text.parse::<Protocol>().is_ok())
            }
            Self::RulePort => in_range(value, 1, 65535) || text.is_some_and(is_rule_port),
            Self::PortOrName => in_range(value, 1, 65535) || text.is_some_and(is_service_name),
            Self::PortName => {
                text.is_some_and(|text| matches!(text.parse(), Ok(PortMatch::Named(_))))
            }
            Self::HostInterface => {
                text.is_some_and(|text| matches!(text, "" | "*") || is_host_interface(text))
            }
            Self::NodeSelector
            | Self::Selector
            | Self::NamespaceSelector
            | Self::List(..)
            | Self::Map(_)
            | Self::Fields(_) => false,
        }
    }

    /// Says what would have been right.
    fn wording(&self) -> String {
        match self {
            Self::Any => "a value".into(),
            Self::List(..) => "a list".into(),
            Self::Map(_) | Self::Fields(_) => "fields with names".into(),
            Self::Bool | Self::Flag => "true or false".into(),
            Self::Text => "a text".into(),
            Self::Number(least, u64::MAX) => format!("a number from {least} up"),
            Self::Number(least, most) => format!("a number from {least} to {most}"),
            Self::Word(words) | Self::AnyCase(words) => {
                let words: Vec<_> = words
                    .iter()
                    .copied()
                    .filter(|word| !word.is_empty())
                    .collect();
                match words.split_last() {
                    Some((last, [])) => (*last).to_owned(),
                    Some((last, others)) => format!("{} or {last}", others.join(", ")),
                    None => "nothing".into(),
                }
            }
            Self::Network => "a network without host bits such as 10.65.0.0/16".into(),
            Self::NetworkOrAddress => "a network or an address".into(),
            Self::Address => "an address such as 192.0.2.1".into(),
            Self::Interface => "an address with its subnet such as 192.0.2.1/24".into(),
            Self::Node => "the name of a node (a lower-case DNS name)".into(),
            Self::InterfaceName => "an interface name (1 to 15 characters, no `/`)".into(),
            Self::NodeSelector | Self::Selector | Self::NamespaceSelector => {
                "a selector such as has(gpu) && zone == \"a\"".into()
            }
            Self::ShortText(most) => format!("a text of at most {most} bytes"),
            Self::Order => "a number".into(),
            Self::AnyNetwork => "a network such as 10.65.0.0/16".into(),
            Self::Protocol => UnknownProtocol.to_string().replacen("expected ", "", 1),
            Self::RulePort => {
                "a port from 1 to 65535, a range such as 8080:8090, or the name of a port".into()
            }
            Self::PortOrName => {
                "a port from 1 to 65535, or a name of at most 15 lower-case letters, digits and `-`"
                    .into()
            }
            Self::PortName => {
                "the name of a port (letters, digits, `_`, `.` and `-`, and not digits alone)"
                    .into()
            }
            Self::HostInterface => {
                "an interface name (1 to 15 letters, digits, `_`, `.` or `-`), or `*`".into()
            }
            Self::Duration => "a duration such as 90s or 1m30s".into(),
            Self::Key => "a public key: 32 bytes in base64, not all zero".into(),
            Self::Mac => "a MAC address such as 66:0a:1b:2c:3d:4e".into(),
            Self::Ports => "a port or a range of ports such as 30000:32767".into(),
            Self::AsNumber => "an AS number such as 64512 or 1.10".into(),
        }
    }
}

/// Checks the members of an object against the fields it may have.
pub(super) fn check_fields<'a>(
    members: impl Iterator<Item = (&'a str, &'a Value)>,
    fields: &[Field],
    path: &str,
) -> Result<(), FieldError> {
    let mut seen = vec![false; fields.len()];
    for (name, value) in members {
        let member = join(path, name);
        let Some(place) = fields.iter().position(|field| field.names(name)) else {
            return Err(FieldError::new(member, unknown(name, fields)));
        };
        seen[place] |= !value.is_null();
        fields[place].shape.check(value, &member)?;
    }
    for (field, seen) in fields.iter().zip(seen) {
        if field.required && !seen {
            let message = format!("expected {}, found nothing", field.shape.wording());
            return Err(FieldError::new(join(path, field.name), message));
        }
    }

    Ok(())
}

fn check_list(value: &Value, shape: &Shape, most: usize, path: &str) -> Result<(), FieldError> {
    let items = value
        .as_array()
        .ok_or_else(|| expected(path, "a list", value.clone()))?;
    if items.len() > most {
        return Err(expected(
            path,
            &format!("at most {most} entries"),
            items.len(),
        ));
    }

    items
        .iter()
        .enumerate()
        .try_for_each(|(index, item)| shape.check(item, &format!("{path}[{index}]")))
}

fn check_map(value: &Value, shape: &Shape, path: &str) -> Result<(), FieldError> {
    let members = value
        .as_object()
        .ok_or_else(|| expected(path, "fields with names", value.clone()))?;

    members
        .iter()
        .try_for_each(|(name, value)| shape.check(value, &join(path, name)))
}

/// Where `global()` may stand.
#[derive(Clone, Copy, PartialEq)]
enum Global {
    Nowhere,
    Alone,
}

fn check_selector(
    value: &Value,
    path: &str,
    most: usize,
    global: Global,
) -> Result<(), FieldError> {
    let text = value
        .as_str()
        .ok_or_else(|| expected(path, &Shape::NodeSelector.wording(), value.clone()))?;
    if text.len() > most {
        let rule = format!("at most {most} characters");
        return Err(expected(path, &rule, text.len()));
    }
    let selector: Selector = text
        .parse()
        .map_err(|error| FieldError::new(path, format!("{error}, in {}", Value::from(text))))?;
    let alone = *selector.expression() == Expression::Global;
    if !selector.expression().names_global() || (global == Global::Alone && alone) {
        return Ok(());
    }
    let rule = match global {
        Global::Nowhere => "a selector without global()",
        Global::Alone => "global() alone, or a selector without it",
    };

    Err(expected(path, rule, text))
}

/// Says that a name is not known, and which one may have been meant.
fn unknown(name: &str, fields: &[Field]) -> String {
    let near = fields
        .iter()
        .map(|field| (distance(name, field.name), field.name))
        .filter(|(distance, known)| *distance <= TYPO_MAX && *distance < known.len())
        .min();
    match near {
        Some((_, known)) => format!("unknown field; did you mean {known}?"),
        None if fields.len() <= 12 => {
            let names: Vec<_> = fields.iter().map(|field| field.name).collect();
            format!("unknown field; known are {}", names.join(", "))
        }
        None => "unknown field".to_owned(),
    }
}

/// Returns how many letters must be put in, left out or changed to make one name the other, case aside.
///
/// Names too different in length to be near are not compared.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > TYPO_MAX {
        return usize::MAX;
    }
    let (a, b) = (
        a.to_ascii_lowercase().into_bytes(),
        b.to_ascii_lowercase().into_bytes(),
    );
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let changed = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }

    row[b.len()]
}

fn join(path: &str, name: &str) -> String {
    let name: String = name.chars().take(64).collect();
    if path.is_empty() {
        name
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_shape_takes_what_it_is_for_and_refuses_the_rest() {
        for (shape, good, bad) in [
            (Shape::Bool, json!([true]), json!(["true", 1])),
            (Shape::Flag, json!([true, "false", ""]), json!(["yes"])),
            (
                Shape::Number(-1, 3),
                json!([-1, 0, 3]),
                json!([-2, 4, "1", 1.5]),
            ),
            (
                Shape::Number(1, u64::MAX),
                json!([u64::MAX]),
                json!([0, -1]),
            ),
            (
                Shape::Word(&["Never", "Always"]),
                json!(["Never"]),
                json!(["never", "", 1]),
            ),
            (
                Shape::AnyCase(&["Drop"]),
                json!(["DROP", ""]),
                json!(["dropped"]),
            ),
            (
                Shape::Network,
                json!(["10.0.0.0/8", "fd00::/8"]),
                json!(["10.0.0.1/8", "10.0.0.1", 1]),
            ),
            (
                Shape::Interface,
                json!(["192.0.2.1/24", "::1"]),
                json!(["192.0.2.1/33"]),
            ),
            (Shape::Duration, json!(["90s", "0"]), json!([90, "-1s"])),
            (Shape::Key, json!([""]), json!(["AAAA"])),
            (
                Shape::Mac,
                json!(["66:0a:1b:2c:3D:4e"]),
                json!(["66:0a", "66:0a:1b:2c:3d:4g"]),
            ),
            (
                Shape::Ports,
                json!([80, "80", "1:65535"]),
                json!(["2:1", "http", 65536]),
            ),
            (
                Shape::AsNumber,
                json!([64512, "64512", "1.10"]),
                json!(["1.2.3", -1]),
            ),
            (
                Shape::NodeSelector,
                json!(["", "has(a)"]),
                json!(["has(", "global()", 1]),
            ),
            (
                Shape::List(&Shape::Bool, 2),
                json!([[], [true, false]]),
                json!([[true, true, true], [1], true]),
            ),
            (
                Shape::Map(&Shape::Bool),
                json!([{}, {"a": true}]),
                json!([{"a": 1}, []]),
            ),
        ] {
            for value in good.as_array().unwrap() {
                assert_eq!(shape.check(value, "x"), Ok(()), "{shape:?}");
            }
            for value in bad.as_array().unwrap() {
                assert!(shape.check(value, "x").is_err(), "{shape:?} takes {value}");
            }
            assert_eq!(shape.check(&Value::Null, "x"), Ok(()));
        }
    }

    #[test]
    fn a_misspelt_field_is_answered_with_the_right_one() {
        const FIELDS: &[Field] = &[
            Field::optional("blockSize", Shape::Any),
            Field::required("cidr", Shape::Network),
        ];
        let check = |value: Value| {
            Shape::Fields(FIELDS)
                .check(&value, "spec")
                .unwrap_err()
                .to_string()
        };

        assert_eq!(
            check(json!({"blocksize": 1})),
            "spec.blocksize: unknown field; did you mean blockSize?"
        );
        assert_eq!(
            check(json!({"cdir": 1})),
            "spec.cdir: unknown field; did you mean cidr?"
        );
        assert_eq!(
            check(json!({"zone": 1})),
            "spec.zone: unknown field; known are blockSize, cidr"
        );
        assert_eq!(check(json!({"cidr": null})), check(json!({})));
        assert_eq!(
            check(json!({"blockSize": 1})),
            "spec.cidr: expected a network without host bits such as 10.65.0.0/16, found nothing"
        );
    }

    #[test]
    fn a_field_with_a_star_stands_for_its_family() {
        const FIELDS: &[Field] = &[Field::optional("bpf*", Shape::Any)];

        assert_eq!(
            Shape::Fields(FIELDS).check(&json!({"bpfNew": 1}), "spec"),
            Ok(())
        );
        assert!(
            Shape::Fields(FIELDS)
                .check(&json!({"bp": 1}), "spec")
                .is_err()
        );
    }
}
