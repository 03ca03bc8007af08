//! What is lent, and every plea of a rooted node that is refused, on the embedded store.

use std::time::Duration;

use cni_ipam::{Collector, Writer, assign_addresses, new_block};
use model::resource::BlockAffinity;
use serde_json::json;
use store::{Caller, Embedded, Lender as _, Options};

use super::*;
use crate::serve::garbage::sweep;

/// A store with a pool of two blocks of four addresses, each a node's.
struct World {
    store: Embedded,
    authority: Authority,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("s.db"), Options::default()).unwrap();
        let world = Self {
            store,
            authority: Authority::default(),
            _directory: directory,
        };
        for name in ["n1", "n2"] {
            let key = ObjectKey::cluster(Kind::Node, name);
            world.put(Object::new(&key, json!({}))).await;
        }
        let key = ObjectKey::cluster(Kind::IPPool, "pods");
        let spec = json!({"cidr": "10.65.0.0/29", "blockSize": 30});
        world.put(Object::new(&key, spec)).await;
        for (name, cidr) in [("n1", "10.65.0.0/30"), ("n2", "10.65.0.4/30")] {
            world.give_block(name, cidr).await;
        }

        world
    }

    async fn put(&self, object: Object) {
        self.admin().create(object).await.unwrap();
    }

    async fn give_block(&self, name: &str, cidr: &str) {
        let cidr: IpNet = cidr.parse().unwrap();
        let now = Timestamp::now().to_string();
        let mut affinity = BlockAffinity::pending(node(name), cidr);
        affinity.state = model::resource::AffinityState::Confirmed;
        self.put(affinity.to_object()).await;
        self.put(new_block(cidr, node(name), 1, Some(now)).to_object())
            .await;
    }

    fn admin(&self) -> Session {
        self.store.session(Caller::local_admin())
    }

    /// Assigns an address of a node's own block.
    async fn assign(&self, name: &str, pod: &str) -> IpAddr {
        let local = Local(self.admin());
        let facts = local.facts(&node(name)).await.unwrap().unwrap();
        let mut rules = facts.rules.clone();
        rules.writer = Writer::Node(node(name));
        let mut request = request(pod);
        let owner = ("node".to_owned(), name.to_owned());
        request.attributes.extend([owner]);
        let asked = Request {
            node: node(name),
            holder: holder(&request),
            counts: [(Family::V4, 1)].into(),
            preference: Preference {
                purpose: AllowedUse::Workload,
                named: Vec::new(),
                node_labels: BTreeMap::new(),
                namespace_labels: BTreeMap::new(),
            },
            blocks_max: None,
        };
        let operation = assign_addresses(asked, facts.pools, rules, Timestamp::now());
        let assigned = drive(&local, operation).await.unwrap().unwrap();

        assigned.addresses.first().unwrap().addr()
    }

    async fn plead(&self, name: &str, plea: Plea) -> Verdict {
        let judged = self.authority.judge(node(name), plea, self.admin());

        judged.await.unwrap()
    }

    async fn users(&self) -> Vec<(IpAddr, NodeName)> {
        let blocks = self.admin().list(Kind::IPAMBlock).await.unwrap().objects;
        let blocks = blocks.iter().map(|it| IpamBlock::try_from(it).unwrap());

        blocks
            .flat_map(|it| it.loans().collect::<Vec<_>>())
            .collect()
    }

    /// n1's block is full: all that it gets now is lent.
    async fn fill_n1(&self) {
        for pod in ["a", "b", "c", "d"] {
            self.assign("n1", pod).await;
        }
        self.assign("n2", "owner").await;
    }
}

#[tokio::test]
async fn a_loan_is_noted_for_whom_the_certificate_names_and_taken_back_for_nobody_else() {
    let world = World::new().await;
    world.fill_n1().await;
    let mut liar = request("guest");
    let other = ("node".to_owned(), "n2".to_owned());
    liar.attributes.extend([other]);

    let verdict = world.plead("n1", Plea::Lend(liar.clone())).await;

    let Verdict::Lent(lent) = &verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(world.users().await, [(lent[0], node("n1"))]);
    assert_eq!(world.plead("n1", Plea::Lend(liar.clone())).await, verdict);

    let take_back = |handle: &str| Plea::TakeBack {
        handle: handle.to_owned(),
    };
    let refused = world.plead("n2", take_back(&liar.handle)).await;
    assert!(matches!(refused, Verdict::Refused(_)), "{refused:?}");
    let taken = world.plead("n1", take_back(&liar.handle)).await;
    assert_eq!(taken, Verdict::TakenBack);
    assert_eq!(world.users().await, []);
    let again = world.plead("n1", take_back(&liar.handle)).await;
    assert_eq!(again, Verdict::TakenBack);
}

