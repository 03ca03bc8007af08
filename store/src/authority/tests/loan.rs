//! What a rooted node tries with addresses: its own are its own, and nobody else's are.

use model::resource::{IpamHandle, ipam_block::Attribute};

use super::*;

const POD: &str = "k8s-pod-network.c0ffee";
const BORROWER: &str = "k8s-pod-network.beef";

#[tokio::test]
async fn a_lender_neither_takes_back_what_is_lent_nor_gives_it_to_another() {
    let world = World::new().await;
    let lent = world.lent_block().await;

    for change in [
        |block: &mut IpamBlock| free(block, 5),
        |block: &mut IpamBlock| {
            free(block, 5);
            allocate(block, 5, POD, "n1");
        },
        |block: &mut IpamBlock| {
            let number = block.sequence_number;
            block.sequence_number_for_allocation.insert(5, number);
        },
    ] {
        assert_denied(
            world.n1().update(changed(&lent, change)).await,
            Denial::AddressLent,
        );
    }
    let endpoint = world.n1().create(endpoint("n1", "10.65.4.5")).await;
    assert_denied(endpoint, Denial::AddressNotInBlock);
    let deleted = world.n1().delete(lent.key(), Precondition::Any).await;
    assert_denied(deleted, Denial::BlockInUse);

    let own = changed(&lent, |block| allocate(block, 6, POD, "n1"));
    world.n1().update(own).await.unwrap();
}

#[tokio::test]
async fn a_borrower_writes_nothing_in_the_lenders_block() {
    let world = World::new().await;
    let lent = world.lent_block().await;

    for change in [
        |block: &mut IpamBlock| free(block, 5),
        |block: &mut IpamBlock| allocate(block, 7, BORROWER, "n2"),
        |block: &mut IpamBlock| free(block, 1),
    ] {
        assert_denied(
            world.n2().update(changed(&lent, change)).await,
            Denial::BlockAffinity,
        );
    }
    // It runs a pod there: the record says so.
    world
        .n2()
        .create(endpoint("n2", "10.65.4.5"))
        .await
        .unwrap();
    let other = world
        .n2()
        .create(endpoint_of("n2", "db", "10.65.4.1"))
        .await;
    assert_denied(other, Denial::AddressNotInBlock);
}

#[tokio::test]
async fn a_node_gives_addresses_to_its_own_handles_only() {
    let world = World::new().await;
    let stored = world.block().await;
    world.n2_handle("k8s-pod-network.victim").await;

    for (handle, node, denial) in [
        (POD, "n2", Denial::NotYourNode),
        ("k8s-pod-network.victim", "n1", Denial::NotYourHandle),
        ("wireguard-tunnel-addr-n2", "n1", Denial::NotYourHandle),
        ("vxlan-v6-tunnel-addr-n2", "n1", Denial::NotYourHandle),
    ] {
        let change = |block: &mut IpamBlock| allocate(block, 0, handle, node);
        assert_denied(world.n1().update(changed(&stored, change)).await, denial);
    }
    let nobodys = |block: &mut IpamBlock| {
        allocate(block, 0, POD, "n1");
        block.attributes[0].handle_id = None;
    };
    assert_denied(
        world.n1().update(changed(&stored, nobodys)).await,
        Denial::NotYourHandle,
    );
    let backwards = changed(&stored, |block| block.sequence_number = 0);
    assert_denied(world.n1().update(backwards).await, Denial::BlockSequence);

    let tunnel = |block: &mut IpamBlock| allocate(block, 0, "wireguard-tunnel-addr-n1", "n1");
    world.n1().update(changed(&stored, tunnel)).await.unwrap();
}

