//! The same requests against the embedded store: SQLite on disk, the authority's checks, each node with its own name.
//!
//! As in the agent, a node knows its own blocks and affinities and reads them anew only when somebody was faster.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use cni_ipam::{Answer, Rules, Step, assign_addresses};
use futures::{FutureExt, future::BoxFuture};
use model::{Kind, Object, ObjectKey};
use serde_json::json;
use store::{
    Caller, Embedded, Identity, Options, Perform, Session, Store, StoreError, drive, perform,
};

use crate::{ADDRESSES, Figures, node, pool, request, time};

/// One node's way to the store.
struct Node<'a> {
    session: Session,
    known: Mutex<BTreeMap<ObjectKey, Object>>,
    counts: &'a Counts,
}

#[derive(Default)]
struct Counts {
    begun: AtomicUsize,
    reads: AtomicU64,
    writes: AtomicU64,
    vain: AtomicU64,
}

/// Hands out addresses of one pool to pods of so many nodes at once.
pub(crate) fn assign(nodes: usize) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let store = Embedded::open(&directory.path().join("store.db"), Options::default());
    let store = store.expect("a new store opens");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let counts = Counts::default();
    runtime.block_on(prepare(&store, nodes));
    let began = Instant::now();
    let all = (0..nodes).map(|number| work(&store, number, &counts));
    let assigned = runtime.block_on(futures::future::join_all(all));
    let seconds = began.elapsed().as_secs_f64();
    let addresses: BTreeSet<_> = assigned.iter().flatten().collect();
    let count = assigned.iter().map(Vec::len).sum();
    assert_eq!(addresses.len(), count, "an address was handed out twice");

    Figures {
        nodes,
        assigned: count,
        seconds,
        reads: counts.reads.into_inner(),
        writes: counts.writes.into_inner(),
        vain: counts.vain.into_inner(),
    }
}

async fn prepare(store: &Embedded, nodes: usize) {
    let admin = store.session(Caller::local_admin());
    let cidr = json!({"cidr": pool().cidr});
    let pool = Object::new(&ObjectKey::cluster(Kind::IPPool, pool().name), cidr);
    admin.create(pool).await.expect("the pool is created");
    for number in 0..nodes {
        let key = ObjectKey::cluster(Kind::Node, node(number).as_str());
        let object = Object::new(&key, json!({}));
        admin.create(object).await.expect("the node is created");
    }
}

/// One node's pods, one after the other, as long as there are any.
async fn work(store: &Embedded, number: usize, counts: &Counts) -> Vec<ipnet::IpNet> {
    let name = node(number);
    let way = Node {
        session: store.session(Caller {
            identity: Identity::Node(name.clone()),
            certificate: None,
            origin: None,
        }),
        known: Mutex::default(),
        counts,
    };
    let mut addresses = Vec::new();
    loop {
        let pod = counts.begun.fetch_add(1, Ordering::Relaxed);
        if pod >= ADDRESSES {
            return addresses;
        }
        let rules = Rules::of_node(name.clone());
        let operation = assign_addresses(request(&name, pod), vec![pool()], rules, time());
        let assigned = drive(&way, operation).await.expect("the store answers");
        let assigned = assigned.expect("nobody is outrun a hundred times");
        assert!(assigned.missing.is_empty(), "{assigned:?}");
        addresses.extend(assigned.addresses);
    }
}

impl Perform for Node<'_> {
    fn perform(&self, step: Step) -> BoxFuture<'_, Result<Answer, StoreError>> {
        async move {
            if let Some(answer) = self.known(&step) {
                return Ok(answer);
            }
            let is_write = step.is_write();
            let count = if is_write {
                &self.counts.writes
            } else {
                &self.counts.reads
            };
            count.fetch_add(1, Ordering::Relaxed);
            let key = match &step {
                Step::Get(key) | Step::Delete(key, _) => Some(key.clone()),
                Step::Create(object) | Step::Update(object) => Some(object.key()),
                Step::List(..) => None,
            };
            let answer = perform(&self.session, step).await?;
            let mut known = self.known.lock().expect("nobody panicked");
            match (&answer, key) {
                (Answer::Object(object), Some(key)) if is_kept(key.kind) => {
                    known.insert(key, Object::clone(object));
                }
                (_, Some(key)) => drop(known.remove(&key)),
                (_, None) => {}
            }
            let lost = [Answer::Conflict, Answer::AlreadyExists, Answer::NotFound];
            let in_vain = u64::from(is_write && lost.contains(&answer));
            self.counts.vain.fetch_add(in_vain, Ordering::Relaxed);

            Ok(answer)
        }
        .boxed()
    }
}

impl Node<'_> {
    fn known(&self, step: &Step) -> Option<Answer> {
        let known = self.known.lock().expect("nobody panicked");
        match step {
            Step::Get(key) => known
                .get(key)
                .map(|it| Answer::Object(Box::new(it.clone()))),
            Step::List(Kind::BlockAffinity, Some(_)) => {
                let affinities = known.values().filter(|it| it.kind == Kind::BlockAffinity);
                Some(Answer::Objects(affinities.cloned().collect()))
            }
            Step::List(..) | Step::Create(_) | Step::Update(_) | Step::Delete(..) => None,
        }
    }
}

const fn is_kept(kind: Kind) -> bool {
    matches!(kind, Kind::IPAMBlock | Kind::BlockAffinity)
}
