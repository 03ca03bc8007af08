//! What an agent is told at its start and never again.

use model::NodeName;
use serde::{Deserialize, Serialize};

/// What an agent is told at its start; everything else is an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// This node.
    pub node: NodeName,
}

impl Config {
    /// Creates the configuration of a node.
    pub fn new(node: NodeName) -> Self {
        Self { node }
    }
}