#[tokio::test]
async fn a_handle_is_its_nodes_and_counts_its_nodes_blocks() {
    let world = World::new().await;
    world.block().await;
    let own = world.n1().create(handle(POD, "n1")).await.unwrap();

    assert_denied(
        world.n1().create(handle(BORROWER, "n2")).await,
        Denial::NotYourHandle,
    );
    let tunnel = handle("wireguard-tunnel-addr-n2", "n1");
    assert_denied(world.n1().create(tunnel).await, Denial::NotYourHandle);
    let mut labelled = handle(BORROWER, "n1");
    labelled.metadata.labels.insert("role".into(), "db".into());
    assert_denied(world.n1().create(labelled).await, Denial::Labels);
    let counted = world.n2().create(handle(BORROWER, "n2")).await;
    assert_denied(counted, Denial::BlockAffinity);
    let mut stolen = own.clone();
    let name = ("meshd.dev/node".to_owned(), "n2".to_owned());
    stolen.metadata.labels.extend([name]);
    assert_denied(world.n1().update(stolen).await, Denial::NotYourHandle);
    let deleted = world.n2().delete(own.key(), Precondition::Any).await;
    assert_denied(deleted, Denial::NotYourHandle);

    world
        .n1()
        .delete(own.key(), Precondition::Any)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_cluster_says_how_many_blocks_a_node_may_have() {
    let world = World::new().await;
    let key = ObjectKey::cluster(Kind::IPAMConfiguration, "default");
    let spec = json!({"strictAffinity": true, "maxBlocksPerHost": 2});
    world.admin().create(Object::new(&key, spec)).await.unwrap();
    for cidr in ["10.65.0.0/26", "10.65.1.0/26"] {
        let block = block("n1", cidr).to_object();
        world.n1().create(block).await.unwrap();
    }

    let third = block("n1", "10.65.2.0/26").to_object();

    assert_denied(world.n1().create(third).await, Denial::Limit);
}

#[tokio::test]
async fn a_node_that_is_deleted_leaves_behind_what_others_use_of_its_blocks() {
    let world = World::new().await;
    let lent = world.lent_block().await;
    world.n1().create(handle(POD, "n1")).await.unwrap();

    world
        .admin()
        .delete(node_key("n1"), Precondition::Any)
        .await
        .unwrap();

    let left = world.admin().get(lent.key()).await.unwrap();
    let left = IpamBlock::try_from(&left).unwrap();
    assert_eq!(left.affinity, None);
    assert_eq!(left.allocations.keys().collect::<Vec<_>>(), [&5]);
    let user = ("10.65.4.5".parse().unwrap(), "n2".parse().unwrap());
    assert_eq!(left.loans().collect::<Vec<_>>(), [user]);
    assert_eq!(left.unallocated.len(), 63);
    let handles = world.admin().list(Kind::IPAMHandle).await.unwrap().objects;
    assert_eq!(handles, []);
}

impl World {
    /// n1's block, of which a pod of its own has .1 and n2 has borrowed .5.
    async fn lent_block(&self) -> Object {
        let stored = self.block().await;
        let own = changed(&stored, |block| allocate(block, 1, POD, "n1"));
        let stored = self.n1().update(own).await.unwrap();
        let lent = changed(&stored, |block| allocate(block, 5, BORROWER, "n2"));

        self.admin().update(lent).await.unwrap()
    }

    async fn n2_handle(&self, id: &str) {
        let handle = handle(id, "n2");
        self.admin().create(handle).await.unwrap();
    }
}

/// Returns the next version of a block.
fn changed(stored: &Object, change: impl Fn(&mut IpamBlock)) -> Object {
    let mut block = IpamBlock::try_from(stored).unwrap();
    block.sequence_number += 1;
    change(&mut block);
    let mut object = block.to_object();
    object.metadata = stored.metadata.clone();

    object
}

/// Gives an address to a handle of a node's.
pub(super) fn allocate(block: &mut IpamBlock, ordinal: u32, handle: &str, node: &str) {
    block.unallocated.retain(|free| *free != ordinal);
    block.allocations.insert(ordinal, block.attributes.len());
    let number = block.sequence_number;
    block.sequence_number_for_allocation.insert(ordinal, number);
    block.attributes.push(Attribute {
        handle_id: Some(handle.into()),
        secondary: [("node".to_owned(), node.to_owned())].into(),
        ..Attribute::default()
    });
}

fn free(block: &mut IpamBlock, ordinal: u32) {
    block.allocations.remove(&ordinal);
    block.sequence_number_for_allocation.remove(&ordinal);
    block.unallocated.push(ordinal);
}

fn handle(id: &str, node: &str) -> Object {
    let mut handle = IpamHandle::new(id).of_node(Some(node.parse().unwrap()));
    handle.blocks.insert("10.65.4.0/26".parse().unwrap(), 1);

    handle.to_object()
}

fn endpoint_of(node: &str, pod: &str, address: &str) -> Object {
    let mut object = endpoint(node, address);
    let node: NodeName = node.parse().unwrap();
    let pod = model::PodName {
        namespace: "default".into(),
        name: pod.into(),
    };
    let mut endpoint = WorkloadEndpoint::try_from(&object).unwrap();
    endpoint.name = WorkloadEndpoint::object_name(&node, &pod);
    endpoint.interface = WorkloadEndpoint::host_interface(&pod);
    endpoint.pod = pod;
    let written = endpoint.to_object();
    object.metadata.name = written.metadata.name;
    object.body = written.body;

    object
}
