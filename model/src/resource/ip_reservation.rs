//! Addresses that are never handed out unasked: Calico's IPReservation.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{FieldError, field};
use crate::Object;

/// Reserved ranges. Somebody who asks for such an address by itself still gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpReservation {
    /// The object's name.
    pub name: String,
    /// The ranges; a single address is one of its own.
    pub ranges: Vec<IpNet>,
}

/// The form in which a store keeps the `spec`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    #[serde(rename = "reservedCIDRs")]
    ranges: Option<Vec<String>>,
}

impl IpReservation {
    /// Returns whether an address is reserved.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }
}

impl TryFrom<&Object> for IpReservation {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let stored: Stored = field::part(object, "spec")?;
        let ranges = stored.ranges.unwrap_or_default();
        let read = |(place, text): (usize, &String)| {
            let path = format!("spec.reservedCIDRs[{place}]");
            field::network_or_address(text, &path).map(|range| range.trunc())
        };

        Ok(Self {
            name: object.metadata.name.clone(),
            ranges: ranges
                .iter()
                .enumerate()
                .map(read)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn a_reservation_holds_its_ranges_and_single_addresses() {
        let spec = json!({"reservedCIDRs": ["10.65.0.0/30", "fd00::7"]});
        let reservation = IpReservation::try_from(&object(spec)).unwrap();

        for (address, expected) in [
            ("10.65.0.3", true),
            ("10.65.0.4", false),
            ("fd00::7", true),
            ("fd00::8", false),
        ] {
            let found = reservation.contains(address.parse().unwrap());
            assert_eq!(found, expected, "{address}");
        }
    }

    #[test]
    fn a_bad_range_is_named() {
        let spec = json!({"reservedCIDRs": ["10.65.0.0/30", "all"]});
        let error = IpReservation::try_from(&object(spec)).unwrap_err();

        assert_eq!(error.field, "spec.reservedCIDRs[1]");
    }

    fn object(spec: Value) -> Object {
        Object::new(&ObjectKey::cluster(Kind::IPReservation, "r"), spec)
    }
}
