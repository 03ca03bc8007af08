//! The contract of [`Store`] as tests: every implementation passes all of them.
//!
//! ```ignore
//! store::contract_tests!(MyFactory);
//! ```
//!
//! Each test gets a store of its own that is empty. Deliveries between kinds come in an order that a
//! seed shuffles, as the contract allows.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod kind;
mod shuffled;

use std::{any::Any, collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use model::{Kind, Object, ObjectKey, Revision};
use serde_json::json;

pub use self::{kind::two_kinds_that_are_written_alike_are_kept_apart, shuffled::Shuffled};
use crate::{
    List, Precondition, Store, StoreError, StoreEvent, WatchEvent, WatchStream, watch_all,
};

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// Makes stores to test.
pub trait Factory: Send + Sync {
    /// Returns an empty store on behalf of an administrator.
    fn subject(&self, log: Log) -> BoxFuture<'_, Subject>;
}

/// How much of the past a store is to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Everything that a test does.
    Long,
    /// The last 16 changes.
    Short,
}

/// A store to test, and what keeps it alive.
pub struct Subject {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Dropped after the test.
    pub guard: Box<dyn Any + Send>,
}

/// Makes one test of each function of the contract. Takes an expression of type `impl Factory`.
#[macro_export]
macro_rules! contract_tests {
    ($factory:expr) => {
        $crate::contract_tests!($factory;
            what_was_created_is_read_back
            a_name_is_given_once
            two_kinds_that_are_written_alike_are_kept_apart
            an_update_needs_the_revision_it_read
            a_delete_needs_the_revision_it_names
            a_patch_merges_and_renames_nothing
            a_patch_that_changes_nothing_writes_nothing
            a_malformed_object_is_refused_whole
            a_watch_tells_what_happened_after_its_list_in_order
            a_watch_hears_nothing_of_other_kinds
            a_watch_from_the_past_replays_it_without_a_gap
            a_watch_carries_large_objects
            a_past_that_is_forgotten_says_list_again
            concurrent_updates_lose_nothing
            a_list_is_one_moment
            a_list_in_pieces_is_the_list
            followers_converge_whatever_the_order_between_kinds
            a_follower_that_missed_the_log_hears_of_deletions
        );
    };
    ($factory:expr; $($test:ident)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            $crate::contract::$test(&$factory).await;
        })+
    };
}

/// Metadata is completed, everything else is kept.
pub async fn what_was_created_is_read_back(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let mut object = service("web", 1);
    object.metadata.labels.insert("app".into(), "web".into());

    let created = subject.store.create(object.clone()).await.unwrap();

    assert_eq!(subject.store.get(object.key()).await.unwrap(), created);
    assert_eq!(
        (&created.body, &created.metadata.labels),
        (&object.body, &object.metadata.labels)
    );
    assert_ne!(created.revision(), Revision::default());
    assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
}

/// Create is create-only, and a new life has a new identity.
pub async fn a_name_is_given_once(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let key = service("web", 1).key();
    let first = store.create(service("web", 1)).await.unwrap();

    let second = store.create(service("web", 2)).await;
    assert_eq!(second, Err(StoreError::AlreadyExists(key.clone())));
    assert_eq!(store.get(key.clone()).await.unwrap(), first);

    store.delete(key.clone(), Precondition::Any).await.unwrap();
    assert_eq!(store.get(key.clone()).await, Err(StoreError::NotFound(key)));
    let again = store.create(service("web", 1)).await.unwrap();
    assert_ne!(again.metadata.uid, first.metadata.uid);
    assert_ne!(again.revision(), first.revision());
}

/// The compare and swap that everything else is built on.
pub async fn an_update_needs_the_revision_it_read(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let key = service("web", 1).key();
    assert!(matches!(
        store.update(service("web", 1)).await,
        Err(StoreError::Invalid(_))
    ));
    let first = store.create(service("web", 1)).await.unwrap();

    let second = store.update(with(first.clone(), 2)).await.unwrap();

    assert_ne!(second.revision(), first.revision());
    assert_eq!(second.metadata.uid, first.metadata.uid);
    let stale = store.update(with(first.clone(), 3)).await;
    assert_eq!(stale, Err(StoreError::Conflict(key.clone())));
    assert_eq!(store.get(key.clone()).await.unwrap(), second);
    store.delete(key.clone(), Precondition::Any).await.unwrap();
    assert_eq!(
        store.update(with(second, 4)).await,
        Err(StoreError::NotFound(key))
    );
}

