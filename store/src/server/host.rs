//! The addresses of the server's own host, as its kernel has them.

use std::{collections::BTreeSet, io, net::IpAddr};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;

/// Why the host's addresses cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[from] io::Error),
    /// The kernel refused.
    #[error("cannot list addresses")]
    List(#[from] rtnetlink::Error),
}

/// Returns every address of this host (of its network namespace), loopback left out.
pub(super) async fn addresses() -> Result<BTreeSet<IpAddr>, AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let messages: Result<Vec<_>, _> = handle.address().get().execute().try_collect().await;
    connection.abort();
    let mut addresses = BTreeSet::new();
    for attribute in messages?.into_iter().flat_map(|message| message.attributes) {
        // `Local` is the host's own where a point-to-point link has both.
        if let AddressAttribute::Local(address) | AddressAttribute::Address(address) = attribute
            && !address.is_loopback()
        {
            addresses.insert(address);
        }
    }

    Ok(addresses)
}

/// Returns whether an address is good on its own link only.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
