//! The server's calls without their network: bytes in, status and bytes out. For tests that send it anything.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::AtomicUsize},
};

use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use prost::bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::{
    Code,
    body::Body,
    codegen::{Service as _, http},
};

use super::{
    Context, REQUEST_MAX, ServeError, Server, ServerOptions, Service, connection::Peer, limit,
};
use crate::{
    Embedded, Identity,
    certificate::{CertificateError, Leaf, PrivateKey},
    message::proto,
};

/// A server whose connections are only imagined: what TLS would say of a caller is given with each call.
///
/// Behind it everything is the server's own: decoding, limits of size, authority, SQLite.
pub struct Door {
    context: Arc<Context>,
    leaves: BTreeMap<Identity, Leaf>,
    source: SocketAddr,
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub code: Code,
    /// The reply's messages, as frames.
    pub frames: Bytes,
}

impl Door {
    /// Makes a server in an empty directory, known to these callers, all of whom come from `source`.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn open(
        directory: &Path,
        callers: &[Identity],
        source: SocketAddr,
        now: Timestamp,
    ) -> Result<Self, ServeError> {
        let options = ServerOptions {
            data: directory.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: Vec::new(),
            store: crate::Options::default(),
        };
        let context = Server::start(options, now).await?.context;
        let mut leaves = BTreeMap::new();
        for identity in callers {
            let key = PrivateKey::generate().map_err(CertificateError::from)?;
            let signed = context.authority.sign_client(identity, &key, now)?;
            let leaf = Leaf {
                identity: identity.clone(),
                serial: signed.serial.clone(),
                not_before: now,
                not_after: signed.not_after,
            };
            let noted = context.store.note_certificate(identity.clone(), signed);
            noted.await.map_err(ServeError::Note)?;
            leaves.insert(identity.clone(), leaf);
        }

        Ok(Self {
            context,
            leaves,
            source,
        })
    }

    /// Returns the store behind it.
    pub fn store(&self) -> Embedded {
        self.context.store.clone()
    }

    /// Calls `path` (`/package.Service/Method`) with one message on behalf of a caller; `None`, or one that the
    /// server was not told of: a host without a certificate. Each call finds its caller's budget full.
    pub async fn call(&self, caller: Option<&Identity>, path: &str, message: &[u8]) -> Reply {
        let peer = Arc::new(Peer::imagined(
            caller.and_then(|caller| self.leaves.get(caller).cloned()),
            self.source,
            self.context.address,
            Arc::new(Semaphore::new(limit::LISTS)),
            AtomicUsize::new(0),
        ));
        let refused = |code| Reply {
            code,
            frames: Bytes::new(),
        };
        let Ok(mut request) = http::Request::post(path).body(Body::new(Full::new(frame(message))))
        else {
            return refused(Code::Unimplemented);
        };
        let headers = request.headers_mut();
        headers.insert(
            "content-type",
            http::HeaderValue::from_static("application/grpc"),
        );
        headers.insert("te", http::HeaderValue::from_static("trailers"));
        request.extensions_mut().insert(peer);
        let service = Service::new(Arc::clone(&self.context));
        let response = if path.contains(".Join/") {
            let mut join = proto::join_server::JoinServer::new(service)
                .max_decoding_message_size(limit::ENROL_REQUEST_MAX);
            join.call(request).await
        } else {
            let mut store = proto::store_server::StoreServer::new(service)
                .max_decoding_message_size(REQUEST_MAX);
            store.call(request).await
        };
        match response {
            Ok(response) => collect(response).await,
            Err(never) => match never {},
        }
    }
}

/// A gRPC frame: not compressed, its length, the message.
fn frame(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend(
        u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    frame.extend(message);

    frame.into()
}

/// Reads a response to its end; the status stands in its headers or in its trailers.
async fn collect(response: http::Response<Body>) -> Reply {
    let code = |headers: &http::HeaderMap| {
        let value = headers.get("grpc-status")?;
        Some(Code::from_bytes(value.as_bytes()))
    };
    let early = code(response.headers());
    match response.into_body().collect().await {
        Ok(body) => {
            let late = body.trailers().and_then(code);
            Reply {
                code: early.or(late).unwrap_or(Code::Unknown),
                frames: body.to_bytes(),
            }
        }
        Err(status) => Reply {
            code: status.code(),
            frames: Bytes::new(),
        },
    }
}
