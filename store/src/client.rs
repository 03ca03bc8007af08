//! The other end of the server: a store over gRPC, for whoever its credential says.
//!
//! One HTTP/2 connection carries everything; it is made when first needed and again after it
//! broke, to whichever of the credential's servers answers. A call that finds no server fails with
//! [`StoreError::Unavailable`] at once: waiting and trying again is its caller's, or
//! [`watch_all`](crate::watch_all)'s.

mod connector;
mod renewal;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, future::BoxFuture, stream};
use jiff::Timestamp;
use model::{
    Kind, Object, ObjectKey, Revision,
    ipam::{Plea, Verdict},
};
use prost::bytes::Bytes;
use serde_json::Value;
use tokio::sync::RwLock;
use tokio_stream::Stream;
use tonic::{Streaming, transport::Channel};

pub(crate) use self::connector::{Connector, Target};
use crate::{
    Credential, CredentialError, Identity, StoreError, StoreEvent, Token, TokenEntry, TokenRequest,
    backend::{List, PageStream, Precondition, Store, WatchEvent, WatchStream},
    message::{MESSAGE_MAX, proto},
    source,
};

/// How long a call may take, its list or watch stream not counted.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How many objects of a list are decoded at a time.
const PIECE: usize = 64;

/// A store over gRPC. Clones share one connection.
#[derive(Clone)]
pub struct Client {
    credential: Arc<RwLock<Credential>>,
    connector: Connector,
    service: proto::store_client::StoreClient<Channel>,
}

/// What the server says of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Whom it takes us for.
    pub identity: Identity,
    /// The address it saw us come from.
    pub source: IpAddr,
    /// Its own addresses, both families.
    pub server_addresses: BTreeSet<IpAddr>,
    /// The port it listens on.
    pub port: u16,
    /// Its clock.
    pub time: Timestamp,
    /// The mesh: the lower-case hex SHA-256 of its CA certificate.
    pub mesh: String,
}

impl Client {
    /// Makes a client. Connects when first used.
    ///
    /// # Errors
    ///
    /// [`CredentialError`] where a URL, a certificate or the key cannot be used.
    pub fn new(credential: Credential) -> Result<Self, CredentialError> {
        let targets = credential.servers().iter().map(|url| Target::parse(url));
        let targets = targets
            .collect::<Result<_, _>>()
            .map_err(CredentialError::Parse)?;
        let connector = Connector::new(targets, credential.tls()?);
        let channel = connector.channel().map_err(CredentialError::Parse)?;

        Ok(Self {
            credential: Arc::new(RwLock::new(credential)),
            connector,
            service: service(channel),
        })
    }

    /// Asks whom the server takes us for, and from which address.
    pub async fn hello(&self) -> Result<Hello, StoreError> {
        let mut service = self.service.clone();
        let reply = call(service.hello(proto::HelloRequest {})).await?;

        reply.try_into()
    }

    /// Asks from which addresses the server sees us: one per family in which it can be reached.
    ///
    /// A family in which no connection comes about is left out.
    ///
    /// # Errors
    ///
    /// As [`hello`](Self::hello).
    pub async fn sources(&self) -> Result<BTreeSet<IpAddr>, StoreError> {
        let hello = self.hello().await?;
        let other = |address: &IpAddr| address.is_ipv4() != hello.source.is_ipv4();
        let targets = hello.server_addresses.iter().copied().filter(other);
        let connector = self
            .connector
            .to_servers(targets.map(|address| Target::new(address.to_string(), hello.port)));
        let mut sources = BTreeSet::from([hello.source]);
        if let Some(connector) = connector {
            let channel = connector.channel().map_err(StoreError::Unavailable)?;
            match call(service(channel).hello(proto::HelloRequest {})).await {
                Ok(reply) => {
                    sources.insert(Hello::try_from(reply)?.source);
                }
                Err(error) => tracing::debug!(%error, "The server's other family is out of reach"),
            }
        }

        Ok(sources)
    }

    /// Creates an object over a connection of its own that comes from `source`.
    ///
    /// So a node claims an address of the family that its usual connection does not have. Goes to
    /// an address of the server's of the same family.
    ///
    /// # Errors
    ///
    /// As [`Store::create`]; [`StoreError::Unavailable`] also where the server has no address of
    /// that family or the local address cannot be bound.
    pub async fn create_from(&self, source: IpAddr, object: Object) -> Result<Object, StoreError> {
        let hello = self.hello().await?;
        // On the server's own host the address itself comes first: only so can the node claim it.
        let own = hello.server_addresses.get(&source).copied();
        let family = |address: &IpAddr| address.is_ipv4() == source.is_ipv4();
        let announced = hello.server_addresses.iter().copied().filter(family);
        let targets = own.into_iter().chain(announced);
        let connector = self.connector.bound_to(
            source,
            targets.map(|address| Target::new(address.to_string(), hello.port)),
        );
        let channel = connector.channel().map_err(StoreError::Unavailable)?;
        let object = proto::Object::encode(&object)?;

        call(service(channel).create(object)).await?.decode()
    }

