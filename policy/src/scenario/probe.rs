//! Packets as a policy test writes them, and what is found about them.

use std::net::IpAddr;

use model::{
    Family, Kind,
    policy::{Protocol, ServiceRef},
    resource::FieldError,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    VERDICTS_MAX, expected,
    reference::{self, Subject, Who},
    report::{DecisionEntry, Entry, ProbeVerdict, protocol_value},
    service::plain,
    state::Outside,
};
use crate::{
    Evaluator,
    cluster::Cluster,
    decision::{Outcome, Verdict},
    packet::{Header, IcmpHeader, Packet, Place, Ports, Translation, Translator},
};

/// The port that packets come from unless a probe says otherwise.
const SOURCE_PORT: u16 = 40_000;

/// Packets, and what is to become of them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    /// Who sends.
    from: OneOrMany,
    /// Who is to get it.
    to: OneOrMany,
    /// The protocol, by name or number; TCP if not said.
    #[serde(default)]
    protocol: Option<Value>,
    /// The port, where the protocol has ports.
    #[serde(default)]
    port: Option<u16>,
    /// Protocols and ports (`TCP/80`), in place of the two.
    #[serde(default)]
    ports: Option<Vec<String>>,
    /// ICMP's type and code; an echo request if not said.
    #[serde(default)]
    icmp: Option<Icmp>,
    /// 4 or 6; every family that both ends have if not said.
    #[serde(default)]
    family: Option<u8>,
    /// The port that it comes from.
    #[serde(default)]
    source_port: Option<u16>,
    /// What it was sent to, before the node of who is to get it translated that.
    #[serde(default)]
    dnat_from: Option<SentTo>,
    /// What is to become of it.
    #[serde(default)]
    expect: Option<Expected>,
    /// Who is to decide.
    #[serde(default)]
    by: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Icmp {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    code: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct SentTo {
    address: IpAddr,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Expected {
    Allow,
    Deny,
}

/// How a verdict differs from what a probe expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is another one; the word that was expected.
    Verdict(&'static str),
    /// It is the right one, given by somebody else; who was expected.
    By(String),
}

impl Difference {
    /// Returns whether the verdict is right and only somebody else gave it.
    pub(super) const fn is_about_who(&self) -> bool {
        match self {
            Self::Verdict(_) => false,
            Self::By(_) => true,
        }
    }
}

/// A protocol, with a port where it has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) protocol: Protocol,
    pub(crate) port: Option<u16>,
}

/// One question of a probe, and the packets that answer it.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// How the report names who sends.
    pub(crate) from: String,
    /// How the report names who is to get it.
    pub(crate) to: String,
    pub(crate) target: Target,
    pub(crate) family: Family,
    /// One; for a service, one for each endpoint that it may choose.
    pub(crate) packets: Vec<Packet>,
}

/// Who answers a probe.
pub(crate) struct Prober<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) evaluator: &'a Evaluator<'a>,
    pub(crate) outside: &'a [Outside],
    /// Where the probe stands.
    pub(crate) path: String,
}

impl Probe {
    /// Reads a probe that stands alone.
    pub fn parse(value: &Value) -> Result<Self, FieldError> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            FieldError::new(path, error.into_inner().to_string())
        })
    }

    /// Returns what is to become of its packets, where it says so.
    pub(super) fn expected(&self) -> Option<ProbeVerdict> {
        self.expect.map(|expected| match expected {
            Expected::Allow => ProbeVerdict::Allow,
            Expected::Deny => ProbeVerdict::Deny,
        })
    }

    /// Returns whether it says from which port its packets come.
    pub(super) const fn has_source_port(&self) -> bool {
        self.source_port.is_some()
    }

    /// Returns whether it says what is to become of its packets.
    pub const fn expects(&self) -> bool {
        self.expect.is_some()
    }
}

