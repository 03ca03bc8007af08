//! Kubernetes' NetworkPolicy (networking.k8s.io/v1), as such and staged.
//!
//! Every entry becomes a rule for each protocol and peer, which keeps the entry's place in
//! [`Rule::index`]. The policy is one of tier `default` with order 1000, as Calico has it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{
    FieldError, field,
    label_selector::LabelSelector,
    network_policy::staged,
    rule::{self, Entries},
};
use crate::{
    Object, Selector,
    policy::{
        Action, DEFAULT_TIER, Direction, Directions, Policy, PortMatch, Protocol, Rule, Side, Stage,
    },
};

/// The order of every Kubernetes policy.
const ORDER: f64 = 1000.0;

/// The form in which a store keeps a policy's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    pod_selector: Option<LabelSelector>,
    policy_types: Option<Vec<String>>,
    ingress: Option<Vec<Value>>,
    egress: Option<Vec<Value>>,
    staged_action: Option<String>,
}

/// An entry of `ingress` or `egress`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredRule {
    from: Option<Vec<StoredPeer>>,
    to: Option<Vec<StoredPeer>>,
    ports: Option<Vec<StoredPort>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredPeer {
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    ip_block: Option<StoredBlock>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredBlock {
    cidr: Option<String>,
    except: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredPort {
    protocol: Option<String>,
    port: Option<Value>,
    end_port: Option<u64>,
}

/// Reads a Kubernetes policy, staged or not.
///
/// # Errors
///
/// A field that decides whom the policy is for cannot be read; entries that cannot be read are in
/// [`Policy::invalid`] and let nothing pass.
pub(super) fn read(object: &Object) -> Result<Policy, FieldError> {
    let stored: Stored = field::part(object, "spec")?;
    let namespace = field::namespace(object)?;
    let pods = stored.pod_selector.unwrap_or_default();
    let pods = pods.selector("spec.podSelector")?;
    let mut invalid = BTreeMap::new();
    let mut rules = |values: Option<&Vec<Value>>, path: &str, direction| -> Vec<Rule> {
        let read =
            |value: &Value, path: &str, index| entry(value, path, index, &namespace, direction);
        rule::list(values, path, Entries::Allowing, &mut invalid, read)
    };
    let ingress = rules(stored.ingress.as_ref(), "spec.ingress", Direction::Ingress);
    let egress = rules(stored.egress.as_ref(), "spec.egress", Direction::Egress);

    Ok(Policy {
        key: object.key(),
        tier: DEFAULT_TIER.to_owned(),
        order: Some(ORDER),
        selector: Selector::intersection([
            Selector::in_namespace(&namespace),
            Selector::pods(),
            pods,
        ]),
        types: types(stored.policy_types.as_deref())?,
        ingress,
        egress,
        stage: Stage::Normal,
        apply_on_forward: true,
        staged: staged(object.kind, stored.staged_action.as_deref())?,
        invalid,
    })
}

/// Reads the directions; a policy that names none applies to what comes in, whatever entries it has.
fn types(names: Option<&[String]>) -> Result<Directions, FieldError> {
    let mut types = Directions::default();
    for (index, name) in names.unwrap_or_default().iter().enumerate() {
        match name.as_str() {
            "Ingress" => types.ingress = true,
            "Egress" => types.egress = true,
            other => {
                let path = format!("spec.policyTypes[{index}]");
                return Err(field::expected(&path, "Ingress or Egress", other));
            }
        }
    }
    types.ingress |= !types.egress;

    Ok(types)
}

/// Makes rules of one entry: one for each protocol that it names, and each peer.
fn entry(
    value: &Value,
    path: &str,
    index: usize,
    namespace: &str,
    direction: Direction,
) -> Result<Vec<Rule>, FieldError> {
    let stored: StoredRule = field::member(value, path)?;
    let (name, peers) = match direction {
        Direction::Ingress => ("from", stored.from),
        Direction::Egress => ("to", stored.to),
    };
    let mut sides = Vec::new();
    for (place, peer) in peers.unwrap_or_default().iter().enumerate() {
        sides.push(self::peer(
            peer,
            &format!("{path}.{name}[{place}]"),
            namespace,
        )?);
    }
    if sides.is_empty() {
        sides.push(Side::default());
    }
    let ports = ports(&stored.ports.unwrap_or_default(), &format!("{path}.ports"))?;

    Ok(product(Action::Allow, direction, &ports, &sides, index))
}

/// Returns a rule for each protocol and peer.
pub(super) fn product(
    action: Action,
    direction: Direction,
    ports: &Ports,
    peers: &[Side],
    index: usize,
) -> Vec<Rule> {
    let pairs = ports
        .iter()
        .flat_map(|protocol| peers.iter().map(move |peer| (protocol, peer)));

    pairs
        .map(|((protocol, ports), peer)| {
            let mut rule = Rule {
                protocol: *protocol,
                index,
                ..Rule::new(action)
            };
            match direction {
                Direction::Ingress => rule.source = peer.clone(),
                Direction::Egress => rule.destination = peer.clone(),
            }
            rule.destination.ports = ports.clone();
            rule
        })
        .collect()
}

fn peer(stored: &StoredPeer, path: &str, namespace: &str) -> Result<Side, FieldError> {
    let at = |name: &str| format!("{path}.{name}");
    let has_selector = stored.pod_selector.is_some() || stored.namespace_selector.is_some();
    match &stored.ip_block {
        Some(_) if has_selector => Err(FieldError::new(
            at("ipBlock"),
            "expected no podSelector and no namespaceSelector beside it",
        )),
        Some(block) => self::block(block, &at("ipBlock")),
        None if !has_selector => Err(FieldError::new(
            path,
            "expected podSelector, namespaceSelector or ipBlock, found nothing",
        )),
        None => {
            let within = match &stored.namespace_selector {
                Some(selector) => selector.selector(&at("namespaceSelector"))?.of_namespaces(),
                None => Selector::in_namespace(namespace),
            };
            let pods = stored.pod_selector.clone().unwrap_or_default();
            let pods = pods.selector(&at("podSelector"))?;

            Ok(Side {
                selector: Some(Selector::intersection([within, Selector::pods(), pods])),
                ..Side::default()
            })
        }
    }
}

fn block(stored: &StoredBlock, path: &str) -> Result<Side, FieldError> {
    let at = |name: &str| format!("{path}.{name}");
    let cidr = field::required(stored.cidr.as_deref(), &at("cidr"), "a network")?;
    let net = cidr_net(cidr, &at("cidr"))?;
    let mut not_nets = Vec::new();
    for (index, text) in stored.except.iter().flatten().enumerate() {
        let path = format!("{path}.except[{index}]");
        let except = cidr_net(text, &path)?;
        if except == net || !net.contains(&except) {
            let inside = format!("a network inside {net}, smaller than it");
            return Err(field::expected(&path, &inside, text.as_str()));
        }
        not_nets.push(except);
    }

    Ok(Side {
        nets: vec![net],
        not_nets,
        ..Side::default()
    })
}

/// Reads a network; host bits do not matter.
pub(super) fn cidr_net(text: &str, path: &str) -> Result<IpNet, FieldError> {
    text.parse()
        .map(|net: IpNet| net.trunc())
        .map_err(|_| field::expected(path, "a network such as 10.65.0.0/16", text))
}

/// Ports by protocol; no ports are all of them, and no protocol is every protocol.
pub(super) type Ports = BTreeMap<Option<Protocol>, Vec<PortMatch>>;

fn ports(stored: &[StoredPort], path: &str) -> Result<Ports, FieldError> {
    let mut entries = Vec::new();
    for (index, port) in stored.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::TCP,
            Some("UDP") => Protocol::UDP,
            Some("SCTP") => Protocol::SCTP,
            Some(other) => {
                let path = format!("{path}.protocol");
                return Err(field::expected(&path, "TCP, UDP or SCTP", other));
            }
        };
        entries.push((Some(protocol), self::port(port, &path)?));
    }

    Ok(by_protocol(entries))
}

