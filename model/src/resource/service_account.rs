//! Kubernetes' ServiceAccount, and the profile that it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FieldError, field, namespace::inherited};
use crate::{Object, policy::Profile, selector::SERVICE_ACCOUNT_PREFIX};

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl ServiceAccount {
    /// Returns the name of a service account's profile: `ksa.NAMESPACE.NAME`.
    pub fn profile_name(namespace: &str, name: &str) -> String {
        format!("ksa.{namespace}.{name}")
    }

    /// Returns the profile that pods of the service account have: no rules, and the labels, each with `pcsa.` before
    /// it, and the name as `pcsa.projectcalico.org/name`.
    pub fn profile(&self) -> Profile {
        Profile {
            name: Self::profile_name(&self.namespace, &self.name),
            ingress: Vec::new(),
            egress: Vec::new(),
            labels: inherited(SERVICE_ACCOUNT_PREFIX, &self.name, &self.labels),
            invalid: BTreeMap::new(),
        }
    }
}

impl TryFrom<&Object> for ServiceAccount {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        Ok(Self {
            namespace: field::namespace(object)?,
            name: object.metadata.name.clone(),
            labels: object.metadata.labels.clone(),
        })
    }
}
