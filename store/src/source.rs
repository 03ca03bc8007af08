//! A store as one stream of events: lists, watches, and begins again where a watch broke off.
//!
//! ```text
//!        ┌──────────── list ────────────┐ Compacted
//!        ▼                              │
//! list ─▶ diff against what was told ─▶ watch ─▶ Applied, Deleted
//!        ▲                              │ broke off: watch again from the last revision
//!        └──────── back-off ────────────┘
//! ```
//!
//! One task per kind; nothing orders them against each other. A consumer that does not read stops
//! the tasks, and what they missed comes from the store's log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use model::{Kind, Object, ObjectKey, Revision};
use rand_core::{OsRng, TryRngCore};
use tokio::sync::{Notify, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};

use crate::{
    StoreError,
    backend::{Store, WatchEvent},
};

const FIRST_DELAY: Duration = Duration::from_millis(100);
/// A server that was away is found again well before its absence is felt.
const LONGEST_DELAY: Duration = Duration::from_secs(2);
const QUEUE: usize = 256;

/// What a consumer of [`watch_all`] learns.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreEvent {
    /// The object is stored, or changed.
    Applied(Object),
    /// The object is gone.
    Deleted(ObjectKey),
    /// Every object of the kind that was stored when the watch began has been told.
    ///
    /// Comes once a kind, and after each [`OutOfSync`](Self::OutOfSync).
    InSync(Kind),
    /// There was a gap: what differs is told in no particular order until the next
    /// [`InSync`](Self::InSync), and is one change.
    OutOfSync(Kind),
    /// Whether the store can be reached: at the first answer, and whenever it changes.
    Connected(bool),
}

/// Streams every object of these kinds and all that happens to them, until it is dropped.
///
/// # Guarantees
///
/// Each kind's events, applied in order, lead to what is stored. `Applied` comes only for another
/// revision than was told before; after a gap, what vanished in it comes as `Deleted`. Errors of
/// the store never end the stream: they are logged, and tried again with a jittered back-off.
///
/// Must be called within a tokio runtime.
pub fn watch_all(
    store: Arc<dyn Store>,
    kinds: &[Kind],
) -> impl Stream<Item = StoreEvent> + Send + Unpin + use<> {
    let (events, receiver) = mpsc::channel(QUEUE);
    let connection = Arc::new(Connection::default());
    for kind in kinds.iter().copied().collect::<BTreeSet<_>>() {
        let follower = Follower {
            store: Arc::clone(&store),
            kind,
            events: events.clone(),
            connection: Arc::clone(&connection),
            told: BTreeMap::new(),
            revision: None,
            in_sync: false,
            reachable: None,
        };
        tokio::spawn(follower.run());
    }

    ReceiverStream::new(receiver)
}

/// How many kinds cannot be followed at the moment, and what was last told of it.
#[derive(Default)]
struct Connection {
    unreachable: AtomicUsize,
    told: tokio::sync::Mutex<Option<bool>>,
    /// Wakes the kinds that wait, as soon as one of them finds the store again.
    found: Notify,
}

struct Follower {
    store: Arc<dyn Store>,
    kind: Kind,
    events: mpsc::Sender<StoreEvent>,
    connection: Arc<Connection>,
    told: BTreeMap<ObjectKey, Revision>,
    /// Where to watch from; `None`: list first.
    revision: Option<Revision>,
    in_sync: bool,
    reachable: Option<bool>,
}

/// The consumer is gone.
struct Gone;

