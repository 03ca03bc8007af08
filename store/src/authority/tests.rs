//! Every write that a node may not make is refused with its reason; beside each stands one it may.

mod block;
mod loan;
mod tier;

use std::{net::IpAddr, sync::Arc};

use model::{
    Family, Kind, NodeName, Object, ObjectKey, Phase, PublicKey, Record,
    constant::RECORD_ANNOTATION,
    record::{RECORD_VERSION, TunnelClaim},
    resource::{AddressClaim, BlockAffinity, IpamBlock, KeyClaim, WorkloadEndpoint},
};
use serde_json::{Value, json};

use crate::{
    Caller, Denial, Embedded, Identity, Options, Precondition, Session, Store, StoreError,
    caller::Origin,
};

const SERVER: &str = "192.0.2.100";

/// A store with nodes n1 (label zone=a) and n2, pools, and an underlay network.
struct World {
    store: Embedded,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("s.db"), Options::default()).unwrap();
        let world = Self {
            store,
            _directory: directory,
        };
        for name in ["n1", "n2"] {
            let mut node = Object::new(&node_key(name), json!({}));
            if name == "n1" {
                node.metadata.labels.insert("zone".into(), "a".into());
            }
            world.admin().create(node).await.unwrap();
        }
        world
            .pool(
                "pool-a",
                json!({"cidr": "10.65.0.0/16", "nodeSelector": "zone == 'a'"}),
            )
            .await;
        world
            .pool(
                "pool-b",
                json!({"cidr": "10.66.0.0/16", "nodeSelector": "zone == 'b'"}),
            )
            .await;
        world
            .pool("off", json!({"cidr": "10.67.0.0/16", "disabled": true}))
            .await;
        let balanced = json!({"cidr": "10.68.0.0/16", "allowedUses": ["LoadBalancer"]});
        world.pool("balanced", balanced).await;
        let mesh = ObjectKey::cluster(Kind::MeshConfiguration, "default");
        let spec = json!({"underlay": {"networks": ["198.51.100.0/24", "10.0.0.0/8"]}});
        world
            .admin()
            .create(Object::new(&mesh, spec))
            .await
            .unwrap();

        world
    }

    async fn pool(&self, name: &str, spec: Value) {
        let pool = Object::new(&ObjectKey::cluster(Kind::IPPool, name), spec);
        self.admin().create(pool).await.unwrap();
    }

    fn admin(&self) -> Session {
        self.store.session(Caller::local_admin())
    }

    /// A node whose connection comes from an address and goes to one of the server's.
    fn node_at(&self, name: &str, source: &str, local: &str) -> Session {
        let server_addresses = [SERVER, "2001:db8::100"].map(|text| text.parse().unwrap());

        self.store.session(Caller {
            identity: Identity::Node(name.parse().unwrap()),
            certificate: None,
            origin: Some(Origin {
                source: source.parse().unwrap(),
                local: local.parse().unwrap(),
                server_addresses: Arc::new(server_addresses.into()),
            }),
        })
    }

    fn n1(&self) -> Session {
        self.node_at("n1", "192.0.2.1", SERVER)
    }

    fn n2(&self) -> Session {
        self.node_at("n2", "192.0.2.2", SERVER)
    }

    /// Gives n1 a block, and returns it as stored.
    async fn block(&self) -> Object {
        self.n1()
            .create(block("n1", "10.65.4.0/26").to_object())
            .await
            .unwrap()
    }

    async fn patch_n1(&self, patch: Value) -> Result<Object, StoreError> {
        self.n1()
            .patch(node_key("n1"), patch, Precondition::Any)
            .await
    }
}

#[tokio::test]
async fn a_node_claims_keys_for_itself_alone_and_for_good() {
    let world = World::new().await;
    let (n1, n2) = (world.n1(), world.n2());

    let claim = n1.create(key_claim(1, "n1")).await.unwrap();

    let taken = n2.create(key_claim(1, "n2")).await;
    assert_eq!(taken, Err(StoreError::AlreadyExists(claim.key())));
    assert_denied(n1.create(key_claim(2, "n2")).await, Denial::NotYourNode);
    let mut changed = claim.clone();
    changed.body.insert("spec".into(), json!({"node": "n2"}));
    assert_denied(n1.update(changed).await, Denial::CreateOnly);
    assert_denied(
        n1.delete(claim.key(), Precondition::Any).await,
        Denial::CreateOnly,
    );
    assert_denied(
        n2.delete(claim.key(), Precondition::Any).await,
        Denial::CreateOnly,
    );
    let mut wordy = key_claim(3, "n1");
    wordy.metadata.labels.insert("a".into(), "b".into());
    assert_denied(n1.create(wordy).await, Denial::FieldNotYours);
    let mut wordy = key_claim(3, "n1");
    wordy.body.insert("status".into(), json!({}));
    assert_denied(n1.create(wordy).await, Denial::FieldNotYours);
    let mut named = key_claim(3, "n1");
    named.metadata.name = "my-key".into();
    assert!(matches!(
        n1.create(named).await,
        Err(StoreError::Invalid(_))
    ));
    world
        .admin()
        .delete(claim.key(), Precondition::Any)
        .await
        .unwrap();
    n2.create(key_claim(1, "n2")).await.unwrap();
}

