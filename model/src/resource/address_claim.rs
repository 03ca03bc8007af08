//! A granted underlay address.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{FieldError, field, key_claim::StoredClaim};
use crate::{Kind, NodeName, Object, ObjectKey};

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

impl AddressClaim {
    /// Returns the name of the claim for an address: `192.0.2.1`, `2001-db8--1`, `x--1`.
    pub fn object_name(address: IpAddr) -> String {
        let mut name = address.to_string().replace(':', "-");
        if name.starts_with('-') {
            name.insert(0, 'x');
        }
        if name.ends_with('-') {
            name.push('x');
        }

        name
    }

    /// Returns the address that a name stands for.
    ///
    /// `None` unless it is exactly as [`object_name`](Self::object_name) writes it.
    pub fn parse_name(name: &str) -> Option<IpAddr> {
        let address = name
            .parse::<std::net::Ipv4Addr>()
            .map(IpAddr::V4)
            .or_else(|_| {
                name.trim_matches('x')
                    .replace('-', ":")
                    .parse::<std::net::Ipv6Addr>()
                    .map(IpAddr::V6)
            });

        address
            .ok()
            .filter(|address| Self::object_name(*address) == name)
    }

    /// Returns the object that a store keeps.
    pub fn to_object(&self) -> Object {
        let key = ObjectKey::cluster(Kind::AddressClaim, Self::object_name(self.address));

        Object::new(&key, json!({"node": self.node}))
    }
}

impl TryFrom<&Object> for AddressClaim {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        let name = &object.metadata.name;
        let address = Self::parse_name(name).ok_or_else(|| {
            let written = "an address, with each `:` written as `-`";
            field::expected("metadata.name", written, name.as_str())
        })?;
        let stored: StoredClaim = field::part(object, "spec")?;
        let node = field::required(stored.node, "spec.node", "the name of a node")?;

        Ok(Self {
            address,
            node: field::node(&node, "spec.node")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::is_dns_subdomain;

    #[test]
    fn a_claim_is_named_by_its_address() {
        for (address, name) in [
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001-db8--1"),
            ("::1", "x--1"),
            ("fe80::", "fe80--x"),
            ("::", "x--x"),
        ] {
            assert_eq!(AddressClaim::object_name(address.parse().unwrap()), name);
        }
        for not_canonical in [
            "2001-0db8--1",
            "x192.0.2.1",
            "x2001-db8--1",
            "2001-DB8--1",
            "n1",
        ] {
            assert_eq!(
                AddressClaim::parse_name(not_canonical),
                None,
                "{not_canonical}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_address_has_a_dns_name_that_leads_back_to_it(v6: bool, bits: u128, hole in 0u32..128) {
            let bits = bits & (u128::MAX << hole);
            let address = if v6 {
                IpAddr::from(bits.to_be_bytes())
            } else {
                IpAddr::from(((bits >> 96) as u32).to_be_bytes())
            };

            let name = AddressClaim::object_name(address);

            prop_assert!(is_dns_subdomain(&name), "{}", name);
            prop_assert_eq!(AddressClaim::parse_name(&name), Some(address));
        }
    }
}
