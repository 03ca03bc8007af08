//! What is asked when no tier has decided, and labels that are inherited.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Direction, Rule};

/// Rules behind the last tier, and labels for the endpoints that name it: Calico's Profile. Namespaces (`kns.NAME`) and
/// service accounts (`ksa.NAMESPACE.NAME`) are profiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Rules for what comes to the endpoint, in order.
    pub ingress: Vec<Rule>,
    /// Rules for what the endpoint sends, in order.
    pub egress: Vec<Rule>,
    /// Labels that its endpoints have unless they carry the same key themselves.
    pub labels: BTreeMap<String, String>,
    /// Entries that cannot be used: path and reason, as in [`Policy::invalid`](super::Policy::invalid).
    #[serde(default)]
    pub invalid: BTreeMap<String, String>,
}

impl Profile {
    /// Returns the rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}