impl Follower {
    async fn run(mut self) {
        let mut delay = FIRST_DELAY;
        let events = self.events.clone();
        let connection = Arc::clone(&self.connection);
        loop {
            let reached = tokio::select! {
                followed = self.follow() => followed,
                () = events.closed() => return,
            };
            match reached {
                Err(Gone) => return,
                Ok(Reached::Store) => delay = FIRST_DELAY,
                Ok(Reached::Nothing) => delay = (delay * 2).min(LONGEST_DELAY),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(delay)) => {}
                () = connection.found.notified() => {}
                () = events.closed() => return,
            }
        }
    }

    /// Lists if need be, then watches until the watch ends.
    async fn follow(&mut self) -> Result<Reached, Gone> {
        let from = match &self.revision {
            Some(revision) => revision.clone(),
            None => match self.list().await? {
                Ok(revision) => revision,
                Err(error) => return self.failed(&error).await,
            },
        };
        let mut watch = match self.store.watch(self.kind, from).await {
            Ok(watch) => watch,
            Err(error) => return self.failed(&error).await,
        };
        self.set_reachable(true).await?;
        while let Some(event) = watch.next().await {
            match event {
                Ok(event) => self.tell(event).await?,
                Err(StoreError::Compacted(_)) => {
                    self.revision = None;
                    return Ok(Reached::Store);
                }
                Err(error) => {
                    self.failed(&error).await?;
                    return Ok(Reached::Store);
                }
            }
        }

        Ok(Reached::Store)
    }

    /// Tells what differs between a list and what was told before; returns the list's revision.
    async fn list(&mut self) -> Result<Result<Revision, StoreError>, Gone> {
        let store = Arc::clone(&self.store);
        let mut pages = store.pages(self.kind);
        let (mut unseen, mut revision) = (None, Revision::default());
        while let Some(page) = pages.next().await {
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    // Whatever was not seen again yet may still be there.
                    self.told.extend(unseen.unwrap_or_default());
                    return Ok(Err(error));
                }
            };
            if unseen.is_none() {
                self.begin().await?;
            }
            let unseen = unseen.get_or_insert_with(|| std::mem::take(&mut self.told));
            revision = page.revision;
            self.compare(page.objects, unseen).await?;
        }
        for key in unseen.unwrap_or_default().into_keys() {
            self.send(StoreEvent::Deleted(key)).await?;
        }
        self.revision = Some(revision.clone());
        self.send(StoreEvent::InSync(self.kind)).await?;
        self.in_sync = true;

        Ok(Ok(revision))
    }

    /// The store answers with a list.
    async fn begin(&mut self) -> Result<(), Gone> {
        self.set_reachable(true).await?;
        if std::mem::take(&mut self.in_sync) {
            self.send(StoreEvent::OutOfSync(self.kind)).await?;
        }

        Ok(())
    }

    async fn compare(
        &mut self,
        objects: Vec<Object>,
        unseen: &mut BTreeMap<ObjectKey, Revision>,
    ) -> Result<(), Gone> {
        for object in objects {
            let (key, revision) = (object.key(), object.revision());
            if unseen.remove(&key).as_ref() != Some(&revision) {
                self.send(StoreEvent::Applied(object)).await?;
            }
            self.told.insert(key, revision);
        }

        Ok(())
    }

    async fn tell(&mut self, event: WatchEvent) -> Result<(), Gone> {
        let revision = event.revision();
        match event {
            WatchEvent::Applied(object) => {
                let key = object.key();
                if self.told.insert(key, revision.clone()).as_ref() != Some(&revision) {
                    self.send(StoreEvent::Applied(object)).await?;
                }
            }
            WatchEvent::Deleted { key, .. } => {
                if self.told.remove(&key).is_some() {
                    self.send(StoreEvent::Deleted(key)).await?;
                }
            }
            WatchEvent::Bookmark(_) => {}
        }
        self.revision = Some(revision);

        Ok(())
    }

    async fn failed(&mut self, error: &StoreError) -> Result<Reached, Gone> {
        match error {
            StoreError::Compacted(_) => {
                self.revision = None;
                return Ok(Reached::Store);
            }
            StoreError::Unavailable(_) => {
                tracing::debug!(kind = %self.kind, %error, "the store is away");
            }
            StoreError::NotFound(_)
            | StoreError::AlreadyExists(_)
            | StoreError::Conflict(_)
            | StoreError::Forbidden { .. }
            | StoreError::Unauthenticated(_)
            | StoreError::Invalid(_)
            | StoreError::TooLarge { .. }
            | StoreError::TooMany { .. }
            | StoreError::Internal(_) => {
                tracing::warn!(kind = %self.kind, %error, "the store does not let us follow a kind");
            }
        }
        self.set_reachable(false).await?;

        Ok(Reached::Nothing)
    }

    /// Notes whether this kind can be followed, and tells when that changes the whole.
    async fn set_reachable(&mut self, reachable: bool) -> Result<(), Gone> {
        let before = self.reachable.replace(reachable);
        let count = &self.connection.unreachable;
        match (before, reachable) {
            (Some(false), true) => {
                self.connection.found.notify_waiters();
                count.fetch_sub(1, Ordering::SeqCst)
            }
            (None | Some(true), false) => count.fetch_add(1, Ordering::SeqCst),
            (None | Some(true), true) | (Some(false), false) => return self.tell_first().await,
        };

        self.tell_connected().await
    }

    /// The first answer of all is told, whatever it is.
    async fn tell_first(&self) -> Result<(), Gone> {
        if self.connection.told.lock().await.is_some() {
            return Ok(());
        }

        self.tell_connected().await
    }

    async fn tell_connected(&self) -> Result<(), Gone> {
        let mut told = self.connection.told.lock().await;
        let connected = self.connection.unreachable.load(Ordering::SeqCst) == 0;
        if told.replace(connected) == Some(connected) {
            return Ok(());
        }

        self.send(StoreEvent::Connected(connected)).await
    }

    async fn send(&self, event: StoreEvent) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }
}