#[tokio::test]
async fn what_a_rooted_node_pleads_for_is_refused() {
    let world = World::new().await;
    world.fill_n1().await;
    let owners = world.assign("n2", "victim").await;
    let exactly = |address: IpAddr| AddressRequest {
        families: BTreeSet::new(),
        addresses: vec![address],
        ..request("thief")
    };
    let tunnel = AddressRequest {
        handle: "wireguard-tunnel-addr-n2".to_owned(),
        ..request("thief")
    };
    let device = AddressRequest {
        purpose: AllowedUse::Tunnel,
        ..request("thief")
    };
    let anothers = AddressRequest {
        handle: request("victim").handle,
        ..request("thief")
    };
    let two = AddressRequest {
        addresses: vec!["10.65.0.6".parse().unwrap()],
        ..request("thief")
    };
    let mut flood = request("thief");
    let facts = (0..100).map(|n| (format!("fact{n}"), "x".repeat(200)));
    flood.attributes.extend(facts);

    for (asked, why) in [
        (exactly(owners), "is held by"),
        (exactly("10.65.9.9".parse().unwrap()), "is in no block"),
        (tunnel, "to pods only"),
        (device, "to pods only"),
        (anothers, "is not n1's"),
        (two, "one address of a family"),
        (flood, "more is said"),
    ] {
        let verdict = world.plead("n1", Plea::Lend(asked.clone())).await;
        let Verdict::Refused(said) = &verdict else {
            panic!("{asked:?}: {verdict:?}")
        };
        assert!(said.contains(why), "{said}");
    }
    let stranger = world.plead("n9", Plea::Lend(request("guest"))).await;
    assert!(matches!(stranger, Verdict::Refused(_)), "{stranger:?}");
    assert_eq!(world.users().await, []);
}

#[tokio::test]
async fn strict_affinity_lends_nothing() {
    let world = World::new().await;
    world.fill_n1().await;
    let key = ObjectKey::cluster(Kind::IPAMConfiguration, "default");
    let spec = json!({"strictAffinity": true});
    world.put(Object::new(&key, spec)).await;

    let verdict = world.plead("n1", Plea::Lend(request("guest"))).await;

    assert!(matches!(verdict, Verdict::Refused(_)), "{verdict:?}");
}

#[tokio::test]
async fn a_block_that_stands_empty_is_freed_before_anything_is_lent() {
    let world = World::new().await;
    for pod in ["a", "b", "c", "d"] {
        world.assign("n1", pod).await;
    }
    let key = ObjectKey::cluster(Kind::IPAMBlock, "10-65-0-4-30");
    let long_ago = json!({"spec": {"affinityClaimTime": "2020-01-01T00:00:00Z"}});
    let admin = world.admin();
    let patched = admin.patch(key, long_ago, store::Precondition::Any);
    patched.await.unwrap();

    let verdict = world.plead("n1", Plea::Lend(request("guest"))).await;

    assert_eq!(verdict, Verdict::BlockFreed);
    let blocks = world.admin().list(Kind::IPAMBlock).await.unwrap().objects;
    assert_eq!(blocks.len(), 1);
}

#[tokio::test]
async fn what_a_vanished_node_had_borrowed_is_collected_once() {
    let world = World::new().await;
    world.fill_n1().await;
    world.plead("n1", Plea::Lend(request("guest"))).await;
    let key = ObjectKey::cluster(Kind::Node, "n1");
    let admin = world.admin();
    let gone = admin.delete(key, store::Precondition::Any);
    gone.await.unwrap();
    assert_eq!(world.users().await.len(), 1);
    let mut collector = Collector::new(Duration::from_secs(900), 256);

    let first = sweep(world.admin(), &mut collector).await.unwrap();

    assert!(first >= 1, "{first}");
    assert_eq!(world.users().await, []);
    let mut last = first;
    for _ in 0..3 {
        last = sweep(world.admin(), &mut collector).await.unwrap();
    }
    assert_eq!(last, 0, "there is always something to put right");
}

fn request(pod: &str) -> AddressRequest {
    let facts = [("pod", pod), ("namespace", "default")];

    AddressRequest {
        handle: format!("k8s-pod-network.{pod}"),
        attributes: facts
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        purpose: AllowedUse::Workload,
        families: [Family::V4].into(),
        pools: BTreeMap::new(),
        addresses: Vec::new(),
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}