impl Prober<'_> {
    /// Gives a verdict on every packet of a probe, in the order from, to, port, family.
    ///
    /// In a product nobody probes himself, and pairs without a common family are left out.
    pub(super) fn ask(&self, probe: &Probe) -> Result<Vec<Entry>, FieldError> {
        let flows = self.flows(probe)?;

        Ok(flows
            .iter()
            .map(|flow| {
                let packets = flow.packets.iter();
                let outcomes: Vec<Outcome> = packets
                    .map(|packet| self.evaluator.evaluate(packet))
                    .collect();
                judge(probe, flow, &outcomes)
            })
            .collect())
    }

    /// Returns the packets of a probe, in the same order.
    pub(crate) fn flows(&self, probe: &Probe) -> Result<Vec<Flow>, FieldError> {
        let from = self.subjects(&probe.from, "from")?;
        let to = self.subjects(&probe.to, "to")?;
        let targets = self.targets(probe)?;
        self.check(probe)?;
        let is_product = from.len() * to.len() > 1;
        let mut flows = Vec::new();
        for source in &from {
            for destination in &to {
                if is_product && source.who == destination.who {
                    continue;
                }
                for target in &targets {
                    let families = self.families(probe, source, destination, *target);
                    if families.is_empty() && !is_product {
                        let message = "the two ends have no family of that protocol in common";
                        return Err(FieldError::new(&self.path, message));
                    }
                    for family in families {
                        flows.push(self.flow(probe, source, destination, *target, family)?);
                    }
                    if flows.len() > VERDICTS_MAX {
                        let message = format!("more than {VERDICTS_MAX} verdicts of one document");
                        return Err(FieldError::new(&self.path, message));
                    }
                }
            }
        }

        Ok(flows)
    }

    fn subjects(&self, names: &OneOrMany, field: &str) -> Result<Vec<Subject>, FieldError> {
        let path = format!("{}.{field}", self.path);
        let resolve = |name: &str| reference::resolve(self.cluster, self.outside, name, &path);
        match names {
            OneOrMany::One(name) => resolve(name),
            OneOrMany::Many(names) => names.iter().try_fold(Vec::new(), |mut all, name| {
                all.extend(resolve(name)?);
                Ok(all)
            }),
        }
    }

    fn targets(&self, probe: &Probe) -> Result<Vec<Target>, FieldError> {
        let path = |field: &str| format!("{}.{field}", self.path);
        if let Some(ports) = &probe.ports {
            if probe.port.is_some() || probe.protocol.is_some() {
                let message = "expected either ports or protocol and port";
                return Err(FieldError::new(path("ports"), message));
            }
            return ports
                .iter()
                .map(|text| port(text, &path("ports")))
                .collect();
        }
        let protocol = match &probe.protocol {
            None | Some(Value::Null) => Protocol::TCP,
            Some(value) => {
                plain(value)
                    .parse()
                    .map_err(|error: model::policy::UnknownProtocol| {
                        FieldError::new(path("protocol"), error.to_string())
                    })?
            }
        };
        if carries_ports(protocol) && probe.port.is_none() {
            return Err(FieldError::new(
                path("port"),
                "expected a port, found nothing",
            ));
        }
        let port = probe.port.filter(|_| carries_ports(protocol));

        Ok(vec![Target { protocol, port }])
    }

    /// Checks what no packet depends on.
    fn check(&self, probe: &Probe) -> Result<(), FieldError> {
        if let Some(family) = probe.family.filter(|family| !matches!(family, 4 | 6)) {
            let path = format!("{}.family", self.path);
            return Err(expected(&path, "4 or 6", &family.to_string()));
        }
        if let Some(by) = probe.by.as_deref().filter(|by| !is_cause(by)) {
            let forms = "KIND [NAMESPACE/]NAME, profile NAME, tier NAME, failsafe or none";
            return Err(expected(&format!("{}.by", self.path), forms, by));
        }

        Ok(())
    }

    /// Returns the families in which a packet can be sent.
    fn families(&self, probe: &Probe, from: &Subject, to: &Subject, target: Target) -> Vec<Family> {
        let wanted = |family: &Family| {
            probe
                .family
                .is_none_or(|number| number == number_of(*family))
                && target.protocol.family().is_none_or(|own| own == *family)
                && probe
                    .dnat_from
                    .is_none_or(|sent_to| Family::of(sent_to.address) == *family)
        };

        Family::BOTH
            .into_iter()
            .filter(wanted)
            .filter(|family| self.address(from, *family).is_some())
            .filter(|family| self.address(to, *family).is_some())
            .collect()
    }

    /// Returns the first address of somebody in a family.
    fn address(&self, subject: &Subject, family: Family) -> Option<IpAddr> {
        let addresses = match &subject.who {
            Who::At(_, addresses) => addresses,
            Who::Service(name) => &self.cluster.services.get(name)?.addresses,
        };

        addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }

    fn flow(
        &self,
        probe: &Probe,
        from: &Subject,
        to: &Subject,
        target: Target,
        family: Family,
    ) -> Result<Flow, FieldError> {
        let Who::At(place, _) = &from.who else {
            let path = format!("{}.from", self.path);
            return Err(expected(&path, "somebody who can send", &from.name));
        };
        let (Some(source), Some(destination)) =
            (self.address(from, family), self.address(to, family))
        else {
            let message = format!("one of the two ends has no {family} address");
            return Err(FieldError::new(&self.path, message));
        };
        let bare = Packet {
            from: place.clone(),
            to: Place::Outside,
            header: header(probe, target, source, destination),
            translation: None,
        };
        let packets = match &to.who {
            Who::At(place, _) => vec![self.direct(probe, bare, place)],
            Who::Service(name) => self.to_service(&bare, name, target),
        };

        Ok(Flow {
            from: from.name.clone(),
            to: to.name.clone(),
            target,
            family,
            packets,
        })
    }

    fn direct(&self, probe: &Probe, packet: Packet, to: &Place) -> Packet {
        let port = packet.header.ports.map(|ports| ports.destination);
        let translation = probe.dnat_from.map(|sent_to| Translation {
            address: sent_to.address,
            port: sent_to.port.or(port).unwrap_or_default(),
            at: Translator::Last,
        });

        Packet {
            to: to.clone(),
            translation,
            ..packet
        }
    }

    /// Returns one packet for each endpoint that a service may choose.
    fn to_service(&self, packet: &Packet, name: &ServiceRef, target: Target) -> Vec<Packet> {
        let Some(service) = self.cluster.services.get(name) else {
            return Vec::new();
        };
        let header = packet.header;
        let chosen = service.backends.iter().filter(|backend| {
            backend.protocol == target.protocol
                && Some(backend.service_port) == target.port
                && Family::of(backend.address) == header.family()
        });

        chosen
            .map(|backend| Packet {
                from: packet.from.clone(),
                to: reference::place(self.cluster, backend.address),
                header: Header {
                    destination: backend.address,
                    ports: header.ports.map(|ports| Ports {
                        destination: backend.port,
                        ..ports
                    }),
                    ..header
                },
                translation: Some(Translation {
                    address: header.destination,
                    port: backend.service_port,
                    at: match packet.from {
                        Place::Pod(_) | Place::Node(_) => Translator::First,
                        Place::Outside => Translator::Last,
                    },
                }),
            })
            .collect()
    }
}

