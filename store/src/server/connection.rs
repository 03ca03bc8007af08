//! From a TCP connection to a caller: limits, TLS, certificate, and the connection's end.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context as Poller, Poll},
    time::Duration,
};

use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::{Context, limit, tls};
use crate::certificate::Leaf;

/// How long the listener rests after the system gave it no connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lets connections in, and knows those that are.
#[derive(Clone)]
pub(super) struct Gate {
    context: Arc<Context>,
    tls: Arc<ServerConfig>,
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    guests: Arc<Guests>,
}

/// The connections of members and administrators.
#[derive(Default)]
struct Guests {
    next: AtomicU64,
    present: Mutex<HashMap<u64, Guest>>,
}

struct Guest {
    peer: Arc<Peer>,
    cut: oneshot::Sender<()>,
}

/// Who is at the other end of a connection.
pub(crate) struct Peer {
    /// What its certificate says; `None`: it showed none.
    pub(super) leaf: Option<Leaf>,
    pub(super) source: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) watches: AtomicUsize,
    pub(super) lists: Arc<Semaphore>,
    is_cut: AtomicBool,
}

/// A TLS connection that ends when its certificate does.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Arc<Peer>,
    end: Pin<Box<Sleep>>,
    cut: oneshot::Receiver<()>,
    _seats: Seats,
}

/// What a connection gives back when it ends.
struct Seats {
    guests: Arc<Guests>,
    id: u64,
    _permits: Vec<OwnedSemaphorePermit>,
}

/// Why a connection was not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("TLS failed")]
    Handshake(#[source] io::Error),
    #[error("the TLS handshake took longer than 5 s")]
    Slow,
    #[error("its addresses cannot be read")]
    Address(#[source] io::Error),
    #[error("its certificate does not say who it is")]
    Leaf(#[from] crate::certificate::LeafError),
    #[error("its certificate has ended or was revoked")]
    NotGood,
    #[error("its certificate cannot be looked up")]
    Lookup(#[source] crate::StoreError),
    #[error("{0} has as many connections as it may")]
    Crowded(crate::Identity),
}

impl Peer {
    /// A peer whose connection is only imagined.
    #[cfg(feature = "fuzz")]
    pub(super) fn imagined(
        leaf: Option<Leaf>,
        source: SocketAddr,
        local: SocketAddr,
        lists: Arc<Semaphore>,
        watches: AtomicUsize,
    ) -> Self {
        Self {
            leaf,
            source,
            local,
            watches,
            lists,
            is_cut: AtomicBool::new(false),
        }
    }

    /// Returns whether its certificate still counts.
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        !self.is_cut.load(Ordering::Acquire)
            && self.leaf.as_ref().is_some_and(|leaf| now < leaf.not_after)
    }
}

impl Gate {
    pub(super) fn new(context: Arc<Context>) -> Result<Self, tls::TlsError> {
        let tls = tls::config(&context.authority, context.certificate.clone())?;

        Ok(Self {
            context,
            tls,
            all: Arc::new(Semaphore::new(limit::CONNECTIONS)),
            strangers: Arc::new(Semaphore::new(limit::STRANGERS)),
            guests: Arc::default(),
        })
    }

    /// Takes connections until nobody wants them any more.
    pub(super) async fn accept(
        self,
        listener: TcpListener,
        accepted: mpsc::Sender<io::Result<Connection>>,
    ) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "no connection could be taken");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let seats = (
                Arc::clone(&self.all).try_acquire_owned(),
                Arc::clone(&self.strangers).try_acquire_owned(),
            );
            let (Ok(seat), Ok(stranger)) = seats else {
                self.context.counters.count_limited();
                continue;
            };
            let (gate, accepted) = (self.clone(), accepted.clone());
            tokio::spawn(async move {
                match gate.admit(stream, seat, stranger).await {
                    // Fails only while the server stops.
                    Ok(connection) => drop(accepted.send(Ok(connection)).await),
                    Err(refusal) => gate.refuse(&refusal),
                }
            });
        }
    }

    fn refuse(&self, refusal: &Refusal) {
        let counters = &self.context.counters;
        match refusal {
            Refusal::Handshake(_) | Refusal::Slow => counters.count_handshake(),
            Refusal::Crowded(_) => counters.count_limited(),
            Refusal::Address(_) | Refusal::Leaf(_) | Refusal::NotGood | Refusal::Lookup(_) => {
                counters.count_unauthenticated();
            }
        }
        let cause = std::error::Error::source(refusal).map(ToString::to_string);
        tracing::debug!(%refusal, cause, "a connection was not let in");
    }

    /// Shakes hands with a connection, and finds out who it is.
    async fn admit(
        &self,
        stream: TcpStream,
        seat: OwnedSemaphorePermit,
        stranger: OwnedSemaphorePermit,
    ) -> Result<Connection, Refusal> {
        let source = stream.peer_addr().map_err(Refusal::Address)?;
        let local = stream.local_addr().map_err(Refusal::Address)?;
        stream.set_nodelay(true).map_err(Refusal::Address)?;
        let handshake = TlsAcceptor::from(Arc::clone(&self.tls)).accept(stream);
        let stream = timeout(limit::HANDSHAKE, handshake)
            .await
            .map_err(|_| Refusal::Slow)?
            .map_err(Refusal::Handshake)?;
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first);
        let leaf = certificate.map(Leaf::parse).transpose()?;
        let known = leaf.is_some();
        let peer = Arc::new(Peer {
            leaf,
            source,
            local,
            watches: AtomicUsize::new(0),
            lists: Arc::new(Semaphore::new(limit::LISTS)),
            is_cut: AtomicBool::new(false),
        });
        // Seated before it is checked: whatever is revoked from here on cuts it.
        let (id, cut) = self.guests.seat(&peer)?;
        let permits = if known {
            vec![seat]
        } else {
            vec![seat, stranger]
        };
        let seats = Seats {
            guests: Arc::clone(&self.guests),
            id,
            _permits: permits,
        };
        let life = self.check(&peer, Timestamp::now()).await?;

        Ok(Connection {
            stream,
            peer,
            end: Box::pin(sleep(life)),
            cut,
            _seats: seats,
        })
    }

    /// Returns how long a connection may live.
    async fn check(&self, peer: &Peer, now: Timestamp) -> Result<Duration, Refusal> {
        let Some(leaf) = &peer.leaf else {
            return Ok(limit::STRANGER_LIFE);
        };
        let good = self.context.store.is_good(leaf.serial.clone()).await;
        if !good.map_err(Refusal::Lookup)? || !peer.is_good(now) {
            return Err(Refusal::NotGood);
        }
        let left = leaf.not_after.as_second().saturating_sub(now.as_second());

        Ok(Duration::from_secs(left.max(0).unsigned_abs()))
    }

    /// Cuts every connection.
    pub(super) fn cut_all(&self) {
        for id in self.guests.ids() {
            self.guests.cut(id);
        }
    }

    /// Cuts connections whose certificate was revoked.
    pub(super) async fn cut_revoked(self) {
        let mut revocations = self.context.store.revocations();
        while revocations.changed().await.is_ok() {
            for (id, serial) in self.guests.serials() {
                match self.context.store.is_good(serial).await {
                    Ok(true) => {}
                    Ok(false) => self.guests.cut(id),
                    Err(error) => {
                        tracing::warn!(%error, "a certificate could not be looked up: it is cut");
                        self.guests.cut(id);
                    }
                }
            }
        }
    }
}