    /// Takes in that this machine's addresses changed: a connection from one that is gone is ended, and
    /// made anew when next used.
    pub fn addresses_changed(&self) {
        if let Err(error) = self.connector.end_if_stranded() {
            tracing::debug!(%error, "The connection to the server cannot be ended");
        }
    }

    /// Streams every object of these kinds and all that happens to them.
    ///
    /// See [`watch_all`](crate::watch_all), which this calls.
    pub fn watch_all(
        &self,
        kinds: &[Kind],
    ) -> impl Stream<Item = StoreEvent> + Send + Unpin + use<> {
        source::watch_all(Arc::new(self.clone()), kinds)
    }

    /// Asks the authority for what only it may do with addresses. For nodes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] where no authority is in reach: then nobody borrows.
    pub async fn plead(&self, plea: &Plea) -> Result<Verdict, StoreError> {
        let internal = |error: serde_json::Error| StoreError::Internal(error.to_string());
        let plea = proto::Plea {
            json: serde_json::to_vec(plea).map_err(internal)?.into(),
        };
        let mut service = self.service.clone();
        let verdict = call(service.plead(plea)).await?;

        serde_json::from_slice(&verdict.json).map_err(|_| unusable("verdict"))
    }

    /// Makes a join token. Administrators only.
    ///
    /// Returns the token, when it ends, and the URLs under which the server can be reached.
    pub async fn create_token(
        &self,
        request: TokenRequest,
    ) -> Result<(Token, Timestamp, Vec<String>), StoreError> {
        let request = proto::CreateTokenRequest {
            node: request.node.map(String::from).unwrap_or_default(),
            ttl_seconds: request.ttl.as_secs(),
            replace: request.replace,
        };
        let mut service = self.service.clone();
        let reply = call(service.create_token(request)).await?;
        let token = reply.token.parse().map_err(|_| unusable("token"))?;

        Ok((token, timestamp(reply.expires)?, reply.servers))
    }

    /// Lists the join tokens, without their secrets. Administrators only.
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, StoreError> {
        let mut service = self.service.clone();
        let reply = call(service.list_tokens(proto::ListTokensRequest {})).await?;

        reply.tokens.into_iter().map(TryInto::try_into).collect()
    }

    /// Removes a join token. Administrators only.
    pub async fn delete_token(&self, id: &str) -> Result<(), StoreError> {
        let mut service = self.service.clone();
        let request = proto::DeleteTokenRequest { id: id.to_owned() };
        call(service.delete_token(request)).await?;

        Ok(())
    }
}

impl Store for Client {
    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<List, StoreError>> {
        let whole = List {
            objects: Vec::new(),
            revision: Revision::default(),
        };

        self.pages(kind)
            .try_fold(whole, |mut whole, page| async {
                whole.objects.extend(page.objects);
                whole.revision = page.revision;
                Ok(whole)
            })
            .boxed()
    }

    fn pages(&self, kind: Kind) -> PageStream<'_> {
        let mut service = self.service.clone();
        let request = proto::ListRequest {
            kind: kind.as_str().to_owned(),
        };

        async move { Ok(listing(call(service.list(request)).await?)) }
            .try_flatten_stream()
            .boxed()
    }

    fn watch(&self, kind: Kind, from: Revision) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
        let mut service = self.service.clone();

        async move {
            let request = proto::WatchRequest {
                kind: kind.as_str().to_owned(),
                revision: from.0,
            };
            let batches = call(service.watch(request)).await?;
            let events = batches
                .map_err(StoreError::from)
                .map_ok(|batch| {
                    let events = batch.events.into_iter().map(WatchEvent::try_from);
                    tokio_stream::iter(events)
                })
                .try_flatten();

            Ok(events.boxed())
        }
        .boxed()
    }

    fn get(&self, key: ObjectKey) -> BoxFuture<'_, Result<Object, StoreError>> {
        let mut service = self.service.clone();

        async move {
            call(service.get(proto::ObjectKey::from(&key)))
                .await?
                .decode()
        }
        .boxed()
    }

    fn create(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
        let mut service = self.service.clone();

        async move {
            call(service.create(proto::Object::encode(&object)?))
                .await?
                .decode()
        }
        .boxed()
    }

    fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, StoreError>> {
        let mut service = self.service.clone();

        async move {
            call(service.update(proto::Object::encode(&object)?))
                .await?
                .decode()
        }
        .boxed()
    }

    fn patch(
        &self,
        key: ObjectKey,
        merge_patch: Value,
        expected: Precondition,
    ) -> BoxFuture<'_, Result<Object, StoreError>> {
        let mut service = self.service.clone();

        async move {
            let request = proto::PatchRequest {
                key: Some(proto::ObjectKey::from(&key)),
                merge_patch: Bytes::from(merge_patch.to_string()),
                expected_revision: expected.encode(),
            };
            call(service.patch(request)).await?.decode()
        }
        .boxed()
    }

    fn delete(
        &self,
        key: ObjectKey,
        expected: Precondition,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut service = self.service.clone();

        async move {
            let request = proto::DeleteRequest {
                key: Some(proto::ObjectKey::from(&key)),
                expected_revision: expected.encode(),
            };
            call(service.delete(request))
                .await
                .map(|proto::DeleteReply {}| ())
        }
        .boxed()
    }
}