/// A delete with a precondition removes exactly what was read.
pub async fn a_delete_needs_the_revision_it_names(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let first = store.create(service("web", 1)).await.unwrap();
    let (key, old) = (first.key(), Precondition::Revision(first.revision()));
    let second = store.update(with(first, 2)).await.unwrap();

    assert_eq!(
        store.delete(key.clone(), old).await,
        Err(StoreError::Conflict(key.clone()))
    );
    assert_eq!(store.get(key.clone()).await.unwrap(), second);
    let now = Precondition::Revision(second.revision());
    store.delete(key.clone(), now).await.unwrap();
    let gone = store.delete(key.clone(), Precondition::Any).await;
    assert_eq!(gone, Err(StoreError::NotFound(key)));
}

/// RFC 7396: objects merge, null removes, lists are replaced; the key stays.
pub async fn a_patch_merges_and_renames_nothing(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let created = store.create(service("web", 1)).await.unwrap();
    let key = created.key();

    let patch = json!({"metadata": {"annotations": {"a.example/b": "c"}}, "spec": {"list": [2], "n": null}});
    let patched = store
        .patch(key.clone(), patch, Precondition::Any)
        .await
        .unwrap();

    assert_eq!(patched.body["spec"], json!({"list": [2]}));
    assert_eq!(patched.metadata.annotations["a.example/b"], "c");
    assert_eq!(store.get(key.clone()).await.unwrap(), patched);
    let stale = Precondition::Revision(created.revision());
    let late = store
        .patch(key.clone(), json!({"spec": {"n": 9}}), stale)
        .await;
    assert_eq!(late, Err(StoreError::Conflict(key.clone())));
    for rename in [
        json!({"metadata": {"name": "other"}}),
        json!({"metadata": {"namespace": "other"}}),
        json!({"kind": "Pod"}),
        json!({"metadata": null}),
        json!([]),
        json!(null),
    ] {
        let refused = store
            .patch(key.clone(), rename.clone(), Precondition::Any)
            .await;
        assert!(
            matches!(refused, Err(StoreError::Invalid(_))),
            "{rename}: {refused:?}"
        );
    }
    let missing = ObjectKey::namespaced(Kind::Service, "default", "none");
    let refused = store
        .patch(missing.clone(), json!({}), Precondition::Any)
        .await;
    assert_eq!(refused, Err(StoreError::NotFound(missing)));
}

/// So that a node may publish as often as it likes.
pub async fn a_patch_that_changes_nothing_writes_nothing(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let created = store.create(service("web", 1)).await.unwrap();

    let patch = json!({"spec": {"n": 1}, "metadata": {"uid": "mine", "resourceVersion": "9"}});
    let patched = store
        .patch(created.key(), patch, Precondition::Any)
        .await
        .unwrap();

    assert_eq!(patched, created);
}

/// Names, scopes and sizes are checked, and nothing is stored.
pub async fn a_malformed_object_is_refused_whole(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let mut bad = vec![
        service("Upper", 1),
        service("", 1),
        service(&"a".repeat(254), 1),
    ];
    let mut nowhere = service("web", 1);
    nowhere.metadata.namespace = None;
    let mut version = service("web", 1);
    version.api_version = "v2".into();
    bad.extend([nowhere, version]);
    for object in bad {
        let refused = store.create(object.clone()).await;
        assert!(
            matches!(refused, Err(StoreError::Invalid(_))),
            "{object:?}: {refused:?}"
        );
    }
    let mut huge = service("web", 1);
    huge.body
        .insert("spec".into(), json!({"blob": "x".repeat(300 * 1024)}));
    let refused = store.create(huge).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::TooLarge { .. } | StoreError::Invalid(_))
        ),
        "{refused:?}"
    );

    assert_eq!(store.list(Kind::Service).await.unwrap().objects, []);
}

