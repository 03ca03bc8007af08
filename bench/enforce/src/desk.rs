//! An administrator at the store, from a thread in the server's network.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use lab::{Lab, server_place};
use model::{Object, ObjectKey};
use serde_json::Value;
use store::{Client, Credential, Precondition, Store};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Writes under way at once while the cluster is made.
const AT_ONCE: usize = 64;

/// What is asked of the store.
pub(crate) enum Write {
    Create(Vec<Object>),
    Patch(ObjectKey, Value),
    Delete(ObjectKey),
}

/// When a write was asked for, and how long the answer took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
}

/// Where writes are handed in.
pub(crate) struct Desk {
    writes: UnboundedSender<Write>,
    answers: mpsc::Receiver<anyhow::Result<Written>>,
}

impl Desk {
    /// Opens the desk of a lab's store.
    pub(crate) fn open(lab: &Lab) -> anyhow::Result<Self> {
        let (place, file) = lab.site(|site| (server_place(site), site.credential()));
        let credential = Credential::load(&file).context("no credential")?;
        let (writes, mut queue) = unbounded_channel();
        let (answer, answers) = mpsc::channel();
        thread::spawn(move || -> anyhow::Result<()> {
            place.enter_network().context("no way to the server")?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;

            // It runs all the time, so that the connection says that it lives while nobody writes.
            runtime.block_on(async {
                let client = Client::new(credential)?;
                while let Some(write) = queue.recv().await {
                    let at = Instant::now();
                    let done = carry_out(&client, write).await;
                    let written = done.map(|()| Written {
                        at,
                        took: at.elapsed(),
                    });
                    answer.send(written).context("nobody waits")?;
                }

                Ok(())
            })
        });

        Ok(Self { writes, answers })
    }

    /// Has something written, and waits for the answer.
    pub(crate) fn write(&self, write: Write) -> anyhow::Result<Written> {
        self.writes.send(write).ok().context("the desk is closed")?;

        self.answers.recv().context("the desk is closed")?
    }
}

async fn carry_out(client: &Client, write: Write) -> anyhow::Result<()> {
    match write {
        Write::Create(objects) => {
            let writes = objects.into_iter().map(|object| client.create(object));
            futures::stream::iter(writes)
                .buffer_unordered(AT_ONCE)
                .try_for_each(|_| async { Ok(()) })
                .await?;
        }
        Write::Patch(key, patch) => {
            client.patch(key, patch, Precondition::Any).await?;
        }
        Write::Delete(key) => client.delete(key, Precondition::Any).await?,
    }

    Ok(())
}