/// Puts the verdicts on the packets of one connection together: a service with endpoints that differ is mixed, one
/// without endpoints takes nothing. Of several, the decisions are those of the first that was denied.
fn judge(probe: &Probe, flow: &Flow, outcomes: &[Outcome]) -> Entry {
    let denied = outcomes.iter().find(|one| one.verdict == Verdict::Deny);
    let allowed = outcomes.iter().find(|one| one.verdict == Verdict::Allow);
    let verdict = match (denied, allowed) {
        (Some(_), Some(_)) => ProbeVerdict::Mixed,
        (None, Some(_)) => ProbeVerdict::Allow,
        (Some(_) | None, None) => ProbeVerdict::Deny,
    };
    let decisions: Vec<DecisionEntry> = denied
        .or(allowed)
        .map(|outcome| outcome.decisions.iter().map(DecisionEntry::from).collect())
        .unwrap_or_default();

    Entry {
        step: 0,
        probe: 0,
        from: flow.from.clone(),
        to: flow.to.clone(),
        family: number_of(flow.family),
        protocol: protocol_value(flow.target.protocol),
        port: flow.target.port,
        difference: difference(probe, verdict, &decisions),
        verdict,
        decisions,
    }
}

fn difference(
    probe: &Probe,
    verdict: ProbeVerdict,
    decisions: &[DecisionEntry],
) -> Option<Difference> {
    let wanted = probe.expected().unwrap_or(verdict);
    if wanted != verdict {
        return Some(Difference::Verdict(wanted.as_str()));
    }
    let by = probe.by.as_deref()?;
    let decided = match (by, verdict) {
        ("none", ProbeVerdict::Allow) => decisions.iter().all(nobody_decided),
        ("none", ProbeVerdict::Deny | ProbeVerdict::Mixed) => {
            decisions.last().is_none_or(nobody_decided)
        }
        (_, ProbeVerdict::Allow) => decisions.iter().any(|decision| is_by(decision, by)),
        (_, ProbeVerdict::Deny | ProbeVerdict::Mixed) => {
            decisions.last().is_some_and(|last| is_by(last, by))
        }
    };

    (!decided).then(|| Difference::By(by.to_owned()))
}

