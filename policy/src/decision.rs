//! A verdict, and who gave it.

use model::policy::{Direction, RuleRef};
use serde::{Deserialize, Serialize};

/// What becomes of a packet, and who decided on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it passes everywhere, and its answer too.
    pub verdict: Verdict,
    /// Every point where somebody decided, in packet order, up to the first Deny.
    pub decisions: Vec<Decision>,
}

/// Whether a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

/// What was decided at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The point.
    pub point: Point,
    /// The endpoint: `NAMESPACE/POD`, or `node/NODE INTERFACE`.
    pub endpoint: String,
    /// What was decided.
    pub verdict: Verdict,
    /// By whom.
    pub cause: Cause,
}

/// A point on a packet's way where policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Point {
    /// What a pod or a host sends.
    Egress,
    /// What a pod or a host is to get.
    Ingress,
    /// What a host forwards.
    Forward,
    /// What comes to a host, before its destination is translated.
    #[serde(rename = "preDNAT")]
    PreDnat,
    /// What comes to a host or leaves it, before connections are tracked.
    Untracked,
}

/// Who decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A policy's rule.
    Rule(RuleRef),
    /// A profile's rule.
    Profile(String),
    /// The default action of a tier, one of whose policies selects the endpoint.
    TierDefault(String),
    /// A failsafe port, or a tunnel's own packets.
    Failsafe,
    /// A field of FelixConfiguration.
    Setting(&'static str),
    /// Nobody: no policy and no profile allows it.
    Nobody,
}

impl Verdict {
    /// Returns the word that reports use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
        }
    }
}

impl Point {
    /// Returns the word that reports use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Forward => "forward",
            Self::PreDnat => "preDNAT",
            Self::Untracked => "untracked",
        }
    }
}

impl Outcome {
    /// Returns the decision that a denied packet died of.
    pub fn denied_by(&self) -> Option<&Decision> {
        self.decisions
            .last()
            .filter(|decision| decision.verdict == Verdict::Deny)
    }
}

impl From<Direction> for Point {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}
