//! A member of the mesh, in the form of Calico's Node.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{NodeName, PublicKey, Record, record::RecordError};

/// A member of the mesh: Calico's Node with our record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its labels, which only an administrator writes.
    pub labels: BTreeMap<String, String>,
    /// `spec.bgp.ipv4Address` and `ipv6Address`: the node's own address per family, with its subnet.
    pub addresses: Vec<IpNet>,
    /// `spec.wireguard`: the tunnel devices' addresses.
    pub tunnel_addresses: Vec<IpAddr>,
    /// `status.wireguardPublicKey`; `Err` says why it is not usable.
    pub key_v4: Option<Result<PublicKey, String>>,
    /// `status.wireguardPublicKeyV6`.
    pub key_v6: Option<Result<PublicKey, String>>,
    /// The record; `None` on a stock Calico node, `Err` says why it is disabled.
    pub record: Option<Result<Record, String>>,
}

impl From<RecordError> for String {
    fn from(error: RecordError) -> Self {
        error.to_string()
    }
}
