//! `meshd serve`: the embedded store over gRPC, with mutual TLS 1.3, for members and administrators.
//!
//! ```text
//! TCP ─ limits ─▶ TLS 1.3 (5 s) ─ certificate: who, good? ─▶ HTTP/2 ─▶ service ─▶ Session(caller)
//!                     └ no certificate: only Join.Enrol, for 30 s
//! ```
//!
//! A connection ends when its certificate does, by date or by revocation. The address a connection
//! comes from goes with every write: it is what grants a node its address.

mod connection;
#[cfg(feature = "fuzz")]
mod door;
mod host;
mod limit;
mod service;
mod tls;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use ipnet::IpNet;
use jiff::Timestamp;
use model::{Kind, Object, resource::IpPool};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;

#[cfg(feature = "fuzz")]
pub use self::door::{Door, Reply};
pub use self::limit::Counters;
use self::{connection::Gate, service::Service, tls::ServerCertificate};
use crate::{
    Caller, Credential, CredentialError, Embedded, Identity, Lender, OpenError, Options, Store,
    StoreError,
    certificate::{ADMIN_LIFE, CertificateAuthority, CertificateError, PrivateKey},
    message::proto,
    socket,
};

/// Connections that may wait for HTTP/2 to take them.
const ACCEPTED: usize = 64;

/// How often the server looks whether its own certificate is still right.
const CERTIFICATE_CHECK: Duration = Duration::from_mins(10);

/// How long calls may go on after the server was told to stop; watches never end by themselves.
const GRACE: Duration = Duration::from_millis(500);

/// Largest request, in bytes: an object, and room for its frame.
const REQUEST_MAX: usize = crate::embedded::OBJECT_MAX + 64 * 1024;

/// How a server is to run.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Its directory: database, CA, administrator's credential.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Under which addresses members reach it, where that is not the host's own (behind NAT).
    pub advertise: Vec<IpAddr>,
    /// How much of the past it keeps.
    pub store: Options,
}

/// A server that is ready to take connections.
pub struct Server {
    listener: TcpListener,
    context: Arc<Context>,
    admin: PathBuf,
}