#[tokio::test]
async fn a_node_holds_sixteen_keys_at_most() {
    let world = World::new().await;
    for number in 1..=16 {
        world.n1().create(key_claim(number, "n1")).await.unwrap();
    }

    assert_denied(world.n1().create(key_claim(17, "n1")).await, Denial::Limit);
    let known = world.n1().create(key_claim(16, "n1")).await;
    assert!(
        matches!(known, Err(StoreError::AlreadyExists(_))),
        "its own is still its own"
    );
    world.n2().create(key_claim(17, "n2")).await.unwrap();
}

#[tokio::test]
async fn a_node_claims_the_address_its_connection_comes_from() {
    let world = World::new().await;

    world
        .n1()
        .create(address_claim("192.0.2.1", "n1"))
        .await
        .unwrap();

    let v6 = world.node_at("n1", "2001:db8::1", "2001:db8::100");
    v6.create(address_claim("2001:db8::1", "n1")).await.unwrap();
    let other = world.n1().create(address_claim("192.0.2.9", "n1")).await;
    assert_denied(other, Denial::AddressNotYours);
    let foreign = world.n1().create(address_claim("192.0.2.1", "n2")).await;
    assert!(matches!(foreign, Err(StoreError::AlreadyExists(_))));
    assert_denied(
        world.n2().create(address_claim("192.0.2.2", "n1")).await,
        Denial::NotYourNode,
    );
}

#[tokio::test]
async fn a_node_claims_any_address_of_the_underlay_that_nobody_has() {
    let world = World::new().await;

    world
        .n1()
        .create(address_claim("198.51.100.7", "n1"))
        .await
        .unwrap();

    let taken = world.n2().create(address_claim("198.51.100.7", "n2")).await;
    assert!(matches!(taken, Err(StoreError::AlreadyExists(_))));
}

#[tokio::test]
async fn nobody_claims_what_is_the_pods_or_no_nodes_even_where_it_comes_from_there() {
    let world = World::new().await;
    let cases = [
        ("10.65.0.9", Denial::PoolAddress),
        ("10.67.0.9", Denial::PoolAddress),
        ("127.0.0.1", Denial::AddressUnusable),
        ("0.0.0.0", Denial::AddressUnusable),
        ("169.254.1.1", Denial::AddressUnusable),
        ("224.0.0.1", Denial::AddressUnusable),
        ("255.255.255.255", Denial::AddressUnusable),
        ("::1", Denial::AddressUnusable),
        ("fe80::1", Denial::AddressUnusable),
        ("ff02::1", Denial::AddressUnusable),
    ];
    for (address, denial) in cases {
        let node = world.node_at("n1", address, SERVER);
        assert_denied(node.create(address_claim(address, "n1")).await, denial);
    }
}

#[tokio::test]
async fn only_the_node_on_the_servers_host_claims_the_servers_address() {
    let world = World::new().await;
    let remote = world.n1().create(address_claim(SERVER, "n1")).await;
    assert_denied(remote, Denial::ServerAddress);
    // On the host, but over the loopback, or to another of its addresses.
    for (source, local) in [("127.0.0.1", "127.0.0.1"), (SERVER, "192.0.2.101")] {
        let node = world.node_at("n1", source, local);
        assert_denied(
            node.create(address_claim(SERVER, "n1")).await,
            Denial::ServerAddress,
        );
    }
    let underlay = json!({"spec": {"underlay": {"networks": ["192.0.2.0/24"]}}});
    let key = ObjectKey::cluster(Kind::MeshConfiguration, "default");
    world
        .admin()
        .patch(key, underlay, Precondition::Any)
        .await
        .unwrap();
    let remote = world.n1().create(address_claim(SERVER, "n1")).await;
    assert_denied(remote, Denial::ServerAddress);

    let own = world.node_at("n1", SERVER, SERVER);
    own.create(address_claim(SERVER, "n1")).await.unwrap();
}

