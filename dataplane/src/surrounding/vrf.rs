//! VRFs: devices that have a routing table of their own, to which other devices belong (`l3mdev`).
//!
//! What comes in by a device of a VRF is looked up in the VRF's table, and reaches only sockets that are
//! bound to it (`udp_l3mdev_accept` aside): a tunnel's socket is not. Whose device that is, is said by
//! name; nobody is moved.

use std::collections::BTreeSet;

use model::{
    InterfaceName, Plan,
    conflict::{Membership, Role, Traffic},
};

use super::{
    Way, Ways,
    probe::{Answer, By, answer},
};
use crate::{
    link::{Link, Links},
    netlink::{NetlinkError, Socket},
};

/// How many VRFs are asked whether they know a way to a peer.
const ASKED: usize = 8;

/// A VRF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Domain {
    index: u32,
    pub(super) vrf: InterfaceName,
    pub(super) table: u32,
}

impl Domain {
    /// Reads a VRF; `None` of any other link.
    fn read(link: &Link) -> Option<Self> {
        Some(Self {
            index: link.index,
            vrf: link.name.clone(),
            table: link.vrf_table?,
        })
    }

    /// Returns the VRF that a link belongs to.
    pub(super) fn of(link: &Link, links: &Links) -> Option<Self> {
        Self::read(links.by_index(link.master?)?)
    }

    /// A VRF of a test.
    #[cfg(test)]
    pub(super) fn example(name: &str, table: u32) -> Self {
        Self {
            index: 1,
            vrf: name.parse().unwrap(),
            table,
        }
    }

    fn of_device(&self, link: &Link, role: Role) -> Membership {
        Membership {
            device: link.name.clone(),
            role,
            vrf: self.vrf.clone(),
            table: self.table,
        }
    }
}

/// The devices of pods, of which one stands for all in a VRF.
pub(super) fn pods(plan: &Plan) -> BTreeSet<InterfaceName> {
    let pods = plan.pods.rows().values();

    pods.take(super::SAMPLE)
        .map(|pod| pod.host.clone())
        .collect()
}

/// Returns which devices of ours, or on our way to peers, belong to a VRF.
pub(super) fn memberships(
    socket: &mut Socket,
    ways: &Ways,
    links: &Links,
) -> Result<BTreeSet<Membership>, NetlinkError> {
    let mut found = BTreeSet::new();
    let domains: Vec<Domain> = links.iter().filter_map(Domain::read).collect();
    if domains.is_empty() {
        return Ok(found);
    }
    for (devices, role) in [(&ways.tunnels, Role::Tunnel), (&ways.pods, Role::Pod)] {
        let of_role = devices.iter().filter_map(|device| {
            let link = links.by_name(device)?;
            Some(Domain::of(link, links)?.of_device(link, role))
        });
        found.extend(of_role.take(1));
    }
    for way in ways
        .ways
        .iter()
        .filter(|way| way.traffic == Traffic::Tunnel)
    {
        found.extend(underlay(socket, way, &domains, links)?);
    }

    Ok(found)
}

/// Returns the device of a VRF by which a peer is reached, where no other device leads to it.
fn underlay(
    socket: &mut Socket,
    way: &Way,
    domains: &[Domain],
    links: &Links,
) -> Result<Option<Membership>, NetlinkError> {
    let by_device = |answer: Option<Answer>| match answer {
        Some(Answer::Route { device, .. }) => links.by_index(device),
        Some(Answer::Refused) | None => None,
    };
    let plain = by_device(answer(socket, way, &way.packet, By::Any)?);
    if let Some(link) = plain {
        let domain = Domain::of(link, links);
        return Ok(domain.map(|domain| domain.of_device(link, Role::Underlay)));
    }
    for domain in domains.iter().take(ASKED) {
        let inside = by_device(answer(socket, way, &way.packet, By::Out(domain.index))?);
        if let Some(link) = inside.filter(|link| link.master == Some(domain.index)) {
            return Ok(Some(domain.of_device(link, Role::Underlay)));
        }
    }

    Ok(None)
}
