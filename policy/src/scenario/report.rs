//! Verdicts as people and programs read them.

use model::{ObjectKey, policy::Protocol};
use serde::Serialize;
use serde_json::{Value, json};

use super::probe::Difference;
use crate::decision::{Cause, Decision, Verdict};

/// Everything that a policy test found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The verdicts, in the order of steps and probes.
    pub verdicts: Vec<Entry>,
    /// Objects that were refused.
    pub errors: Vec<ResourceError>,
}

/// An object that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResourceError {
    /// The object: `KIND [NAMESPACE/]NAME`, or where it stands.
    pub resource: String,
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// The verdict on one packet of a probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// 0 is the state before the steps.
    pub step: usize,
    /// The probe's place in its list, from 0.
    pub probe: usize,
    /// Who sends.
    pub from: String,
    /// Who is to get it.
    pub to: String,
    /// 4 or 6.
    pub family: u8,
    /// The protocol: its name, else its number.
    pub protocol: Value,
    /// The port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What becomes of it.
    pub verdict: ProbeVerdict,
    /// Who decided, in packet order, up to the first Deny.
    pub decisions: Vec<DecisionEntry>,
    /// How it differs from what the probe expects.
    #[serde(skip)]
    pub difference: Option<Difference>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ProbeVerdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// It depends on which endpoint the service chooses.
    Mixed,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionEntry {
    /// `egress`, `ingress`, `forward`, `preDNAT` or `untracked`.
    pub point: &'static str,
    /// `NAMESPACE/POD` or `node/NODE INTERFACE`.
    pub endpoint: String,
    /// `Allow` or `Deny`.
    pub verdict: &'static str,
    /// The tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// The policy: `KIND [NAMESPACE/]NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The rule's place in the policy's list of that direction, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// The profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// It is the tier's default action.
    #[serde(skip_serializing_if = "is_false")]
    pub tier_default: bool,
    /// It is a failsafe port, or a tunnel's own packet.
    #[serde(skip_serializing_if = "is_false")]
    pub failsafe: bool,
    /// It is a field of FelixConfiguration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setting: Option<&'static str>,
}

impl From<Verdict> for ProbeVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

impl ProbeVerdict {
    /// Returns the word that reports use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::Mixed => "Mixed",
        }
    }
}

impl From<&Decision> for DecisionEntry {
    fn from(decision: &Decision) -> Self {
        let bare = Self {
            point: decision.point.as_str(),
            endpoint: decision.endpoint.clone(),
            verdict: decision.verdict.as_str(),
            tier: None,
            policy: None,
            rule: None,
            profile: None,
            tier_default: false,
            failsafe: false,
            setting: None,
        };
        match &decision.cause {
            Cause::Rule(rule) => Self {
                tier: rule.tier.clone(),
                policy: Some(object_name(&rule.object)),
                rule: Some(rule.index),
                ..bare
            },
            Cause::Profile(profile) => Self {
                profile: Some(profile.clone()),
                ..bare
            },
            Cause::TierDefault(tier) => Self {
                tier: Some(tier.clone()),
                tier_default: true,
                ..bare
            },
            Cause::Failsafe => Self {
                failsafe: true,
                ..bare
            },
            Cause::Setting(field) => Self {
                setting: Some(field),
                ..bare
            },
            Cause::Nobody => bare,
        }
    }
}

impl DecisionEntry {
    /// Returns who decided, in words.
    pub fn by(&self) -> String {
        if let (Some(policy), Some(rule)) = (&self.policy, self.rule) {
            return format!("{policy} rule {rule}");
        }
        if let (Some(tier), true) = (&self.tier, self.tier_default) {
            return format!("end of tier {tier}");
        }
        if let Some(profile) = &self.profile {
            return format!("profile {profile}");
        }

        match (self.failsafe, self.setting) {
            (true, _) => "failsafe".to_owned(),
            (false, Some(field)) => format!("FelixConfiguration {field}"),
            (false, None) => "nothing allows it".to_owned(),
        }
    }
}

/// Returns an object's kind, as YAML writes it, and its name.
pub(crate) fn object_name(key: &ObjectKey) -> String {
    let kind = key.kind.manifest_name();
    match &key.namespace {
        Some(namespace) => format!("{kind} {namespace}/{}", key.name),
        None => format!("{kind} {}", key.name),
    }
}

/// Returns a protocol's name, or its number if it has none.
pub(super) fn protocol_value(protocol: Protocol) -> Value {
    let text = protocol.to_string();
    if text.parse::<u8>().is_ok() {
        return json!(protocol.0);
    }

    json!(text)
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over references"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}
