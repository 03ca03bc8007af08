//! Blocks, affinities and endpoints: inside the pools, inside the own blocks, and never another's.

use super::*;

#[tokio::test]
async fn a_block_is_claimed_inside_a_pool_that_selects_the_node() {
    let world = World::new().await;
    let n1 = world.n1();
    world.block().await;

    for (cidr, denial) in [
        ("10.65.4.0/27", Denial::BlockNotInPool),
        ("10.66.4.0/26", Denial::BlockSelector),
        ("10.67.4.0/26", Denial::BlockNotInPool),
        ("10.68.4.0/26", Denial::BlockNotInPool),
        ("10.99.4.0/26", Denial::BlockNotInPool),
    ] {
        assert_denied(n1.create(block("n1", cidr).to_object()).await, denial);
    }
    let foreign = n1.create(block("n2", "10.65.5.0/26").to_object()).await;
    assert_denied(foreign, Denial::BlockAffinity);
    let mut nobodys = block("n1", "10.65.5.0/26");
    nobodys.affinity = None;
    assert_denied(n1.create(nobodys.to_object()).await, Denial::BlockAffinity);
    let mut named = block("n1", "10.65.5.0/26").to_object();
    named.metadata.name = "10-65-6-0-26".into();
    let refused = n1.create(named).await;
    assert!(
        matches!(&refused, Err(StoreError::Invalid(error)) if error.field == "metadata.name"),
        "{refused:?}"
    );
    let unselected = world
        .n2()
        .create(block("n2", "10.65.5.0/26").to_object())
        .await;
    assert_denied(unselected, Denial::BlockSelector);
}

#[tokio::test]
async fn a_block_never_overlaps_one_of_another_size() {
    for (standing, wanted, size) in [
        ("10.70.4.0/26", "10.70.4.0/24", 24),
        ("10.70.4.0/24", "10.70.4.64/26", 26),
    ] {
        let world = World::new().await;
        let standing = block("n1", standing).to_object();
        world.admin().create(standing).await.unwrap();
        // The pool comes after the block, so that only the overlap forbids it.
        let pool = ObjectKey::cluster(Kind::IPPool, "late");
        let spec = json!({"cidr": "10.70.0.0/16", "blockSize": size});
        let made = world.admin().create(Object::new(&pool, spec)).await;

        let refused = world.n1().create(block("n1", wanted).to_object()).await;

        match made {
            Ok(_) => assert_denied(refused, Denial::BlockOverlap),
            // The administrator is told first.
            Err(error) => assert!(matches!(error, StoreError::Invalid(_)), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_block_is_written_by_its_owner_and_never_changes_hands() {
    let world = World::new().await;
    let stored = world.block().await;
    let change = |change: &dyn Fn(&mut IpamBlock)| {
        let mut block = IpamBlock::try_from(&stored).unwrap();
        change(&mut block);
        let mut object = block.to_object();
        object
            .metadata
            .resource_version
            .clone_from(&stored.metadata.resource_version);
        object
    };
    let assign = |block: &mut IpamBlock| {
        super::loan::allocate(block, 0, "k8s-pod-network.c0ffee", "n1");
        block.sequence_number += 1;
    };

    let give = change(&|block| block.affinity = Some("n2".parse().unwrap()));
    assert_denied(world.n1().update(give).await, Denial::BlockAffinity);
    let drop = change(&|block| block.affinity = None);
    assert_denied(world.n1().update(drop).await, Denial::BlockAffinity);
    let take = change(&|block| block.affinity = Some("n2".parse().unwrap()));
    assert_denied(world.n2().update(take).await, Denial::BlockAffinity);
    assert_denied(
        world.n2().update(change(&assign)).await,
        Denial::BlockAffinity,
    );
    let deleted = world.n2().delete(stored.key(), Precondition::Any).await;
    assert_denied(deleted, Denial::BlockAffinity);

    world.n1().update(change(&assign)).await.unwrap();
    let deleted = world.n1().delete(stored.key(), Precondition::Any).await;
    assert_denied(deleted, Denial::BlockInUse);
}

#[tokio::test]
async fn a_node_holds_twenty_blocks_at_most() {
    let world = World::new().await;
    for number in 0..20 {
        let cidr = format!("10.65.{number}.0/26");
        world
            .n1()
            .create(block("n1", &cidr).to_object())
            .await
            .unwrap();
    }

    let more = world
        .n1()
        .create(block("n1", "10.65.20.0/26").to_object())
        .await;
    assert_denied(more, Denial::Limit);
    let key = ObjectKey::cluster(Kind::IPAMBlock, "10-65-0-0-26");
    world.n1().delete(key, Precondition::Any).await.unwrap();
    world
        .n1()
        .create(block("n1", "10.65.20.0/26").to_object())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_affinity_is_ones_own() {
    let world = World::new().await;
    let affinity = |name: &str| {
        BlockAffinity::pending(name.parse().unwrap(), "10.65.4.0/26".parse().unwrap()).to_object()
    };
    let own = world.n1().create(affinity("n1")).await.unwrap();

    assert_denied(world.n1().create(affinity("n2")).await, Denial::NotYourNode);
    let mut named = affinity("n1");
    named.metadata.name = "n2-10-65-4-0-26".into();
    assert_denied(world.n1().create(named).await, Denial::Name);
    let mut stolen = own.clone();
    stolen
        .body
        .insert("spec".into(), affinity("n2").body["spec"].clone());
    assert_denied(world.n1().update(stolen).await, Denial::NotYourNode);
    let deleted = world.n2().delete(own.key(), Precondition::Any).await;
    assert_denied(deleted, Denial::NotYourNode);
    world
        .n1()
        .delete(own.key(), Precondition::Any)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_endpoint_is_on_the_node_that_writes_it_and_inside_its_blocks() {
    let world = World::new().await;
    world.block().await;
    let own = world
        .n1()
        .create(endpoint("n1", "10.65.4.2"))
        .await
        .unwrap();

    assert_denied(
        world.n1().create(endpoint("n2", "10.65.4.3")).await,
        Denial::NotYourNode,
    );
    let outside = world.n2().create(endpoint("n2", "10.65.4.3")).await;
    assert_denied(outside, Denial::AddressNotInBlock);
    let mut named = endpoint("n1", "10.65.4.3");
    named.metadata.name = "n2-k8s-web-eth0".into();
    assert_denied(world.n1().create(named).await, Denial::Name);
    let deleted = world.n2().delete(own.key(), Precondition::Any).await;
    assert_denied(deleted, Denial::NotYourNode);
    let mut moved = own.clone();
    moved.body.insert(
        "spec".into(),
        endpoint("n2", "10.65.4.2").body["spec"].clone(),
    );
    assert_denied(world.n2().update(moved).await, Denial::NotYourNode);
    world
        .n1()
        .delete(own.key(), Precondition::Any)
        .await
        .unwrap();
}
