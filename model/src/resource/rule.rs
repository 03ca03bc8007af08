//! Calico's rules, as NetworkPolicy, GlobalNetworkPolicy, their staged forms and Profile have them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{FieldError, field};
use crate::{
    Family, Selector,
    name::{is_dns_label, is_object_name},
    policy::{
        Action, Icmp, NotAPort, PortMatch, Protocol, Rule, ServiceRef, Side, UnknownProtocol,
    },
};

/// The form in which a store keeps a rule.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Stored {
    pub(crate) action: Option<String>,
    #[serde(rename = "ipVersion")]
    pub(crate) version: Option<u64>,
    pub(crate) protocol: Option<Value>,
    pub(crate) not_protocol: Option<Value>,
    pub(crate) icmp: Option<StoredIcmp>,
    #[serde(rename = "notICMP")]
    pub(crate) not_icmp: Option<StoredIcmp>,
    pub(crate) source: Option<StoredSide>,
    pub(crate) destination: Option<StoredSide>,
    pub(crate) http: Option<Value>,
    metadata: Option<StoredMetadata>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StoredIcmp {
    #[serde(rename = "type")]
    kind: Option<u64>,
    code: Option<u64>,
}

/// The form in which a store keeps one side of a rule.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StoredSide {
    pub(crate) nets: Option<Vec<String>>,
    pub(crate) not_nets: Option<Vec<String>>,
    pub(crate) selector: Option<String>,
    pub(crate) not_selector: Option<String>,
    pub(crate) namespace_selector: Option<String>,
    pub(crate) ports: Option<Vec<Value>>,
    pub(crate) not_ports: Option<Vec<Value>>,
    pub(crate) service_accounts: Option<StoredAccounts>,
    pub(crate) services: Option<StoredService>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StoredAccounts {
    names: Option<Vec<String>>,
    selector: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StoredService {
    name: Option<String>,
    namespace: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredMetadata {
    annotations: Option<BTreeMap<String, String>>,
}

/// What becomes of packets in a list's entries.
#[derive(Clone, Copy)]
pub(super) enum Entries {
    /// Each has an `action` that says so.
    WithAction,
    /// Each lets them pass: Kubernetes' NetworkPolicy has no actions.
    Allowing,
}

/// Reads a list of rules. What cannot be read is noted in `invalid`, and less passes for it.
///
/// `read` makes rules of the entry at a path and an index.
pub(super) fn list(
    values: Option<&Vec<Value>>,
    path: &str,
    entries: Entries,
    invalid: &mut BTreeMap<String, String>,
    read: impl Fn(&Value, &str, usize) -> Result<Vec<Rule>, FieldError>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (index, entry) in values.into_iter().flatten().enumerate() {
        match read(entry, &format!("{path}[{index}]"), index) {
            Ok(read) => rules.extend(read),
            Err(error) => {
                invalid.insert(error.field, error.message);
                rules.extend(instead_of(entry, entries, index));
            }
        }
    }

    rules
}

/// Returns what stands for an entry that cannot be read: nothing where it would let packets pass, else a denial.
fn instead_of(entry: &Value, entries: Entries, index: usize) -> Option<Rule> {
    let action = entry.get("action").and_then(Value::as_str);
    let lets_pass = match entries {
        Entries::WithAction => matches!(action, Some("Allow" | "Accept" | "Log")),
        Entries::Allowing => true,
    };

    (!lets_pass).then(|| Rule {
        index,
        ..Rule::new(Action::Deny)
    })
}

/// Reads one rule of a policy in `namespace`, or of one that is in none.
pub(super) fn rule(
    value: &Value,
    path: &str,
    index: usize,
    namespace: Option<&str>,
) -> Result<Rule, FieldError> {
    let stored: Stored = field::member(value, path)?;
    let at = |name: &str| format!("{path}.{name}");
    let protocol = protocol(stored.protocol.as_ref(), &at("protocol"))?;
    let not_protocol = self::protocol(stored.not_protocol.as_ref(), &at("notProtocol"))?;
    let icmp = icmp(stored.icmp.as_ref(), &at("icmp"))?;
    let not_icmp = self::icmp(stored.not_icmp.as_ref(), &at("notICMP"))?;
    for (name, present) in [("icmp", icmp.is_some()), ("notICMP", not_icmp.is_some())] {
        if present && !matches!(protocol, Some(Protocol::ICMP | Protocol::ICMPV6)) {
            let message = "expected protocol ICMP or ICMPv6 beside it";
            return Err(FieldError::new(at(name), message));
        }
    }
    let [source, destination] = [
        ("source", stored.source),
        ("destination", stored.destination),
    ]
    .map(|(name, side)| self::side(side.unwrap_or_default(), &at(name), namespace, protocol));
    let annotations = stored.metadata.and_then(|metadata| metadata.annotations);

    Ok(Rule {
        action: action(stored.action.as_deref(), &at("action"))?,
        family: family(stored.version, protocol, &at("ipVersion"))?,
        protocol,
        not_protocol,
        icmp,
        not_icmp,
        source: source?,
        destination: destination?,
        http: stored.http.is_some_and(|http| !http.is_null()),
        name: annotations.and_then(|mut annotations| annotations.remove("name")),
        index,
    })
}

fn action(text: Option<&str>, path: &str) -> Result<Action, FieldError> {
    match text {
        Some("Allow") => Ok(Action::Allow),
        Some("Deny") => Ok(Action::Deny),
        Some("Log") => Ok(Action::Log),
        Some("Pass") => Ok(Action::Pass),
        Some(other) => Err(field::expected(path, "Allow, Deny, Log or Pass", other)),
        None => field::required(None, path, "Allow, Deny, Log or Pass"),
    }
}

fn family(
    version: Option<u64>,
    protocol: Option<Protocol>,
    path: &str,
) -> Result<Option<Family>, FieldError> {
    let implied = protocol.and_then(Protocol::family);
    let named = match version {
        None => return Ok(implied),
        Some(4) => Family::V4,
        Some(6) => Family::V6,
        Some(other) => return Err(field::expected(path, "4 or 6", other)),
    };
    match (implied, protocol) {
        (Some(family), Some(protocol)) if family != named => {
            let only = format!("none: {protocol} is {family} alone");
            Err(field::expected(path, &only, version))
        }
        (Some(_) | None, _) => Ok(Some(named)),
    }
}

/// Reads a protocol: a name or a number.
pub(crate) fn protocol(value: Option<&Value>, path: &str) -> Result<Option<Protocol>, FieldError> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };

    text.parse()
        .map(Some)
        .map_err(|error: UnknownProtocol| found(path, &error, value))
}

