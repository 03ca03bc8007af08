//! Stores that deliver in another order, or late, as the contract allows.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use model::{Kind, Object, ObjectKey, Revision};
use serde_json::Value;
use tokio::sync::watch;

use crate::{List, PageStream, Precondition, Store, StoreError, WatchStream};

/// A store whose kinds are delivered at different times: a seed says by how much each event waits.
///
/// The order within a kind stays, as the contract promises.
pub struct Shuffled {
    store: Arc<dyn Store>,
    seed: u64,
}

/// A store whose watches can be held back.
pub(super) struct Blocked {
    store: Arc<dyn Store>,
    open: watch::Sender<bool>,
}

/// Holds the watches of a [`Blocked`] store back, and lets them go.
pub(super) struct Gate(watch::Sender<bool>);

impl Shuffled {
    /// Shuffles a store's deliveries.
    pub fn new(store: Arc<dyn Store>, seed: u64) -> Self {
        Self { store, seed }
    }

    /// Returns how long the next event of a kind waits: 0 to 7 ms (SplitMix64).
    fn delay(kind: Kind, state: &mut u64) -> Duration {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15 ^ kind as u64);
        let mut bits = *state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);

        Duration::from_millis((bits ^ (bits >> 31)) % 8)
    }
}

impl Blocked {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            open: watch::Sender::new(true),
        }
    }

    pub(super) fn gate(&self) -> Gate {
        Gate(self.open.clone())
    }
}

impl Gate {
    pub(super) fn close(&self) {
        self.0.send_replace(false);
    }

    pub(super) fn open(&self) {
        self.0.send_replace(true);
    }
}

macro_rules! forward {
    ($store:ident) => {
        impl Store for $store {
            fn list(&self, kind: Kind) -> BoxFuture<'_, Result<List, StoreError>> {
                self.store.list(kind)
            }

            fn pages(&self, kind: Kind) -> PageStream<'_> {
                self.store.pages(kind)
            }

            fn watch(
                &self,
                kind: Kind,
                from: Revision,
            ) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
                self.delayed(kind, from).boxed()
            }

            fn get(&self, key: ObjectKey) -> BoxFuture<'_, Result<Object, StoreError>> {
                self.store.get(key)
            }

            fn create(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
                self.store.create(object)
            }

            fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
                self.store.update(object)
            }

            fn patch(
                &self,
                key: ObjectKey,
                merge_patch: Value,
                expected: Precondition,
            ) -> BoxFuture<'_, Result<Object, StoreError>> {
                self.store.patch(key, merge_patch, expected)
            }

            fn delete(
                &self,
                key: ObjectKey,
                expected: Precondition,
            ) -> BoxFuture<'_, Result<(), StoreError>> {
                self.store.delete(key, expected)
            }
        }
    };
}

forward!(Shuffled);
forward!(Blocked);

impl Shuffled {
    async fn delayed(&self, kind: Kind, from: Revision) -> Result<WatchStream, StoreError> {
        let watch = self.store.watch(kind, from).await?;
        let mut state = self.seed;

        Ok(watch
            .then(move |event| {
                let delay = Self::delay(kind, &mut state);
                async move {
                    tokio::time::sleep(delay).await;
                    event
                }
            })
            .boxed())
    }
}

impl Blocked {
    async fn delayed(&self, kind: Kind, from: Revision) -> Result<WatchStream, StoreError> {
        let mut open = self.open.subscribe();
        if open.wait_for(|open| *open).await.is_err() {
            return Err(StoreError::Unavailable("the test is over".to_owned()));
        }
        let watch = self.store.watch(kind, from).await?;
        let closed = async move { drop(open.wait_for(|open| !*open).await) };

        // A watch that is held back ends, and is begun again where it was once the gate opens.
        Ok(watch.take_until(closed).boxed())
    }
}