impl Precondition {
    /// Returns the revision, empty for any.
    fn encode(self) -> String {
        match self {
            Self::Revision(revision) => revision.0,
            Self::Any => String::new(),
        }
    }
}

impl TryFrom<proto::HelloReply> for Hello {
    type Error = StoreError;

    fn try_from(reply: proto::HelloReply) -> Result<Self, StoreError> {
        let name = reply.name.parse().map_err(|_| unusable("name"))?;
        let identity = match reply.role.as_str() {
            "node" => Identity::Node(name),
            "admin" => Identity::Admin(reply.name),
            _ => return Err(unusable("role")),
        };
        let addresses = reply.server_addresses.iter().map(|text| text.parse());

        Ok(Self {
            identity,
            source: reply.source.parse().map_err(|_| unusable("source"))?,
            server_addresses: addresses
                .collect::<Result<_, _>>()
                .map_err(|_| unusable("server address"))?,
            port: reply.port.try_into().map_err(|_| unusable("port"))?,
            time: timestamp(reply.time)?,
            mesh: reply.mesh,
        })
    }
}

impl TryFrom<proto::TokenEntry> for TokenEntry {
    type Error = StoreError;

    fn try_from(entry: proto::TokenEntry) -> Result<Self, StoreError> {
        let name = |text: String| match text.is_empty() {
            true => Ok(None),
            false => text.parse().map(Some).map_err(|_| unusable("name")),
        };

        Ok(Self {
            id: entry.id,
            node: name(entry.node)?,
            replace: entry.replace,
            expires: timestamp(entry.expires)?,
            used_by: name(entry.used_by)?,
        })
    }
}

fn service(channel: Channel) -> proto::store_client::StoreClient<Channel> {
    proto::store_client::StoreClient::new(channel)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX)
}

/// Waits for an answer, and takes it out of its envelope.
async fn call<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, StoreError> {
    call_plain(answer).await.map(tonic::Response::into_inner)
}

/// Decodes a list in small pieces: as values, objects take ten times what they take in the server's pages.
fn listing(pages: Streaming<proto::ListPage>) -> impl Stream<Item = Result<List, StoreError>> {
    let listing = Listing {
        pages,
        objects: Vec::new().into_iter(),
        revision: Revision::default(),
        complete: false,
    };

    stream::try_unfold(listing, |mut listing| async {
        Ok(listing.next().await?.map(|piece| (piece, listing)))
    })
}

/// A list that comes in.
struct Listing {
    pages: Streaming<proto::ListPage>,
    /// What is left of the last page.
    objects: std::vec::IntoIter<proto::Object>,
    revision: Revision,
    complete: bool,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<List>, StoreError> {
        if self.objects.len() == 0 {
            let Some(page) = call_plain(self.pages.message()).await? else {
                return match self.complete {
                    true => Ok(None),
                    false => Err(StoreError::Unavailable("the list was cut".into())),
                };
            };
            self.objects = page.objects.into_iter();
            self.revision = Revision(page.revision);
            self.complete = page.last;
        }
        let piece = self.objects.by_ref().take(PIECE);

        Ok(Some(List {
            objects: piece
                .map(|object| object.decode())
                .collect::<Result<_, _>>()?,
            revision: self.revision.clone(),
        }))
    }
}

async fn call_plain<T>(
    answer: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, StoreError> {
    let late = |_| StoreError::Unavailable("no answer in 20 s".to_owned());

    Ok(tokio::time::timeout(CALL_TIMEOUT, answer)
        .await
        .map_err(late)??)
}

fn timestamp(seconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_second(seconds).map_err(|_| unusable("time"))
}

fn unusable(what: &str) -> StoreError {
    StoreError::Internal(format!("the server sent an unusable {what}"))
}