/// List, then watch from its revision: every change once, in the order of commits.
pub async fn a_watch_tells_what_happened_after_its_list_in_order(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let before = store.create(service("before", 0)).await.unwrap();
    let list = store.list(Kind::Service).await.unwrap();
    assert_eq!(list.objects, [before]);
    let mut watch = store.watch(Kind::Service, list.revision).await.unwrap();

    let mut expected = Vec::new();
    for number in 0..50 {
        let created = store
            .create(service(&format!("s{number}"), number))
            .await
            .unwrap();
        expected.push(WatchEvent::Applied(created.clone()));
        let updated = store.update(with(created, number + 100)).await.unwrap();
        expected.push(WatchEvent::Applied(updated.clone()));
        if number % 2 == 0 {
            store
                .delete(updated.key(), Precondition::Any)
                .await
                .unwrap();
            let revision = Revision::default();
            expected.push(WatchEvent::Deleted {
                key: updated.key(),
                revision,
            });
        }
    }

    for wanted in expected {
        match (next(&mut watch).await.unwrap(), wanted) {
            (WatchEvent::Deleted { key, .. }, WatchEvent::Deleted { key: wanted, .. }) => {
                assert_eq!(key, wanted);
            }
            (event, wanted) => assert_eq!(event, wanted),
        }
    }
}

/// A watch is of one kind.
pub async fn a_watch_hears_nothing_of_other_kinds(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let revision = store.list(Kind::Service).await.unwrap().revision;
    let mut watch = store.watch(Kind::Service, revision).await.unwrap();

    store.create(namespace("shop")).await.unwrap();
    let service = store.create(service("web", 1)).await.unwrap();

    assert_eq!(
        next(&mut watch).await.unwrap(),
        WatchEvent::Applied(service)
    );
}

/// Every event's revision is one to go on from.
pub async fn a_watch_from_the_past_replays_it_without_a_gap(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let start = store.list(Kind::Service).await.unwrap().revision;
    for number in 0..300 {
        store
            .create(service(&format!("s{number}"), number))
            .await
            .unwrap();
    }
    let mut watch = store.watch(Kind::Service, start.clone()).await.unwrap();
    let mut events = Vec::new();
    for _ in 0..300 {
        events.push(next(&mut watch).await.unwrap());
    }

    for cut in [0, 1, 150, 298] {
        let from = events[cut].revision();
        let mut resumed = store.watch(Kind::Service, from).await.unwrap();
        for event in &events[cut + 1..] {
            assert_eq!(next(&mut resumed).await.unwrap(), *event, "after {cut}");
        }
    }
}

/// From the past and live, however many are waiting.
pub async fn a_watch_carries_large_objects(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let start = store.list(Kind::Service).await.unwrap().revision;
    let mut live = store.watch(Kind::Service, start.clone()).await.unwrap();
    let mut expected = Vec::new();
    for number in 0..30 {
        let mut object = service(&format!("s{number}"), number);
        object
            .body
            .insert("status".into(), json!("x".repeat(200 * 1024)));
        expected.push(store.create(object).await.unwrap());
    }
    let mut past = store.watch(Kind::Service, start).await.unwrap();

    for object in expected {
        let event = WatchEvent::Applied(object);
        assert!(next(&mut live).await.unwrap() == event, "live");
        assert!(next(&mut past).await.unwrap() == event, "from the past");
    }
}

/// A gap is never hidden.
pub async fn a_past_that_is_forgotten_says_list_again(factory: &dyn Factory) {
    let subject = factory.subject(Log::Short).await;
    let store = &subject.store;
    let start = store.list(Kind::Service).await.unwrap().revision;
    let mut object = store.create(service("web", 0)).await.unwrap();
    for number in 0..100 {
        object = store.update(with(object, number)).await.unwrap();
    }

    for from in [
        start,
        Revision("nonsense".into()),
        Revision("999999999".into()),
    ] {
        let watch = store.watch(Kind::Service, from.clone()).await;
        let first = match watch {
            Ok(mut watch) => next(&mut watch).await,
            Err(error) => Err(error),
        };
        assert_eq!(
            first,
            Err(StoreError::Compacted(Kind::Service)),
            "from {from:?}"
        );
    }
    let list = store.list(Kind::Service).await.unwrap();
    assert_eq!(list.objects, [object.clone()]);
    let mut watch = store.watch(Kind::Service, list.revision).await.unwrap();
    let object = store.update(with(object, 7)).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), WatchEvent::Applied(object));
}