#[tokio::test]
async fn a_node_never_writes_labels_or_another_node() {
    let world = World::new().await;

    let labels = json!({"metadata": {"labels": {"zone": "b"}}});
    assert_denied(world.patch_n1(labels.clone()).await, Denial::Labels);
    assert_denied(
        world.patch_n1(json!({"metadata": {"labels": null}})).await,
        Denial::Labels,
    );
    for patch in [
        labels,
        json!({"metadata": {"annotations": {"meshd.dev/x": "y"}}}),
    ] {
        let patched = world
            .n1()
            .patch(node_key("n2"), patch, Precondition::Any)
            .await;
        assert_denied(patched, Denial::NotYourNode);
    }
    let other = Object::new(&node_key("n3"), json!({}));
    assert_denied(world.n1().create(other).await, Denial::AdministratorOnly);
    let deleted = world.n1().delete(node_key("n1"), Precondition::Any).await;
    assert_denied(deleted, Denial::AdministratorOnly);
}

#[tokio::test]
async fn a_node_writes_only_its_own_words_of_its_node() {
    let world = World::new().await;
    let good = json!({
        "metadata": {"annotations": {"meshd.dev/x": "y", "projectcalico.org/z": "w"}},
        "status": {"podCIDRs": []},
    });
    world.patch_n1(good).await.unwrap();

    for patch in [
        json!({"metadata": {"annotations": {"example.com/x": "y"}}}),
        json!({"metadata": {"finalizers": ["x"]}}),
        json!({"spec": {"bgp": {"asNumber": 1}}}),
        json!({"spec": {"orchRefs": []}}),
        json!({"spec": {"bgp": "x"}}),
        json!({"spec": []}),
        json!({"status": 5}),
        json!({"extra": {"x": 1}}),
        json!({"extra": {}}),
    ] {
        let refused = world.patch_n1(patch.clone()).await;
        let by_field = matches!(
            &refused,
            Err(StoreError::Forbidden {
                reason: Denial::FieldNotYours,
                ..
            } | StoreError::Invalid(_))
        );
        assert!(by_field, "{patch}: {refused:?}");
    }
}