fn icmp(stored: Option<&StoredIcmp>, path: &str) -> Result<Option<Icmp>, FieldError> {
    let small = |value: Option<u64>, most: u8, name: &str| {
        let Some(number) = value else { return Ok(None) };
        match u8::try_from(number) {
            Ok(number) if number <= most => Ok(Some(number)),
            Ok(_) | Err(_) => {
                let range = format!("a number from 0 to {most}");
                Err(field::expected(&format!("{path}.{name}"), &range, number))
            }
        }
    };
    let Some(stored) = stored else {
        return Ok(None);
    };
    let (kind, code) = (
        small(stored.kind, 254, "type")?,
        small(stored.code, 255, "code")?,
    );
    match (kind, code) {
        (Some(kind), code) => Ok(Some(Icmp { kind, code })),
        (None, None) => Ok(None),
        (None, Some(_)) => {
            field::required(None, &format!("{path}.type"), "a type, as there is a code")
        }
    }
}

/// Reads one side of a rule of this protocol.
fn side(
    stored: StoredSide,
    path: &str,
    namespace: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<Side, FieldError> {
    let at = |name: &str| format!("{path}.{name}");
    let service = service(&stored, path, namespace)?;
    let (selector, not_selector) = selectors(&stored, path, namespace)?;

    Ok(Side {
        nets: nets(stored.nets, &at("nets"))?,
        not_nets: nets(stored.not_nets, &at("notNets"))?,
        selector,
        not_selector,
        ports: ports(stored.ports.as_deref(), &at("ports"), protocol)?,
        not_ports: ports(stored.not_ports.as_deref(), &at("notPorts"), protocol)?,
        service: service.map(Box::new),
    })
}

/// Joins what a side says about endpoints: its own selectors, and those of namespaces and service accounts.
///
/// In a namespaced policy, whoever says anything of the kind means its own namespace unless it names others. What is
/// to be selected and what is not become one selector; `notSelector` alone, of a policy in no namespace, stays a
/// negation, which addresses outside the cluster fulfil.
fn selectors(
    stored: &StoredSide,
    path: &str,
    namespace: Option<&str>,
) -> Result<(Option<Selector>, Option<Selector>), FieldError> {
    let at = |name: &str| format!("{path}.{name}");
    let own = selector(stored.selector.as_deref(), &at("selector"))?;
    let not = selector(stored.not_selector.as_deref(), &at("notSelector"))?;
    let elsewhere = selector(
        stored.namespace_selector.as_deref(),
        &at("namespaceSelector"),
    )?;
    let accounts = accounts(stored.service_accounts.as_ref(), &at("serviceAccounts"))?;
    if own.is_none() && not.is_none() && elsewhere.is_none() && accounts.is_none() {
        return Ok((None, None));
    }
    let within = match (elsewhere, namespace) {
        (Some(elsewhere), _) => Some(elsewhere.of_namespaces()),
        (None, Some(namespace)) => Some(Selector::in_namespace(namespace)),
        (None, None) => None,
    };
    let parts: Vec<_> = [within, accounts, own].into_iter().flatten().collect();
    if parts.is_empty() {
        return Ok((None, not));
    }

    Ok((
        Some(Selector::intersection(
            parts.into_iter().chain(not.map(Selector::complement)),
        )),
        None,
    ))
}

fn accounts(stored: Option<&StoredAccounts>, path: &str) -> Result<Option<Selector>, FieldError> {
    let Some(stored) = stored else {
        return Ok(None);
    };
    let names = stored.names.as_deref().unwrap_or_default();
    for (index, name) in names.iter().enumerate() {
        if !is_object_name(name) {
            let path = format!("{path}.names[{index}]");
            return Err(field::expected(
                &path,
                "the name of a service account",
                name.as_str(),
            ));
        }
    }
    let named = (!names.is_empty()).then(|| Selector::service_accounts(names));
    let selected = selector(stored.selector.as_deref(), &format!("{path}.selector"))?
        .map(|selector| selector.of_service_accounts());

    Ok(match (selected, named) {
        (None, None) => None,
        (selected, named) => Some(Selector::intersection(selected.into_iter().chain(named))),
    })
}

fn service(
    stored: &StoredSide,
    path: &str,
    namespace: Option<&str>,
) -> Result<Option<ServiceRef>, FieldError> {
    let Some(service) = &stored.services else {
        return Ok(None);
    };
    let path = format!("{path}.services");
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let listed = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    for (field, present) in [
        ("selector", given(&stored.selector)),
        ("notSelector", given(&stored.not_selector)),
        ("namespaceSelector", given(&stored.namespace_selector)),
        ("nets", listed(&stored.nets)),
        ("notNets", listed(&stored.not_nets)),
        ("serviceAccounts", stored.service_accounts.is_some()),
    ] {
        if present {
            return Err(FieldError::new(
                path,
                format!("expected no {field} beside it"),
            ));
        }
    }
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let name = field::required(
        text(&service.name),
        &format!("{path}.name"),
        "the name of a service",
    )?;
    let namespace = text(&service.namespace).or_else(|| namespace.map(str::to_owned));
    let namespace = field::required(
        namespace,
        &format!("{path}.namespace"),
        "the service's namespace, as the policy is in none",
    )?;
    for (field, text) in [("name", &name), ("namespace", &namespace)] {
        if !is_dns_label(text) {
            let path = format!("{path}.{field}");
            return Err(field::expected(
                &path,
                "a lower-case DNS label",
                text.as_str(),
            ));
        }
    }

    Ok(Some(ServiceRef { namespace, name }))
}

/// Reads a selector; an empty text is none.
pub(super) fn selector(text: Option<&str>, path: &str) -> Result<Option<Selector>, FieldError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };

    text.parse()
        .map(Some)
        .map_err(|error| FieldError::new(path, format!("{error}, in {}", Value::from(text))))
}