/// How far an attempt to follow came.
enum Reached {
    /// The store answered.
    Store,
    /// It did not.
    Nothing,
}

/// Returns a delay between half of `delay` and all of it, so that a mesh does not come back at once.
pub(crate) fn jittered(delay: Duration) -> Duration {
    let half = delay / 2;
    // Without randomness the longest delay is right too.
    let share = OsRng.try_next_u32().unwrap_or(u32::MAX);

    half + half.mul_f64(f64::from(share) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use futures::{FutureExt, future::BoxFuture, stream};
    use serde_json::{Value, json};

    use super::*;
    use crate::{List, PageStream, Precondition, WatchStream};

    /// Answers lists one after the other, each in pieces of one object; what came after is always forgotten.
    struct Script(Mutex<VecDeque<Vec<Result<&'static str, ()>>>>);

    #[tokio::test]
    async fn a_list_that_breaks_off_deletes_nothing_and_the_next_one_tells_the_rest() {
        let mut follower = follow([
            vec![Ok("a"), Ok("b")],
            vec![Ok("b"), Err(())],
            vec![Ok("b"), Ok("c")],
        ]);

        assert_eq!(
            until(&mut follower, 2).await,
            [
                "connected",
                "a is there",
                "b is there",
                "in sync",
                "out of sync",
                "not connected",
                "connected",
                "c is there",
                "a is gone",
                "in sync"
            ]
        );
    }

    #[tokio::test]
    async fn the_first_list_of_all_may_break_off_too() {
        let mut follower = follow([vec![Ok("a"), Err(())], vec![Ok("b")]]);

        assert_eq!(
            until(&mut follower, 1).await,
            [
                "connected",
                "a is there",
                "not connected",
                "connected",
                "b is there",
                "a is gone",
                "in sync"
            ]
        );
    }

    fn follow<const N: usize>(
        lists: [Vec<Result<&'static str, ()>>; N],
    ) -> impl Stream<Item = StoreEvent> + Unpin {
        watch_all(Arc::new(Script(Mutex::new(lists.into()))), &[Kind::Service])
    }

    /// Returns what is told until that many lists were told whole.
    async fn until(
        follower: &mut (impl Stream<Item = StoreEvent> + Unpin),
        lists: usize,
    ) -> Vec<String> {
        let (mut told, mut whole) = (Vec::new(), 0);
        while whole < lists {
            let event = follower.next().await.expect("never ends");
            whole += usize::from(matches!(event, StoreEvent::InSync(_)));
            told.push(match event {
                StoreEvent::Applied(object) => format!("{} is there", object.metadata.name),
                StoreEvent::Deleted(key) => format!("{} is gone", key.name),
                StoreEvent::InSync(_) => "in sync".to_owned(),
                StoreEvent::OutOfSync(_) => "out of sync".to_owned(),
                StoreEvent::Connected(true) => "connected".to_owned(),
                StoreEvent::Connected(false) => "not connected".to_owned(),
            });
        }

        told
    }

    fn away<T>() -> Result<T, StoreError> {
        Err(StoreError::Unavailable("a test".to_owned()))
    }

    impl Store for Script {
        fn list(&self, _: Kind) -> BoxFuture<'_, Result<List, StoreError>> {
            async { away() }.boxed()
        }

        fn pages(&self, kind: Kind) -> PageStream<'_> {
            let pieces = self.0.lock().unwrap().pop_front().unwrap_or_default();
            let pieces = pieces.into_iter().map(move |piece| match piece {
                Ok(name) => {
                    let key = ObjectKey::namespaced(kind, "shop", name);
                    let mut object = Object::new(&key, json!({}));
                    object.metadata.resource_version = Some("1".to_owned());
                    Ok(List {
                        objects: vec![object],
                        revision: Revision("7".to_owned()),
                    })
                }
                Err(()) => away(),
            });

            stream::iter(pieces.collect::<Vec<_>>()).boxed()
        }

        fn watch(&self, kind: Kind, _: Revision) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
            async move { Err(StoreError::Compacted(kind)) }.boxed()
        }

        fn get(&self, _: ObjectKey) -> BoxFuture<'_, Result<Object, StoreError>> {
            async { away() }.boxed()
        }

        fn create(&self, _: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
            async { away() }.boxed()
        }

        fn update(&self, _: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
            async { away() }.boxed()
        }

        fn patch(
            &self,
            _: ObjectKey,
            _: Value,
            _: Precondition,
        ) -> BoxFuture<'_, Result<Object, StoreError>> {
            async { away() }.boxed()
        }

        fn delete(&self, _: ObjectKey, _: Precondition) -> BoxFuture<'_, Result<(), StoreError>> {
            async { away() }.boxed()
        }
    }
}
