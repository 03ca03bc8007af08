//! To an endpoint or from it.

use serde::{Deserialize, Serialize};

/// Which way a packet goes, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// The directions in which a policy applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Directions {
    /// To the endpoint.
    pub ingress: bool,
    /// From the endpoint.
    pub egress: bool,
}

impl Directions {
    /// Returns whether a direction is among them.
    pub const fn contains(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}
