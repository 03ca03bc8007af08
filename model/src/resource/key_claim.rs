//! A granted WireGuard key.

use serde::{Deserialize, Serialize};

use crate::NodeName;

/// Grants the key whose hash is its name to one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyClaim {
    /// SHA-256 of the public key, lower-case hex.
    pub name: String,
    /// Who may use the key.
    pub node: NodeName,
}