/// Joins ports by protocol; one entry without a port is all of its protocol's.
pub(super) fn by_protocol(
    entries: impl IntoIterator<Item = (Option<Protocol>, Option<PortMatch>)>,
) -> Ports {
    let mut all = BTreeSet::new();
    let mut ports = Ports::new();
    for (protocol, port) in entries {
        let list = ports.entry(protocol).or_default();
        match port {
            Some(port) => list.push(port),
            None => {
                all.insert(protocol);
            }
        }
    }
    if ports.is_empty() {
        return Ports::from([(None, Vec::new())]);
    }
    for (protocol, list) in &mut ports {
        *list = if all.contains(protocol) {
            Vec::new()
        } else {
            joined(std::mem::take(list))
        };
    }

    ports
}

/// Returns the smallest list of ranges with the same ports, the named ones first.
fn joined(ports: Vec<PortMatch>) -> Vec<PortMatch> {
    let (mut names, mut ranges) = (BTreeSet::new(), Vec::new());
    for port in ports {
        match port {
            PortMatch::Named(name) => {
                names.insert(name);
            }
            PortMatch::Range(first, last) => ranges.push((first, last)),
        }
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            Some(_) | None => merged.push((first, last)),
        }
    }

    names
        .into_iter()
        .map(PortMatch::Named)
        .chain(
            merged
                .into_iter()
                .map(|(first, last)| PortMatch::Range(first, last)),
        )
        .collect()
}

fn port(stored: &StoredPort, path: &str) -> Result<Option<PortMatch>, FieldError> {
    let at = |name: &str| format!("{path}.{name}");
    let port = match &stored.port {
        None | Some(Value::Null) => None,
        Some(value) => Some(rule::port(value, &at("port"))?),
    };
    let end = stored.end_port;
    match (port, end) {
        (Some(PortMatch::Range(0, _)), _) => {
            Err(field::expected(&at("port"), "a port from 1 to 65535", 0))
        }
        (Some(PortMatch::Range(first, last)), _) if first != last => {
            let found = stored.port.clone().unwrap_or_default();
            Err(field::expected(&at("port"), "one port, or a name", found))
        }
        (Some(PortMatch::Range(first, _)), Some(end)) => {
            let last = u16::try_from(end).ok().filter(|last| *last >= first);
            let range = format!("a number from {first} to 65535");
            let last = last.ok_or_else(|| field::expected(&at("endPort"), &range, end))?;
            Ok(Some(PortMatch::Range(first, last)))
        }
        (Some(PortMatch::Named(_)) | None, Some(end)) => Err(field::expected(
            &at("endPort"),
            "none, as port is no number",
            end,
        )),
        (port, None) => Ok(port),
    }
}

#[cfg(test)]
mod tests;
