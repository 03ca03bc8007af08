//! The address a connection comes from, over real connections.
//!
//! ```text
//! lo: 203.0.113.1, 203.0.113.2, 2001:db8::1      one host, a network namespace of its own
//! ```

use std::{net::Ipv6Addr, thread};

use model::resource::AddressClaim;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{sys::unshare_network, *};
use crate::{Denial, Store};

const FIRST: &str = "203.0.113.1";
const SECOND: &str = "203.0.113.2";
const V6: &str = "2001:db8::1";

#[test]
fn a_node_on_the_servers_host_claims_its_addresses_of_both_families() {
    on_a_host_of_its_own(async {
        let served = served_everywhere().await;
        let node = served.join_at(FIRST).await;
        assert_eq!(node.hello().await.unwrap().source, ip(FIRST));

        node.create(claim(FIRST)).await.unwrap();

        node.create_from(ip(V6), claim(V6)).await.unwrap();
        node.create_from(ip(SECOND), claim(SECOND)).await.unwrap();
    });
}

#[test]
fn a_connection_between_two_of_the_servers_addresses_claims_neither() {
    on_a_host_of_its_own(async {
        let served = served_everywhere().await;
        let node = served.join_at(FIRST).await;

        // It comes from the first address, and the claim is for another of the server's.
        let refused = node.create(claim(SECOND)).await;

        assert!(
            matches!(
                refused,
                Err(StoreError::Forbidden {
                    reason: Denial::ServerAddress,
                    ..
                })
            ),
            "{refused:?}"
        );
    });
}

#[test]
fn a_source_that_is_not_the_hosts_cannot_be_bound() {
    on_a_host_of_its_own(async {
        let served = served_everywhere().await;
        let node = served.join_at(FIRST).await;

        let refused = node
            .create_from(ip("203.0.113.99"), claim("203.0.113.99"))
            .await;

        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{refused:?}"
        );
    });
}

#[test]
fn an_address_of_the_pods_is_never_announced_as_the_servers() {
    on_a_host_of_its_own(async {
        let served = served_everywhere().await;
        let key = model::ObjectKey::cluster(Kind::IPPool, "pool");
        let pool = Object::new(
            &key,
            serde_json::json!({"cidr": "203.0.113.0/31", "blockSize": 32}),
        );
        served.admin().create(pool).await.unwrap();

        let hello = served.join_at(SECOND).await.hello().await.unwrap();

        assert_eq!(hello.server_addresses, [SECOND, V6].map(ip).into());
    });
}

#[test]
fn the_server_knows_every_address_of_its_host() {
    on_a_host_of_its_own(async {
        let served = served_everywhere().await;

        let hello = served.join_at(FIRST).await.hello().await.unwrap();

        assert_eq!(hello.server_addresses, [FIRST, SECOND, V6].map(ip).into());
        assert_eq!(hello.port, served.address.port());
    });
}

impl Served {
    async fn join_at(&self, address: &str) -> Client {
        let joined = self.join("n1").await.credential().await;
        let server = format!("https://{address}:{}", self.address.port());

        // It is connected to as this address, and so comes from it.
        Client::new(joined.with_servers(vec![server])).unwrap()
    }
}

async fn served_everywhere() -> Served {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    let up = LinkMessageBuilder::<LinkUnspec>::new()
        .index(1)
        .up()
        .build();
    handle.link().set(up).execute().await.unwrap();
    for (address, length) in [(FIRST, 32), (SECOND, 32), (V6, 128)] {
        handle
            .address()
            .add(1, ip(address), length)
            .execute()
            .await
            .unwrap();
    }
    connection.abort();
    let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));

    Served::start_in(tempfile::tempdir().unwrap(), everywhere, Log::Long).await
}

/// Runs a test in a network namespace of its own.
fn on_a_host_of_its_own(test: impl Future<Output = ()> + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare_network();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test);
    });

    thread.join().unwrap();
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn claim(address: &str) -> model::Object {
    AddressClaim {
        address: ip(address),
        node: "n1".parse().unwrap(),
    }
    .to_object()
}