#[tokio::test]
async fn a_record_must_be_readable_ones_own_and_newer() {
    let world = World::new().await;
    world.n1().create(key_claim(1, "n1")).await.unwrap();
    world
        .n1()
        .create(address_claim("192.0.2.1", "n1"))
        .await
        .unwrap();
    world
        .patch_n1(annotated(&record("n1", 3, 1, "192.0.2.1")))
        .await
        .unwrap();

    for (patch, denial) in [
        (annotated("{}"), Denial::Record),
        (annotated("no JSON"), Denial::Record),
        (annotated(&"x".repeat(5000)), Denial::Record),
        (annotated(&record("n2", 4, 1, "192.0.2.1")), Denial::Record),
        (
            json!({"metadata": {"annotations": {RECORD_ANNOTATION: null}}}),
            Denial::Record,
        ),
        (json!({"metadata": {"annotations": null}}), Denial::Record),
        (annotated(&record("n1", 2, 1, "192.0.2.1")), Denial::Epoch),
        (
            annotated(&record("n1", 3, 1, "192.0.2.1").replace("Sending", "Off")),
            Denial::Epoch,
        ),
        (
            annotated(&record("n1", 4, 2, "192.0.2.1")),
            Denial::KeyNotGranted,
        ),
        (
            annotated(&record("n1", 4, 1, "192.0.2.9")),
            Denial::AddressNotGranted,
        ),
    ] {
        assert_denied(world.patch_n1(patch.clone()).await, denial);
    }
    world
        .patch_n1(annotated(&record("n1", 4, 1, "192.0.2.1")))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_key_or_an_address_of_another_is_never_published() {
    let world = World::new().await;
    world.n2().create(key_claim(2, "n2")).await.unwrap();
    world
        .n2()
        .create(address_claim("192.0.2.2", "n2"))
        .await
        .unwrap();
    world.block().await;

    for (patch, denial) in [
        (
            annotated(&record("n1", 1, 2, "192.0.2.1")),
            Denial::KeyNotGranted,
        ),
        (
            json!({"status": {"wireguardPublicKey": key(2)}}),
            Denial::KeyNotGranted,
        ),
        (
            json!({"status": {"wireguardPublicKeyV6": key(2)}}),
            Denial::KeyNotGranted,
        ),
        (
            json!({"spec": {"bgp": {"ipv4Address": "192.0.2.2/24"}}}),
            Denial::AddressNotGranted,
        ),
        (
            json!({"spec": {"bgp": {"ipv4Address": "192.0.2.2"}}}),
            Denial::AddressNotGranted,
        ),
        (
            json!({"spec": {"addresses": [{"address": "192.0.2.2", "type": "InternalIP"}]}}),
            Denial::AddressNotGranted,
        ),
        (
            json!({"spec": {"wireguard": {"interfaceIPv4Address": "10.65.5.1"}}}),
            Denial::AddressNotInBlock,
        ),
    ] {
        assert_denied(world.patch_n1(patch.clone()).await, denial);
    }
    let own = json!({"spec": {"wireguard": {"interfaceIPv4Address": "10.65.4.1"}}});
    world.patch_n1(own).await.unwrap();
}

#[tokio::test]
async fn what_is_published_already_stays_publishable_when_its_grant_is_gone() {
    let world = World::new().await;
    let address = world
        .n1()
        .create(address_claim("192.0.2.1", "n1"))
        .await
        .unwrap();
    world
        .patch_n1(json!({"spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}}}))
        .await
        .unwrap();
    world
        .admin()
        .delete(address.key(), Precondition::Any)
        .await
        .unwrap();

    let patch = json!({"spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}}, "status": {"x": 1}});

    world.patch_n1(patch).await.unwrap();
}

#[tokio::test]
async fn every_other_kind_is_the_administrators() {
    let world = World::new().await;
    let nodes = [
        Kind::Node,
        Kind::KeyClaim,
        Kind::AddressClaim,
        Kind::BlockAffinity,
        Kind::IPAMBlock,
        Kind::IPAMHandle,
        Kind::WorkloadEndpoint,
    ];
    for kind in Kind::ALL
        .iter()
        .copied()
        .filter(|kind| !nodes.contains(kind))
    {
        let mut object = Object::new(&ObjectKey::cluster(kind, "default"), json!({}));
        if kind.scope() == model::kind::Scope::Namespaced {
            object.metadata.namespace = Some("default".into());
        }
        if kind == Kind::IPPool {
            object
                .body
                .insert("spec".into(), json!({"cidr": "10.80.0.0/16"}));
        }
        if [Kind::HostEndpoint, Kind::ClusterNetworkPolicy].contains(&kind) {
            let spec = json!({
                "node": "n1", "interfaceName": "*", "tier": "Admin", "subject": {"namespaces": {}},
            });
            object.body.insert("spec".into(), spec);
        }
        if kind == Kind::MeshConfiguration {
            object.metadata.name = "default".into();
            let open = json!({"spec": {"underlay": {"networks": ["0.0.0.0/0"]}}});
            let patched = world
                .n1()
                .patch(object.key(), open, Precondition::Any)
                .await;
            assert_denied(patched, Denial::AdministratorOnly);
            continue;
        }
        assert_denied(world.n1().create(object).await, Denial::AdministratorOnly);
    }
    let pool = ObjectKey::cluster(Kind::IPPool, "pool-a");
    let deleted = world.n1().delete(pool.clone(), Precondition::Any).await;
    assert_denied(deleted, Denial::AdministratorOnly);
    let opened = json!({"spec": {"nodeSelector": "all()"}});
    let patched = world.n1().patch(pool, opened, Precondition::Any).await;
    assert_denied(patched, Denial::AdministratorOnly);
}

#[tokio::test]
async fn a_refused_write_changes_nothing() {
    let world = World::new().await;
    let before = world.admin().get(node_key("n1")).await.unwrap();

    let patch = json!({"metadata": {"annotations": {"meshd.dev/x": "y"}, "labels": {"zone": "b"}}});
    assert_denied(world.patch_n1(patch).await, Denial::Labels);

    assert_eq!(world.admin().get(node_key("n1")).await.unwrap(), before);
}

#[tokio::test]
async fn deleting_a_node_takes_what_belongs_to_it_and_nothing_else() {
    let world = World::new().await;
    world.block().await;
    world.n1().create(key_claim(1, "n1")).await.unwrap();
    world
        .n1()
        .create(address_claim("192.0.2.1", "n1"))
        .await
        .unwrap();
    world
        .n1()
        .create(endpoint("n1", "10.65.4.2"))
        .await
        .unwrap();
    world.n2().create(key_claim(2, "n2")).await.unwrap();

    world
        .admin()
        .delete(node_key("n1"), Precondition::Any)
        .await
        .unwrap();

    let mut left = Vec::new();
    for kind in [
        Kind::Node,
        Kind::KeyClaim,
        Kind::AddressClaim,
        Kind::IPAMBlock,
        Kind::BlockAffinity,
        Kind::WorkloadEndpoint,
    ] {
        for object in world.admin().list(kind).await.unwrap().objects {
            left.push(object.key());
        }
    }
    assert_eq!(left, [node_key("n2"), key_claim(2, "n2").key()]);
}

#[tokio::test]
async fn an_administrators_pool_may_not_contradict_what_is_stored() {
    let world = World::new().await;
    for (name, spec) in [
        ("overlapping", json!({"cidr": "10.65.128.0/17"})),
        ("nonsense", json!({"cidr": "10.80.0.0"})),
        ("odd", json!({"cidr": "10.80.0.0/16", "blockSize": 12})),
        ("typo", json!({"cidr": "10.80.0.0/16", "blocksize": 26})),
    ] {
        let pool = Object::new(&ObjectKey::cluster(Kind::IPPool, name), spec);
        let refused = world.admin().create(pool).await;
        assert!(
            matches!(refused, Err(StoreError::Invalid(_))),
            "{name}: {refused:?}"
        );
    }
    let moved = json!({"spec": {"cidr": "10.80.0.0/16"}});
    let pool = ObjectKey::cluster(Kind::IPPool, "pool-a");
    let refused = world.admin().patch(pool, moved, Precondition::Any).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
}

fn assert_denied<T: std::fmt::Debug>(result: Result<T, StoreError>, denial: Denial) {
    match result {
        Err(StoreError::Forbidden { reason, .. }) if reason == denial => {}
        other => panic!("expected {denial}, found {other:?}"),
    }
}

fn node_key(name: &str) -> ObjectKey {
    ObjectKey::cluster(Kind::Node, name)
}

fn key(number: u8) -> PublicKey {
    PublicKey::new([number; 32]).unwrap()
}

fn key_claim(number: u8, node: &str) -> Object {
    KeyClaim::new(key(number), node.parse().unwrap()).to_object()
}

fn address_claim(address: &str, node: &str) -> Object {
    let address: IpAddr = address.parse().unwrap();

    AddressClaim {
        address,
        node: node.parse().unwrap(),
    }
    .to_object()
}

fn block(node: &str, cidr: &str) -> IpamBlock {
    let cidr = cidr.parse().unwrap();

    IpamBlock {
        cidr,
        affinity: Some(node.parse().unwrap()),
        deleted: false,
        allocations: std::collections::BTreeMap::new(),
        unallocated: (0..IpamBlock::size_of(cidr)).collect(),
        attributes: Vec::new(),
        sequence_number: 1,
        sequence_number_for_allocation: std::collections::BTreeMap::new(),
        affinity_claim_time: None,
    }
}

fn endpoint(node: &str, address: &str) -> Object {
    let node: NodeName = node.parse().unwrap();
    let pod = model::PodName::parse("default/web").unwrap();

    WorkloadEndpoint {
        name: WorkloadEndpoint::object_name(&node, &pod),
        interface: WorkloadEndpoint::host_interface(&pod),
        node,
        pod,
        addresses: vec![address.parse::<IpAddr>().unwrap().into()],
        labels: std::collections::BTreeMap::new(),
        profiles: Vec::new(),
        ports: Vec::new(),
    }
    .to_object()
}

fn record(node: &str, epoch: u64, tunnel: u8, address: &str) -> String {
    let address: IpAddr = address.parse().unwrap();
    let record = Record {
        version: RECORD_VERSION,
        node: node.parse().unwrap(),
        epoch,
        tunnels: vec![TunnelClaim {
            key: key(tunnel),
            port: 51820,
            families: vec![Family::V4, Family::V6],
        }],
        endpoints: vec![address],
        addresses: vec![address],
        phase: Phase::Sending,
        conditions: std::collections::BTreeMap::new(),
        signature: None,
        unknown: std::collections::BTreeMap::new(),
    };

    record.encode().unwrap()
}

fn annotated(record: &str) -> Value {
    json!({"metadata": {"annotations": {RECORD_ANNOTATION: record}}})
}
