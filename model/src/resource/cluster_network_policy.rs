//! Kubernetes' ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2): what administrators decide for all pods.
//!
//! It selects pods alone, never host endpoints, and applies only in directions for which it has rules.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    FieldError, field,
    kubernetes_network_policy::{Ports, by_protocol, cidr_net, product},
    label_selector::LabelSelector,
    rule::{self, Entries},
};
use crate::{
    Object, Selector,
    policy::{
        ADMIN_TIER, Action, BASELINE_TIER, Direction, Directions, Policy, PortMatch, Protocol,
        Rule, Side, Stage,
    },
};

/// The form in which a store keeps a policy's `spec`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    tier: Option<String>,
    priority: Option<u32>,
    subject: Option<StoredPeer>,
    ingress: Option<Vec<Value>>,
    egress: Option<Vec<Value>>,
}

/// Pods: a subject, or a peer of a rule.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredPeer {
    namespaces: Option<LabelSelector>,
    pods: Option<StoredPods>,
    networks: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredPods {
    namespace_selector: Option<LabelSelector>,
    pod_selector: Option<LabelSelector>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredRule {
    name: Option<String>,
    action: Option<String>,
    from: Option<Vec<StoredPeer>>,
    to: Option<Vec<StoredPeer>>,
    protocols: Option<Vec<StoredProtocol>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredProtocol {
    tcp: Option<StoredPorts>,
    udp: Option<StoredPorts>,
    sctp: Option<StoredPorts>,
    destination_named_port: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StoredPorts {
    destination_port: Option<StoredPort>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredPort {
    number: Option<u64>,
    range: Option<StoredRange>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredRange {
    start: Option<u64>,
    end: Option<u64>,
}

/// Reads a policy.
///
/// # Errors
///
/// Tier or subject cannot be read; rules that cannot be read are in [`Policy::invalid`].
pub(super) fn read(object: &Object) -> Result<Policy, FieldError> {
    let stored: Stored = field::part(object, "spec")?;
    let tier = match stored.tier.as_deref() {
        Some("Admin") => ADMIN_TIER,
        Some("Baseline") => BASELINE_TIER,
        other => return Err(field::expected("spec.tier", "Admin or Baseline", other)),
    };
    let subject = field::required(stored.subject, "spec.subject", "namespaces or pods")?;
    let subject = pods(&subject, "spec.subject", true)?;
    let subject = field::required(subject, "spec.subject", "namespaces or pods")?;
    let mut invalid = BTreeMap::new();
    let mut rules = |values: Option<&Vec<Value>>, path: &str, direction| -> Vec<Rule> {
        let read = |value: &Value, path: &str, index| entry(value, path, index, direction);
        rule::list(values, path, Entries::WithAction, &mut invalid, read)
    };
    let ingress = rules(stored.ingress.as_ref(), "spec.ingress", Direction::Ingress);
    let egress = rules(stored.egress.as_ref(), "spec.egress", Direction::Egress);

    Ok(Policy {
        key: object.key(),
        tier: tier.to_owned(),
        order: Some(stored.priority.unwrap_or_default().into()),
        selector: subject,
        types: Directions {
            ingress: !ingress.is_empty(),
            egress: !egress.is_empty(),
        },
        ingress,
        egress,
        stage: Stage::Normal,
        apply_on_forward: true,
        staged: None,
        invalid,
    })
}

/// Makes rules of one entry: one for each protocol that it names, and each peer.
fn entry(
    value: &Value,
    path: &str,
    index: usize,
    direction: Direction,
) -> Result<Vec<Rule>, FieldError> {
    let stored: StoredRule = field::member(value, path)?;
    let at = |name: &str| format!("{path}.{name}");
    let action = match stored.action.as_deref() {
        Some("Accept") => Action::Allow,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        other => {
            return Err(field::expected(
                &at("action"),
                "Accept, Deny or Pass",
                other,
            ));
        }
    };
    let (name, peers) = match direction {
        Direction::Ingress => ("from", stored.from),
        Direction::Egress => ("to", stored.to),
    };
    let peers = peers.filter(|peers| !peers.is_empty());
    let peers = field::required(peers, &at(name), "one peer or more")?;
    let mut sides = Vec::new();
    for (place, peer) in peers.iter().enumerate() {
        sides.push(self::peer(
            peer,
            &format!("{path}.{name}[{place}]"),
            direction,
        )?);
    }
    let ports = protocols(stored.protocols.unwrap_or_default(), &at("protocols"))?;
    let mut rules = product(action, direction, &ports, &sides, index);
    for rule in &mut rules {
        rule.name = stored.name.clone().filter(|name| !name.is_empty());
    }

    Ok(rules)
}

fn peer(stored: &StoredPeer, path: &str, direction: Direction) -> Result<Side, FieldError> {
    let networks = stored.networks.as_deref().unwrap_or_default();
    if networks.is_empty() {
        let known = match direction {
            Direction::Ingress => "namespaces or pods",
            Direction::Egress => "namespaces, pods or networks",
        };
        return Ok(Side {
            selector: Some(field::required(pods(stored, path, false)?, path, known)?),
            ..Side::default()
        });
    }
    let alone = stored.namespaces.is_none() && stored.pods.is_none();
    if direction == Direction::Ingress || !alone {
        let message = "networks stand alone, and only in egress rules";
        return Err(FieldError::new(format!("{path}.networks"), message));
    }
    let mut nets = Vec::new();
    for (index, text) in networks.iter().enumerate() {
        nets.push(cidr_net(text, &format!("{path}.networks[{index}]"))?);
    }

    Ok(Side {
        nets,
        ..Side::default()
    })
}

/// Reads the pods that are meant; `None` where neither namespaces nor pods are named.
///
/// A peer's namespaces mean whatever is in them; a subject is pods alone.
fn pods(stored: &StoredPeer, path: &str, subject: bool) -> Result<Option<Selector>, FieldError> {
    let at = |name: &str| format!("{path}.{name}");
    match (&stored.namespaces, &stored.pods) {
        (Some(_), Some(_)) => Err(FieldError::new(
            at("pods"),
            "expected none, as namespaces is set",
        )),
        (None, None) => Ok(None),
        (Some(namespaces), None) => {
            let namespaces = namespaces.selector(&at("namespaces"))?.of_namespaces();
            Ok(Some(if subject {
                Selector::intersection([namespaces, Selector::pods()])
            } else {
                namespaces
            }))
        }
        (None, Some(pods)) => {
            let namespaces = pods.namespace_selector.clone().unwrap_or_default();
            let labels = pods.pod_selector.clone().unwrap_or_default();
            Ok(Some(Selector::intersection([
                namespaces
                    .selector(&at("pods.namespaceSelector"))?
                    .of_namespaces(),
                Selector::pods(),
                labels.selector(&at("pods.podSelector"))?,
            ])))
        }
    }
}

fn protocols(stored: Vec<StoredProtocol>, path: &str) -> Result<Ports, FieldError> {
    let mut entries = Vec::new();
    for (index, protocol) in stored.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mut known: Vec<(Option<Protocol>, Option<PortMatch>)> = Vec::new();
        for (name, protocol, ports) in [
            ("tcp", Protocol::TCP, protocol.tcp),
            ("udp", Protocol::UDP, protocol.udp),
            ("sctp", Protocol::SCTP, protocol.sctp),
        ] {
            let Some(ports) = ports else { continue };
            let path = format!("{path}.{name}.destinationPort");
            let port = ports.destination_port.map(|stored| port(&stored, &path));
            known.push((Some(protocol), port.transpose()?));
        }
        if let Some(name) = protocol.destination_named_port {
            let path = format!("{path}.destinationNamedPort");
            known.push((None, Some(named(&name, &path)?)));
        }
        if known.len() != 1 {
            let message = "expected exactly one of tcp, udp, sctp and destinationNamedPort";
            return Err(FieldError::new(path, message));
        }
        entries.extend(known);
    }

    Ok(by_protocol(entries))
}

fn port(stored: &StoredPort, path: &str) -> Result<PortMatch, FieldError> {
    let number = |number: Option<u64>, path: &str| {
        let port = number.and_then(|number| u16::try_from(number).ok());
        port.filter(|port| *port > 0)
            .ok_or_else(|| field::expected(path, "a port from 1 to 65535", number))
    };
    let at = |name: &str| format!("{path}.{name}");
    match (stored.number, &stored.range) {
        (Some(port), None) => number(Some(port), &at("number")).map(PortMatch::single),
        (None, Some(range)) => {
            let first = number(range.start, &at("range.start"))?;
            let last = number(range.end, &at("range.end"))?;
            if last < first {
                let rest = format!("a port from {first} to 65535");
                return Err(field::expected(&at("range.end"), &rest, last));
            }
            Ok(PortMatch::Range(first, last))
        }
        (Some(_), Some(_)) | (None, None) => {
            Err(FieldError::new(path, "expected either number or range"))
        }
    }
}

fn named(name: &str, path: &str) -> Result<PortMatch, FieldError> {
    match name.parse() {
        Ok(port @ PortMatch::Named(_)) => Ok(port),
        Ok(PortMatch::Range(..)) | Err(_) => Err(field::expected(path, "the name of a port", name)),
    }
}

#[cfg(test)]
mod tests;
