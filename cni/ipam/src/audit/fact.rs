//! What is true outside the records, read from a store's objects.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Kind, Object, ObjectKey,
    resource::{FieldError, IpPool, Node, WorkloadEndpoint},
};

use super::{Facts, PodFact, Snapshot};

impl Snapshot {
    /// Kinds of which every object is to be listed, before the [facts](Facts::KINDS).
    pub const KINDS: [Kind; 3] = [Kind::IPAMHandle, Kind::BlockAffinity, Kind::IPAMBlock];
}

impl Facts {
    /// Kinds of which every object is to be listed, behind the [records](Snapshot::KINDS).
    pub const KINDS: [Kind; 3] = [Kind::IPPool, Kind::Node, Kind::WorkloadEndpoint];

    /// Reads the facts out of a store whose pods are its endpoints; other kinds are passed over.
    ///
    /// # Errors
    ///
    /// The first object that cannot be read: whoever is not understood must not look gone.
    pub fn of(objects: &[Object]) -> Result<Self, (ObjectKey, FieldError)> {
        let mut facts = Self::default();
        for object in objects {
            facts
                .take_in(object)
                .map_err(|error| (object.key(), error))?;
        }

        Ok(facts)
    }

    fn take_in(&mut self, object: &Object) -> Result<(), FieldError> {
        if object.kind == Kind::IPPool {
            self.pools.push(IpPool::try_from(object)?);
        } else if object.kind == Kind::Node {
            let node = Node::try_from(object)?;
            let tunnels: Vec<IpAddr> = node.tunnel_addresses.clone();
            self.tunnels
                .entry(node.name.clone())
                .or_default()
                .extend(tunnels);
            self.nodes.insert(node.name, node.labels);
        } else if object.kind == Kind::WorkloadEndpoint {
            let endpoint = WorkloadEndpoint::try_from(object)?;
            let fact = PodFact {
                node: endpoint.node,
                addresses: Some(endpoint.addresses.iter().map(IpNet::addr).collect()),
            };
            self.pods.insert(endpoint.pod, fact);
        }

        Ok(())
    }
}
