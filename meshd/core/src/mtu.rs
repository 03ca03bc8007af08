//! How large a packet may be, by the link that carries it.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use model::{
    Family, InterfaceName,
    event::{Link, LinkKind},
    overhead::{Encapsulation, WIREGUARD_PADDING, inner_mtu, least_mtu},
};

/// MTU of a link that nobody told us about: Ethernet's.
const UNKNOWN: u32 = 1500;

/// Returns the MTU inside a tunnel to this endpoint, in bytes.
pub(crate) fn towards(links: &BTreeMap<InterfaceName, Link>, endpoint: IpAddr) -> u32 {
    let layer = Encapsulation::WireGuard(Family::of(endpoint));

    inner_mtu(link_towards(links, endpoint), &[layer])
}

/// Returns the MTU of packets of this family in a tunnel to this endpoint: what was configured, or less
/// where the link carries less, but never less than the family needs.
pub(crate) fn of_way(
    links: &BTreeMap<InterfaceName, Link>,
    endpoint: IpAddr,
    configured: Option<u32>,
    family: Family,
) -> u32 {
    let link = towards(links, endpoint);

    carrying(configured.map_or(link, |mtu| mtu.min(link)), [family])
}

/// Returns the MTU of a route by a device that takes more than the way carries.
///
/// WireGuard pads packets, and only the device's own MTU keeps it from padding beyond what the way carries.
pub(crate) fn of_route(way: u32, device: u32) -> Option<u32> {
    (way < device).then_some(way - way % WIREGUARD_PADDING)
}

/// Returns this MTU, or the least with which a device carries these families: then WireGuard's own
/// packets are cut where IPv4 is outside.
pub(crate) fn carrying(mtu: u32, families: impl IntoIterator<Item = Family>) -> u32 {
    families.into_iter().map(least_mtu).fold(mtu, u32::max)
}

/// Returns the tunnels' MTU where no peer says better: the smallest that any link of ours allows.
pub(crate) fn without_peers(links: &BTreeMap<InterfaceName, Link>) -> u32 {
    underlay(links)
        .flat_map(|link| {
            let families = link.addresses.iter().map(Family::of_net);
            families.map(|family| inner_mtu(link.mtu, &[Encapsulation::WireGuard(family)]))
        })
        .min()
        .unwrap_or_else(|| inner_mtu(UNKNOWN, &[Encapsulation::WireGuard(Family::V6)]))
}

/// Returns the address of ours in the same subnet, if there is one.
pub(crate) fn subnet_of(links: &BTreeMap<InterfaceName, Link>, address: IpAddr) -> Option<IpNet> {
    underlay(links)
        .flat_map(|link| link.addresses.iter().copied())
        .filter(|net| net.contains(&address))
        .max_by_key(IpNet::prefix_len)
}

/// Finds the link by the longest connected subnet, else the smallest MTU among those of the family.
fn link_towards(links: &BTreeMap<InterfaceName, Link>, endpoint: IpAddr) -> u32 {
    let connected = underlay(links)
        .filter_map(|link| {
            let nets = link.addresses.iter().filter(|net| net.contains(&endpoint));
            nets.map(IpNet::prefix_len)
                .max()
                .map(|length| (length, link.mtu))
        })
        .max_by_key(|(length, mtu)| (*length, u32::MAX - mtu))
        .map(|(_, mtu)| mtu);
    let family = Family::of(endpoint);
    let routed = || {
        underlay(links)
            .filter(|link| {
                link.addresses
                    .iter()
                    .any(|net| Family::of_net(net) == family)
            })
            .map(|link| link.mtu)
            .min()
    };

    connected.or_else(routed).unwrap_or(UNKNOWN)
}

fn underlay(links: &BTreeMap<InterfaceName, Link>) -> impl Iterator<Item = &Link> {
    links
        .values()
        .filter(|link| link.kind == LinkKind::Underlay && link.up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_of_the_longest_connected_subnet_decides() {
        let links = BTreeMap::from([
            link("eth0", 9000, &["192.0.2.1/24", "2001:db8::1/64"]),
            link("eth1", 1400, &["192.0.2.129/25"]),
        ]);

        assert_eq!(towards(&links, "192.0.2.7".parse().unwrap()), 8940);
        assert_eq!(towards(&links, "192.0.2.200".parse().unwrap()), 1340);
        assert_eq!(towards(&links, "2001:db8::2".parse().unwrap()), 8920);
        assert_eq!(towards(&links, "203.0.113.1".parse().unwrap()), 1340);
        assert_eq!(without_peers(&links), 1340);
    }

    fn link(name: &str, mtu: u32, nets: &[&str]) -> (InterfaceName, Link) {
        let addresses = nets.iter().map(|net| net.parse().unwrap()).collect();

        (
            name.parse().unwrap(),
            Link {
                mtu,
                up: true,
                kind: LinkKind::Underlay,
                addresses,
            },
        )
    }
}
