//! A granted underlay address.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::NodeName;

/// Grants an underlay address to one node.
///
/// The object's name is the address, with `:` written as `-` and `x` put at an
/// end that would otherwise be a `-` (names are DNS subdomains).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressClaim {
    /// The address.
    pub address: IpAddr,
    /// Who may use it.
    pub node: NodeName,
}
