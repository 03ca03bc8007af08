//! Members of which only the store knows: what their agents would write, and how often.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};
use model::{
    Family, Kind, NodeName, Object, ObjectKey, Phase, PublicKey, Record,
    action::NodePublication,
    record::{RECORD_VERSION, TunnelClaim},
    resource::{AddressClaim, IpamBlock, KeyClaim, ipam_block::Attribute},
};

/// The first of the ghosts' addresses; the real hosts have the first few of the network.
const FIRST: u32 = u32::from_be_bytes([100, 64, 16, 0]);

/// The first of their blocks, in a pool of their own.
const BLOCK: u32 = u32::from_be_bytes([10, 66, 0, 0]);

/// A member that is only written about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ghost(pub(crate) u32);

impl Ghost {
    /// Everything that the store holds of it.
    pub(crate) fn objects(self) -> anyhow::Result<Vec<Object>> {
        let claim = AddressClaim {
            address: self.address(),
            node: self.name(),
        };

        Ok(vec![
            KeyClaim::new(self.key(), self.name()).to_object(),
            claim.to_object(),
            self.block(0),
            self.node(1)?,
        ])
    }

    /// Its Node, as its agent publishes it for the `epoch`th time.
    pub(crate) fn node(self, epoch: u64) -> anyhow::Result<Object> {
        let record = Record {
            version: RECORD_VERSION,
            node: self.name(),
            epoch,
            tunnels: vec![TunnelClaim {
                key: self.key(),
                port: 51820,
                families: Family::BOTH.to_vec(),
            }],
            endpoints: vec![self.address()],
            addresses: vec![self.address()],
            phase: Phase::Enforced,
            conditions: BTreeMap::new(),
            signature: None,
            unknown: BTreeMap::new(),
        };
        let publication = NodePublication {
            node: self.name(),
            record,
            addresses: [(Family::V4, IpNet::new(self.address(), 16)?)].into(),
            tunnel_addresses: BTreeMap::new(),
            keys: [(Family::V4, self.key())].into(),
        };
        let key = ObjectKey::cluster(Kind::Node, self.name().as_str());
        let mut object = Object::new(&key, serde_json::json!({}));
        publication.apply_to(&mut object)?;

        Ok(object)
    }

    /// Its block after so many of its pods came or went.
    pub(crate) fn block(self, changes: u64) -> Object {
        let network = BLOCK + (self.0 << 6);
        let cidr: IpNet = Ipv4Net::new_assert(network.into(), 26).into();
        let mut block = IpamBlock {
            cidr,
            affinity: Some(self.name()),
            deleted: false,
            allocations: BTreeMap::new(),
            unallocated: (0..64).collect(),
            attributes: vec![],
            sequence_number: changes,
            sequence_number_for_allocation: BTreeMap::new(),
            affinity_claim_time: None,
        };
        if !changes.is_multiple_of(2) {
            block.unallocated.retain(|ordinal| *ordinal != 0);
            block.allocations.insert(0, 0);
            block.attributes.push(Attribute {
                handle_id: Some(format!("k8s-pod-network.{changes}")),
                ..Attribute::default()
            });
        }

        block.to_object()
    }

    fn name(self) -> NodeName {
        let name = format!("ghost{}", self.0);

        name.parse().expect("letters and digits name a node")
    }

    fn address(self) -> IpAddr {
        IpAddr::V4((FIRST + self.0).into())
    }

    fn key(self) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&self.0.to_be_bytes());

        PublicKey::new(bytes).expect("the rest is not zero")
    }
}