/// What every connection shares.
pub(crate) struct Context {
    pub(crate) store: Embedded,
    pub(crate) authority: CertificateAuthority,
    pub(crate) address: SocketAddr,
    pub(crate) advertise: Vec<IpAddr>,
    pub(crate) counters: Counters,
    pub(crate) certificate: ServerCertificate,
    pub(crate) lender: OnceLock<Arc<dyn Lender>>,
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store cannot be opened.
    #[error("cannot open the store {path}")]
    Store {
        /// Its file.
        path: String,
        /// Why.
        source: OpenError,
    },
    /// The store cannot be read.
    #[error("cannot read the store")]
    Read(#[source] StoreError),
    /// The mesh has a CA, and its store is gone.
    #[error(
        "{path} is missing or empty, though this mesh has a CA: restore it from a backup, or move the whole folder away to start a new mesh"
    )]
    Emptied {
        /// The store's file.
        path: String,
    },
    /// The CA cannot be read or made, or cannot sign.
    #[error("cannot use the CA")]
    Certificate(#[from] CertificateError),
    /// Nobody can listen there.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The host's addresses cannot be read.
    #[error("cannot read the addresses of this host")]
    Addresses(#[from] host::AddressError),
    /// The administrator's credential cannot be made.
    #[error("cannot make the administrator's credential")]
    Credential(#[from] CredentialError),
    /// The administrator's certificate cannot be noted.
    #[error("cannot note a certificate")]
    Note(#[source] StoreError),
    /// The TLS server cannot be made.
    #[error("cannot set up TLS")]
    Tls(#[from] tls::TlsError),
    /// HTTP/2 stopped.
    #[error("the server stopped")]
    Stopped(#[from] tonic::transport::Error),
}

impl Server {
    /// Opens the store and the CA, makes the administrator's credential, and listens.
    ///
    /// # Errors
    ///
    /// [`ServeError`] names the step that failed.
    pub async fn start(options: ServerOptions, now: Timestamp) -> Result<Self, ServeError> {
        let store = open_store(&options)?;
        let past = store.past().await.map_err(ServeError::Read)?;
        let authority = CertificateAuthority::open(&options.data, past, now)?;
        let listener = socket::listen(options.listen);
        let wrong = |source| ServeError::Listen {
            address: options.listen,
            source,
        };
        let listener = listener.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        let context = Arc::new(Context {
            store,
            authority,
            address,
            advertise: options.advertise,
            counters: Counters::default(),
            certificate: ServerCertificate::default(),
            lender: OnceLock::new(),
        });
        context.renew_certificate(now).await?;
        let admin = options.data.join("admin.yaml");
        context.write_admin(&admin, now).await?;

        Ok(Self {
            listener,
            context,
            admin,
        })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.context.address
    }

    /// Returns the file of the administrator's credential.
    pub fn admin_credential(&self) -> &Path {
        &self.admin
    }

    /// Returns the store, for whoever works in this process.
    pub fn store(&self) -> Embedded {
        self.context.store.clone()
    }

    /// Says who decides about addresses in others' blocks; until then nobody does. The first one stays.
    pub fn lend_by(&self, lender: Arc<dyn Lender>) {
        self.context.lender.get_or_init(|| lender);
    }

    /// Returns what was refused so far, and why.
    pub fn counters(&self) -> Counters {
        self.context.counters.clone()
    }

    /// Serves until `stop` is ready.
    ///
    /// # Errors
    ///
    /// [`ServeError::Stopped`]; a single connection's failure never ends the server.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let (accepted, connections) = mpsc::channel(ACCEPTED);
        let gate = Gate::new(Arc::clone(&self.context))?;
        let tasks = [
            tokio::spawn(gate.clone().accept(self.listener, accepted)),
            tokio::spawn(gate.clone().cut_revoked()),
            tokio::spawn(Arc::clone(&self.context).keep_certificate()),
        ];
        let (stopping, stopped) = oneshot::channel();
        let stop = async move {
            stop.await;
            if stopping.send(()).is_err() {
                tracing::debug!("the server had stopped by itself");
            }
        };
        let cut = async move {
            if stopped.await.is_ok() {
                sleep(GRACE).await;
                gate.cut_all();
            }
        };
        let service = Service::new(Arc::clone(&self.context));
        let store = proto::store_server::StoreServer::new(service.clone())
            .max_decoding_message_size(REQUEST_MAX);
        let join = proto::join_server::JoinServer::new(service)
            .max_decoding_message_size(limit::ENROL_REQUEST_MAX);
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(limit::KEEPALIVE))
            .http2_keepalive_timeout(Some(limit::KEEPALIVE))
            .max_concurrent_streams(limit::STREAMS)
            .http2_max_header_list_size(limit::HEADERS_MAX)
            .add_service(store)
            .add_service(join)
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop);
        let (served, ()) = tokio::join!(serving, cut);
        for task in tasks {
            task.abort();
        }

        Ok(served?)
    }
}

/// Opens the store, or makes it at the first start: never beside a CA, which comes after it.
fn open_store(options: &ServerOptions) -> Result<Embedded, ServeError> {
    let path = options.data.join("store.db");
    if CertificateAuthority::is_in(&options.data) && is_empty(&path) {
        return Err(ServeError::Emptied {
            path: path.display().to_string(),
        });
    }

    Embedded::open(&path, options.store.clone()).map_err(|source| ServeError::Store {
        path: path.display().to_string(),
        source,
    })
}

/// Returns whether a database has no byte yet, in its file or in its log.
fn is_empty(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());

    length(path) == 0 && length(Path::new(&log)) == 0
}

impl Context {
    /// Returns the addresses under which members reach the server.
    pub(crate) async fn addresses(&self) -> Result<BTreeSet<IpAddr>, host::AddressError> {
        let listen = self.address.ip().to_canonical();
        if !self.advertise.is_empty() {
            return Ok(self.advertise.iter().copied().collect());
        }
        if !listen.is_unspecified() {
            return Ok(BTreeSet::from([listen]));
        }
        let addresses = host::addresses().await?;
        // A member's own tunnel address is no way to the server: it needs the mesh that it makes.
        let pools = self.pools().await;
        let reachable = |address: &IpAddr| {
            !host::is_link_local(*address) && !pools.iter().any(|pool| pool.contains(address))
        };

        Ok(addresses
            .into_iter()
            .filter(|address| address.is_ipv4() || self.address.is_ipv6())
            .filter(reachable)
            .collect())
    }

    /// Returns the ranges of the pods' addresses.
    async fn pools(&self) -> Vec<IpNet> {
        let admin = self.store.session(Caller::local_admin());
        let pools = match admin.list(Kind::IPPool).await {
            Ok(list) => list.objects,
            Err(error) => {
                tracing::warn!(%error, "the pools cannot be read");
                return Vec::new();
            }
        };
        let range = |pool: &Object| IpPool::try_from(pool).ok().map(|pool| pool.cidr);

        pools.iter().filter_map(range).collect()
    }

    /// Returns the URLs under which members reach the server.
    pub(crate) async fn urls(&self) -> Result<Vec<String>, host::AddressError> {
        let port = self.address.port();
        let mut addresses = self.addresses().await?;
        if addresses.is_empty() {
            addresses.insert(IpAddr::from([127, 0, 0, 1]));
        }
        let url = |address| format!("https://{}", SocketAddr::new(address, port));

        Ok(addresses.into_iter().map(url).collect())
    }

    /// Signs the server's own certificate anew.
    async fn renew_certificate(&self, now: Timestamp) -> Result<(), ServeError> {
        let addresses = self.addresses().await?;

        Ok(self.certificate.renew(&self.authority, addresses, now)?)
    }

    /// Keeps the server's own certificate in date, and its addresses right.
    async fn keep_certificate(self: Arc<Self>) {
        let mut check = tokio::time::interval(CERTIFICATE_CHECK);
        loop {
            check.tick().await;
            let now = Timestamp::now();
            let addresses = self.addresses().await;
            let right = addresses.is_ok_and(|it| self.certificate.is_right(&it, now));
            if right {
                continue;
            }
            if let Err(error) = self.renew_certificate(now).await {
                tracing::warn!(%error, "the server's certificate could not be renewed");
            }
        }
    }

    /// Writes the administrator's credential where there is none that is good for long enough.
    ///
    /// Where its file was removed, those that were made before end: so an administrator's credential
    /// is revoked.
    async fn write_admin(&self, path: &Path, now: Timestamp) -> Result<(), ServeError> {
        let urls = self.urls().await?;
        if let Some(present) = self.present_admin(path, now).await? {
            if present.servers() != urls {
                present.with_servers(urls).save(path)?;
            }
            return Ok(());
        }
        if !fs::exists(path).unwrap_or(true) {
            self.store
                .revoke_administrators()
                .await
                .map_err(ServeError::Note)?;
        }
        let identity = Identity::Admin("admin".to_owned());
        let key = PrivateKey::generate().map_err(CertificateError::from)?;
        let signed = self.authority.sign_client(&identity, &key, now)?;
        let certificate = signed.pem.clone();
        self.store
            .note_certificate(identity, signed)
            .await
            .map_err(ServeError::Note)?;
        let ca = self.authority.pem().to_owned();
        Credential::new(urls, ca, certificate, key.reveal())?.save(path)?;

        Ok(())
    }

    /// Returns the administrator's credential if a third of its life is left.
    async fn present_admin(
        &self,
        path: &Path,
        now: Timestamp,
    ) -> Result<Option<Credential>, ServeError> {
        if !fs::exists(path).unwrap_or(false) {
            return Ok(None);
        }
        let present = match Credential::load(path) {
            Ok(present) => present,
            Err(error) => {
                tracing::warn!(%error, "the administrator's credential is unusable: it is made anew");
                return Ok(None);
            }
        };
        let (_, until) = present.validity();
        let left = until.as_second().saturating_sub(now.as_second());
        let long = left > ADMIN_LIFE.as_secs() as i64 / 3;
        let ours = present.mesh()? == hex::encode(self.authority.fingerprint());
        let known = self.store.is_good(present.serial().to_owned()).await;

        Ok((long && ours && known.map_err(ServeError::Note)?).then_some(present))
    }
}

#[cfg(test)]
pub(crate) mod tests;
