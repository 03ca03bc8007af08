//! Networks with labels.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ObjectKey;

/// Networks that selectors select by labels: Calico's NetworkSet and GlobalNetworkSet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSet {
    /// The object that it was read from.
    pub key: ObjectKey,
    /// Its own labels; a NetworkSet's namespace adds `projectcalico.org/namespace` and its `pcns.` labels.
    pub labels: BTreeMap<String, String>,
    /// The networks.
    pub nets: Vec<IpNet>,
    /// Networks that cannot be read: path and reason.
    #[serde(default)]
    pub invalid: BTreeMap<String, String>,
}
