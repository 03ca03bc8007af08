use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::{
    Client,
    contract::{Factory, Log, Subject},
};

mod contract {
    use super::*;

    crate::contract_tests!(OverTheWire);
}

/// The store behind gRPC and TLS, on behalf of an administrator.
struct OverTheWire;

/// A server on the loopback, and its directory.
pub(crate) struct Served {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) counters: Counters,
    pub(crate) store: Embedded,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Served {
    pub(crate) async fn start(log: Log) -> Self {
        let directory = tempfile::tempdir().unwrap();

        Self::start_in(directory, SocketAddr::from(([127, 0, 0, 1], 0)), log).await
    }

    pub(crate) async fn start_in(
        directory: tempfile::TempDir,
        listen: SocketAddr,
        log: Log,
    ) -> Self {
        let options = ServerOptions {
            data: directory.path().to_owned(),
            listen,
            advertise: Vec::new(),
            store: crate::embedded::tests::options(log),
        };
        let server = Server::start(options, Timestamp::now()).await.unwrap();
        let (address, counters, store) = (server.address(), server.counters(), server.store());
        let (stop, stopped) = oneshot::channel();
        let run = server.run(async move { drop(stopped.await) });

        Self { directory, address, counters, store, stop: Some(stop), task: Some(tokio::spawn(run)) }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn admin(&self) -> Client {
        let credential = Credential::load(&self.directory.path().join("admin.yaml")).unwrap();

        Client::new(credential).unwrap()
    }

    /// Stops it and returns what it leaves behind.
    pub(crate) async fn stop(mut self) -> tempfile::TempDir {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap().unwrap();

        self.directory
    }
}

impl Factory for OverTheWire {
    fn subject(&self, log: Log) -> BoxFuture<'_, Subject> {
        async move {
            let served = Served::start(log).await;

            Subject { store: Arc::new(served.admin()), guard: Box::new(served) }
        }
        .boxed()
    }
}
