//! Which underlay addresses a node may claim.
//!
//! An address is granted when the node's own connection comes from it, or when it lies inside the
//! networks that an administrator named as the underlay. Never granted: what no node can have, what
//! a pool hands to pods, and the server's own addresses. The last has one exception: the node on
//! the server's host may claim the address that its connection both comes from and goes to, for only
//! a process on that host can make such a connection.

use std::net::IpAddr;

use model::{
    Kind, NodeName, Object, ObjectKey,
    resource::{AddressClaim, IpPool, MeshConfiguration},
};

use super::View;
use crate::{Denial, StoreError, caller::Origin};

/// Checks that a node may claim an address.
pub(super) fn check(
    view: &dyn View,
    origin: Option<&Origin>,
    address: IpAddr,
) -> Result<(), StoreError> {
    if !is_usable(address) {
        let message = format!("{address} is not an address that a node can have");
        return Err(StoreError::denied(Denial::AddressUnusable, message));
    }
    if let Some(pool) = pool_of(view, address)? {
        let message = format!("{address} is inside the IPPool {pool}: it is the pods'");
        return Err(StoreError::denied(Denial::PoolAddress, message));
    }
    let is_servers = origin.is_some_and(|origin| origin.server_addresses.contains(&address));
    if is_servers && !is_from_servers_host(origin, address) {
        let message = format!("{address} is the server's");
        return Err(StoreError::denied(Denial::ServerAddress, message));
    }
    let is_source = origin.is_some_and(|origin| origin.source == address);
    if is_source || is_underlay(view, address)? {
        return Ok(());
    }
    let source = origin.map_or_else(|| "nowhere".to_owned(), |origin| origin.source.to_string());

    Err(StoreError::denied(
        Denial::AddressNotYours,
        format!(
            "this connection comes from {source}, and {address} is not inside \
             MeshConfiguration spec.underlay.networks"
        ),
    ))
}

/// Checks that an address is granted to a node.
pub(super) fn check_granted(
    view: &dyn View,
    node: &NodeName,
    address: IpAddr,
) -> Result<(), StoreError> {
    let key = ObjectKey::cluster(Kind::AddressClaim, AddressClaim::object_name(address));
    let claim = view.get(&key)?;
    if claim
        .as_ref()
        .and_then(|claim| AddressClaim::try_from(claim).ok())
        .map(|claim| claim.node)
        == Some(node.clone())
    {
        return Ok(());
    }
    let message = format!("{address} is not granted to {node}: create its AddressClaim first");

    Err(StoreError::denied(Denial::AddressNotGranted, message))
}

fn is_from_servers_host(origin: Option<&Origin>, address: IpAddr) -> bool {
    origin.is_some_and(|origin| origin.source == address && origin.local == address)
}

fn is_usable(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => {
            let zero_or_reserved = matches!(v4.octets()[0], 0 | 240..=255);
            !(v4.is_link_local() || v4.is_broadcast() || zero_or_reserved)
        }
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    }
}

fn pool_of(view: &dyn View, address: IpAddr) -> Result<Option<String>, StoreError> {
    let pools = view.list(Kind::IPPool)?;
    let holds =
        |pool: &&Object| IpPool::try_from(*pool).is_ok_and(|pool| pool.cidr.contains(&address));

    Ok(pools
        .iter()
        .find(holds)
        .map(|pool| pool.metadata.name.clone()))
}

fn is_underlay(view: &dyn View, address: IpAddr) -> Result<bool, StoreError> {
    let key = ObjectKey::cluster(Kind::MeshConfiguration, "default");
    let Some(object) = view.get(&key)? else {
        return Ok(false);
    };
    let networks = MeshConfiguration::try_from(&object).map(|mesh| mesh.underlay_networks);

    // A configuration that cannot be read grants nothing.
    Ok(networks.is_ok_and(|networks| networks.iter().any(|network| network.contains(&address))))
}