impl Guests {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Guest>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection, unless its name has too many.
    fn seat(&self, peer: &Arc<Peer>) -> Result<(u64, oneshot::Receiver<()>), Refusal> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (cut, receiver) = oneshot::channel();
        let mut present = self.lock();
        if let Some(leaf) = &peer.leaf {
            let same = |guest: &&Guest| {
                guest
                    .peer
                    .leaf
                    .as_ref()
                    .is_some_and(|other| other.identity == leaf.identity)
            };
            let limit = match leaf.identity {
                crate::Identity::Node(_) => limit::CONNECTIONS_PER_NAME,
                crate::Identity::Admin(_) => limit::CONNECTIONS,
            };
            if present.values().filter(same).count() >= limit {
                return Err(Refusal::Crowded(leaf.identity.clone()));
            }
        }
        present.insert(
            id,
            Guest {
                peer: Arc::clone(peer),
                cut,
            },
        );

        Ok((id, receiver))
    }

    fn ids(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    fn serials(&self) -> Vec<(u64, String)> {
        let present = self.lock();
        let serial = |(id, guest): (&u64, &Guest)| {
            guest
                .peer
                .leaf
                .as_ref()
                .map(|leaf| (*id, leaf.serial.clone()))
        };

        present.iter().filter_map(serial).collect()
    }

    fn cut(&self, id: u64) {
        let Some(guest) = self.lock().remove(&id) else {
            return;
        };
        guest.peer.is_cut.store(true, Ordering::Release);
        if guest.cut.send(()).is_err() {
            tracing::debug!("a revoked connection had ended already");
        }
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        self.guests.lock().remove(&self.id);
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        poller: &mut Poller<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ended = self.end.as_mut().poll(poller).is_ready();
        if ended || matches!(Pin::new(&mut self.cut).poll(poller), Poll::Ready(Ok(()))) {
            self.peer.is_cut.store(true, Ordering::Release);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }

        Pin::new(&mut self.stream).poll_read(poller, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        poller: &mut Poller<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(poller, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(poller)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(poller)
    }
}
