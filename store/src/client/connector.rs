//! How a connection to a server is made: each known server in turn, TCP, then TLS 1.3.

use std::{
    io,
    net::{IpAddr, Shutdown, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hyper_util::rt::TokioIo;
use model::constant::SERVER_PORT;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{certificate::SERVER_NAME, socket};

/// How long one server may take to answer, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection on which nothing comes for so long is asked for a sign of life.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A server: host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    host: String,
    port: u16,
}

/// Makes connections. Clones share what they know.
#[derive(Clone)]
pub(crate) struct Connector {
    targets: Arc<[Target]>,
    /// Which target answered last.
    good: Arc<AtomicUsize>,
    /// Replaced when the certificate is renewed.
    tls: Arc<Mutex<Arc<ClientConfig>>>,
    source: Option<IpAddr>,
    /// The newest connection, to be ended when its address goes.
    newest: Arc<Mutex<Option<OwnedFd>>>,
}

impl Target {
    /// Names a server.
    pub(crate) fn new(host: String, port: u16) -> Self {
        Self { host, port }
    }

    /// Returns the server's URL, its port included.
    pub(crate) fn url(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') {
            format!("https://[{host}]:{port}")
        } else {
            format!("https://{host}:{port}")
        }
    }

    /// Reads `https://HOST[:PORT]`; the port is 7443 unless it says otherwise.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let wrong =
            || format!("{url:?} is not a server's URL: expected https://HOST[:{SERVER_PORT}]");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?;
        if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
            return Err(wrong());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');

        Ok(Self::new(
            host.to_owned(),
            uri.port_u16().unwrap_or(SERVER_PORT),
        ))
    }
}

impl Connector {
    /// Makes a connector to these servers.
    pub(crate) fn new(targets: Vec<Target>, tls: Arc<ClientConfig>) -> Self {
        Self {
            targets: targets.into(),
            good: Arc::default(),
            tls: Arc::new(Mutex::new(tls)),
            source: None,
            newest: Arc::default(),
        }
    }

    /// Returns a connector that binds `source`, and tries these servers before the known ones.
    pub(crate) fn bound_to(&self, source: IpAddr, first: impl IntoIterator<Item = Target>) -> Self {
        let targets = first
            .into_iter()
            .chain(self.targets.iter().cloned())
            .collect();

        Self {
            source: Some(source),
            ..Self::new(targets, self.tls())
        }
    }

    /// Returns a connector to these servers alone; `None` where there are none.
    pub(crate) fn to_servers(&self, servers: impl IntoIterator<Item = Target>) -> Option<Self> {
        let targets: Vec<_> = servers.into_iter().collect();

        (!targets.is_empty()).then(|| Self::new(targets, self.tls()))
    }

    /// Ends the newest connection if it comes from an address that this machine has no more.
    ///
    /// The kernel sends nothing from such an address and tells nobody: only the keepalive would notice.
    pub(crate) fn end_if_stranded(&self) -> io::Result<()> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = newest.as_ref() else {
            return Ok(());
        };
        let socket = SockRef::from(socket);
        let from = socket.local_addr()?.as_socket();
        if from.is_none_or(|from| socket::is_here(from.ip())) {
            return Ok(());
        }
        tracing::info!("This machine lost the address of its connection to the server");
        let ended = socket.shutdown(Shutdown::Both);
        *newest = None;

        ended
    }

    /// Uses another certificate from the next connection on.
    pub(crate) fn set_tls(&self, tls: Arc<ClientConfig>) {
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// Returns a channel that connects when first used, and again after it broke.
    pub(crate) fn channel(&self) -> Result<Channel, String> {
        // The URI is what HTTP/2 calls the server, whichever address it has.
        let endpoint = Endpoint::from_shared(format!("http://{SERVER_NAME}"))
            .map_err(|error| error.to_string())?
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);

        Ok(endpoint.connect_with_connector_lazy(self.clone()))
    }

    fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn connect(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let first = self.good.load(Ordering::Relaxed);
        let mut failure = io::Error::other("no server is known");
        for offset in 0..self.targets.len() {
            let index = (first + offset) % self.targets.len();
            match self.connect_target(&self.targets[index]).await {
                Ok(stream) => {
                    self.good.store(index, Ordering::Relaxed);
                    return Ok(TokioIo::new(stream));
                }
                Err(error) => failure = error,
            }
        }

        Err(failure)
    }

    async fn connect_target(&self, target: &Target) -> io::Result<TlsStream<TcpStream>> {
        let Target { host, port } = target;
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{host}:{port}: {error}"));
        let mut failure = named(io::Error::other("no address of the family that is wanted"));
        for address in tokio::net::lookup_host((host.as_str(), *port))
            .await
            .map_err(named)?
        {
            if self
                .source
                .is_some_and(|source| source.is_ipv4() != address.is_ipv4())
            {
                continue;
            }
            let attempt = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_address(address));
            match attempt
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = named(error),
            }
        }

        Err(failure)
    }

    async fn connect_address(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = socket::connect(address, self.source).await?;
        let handle = stream.as_fd().try_clone_to_owned()?;
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;

        TlsConnector::from(self.tls()).connect(name, stream).await
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        self.clone().connect().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_an_https_url() {
        let target = |host: &str, port| Ok(Target::new(host.to_owned(), port));

        assert_eq!(
            Target::parse("https://192.0.2.1:7000"),
            target("192.0.2.1", 7000)
        );
        assert_eq!(
            Target::parse("https://[2001:db8::1]"),
            target("2001:db8::1", 7443)
        );
        assert_eq!(
            Target::parse("https://mesh.example/"),
            target("mesh.example", 7443)
        );
        for wrong in [
            "",
            "192.0.2.1",
            "http://192.0.2.1",
            "https://h/path",
            "https://",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }
}