/// Reads networks; an address is a network of its own, and host bits do not matter.
pub(super) fn nets(texts: Option<Vec<String>>, path: &str) -> Result<Vec<IpNet>, FieldError> {
    let texts = texts.unwrap_or_default();
    let read = texts.iter().enumerate().map(|(index, text)| {
        field::network_or_address(text, &format!("{path}[{index}]")).map(|net| net.trunc())
    });

    read.collect()
}

fn ports(
    values: Option<&[Value]>,
    path: &str,
    protocol: Option<Protocol>,
) -> Result<Vec<PortMatch>, FieldError> {
    let mut ports = Vec::new();
    for (index, value) in values.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}[{index}]");
        let port = port(value, &path)?;
        let fits = match (protocol, &port) {
            (Some(protocol), _) => protocol.has_ports(),
            (None, PortMatch::Named(_)) => true,
            (None, PortMatch::Range(..)) => false,
        };
        if !fits {
            let message =
                "ports go with protocol TCP, UDP or SCTP; without a protocol, only named ones do";
            return Err(FieldError::new(path, message));
        }
        ports.push(port);
    }

    Ok(ports)
}

/// Reads a port: a number, a range or a name.
pub(super) fn port(value: &Value, path: &str) -> Result<PortMatch, FieldError> {
    let number = || u16::try_from(value.as_u64()?).ok().map(PortMatch::single);
    let port = match value.as_str() {
        Some(text) => text.parse().ok(),
        None => number(),
    };

    port.ok_or_else(|| found(path, &NotAPort, Some(value)))
}

fn found(path: &str, expected: &impl ToString, value: Option<&Value>) -> FieldError {
    let found = value.cloned().unwrap_or_default();

    FieldError::new(
        path,
        format!("{}, found {}", expected.to_string(), field::shown(found)),
    )
}
