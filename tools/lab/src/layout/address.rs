//! Giving addresses out: to devices from their network's subnets, to pods of a plain lab from its pools.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Device, Host, LayoutError, PLAIN_POOLS, PlainPod};
use crate::spec::{Attachment, Spec};

/// From which end of a subnet an address is taken.
#[derive(Clone, Copy)]
pub(super) enum End {
    Bottom,
    Top,
}

/// What is taken already.
pub(super) struct Addresses {
    taken: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Everything that the file asks for by name is taken first.
    pub(super) fn reserve(spec: &Spec) -> Result<Self, LayoutError> {
        let attachments = (spec.nodes.iter().map(|host| &host.networks))
            .chain(spec.routers.iter().map(|host| &host.networks))
            .chain(spec.outside.iter().map(|host| &host.networks))
            .chain(spec.server.iter().map(|host| &host.networks))
            .flatten();
        let mut taken = BTreeSet::new();
        let own = spec.outside.iter().flat_map(|host| &host.addresses);
        for address in attachments.flat_map(|a| &a.addresses).chain(own) {
            if !taken.insert(*address) {
                return Err(LayoutError::Duplicate(*address));
            }
        }
        Ok(Self { taken })
    }

    pub(super) fn devices(
        &mut self,
        spec: &Spec,
        attachments: &[Attachment],
        end: End,
    ) -> Result<Vec<Device>, LayoutError> {
        let mut devices = Vec::new();
        for (index, attachment) in attachments.iter().enumerate() {
            let network = spec.networks.iter().position(|n| n.name == attachment.name);
            let network = network.expect("the reader checked that the network exists");
            let mut addresses = Vec::new();
            for cidr in &spec.networks[network].cidrs {
                addresses.extend(self.on(*cidr, &attachment.addresses, end)?);
            }
            devices.push(Device {
                name: format!("eth{index}"),
                network,
                addresses,
            });
        }
        Ok(devices)
    }

    fn on(&mut self, cidr: IpNet, asked: &[IpAddr], end: End) -> Result<Vec<IpNet>, LayoutError> {
        let prefixed = |address| {
            IpNet::new(address, cidr.prefix_len()).expect("the subnet's own prefix length is legal")
        };
        if !asked.is_empty() {
            let inside = asked.iter().filter(|address| cidr.contains(*address));
            return Ok(inside.map(|address| prefixed(*address)).collect());
        }
        let room = 1u128 << (cidr.max_prefix_len() - cidr.prefix_len()).min(8);
        let offsets = 1..room - 1;
        let free = |offset: &u128| !self.taken.contains(&nth(cidr, *offset));
        let offset = match end {
            End::Bottom => offsets.clone().find(free),
            End::Top => offsets.rev().find(free),
        };
        let address = nth(cidr, offset.ok_or(LayoutError::Exhausted(cidr))?);
        self.taken.insert(address);
        Ok(vec![prefixed(address)])
    }
}

/// The address of the `host`-th host on a network that it comes to late: above all that the file gives.
pub(super) fn late(cidr: IpNet, host: usize) -> IpNet {
    let room = 1u128 << (cidr.max_prefix_len() - cidr.prefix_len()).min(8);
    let address = nth(cidr, room / 2 + host as u128 % (room / 2));
    IpNet::new(address, cidr.prefix_len()).expect("the subnet's own prefix length is legal")
}

/// The address `offset` places above the subnet's first.
fn nth(cidr: IpNet, offset: u128) -> IpAddr {
    match cidr {
        IpNet::V4(net) => {
            let base = u32::from(net.network());
            IpAddr::V4(Ipv4Addr::from(
                base + u32::try_from(offset).expect("offsets are under 256"),
            ))
        }
        IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.network()) + offset)),
    }
}

/// Gives the pods of a plain lab addresses of the families their node has.
pub(super) fn plain_pods(spec: &Spec, hosts: &[Host]) -> Vec<PlainPod> {
    let mut pods = Vec::new();
    for (index, node) in spec.nodes.iter().enumerate() {
        let families = hosts[index].addresses();
        for (nth_pod, pod) in node.pods.iter().enumerate() {
            let chosen = || plain_addresses(&families, index, nth_pod);
            let given = || pod.addresses.clone();
            let addresses = if pod.addresses.is_empty() {
                chosen()
            } else {
                given()
            };
            pods.push(PlainPod {
                node: node.name.clone(),
                pod: pod.full_name(),
                addresses,
            });
        }
    }
    pods
}

/// The addresses of the `pod`-th pod of the `node`-th node, in the families that `underlay` has.
pub(crate) fn plain_addresses(underlay: &[IpAddr], node: usize, pod: usize) -> Vec<IpAddr> {
    let offset = node as u128 * 256 + pod as u128 + 2;
    let pools = PLAIN_POOLS
        .iter()
        .map(|pool| pool.parse().expect("the plain pools are prefixes"));
    let wanted = pools.filter(|pool: &IpNet| {
        underlay
            .iter()
            .any(|address| address.is_ipv4() == pool.addr().is_ipv4())
    });
    wanted.map(|pool| nth(pool, offset)).collect()
}
