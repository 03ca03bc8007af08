//! Ports as rules name them, and ports that endpoints give names to.

use serde::{Deserialize, Serialize};

use super::Protocol;

/// One entry of a rule's list of ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortMatch {
    /// First and last; a single port is both.
    Range(u16, u16),
    /// Whatever number the endpoint gives the name, with the protocol that it names.
    Named(String),
}

/// A port to which an endpoint gives a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}
