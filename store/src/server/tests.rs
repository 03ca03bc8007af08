use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::{
    Client, Enrolment, Token, TokenRequest,
    certificate::{Past, RequestedKey},
    contract::{Factory, Log, Subject},
};

mod join;
mod origin;
mod security;
mod sys;

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

/// Whether the server knows a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    Yes,
    No,
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

        Self {
            directory,
            address,
            counters,
            store,
            stop: Some(stop),
            task: Some(tokio::spawn(run)),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.reachable())
    }

    /// Returns an address that a client can connect to.
    fn reachable(&self) -> SocketAddr {
        match self.address.ip().is_unspecified() {
            true => SocketAddr::from(([127, 0, 0, 1], self.address.port())),
            false => self.address,
        }
    }

    pub(crate) fn admin(&self) -> Client {
        let credential = Credential::load(&self.directory.path().join("admin.yaml")).unwrap();

        Client::new(credential).unwrap()
    }

    pub(crate) fn authority(&self) -> CertificateAuthority {
        CertificateAuthority::open(self.directory.path(), Past::Signed, Timestamp::now()).unwrap()
    }

    /// Makes a token.
    pub(crate) async fn token(&self, node: Option<&str>, replace: bool) -> Token {
        let node = node.map(|node| node.parse().unwrap());
        let request = TokenRequest {
            node,
            ttl: Duration::from_secs(600),
            replace,
        };

        self.admin().create_token(request).await.unwrap().0
    }

    /// Joins a node as `meshd join` does.
    pub(crate) async fn join(&self, name: &str) -> Client {
        let token = self.token(Some(name), false).await;
        let key = Enrolment::generate_key().unwrap();
        let server = self.url();
        let enrolment = Enrolment {
            server: &server,
            token: &token,
            name: None,
            key: &key,
        };

        Client::new(crate::enrol(enrolment, Timestamp::now()).await.unwrap()).unwrap()
    }

    /// Signs a node's certificate as if the server had, at some other time.
    pub(crate) async fn credential_signed(
        &self,
        name: &str,
        at: Timestamp,
        noted: Noted,
    ) -> Result<Credential, CredentialError> {
        let authority = self.authority();
        let key = PrivateKey::generate().unwrap();
        let request = RequestedKey::parse(&key.signing_request().unwrap()).unwrap();
        let identity = Identity::Node(name.parse().unwrap());
        let signed = authority.sign_request(&identity, &request, at).unwrap();
        if noted == Noted::Yes {
            self.store
                .note_certificate(identity, signed.clone())
                .await
                .unwrap();
        }

        Credential::new(
            vec![self.url()],
            authority.pem().to_owned(),
            signed.pem,
            key.reveal(),
        )
    }

    /// Stops it and returns what it leaves behind.
    pub(crate) async fn stop(mut self) -> tempfile::TempDir {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap().unwrap();

        self.directory
    }

    /// Stops it and returns what it leaves behind, once no connection to its database is open any
    /// more: closing one may still write.
    pub(crate) async fn stop_and_close(self) -> tempfile::TempDir {
        let directory = self.stop().await;
        let is_open = || {
            let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let mut files = descriptors.filter_map(|each| std::fs::read_link(each.path()).ok());
            files.any(|file| file.starts_with(directory.path()))
        };
        let closed = async {
            while is_open() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), closed)
            .await
            .expect("the store closes");

        directory
    }
}

impl Factory for OverTheWire {
    fn subject(&self, log: Log) -> BoxFuture<'_, Subject> {
        async move {
            let served = Served::start(log).await;

            Subject {
                store: Arc::new(served.admin()),
                guard: Box::new(served),
            }
        }
        .boxed()
    }
}