/// Sixteen writers add one each, many times over: the sum is right.
pub async fn concurrent_updates_lose_nothing(factory: &dyn Factory) {
    const WRITERS: i64 = 16;
    const EACH: i64 = 10;
    let subject = factory.subject(Log::Long).await;
    let key = subject.store.create(service("web", 0)).await.unwrap().key();
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (store, key) = (Arc::clone(&subject.store), key.clone());
        writers.push(tokio::spawn(async move {
            for _ in 0..EACH {
                add_one(&*store, &key).await;
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }

    assert_eq!(
        number(&subject.store.get(key).await.unwrap()),
        WRITERS * EACH
    );
}

/// More objects than any piece has.
pub async fn a_list_in_pieces_is_the_list(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = Arc::clone(&subject.store);
    for number in 0..150 {
        let name = format!("s-{number}");
        store.create(service(&name, number)).await.unwrap();
    }

    let list = store.list(Kind::Service).await.unwrap();
    let pieces: Vec<List> = store.pages(Kind::Service).try_collect().await.unwrap();

    assert_eq!(list.objects.len(), 150);
    assert!(pieces.iter().all(|piece| piece.revision == list.revision));
    let pieces = pieces.into_iter().flat_map(|piece| piece.objects);
    assert_eq!(pieces.collect::<Vec<_>>(), list.objects);
    let none: Vec<List> = store.pages(Kind::Namespace).try_collect().await.unwrap();
    assert!(!none.is_empty(), "a list without objects has a revision");
}

/// Two objects that are only ever written one after the other are never seen the wrong way round.
pub async fn a_list_is_one_moment(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = Arc::clone(&subject.store);
    let mut first = store.create(service("a", 0)).await.unwrap();
    let mut second = store.create(service("b", 0)).await.unwrap();
    let writer = tokio::spawn(async move {
        for number in 1..100 {
            first = store.update(with(first, number)).await.unwrap();
            second = store.update(with(second, number)).await.unwrap();
        }
    });

    while !writer.is_finished() {
        let list = subject.store.list(Kind::Service).await.unwrap();
        let [a, b] = &list.objects[..] else {
            panic!("{list:?}")
        };
        let ahead = number(a) - number(b);
        assert!((0..=1).contains(&ahead), "{} and {}", number(a), number(b));
    }
    writer.await.unwrap();
}

/// What followers end up with is what is stored, however the kinds' deliveries interleave.
pub async fn followers_converge_whatever_the_order_between_kinds(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let kinds = [Kind::Service, Kind::Namespace, Kind::ServiceAccount];
    let mut followers = Vec::new();
    for seed in 0..4 {
        let shuffled = Shuffled::new(Arc::clone(&subject.store), seed);
        followers.push(watch_all(Arc::new(shuffled), &kinds));
    }
    for number in 0..60 {
        let store = &subject.store;
        store
            .create(namespace(&format!("n{number}")))
            .await
            .unwrap();
        store
            .create(service(&format!("s{number}"), number))
            .await
            .unwrap();
        let mut account = service(&format!("a{number}"), number);
        account.kind = Kind::ServiceAccount;
        let account = store.create(account).await.unwrap();
        if number % 3 == 0 {
            store
                .delete(account.key(), Precondition::Any)
                .await
                .unwrap();
        }
    }
    let mut expected = BTreeMap::new();
    for kind in kinds {
        for object in subject.store.list(kind).await.unwrap().objects {
            expected.insert(object.key(), object);
        }
    }

    for mut follower in followers {
        let mut seen = BTreeMap::new();
        let mut in_sync = Vec::new();
        while seen != expected || in_sync.len() < kinds.len() {
            let event = tokio::time::timeout(DEADLINE, follower.next()).await;
            match event.expect("converges in time").expect("never ends") {
                StoreEvent::Applied(object) => drop(seen.insert(object.key(), object)),
                StoreEvent::Deleted(key) => drop(seen.remove(&key).expect("was told before")),
                StoreEvent::InSync(kind) => in_sync.push(kind),
                StoreEvent::OutOfSync(kind) => in_sync.retain(|other| *other != kind),
                StoreEvent::Connected(connected) => assert!(connected),
            }
        }
    }
}

/// A consumer that does not read for a while gets the difference, deletions among it.
pub async fn a_follower_that_missed_the_log_hears_of_deletions(factory: &dyn Factory) {
    let subject = factory.subject(Log::Short).await;
    let store = &subject.store;
    for number in 0..20 {
        store
            .create(service(&format!("s{number}"), number))
            .await
            .unwrap();
    }
    let blocked = shuffled::Blocked::new(Arc::clone(store));
    let gate = blocked.gate();
    let mut follower = watch_all(Arc::new(blocked), &[Kind::Service]);
    let mut seen = BTreeMap::new();
    follow_until_in_sync(&mut follower, &mut seen).await;
    assert_eq!(seen.len(), 20);

    // The watch is held back while more happens than the log keeps.
    gate.close();
    for number in 0..20 {
        let key = service(&format!("s{number}"), number).key();
        store.delete(key, Precondition::Any).await.unwrap();
        store
            .create(service(&format!("t{number}"), number))
            .await
            .unwrap();
    }
    gate.open();

    let event = tokio::time::timeout(DEADLINE, follower.next()).await;
    assert_eq!(
        event.expect("in time"),
        Some(StoreEvent::OutOfSync(Kind::Service))
    );
    follow_until_in_sync(&mut follower, &mut seen).await;
    let stored = store.list(Kind::Service).await.unwrap().objects;
    assert_eq!(seen.into_values().collect::<Vec<_>>(), stored);
}

async fn follow_until_in_sync(
    follower: &mut (impl futures::Stream<Item = StoreEvent> + Unpin),
    seen: &mut BTreeMap<ObjectKey, Object>,
) {
    loop {
        let event = tokio::time::timeout(DEADLINE, follower.next()).await;
        match event.expect("in time").expect("never ends") {
            StoreEvent::Applied(object) => drop(seen.insert(object.key(), object)),
            StoreEvent::Deleted(key) => drop(seen.remove(&key).expect("was told before")),
            StoreEvent::InSync(_) => return,
            StoreEvent::Connected(connected) => assert!(connected),
            StoreEvent::OutOfSync(kind) => panic!("{kind} was out of sync without a gap"),
        }
    }
}

async fn add_one(store: &dyn Store, key: &ObjectKey) {
    loop {
        let object = store.get(key.clone()).await.unwrap();
        let next = number(&object) + 1;
        match store.update(with(object, next)).await {
            Ok(_) => return,
            Err(StoreError::Conflict(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn next(watch: &mut WatchStream) -> Result<WatchEvent, StoreError> {
    loop {
        let event = tokio::time::timeout(DEADLINE, watch.next()).await;
        match event
            .expect("an event in time")
            .expect("a watch does not end by itself")
        {
            Ok(WatchEvent::Bookmark(_)) => {}
            event => return event,
        }
    }
}

/// A Service: its body is free, so that the contract tests the store and not a kind.
fn service(name: &str, number: i64) -> Object {
    let key = ObjectKey::namespaced(Kind::Service, "default", name);

    Object::new(&key, json!({"n": number}))
}

fn namespace(name: &str) -> Object {
    Object::new(&ObjectKey::cluster(Kind::Namespace, name), json!({}))
}

fn with(mut object: Object, number: i64) -> Object {
    object.body.insert("spec".into(), json!({"n": number}));

    object
}

fn number(object: &Object) -> i64 {
    object.body["spec"]["n"]
        .as_i64()
        .expect("the contract's own objects have a number")
}
