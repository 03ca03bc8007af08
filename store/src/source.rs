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
    backend::{List, Store, WatchEvent},
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
            None => match self.store.list(self.kind).await {
                Ok(list) => {
                    self.set_reachable(true).await?;
                    self.diff(list).await?
                }
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

    /// Tells what differs between a list and what was told before.
    async fn diff(&mut self, list: List) -> Result<Revision, Gone> {
        if self.in_sync {
            self.send(StoreEvent::OutOfSync(self.kind)).await?;
        }
        let mut vanished = std::mem::take(&mut self.told);
        for object in list.objects {
            let (key, revision) = (object.key(), object.revision());
            if vanished.remove(&key).as_ref() != Some(&revision) {
                self.send(StoreEvent::Applied(object)).await?;
            }
            self.told.insert(key, revision);
        }
        for key in vanished.into_keys() {
            self.send(StoreEvent::Deleted(key)).await?;
        }
        self.revision = Some(list.revision.clone());
        self.send(StoreEvent::InSync(self.kind)).await?;
        self.in_sync = true;

        Ok(list.revision)
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
