//! Calico's NetworkSet and GlobalNetworkSet.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{FieldError, field};
use crate::{Object, policy::NetworkSet};

/// The form in which a store keeps a set's `spec`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    nets: Option<Vec<String>>,
}

impl TryFrom<&Object> for NetworkSet {
    type Error = FieldError;

    /// Reads a set of either kind; networks that cannot be read are in [`NetworkSet::invalid`].
    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let (mut nets, mut invalid) = (Vec::new(), BTreeMap::new());
        for (index, text) in stored.nets.unwrap_or_default().iter().enumerate() {
            match field::network_or_address(text, &format!("spec.nets[{index}]")) {
                Ok(net) => nets.push(net.trunc()),
                Err(error) => {
                    invalid.insert(error.field, error.message);
                }
            }
        }

        Ok(Self {
            key: object.key(),
            labels: object.metadata.labels.clone(),
            nets,
            invalid,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn a_network_that_cannot_be_read_costs_no_other() {
        let key = ObjectKey::namespaced(Kind::NetworkSet, "shop", "s");
        let spec = json!({"nets": ["10.1.2.3/8", "192.0.2.1", "10.0.0.0/33", "fd00::1"]});

        let set = NetworkSet::try_from(&Object::new(&key, spec)).unwrap();

        let nets = ["10.0.0.0/8", "192.0.2.1/32", "fd00::1/128"];
        assert_eq!(set.nets, nets.map(|net| net.parse().unwrap()));
        assert_eq!(set.invalid.keys().collect::<Vec<_>>(), ["spec.nets[2]"]);
        assert_eq!(set.key, key);
    }
}