/// Returns whether no policy, tier or failsafe had a part in a decision.
fn nobody_decided(decision: &DecisionEntry) -> bool {
    decision.policy.is_none() && !decision.tier_default && !decision.failsafe
}

fn is_by(decision: &DecisionEntry, by: &str) -> bool {
    match by.split_once(' ') {
        None => by == "failsafe" && decision.failsafe,
        Some(("profile", name)) => decision.profile.as_deref() == Some(name),
        Some(("tier", name)) => decision.tier_default && decision.tier.as_deref() == Some(name),
        Some((kind, name)) => {
            let written = Kind::ALL.iter().find(|known| known.as_str() == kind);
            let kind = written.map_or(kind, |known| known.manifest_name());
            decision.policy.as_deref() == Some(format!("{kind} {name}").as_str())
        }
    }
}

/// Returns whether a text can be who decides.
fn is_cause(by: &str) -> bool {
    match by.split_once(' ') {
        None => matches!(by, "failsafe" | "none"),
        Some(("profile" | "tier", name)) => !name.is_empty(),
        Some((kind, name)) => {
            !name.is_empty()
                && Kind::ALL
                    .iter()
                    .any(|known| known.as_str() == kind || known.manifest_name() == kind)
        }
    }
}

fn header(probe: &Probe, target: Target, source: IpAddr, destination: IpAddr) -> Header {
    let echo_request = match target.protocol {
        Protocol::ICMP => Some(8),
        Protocol::ICMPV6 => Some(128),
        _ => None,
    };

    Header {
        source,
        destination,
        protocol: target.protocol,
        ports: target.port.map(|port| Ports {
            source: probe.source_port.unwrap_or(SOURCE_PORT),
            destination: port,
        }),
        icmp: echo_request.map(|kind| match probe.icmp {
            Some(icmp) => IcmpHeader {
                kind: icmp.kind,
                code: icmp.code,
            },
            None => IcmpHeader { kind, code: 0 },
        }),
    }
}

/// Reads `PROTOCOL/PORT`, or a protocol that has no ports.
fn parse_target(text: &str) -> Option<Target> {
    let Some((protocol, port)) = text.split_once('/') else {
        let protocol: Protocol = text.parse().ok()?;
        return (!carries_ports(protocol)).then_some(Target {
            protocol,
            port: None,
        });
    };
    let protocol: Protocol = protocol.parse().ok()?;
    let port = port.parse().ok()?;

    carries_ports(protocol).then_some(Target {
        protocol,
        port: Some(port),
    })
}

pub(super) fn port(text: &str, path: &str) -> Result<Target, FieldError> {
    parse_target(text).ok_or_else(|| expected(path, "PROTOCOL/PORT such as TCP/80", text))
}

/// Returns whether packets of a protocol have ports, whatever rules may say about them.
fn carries_ports(protocol: Protocol) -> bool {
    protocol.has_ports() || protocol == Protocol::UDPLITE
}

const fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}
