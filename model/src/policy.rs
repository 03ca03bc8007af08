//! Policy as the evaluator and the compiler see it: every kind of policy object becomes this one form.
//!
//! Conversion ends here: selectors are composed (namespace, service account and the object's own), Kubernetes' peers
//! and ports are rules, `types` is decided. What is left is order, matching and action (Calico's semantics).

mod direction;
mod failsafe;
mod host_endpoint;
pub mod order;
mod port;
mod profile;
mod rule;
mod set;
mod tier;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::{
    direction::{Direction, Directions},
    failsafe::Failsafe,
    host_endpoint::{HostEndpoint, HostInterface},
    port::{NamedPort, NotAPort, PortMatch},
    profile::Profile,
    rule::{Action, Icmp, Protocol, Rule, RuleRef, ServiceRef, Side, UnknownProtocol},
    set::NetworkSet,
    tier::{ADMIN_TIER, BASELINE_TIER, DEFAULT_TIER, Tier, TierAction},
};
use crate::{ObjectKey, Selector};

/// A policy of any kind: whom it selects, and the rules for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The object that it was read from.
    pub key: ObjectKey,
    /// Its tier's name.
    pub tier: String,
    /// Its place in the tier, smallest first; without one it stands behind all that have one.
    pub order: Option<f64>,
    /// Which endpoints it selects: namespace, service account and the object's own selector in one.
    pub selector: Selector,
    /// The directions in which it applies, also without a rule.
    pub types: Directions,
    /// Rules for what comes to the endpoint, in order.
    pub ingress: Vec<Rule>,
    /// Rules for what the endpoint sends, in order.
    pub egress: Vec<Rule>,
    /// At which point of the packet's way it is asked.
    pub stage: Stage,
    /// Whether a host endpoint asks it for forwarded packets too.
    pub apply_on_forward: bool,
    /// A staged policy decides nothing; this is what applying it would do.
    pub staged: Option<StagedAction>,
    /// Entries that cannot be used: path and reason. In their place stands what lets less through (an `Allow` is left
    /// out, everything else denies). A store refuses such an object on apply; one that is there already stays in force.
    #[serde(default)]
    pub invalid: BTreeMap<String, String>,
}

/// At which point of a packet's way a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// `doNotTrack`: before connection tracking, host endpoints only, both directions for themselves.
    Untracked,
    /// `preDNAT`: before destination NAT, host endpoints only, ingress only.
    PreDnat,
    /// Everything else.
    Normal,
}

/// What a staged policy stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StagedAction {
    /// The policy would be created or replaced.
    Set,
    /// The policy of that name would be deleted.
    Delete,
    /// Suggested by a program that learns from traffic.
    Learn,
    /// To be passed over.
    Ignore,
}

impl Policy {
    /// Returns the rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}
