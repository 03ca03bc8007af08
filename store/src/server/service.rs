//! The calls of the protocol, each on behalf of whoever its connection's certificate names.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use model::{Kind, NodeName, Revision};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{
    Context,
    connection::Peer,
    limit::{self, Budget},
};
use crate::{
    Caller, Identity, StoreError, Token, TokenRequest,
    backend::{Precondition, Store},
    caller::Origin,
    certificate::{Leaf, RequestedKey, Signed},
    embedded::{Admission, Committed, Page, Session},
    message::{parse_kind, proto},
};

/// How often a watch in which nothing happens says how far it has come.
const BOOKMARK: Duration = Duration::from_mins(1);

/// Answers calls.
#[derive(Clone)]
pub(super) struct Service {
    context: Arc<Context>,
    budgets: Arc<Mutex<BTreeMap<NodeName, Budget>>>,
}

type Answer<T> = Result<Response<T>, Status>;

type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A place among the watches that a connection may have at once.
struct Place(Arc<Peer>);

impl Service {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            budgets: Arc::default(),
        }
    }

    /// Returns who calls, and what its certificate says.
    fn peer<T>(&self, request: &Request<T>) -> Result<(Arc<Peer>, Leaf), StoreError> {
        let nobody = |reason: &str| {
            self.context.counters.count_unauthenticated();
            StoreError::Unauthenticated(reason.to_owned())
        };
        let peer = request
            .extensions()
            .get::<Arc<Peer>>()
            .ok_or_else(|| nobody("no connection"))?;
        let leaf = peer
            .leaf
            .clone()
            .ok_or_else(|| nobody("show a certificate"))?;
        if !peer.is_good(Timestamp::now()) {
            return Err(nobody("the certificate has ended or was revoked"));
        }

        Ok((Arc::clone(peer), leaf))
    }

    /// Returns the store on behalf of whoever calls.
    async fn session<T>(
        &self,
        request: &Request<T>,
        kind: Option<Kind>,
    ) -> Result<Session, StoreError> {
        let (peer, leaf) = self.peer(request)?;
        if let Identity::Node(name) = &leaf.identity {
            self.take_write(name, Instant::now())?;
        }
        // Only claims of addresses ask for them.
        let server_addresses = match kind {
            Some(Kind::AddressClaim) => self.server_addresses().await?,
            Some(_) | None => BTreeSet::new(),
        };
        let origin = Origin {
            source: peer.source.ip().to_canonical(),
            local: peer.local.ip().to_canonical(),
            server_addresses: Arc::new(server_addresses),
        };

        Ok(self.context.store.session(Caller {
            identity: leaf.identity,
            certificate: Some(leaf.serial),
            origin: Some(origin),
        }))
    }

    /// Takes one write out of a node's budget.
    fn take_write(&self, name: &NodeName, now: Instant) -> Result<(), StoreError> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if !budgets.contains_key(name) {
            budgets.retain(|_, budget| !budget.is_full(now));
        }
        let budget = budgets
            .entry(name.clone())
            .or_insert_with(|| Budget::full(now));
        if budget.take(now) {
            return Ok(());
        }
        drop(budgets);
        self.context.counters.count_limited();

        Err(StoreError::TooMany {
            what: format!("writes of {name}"),
            limit: limit::WRITES_AT_ONCE,
        })
    }

    /// Returns every address that is the server's: its host's, and those it is reached by.
    async fn server_addresses(&self) -> Result<BTreeSet<std::net::IpAddr>, StoreError> {
        let unknown = |error: super::host::AddressError| StoreError::Unavailable(error.to_string());
        let mut addresses = super::host::addresses().await.map_err(unknown)?;
        addresses.extend(&self.context.advertise);

        Ok(addresses)
    }

    fn admin<T>(&self, request: &Request<T>) -> Result<(), StoreError> {
        let (_, leaf) = self.peer(request)?;
        match leaf.identity {
            Identity::Admin(_) => Ok(()),
            Identity::Node(name) => Err(self.counted(StoreError::denied(
                crate::Denial::AdministratorOnly,
                format!("{name} may not see or make tokens"),
            ))),
        }
    }

    /// Counts a refusal.
    fn counted(&self, error: StoreError) -> StoreError {
        if let StoreError::Forbidden { reason, message } = &error {
            self.context.counters.count_denied(*reason);
            tracing::info!(%reason, "a write was refused");
            tracing::debug!(%reason, message, "why a write was refused");
        }

        error
    }

    fn place(&self, peer: Arc<Peer>) -> Result<Place, StoreError> {
        let place = Place(peer);
        if place.0.watches.fetch_add(1, Ordering::AcqRel) >= limit::WATCHES {
            self.context.counters.count_limited();
            let what = "watches on one connection".to_owned();
            return Err(StoreError::TooMany {
                what,
                limit: limit::WATCHES,
            });
        }

        Ok(place)
    }

    fn answer(&self, result: Result<model::Object, StoreError>) -> Answer<proto::Object> {
        let object = result.map_err(|error| self.counted(error))?;

        Ok(Response::new(proto::Object::encode(&object)?))
    }

    async fn certificate(
        &self,
        identity: &Identity,
        signed: &Signed,
        now: Timestamp,
    ) -> Result<proto::Certificate, StoreError> {
        let urls = self.context.urls().await;

        Ok(proto::Certificate {
            certificate: signed.pem.clone(),
            ca: self.context.authority.pem().to_owned(),
            name: identity.name().to_owned(),
            servers: urls.map_err(|error| StoreError::Unavailable(error.to_string()))?,
            time: now.as_second(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::AcqRel);
    }
}

#[tonic::async_trait]
impl proto::store_server::Store for Service {
    type ListStream = AnswerStream<proto::ListPage>;
    type WatchStream = AnswerStream<proto::WatchBatch>;

    async fn hello(&self, request: Request<proto::HelloRequest>) -> Answer<proto::HelloReply> {
        let (peer, leaf) = self.peer(&request)?;
        let addresses = self.context.addresses().await;
        let addresses = addresses.map_err(|error| StoreError::Unavailable(error.to_string()))?;

        Ok(Response::new(proto::HelloReply {
            role: leaf.identity.role().to_owned(),
            name: leaf.identity.name().to_owned(),
            source: peer.source.ip().to_canonical().to_string(),
            server_addresses: addresses.iter().map(ToString::to_string).collect(),
            port: self.context.address.port().into(),
            time: Timestamp::now().as_second(),
            mesh: hex::encode(self.context.authority.fingerprint()),
        }))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Answer<Self::ListStream> {
        let (peer, _) = self.peer(&request)?;
        let kind = parse_kind(&request.get_ref().kind)?;
        let place = Arc::clone(&peer.lists).acquire_owned().await;
        let place = place.map_err(|_| StoreError::Unavailable("the server stops".to_owned()))?;
        let pages = stream::unfold(
            (self.context.store.pages(kind), place),
            |(mut pages, place)| async {
                let page = pages
                    .recv()
                    .await?
                    .map(proto::ListPage::from)
                    .map_err(Status::from);
                Some((page, (pages, place)))
            },
        );

        Ok(Response::new(pages.boxed()))
    }

    async fn get(&self, request: Request<proto::ObjectKey>) -> Answer<proto::Object> {
        self.peer(&request)?;
        let key = request.into_inner().try_into()?;

        Ok(Response::new(proto::Object {
            json: self.context.store.json(key).await?,
        }))
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Answer<Self::WatchStream> {
        let (peer, _) = self.peer(&request)?;
        let request = request.into_inner();
        let kind = parse_kind(&request.kind)?;
        let follow = self
            .context
            .store
            .follow(kind, &Revision(request.revision))?;
        let place = self.place(peer)?;
        let batches = stream::unfold(Some((follow, place)), |state| async {
            let (mut follow, place) = state?;
            let batch = match timeout(BOOKMARK, follow.next()).await {
                Ok(Ok(changes)) => changes.iter().map(|change| (&**change).into()).collect(),
                Ok(Err(error)) => return Some((Err(Status::from(error)), None)),
                Err(_) => vec![bookmark(follow.revision())],
            };
            Some((
                Ok(proto::WatchBatch { events: batch }),
                Some((follow, place)),
            ))
        });

        Ok(Response::new(batches.boxed()))
    }

    async fn create(&self, request: Request<proto::Object>) -> Answer<proto::Object> {
        self.peer(&request)?;
        let object = request.get_ref().decode()?;
        let session = self.session(&request, Some(object.kind)).await?;

        self.answer(session.create(object).await)
    }

    async fn update(&self, request: Request<proto::Object>) -> Answer<proto::Object> {
        let session = self.session(&request, None).await?;
        let object = request.get_ref().decode()?;

        self.answer(session.update(object).await)
    }

    async fn patch(&self, request: Request<proto::PatchRequest>) -> Answer<proto::Object> {
        let session = self.session(&request, None).await?;
        let request = request.into_inner();
        let key = key(request.key)?;
        let merge_patch = serde_json::from_slice(&request.merge_patch)
            .map_err(|error| StoreError::invalid("", format!("the patch is not JSON: {error}")))?;
        let expected = Precondition::decode(request.expected_revision);

        self.answer(session.patch(key, merge_patch, expected).await)
    }

    async fn delete(&self, request: Request<proto::DeleteRequest>) -> Answer<proto::DeleteReply> {
        let session = self.session(&request, None).await?;
        let request = request.into_inner();
        let key = key(request.key)?;
        let expected = Precondition::decode(request.expected_revision);
        let deleted = session.delete(key, expected).await;
        deleted.map_err(|error| self.counted(error))?;

        Ok(Response::new(proto::DeleteReply {}))
    }

    async fn plead(&self, request: Request<proto::Plea>) -> Answer<proto::Verdict> {
        let (_, leaf) = self.peer(&request)?;
        let Identity::Node(name) = leaf.identity else {
            let message = "only a node pleads, for itself";
            return Err(self
                .counted(StoreError::denied(crate::Denial::NotYourNode, message))
                .into());
        };
        self.take_write(&name, Instant::now())?;
        let plea = serde_json::from_slice(&request.get_ref().json)
            .map_err(|error| StoreError::invalid("", format!("the plea is not one: {error}")))?;
        let nobody = || StoreError::Unavailable("nobody lends addresses here".to_owned());
        let lender = self.context.lender.get().ok_or_else(nobody)?;
        let store = self.context.store.session(Caller::local_admin());
        let verdict = lender.judge(name, plea, store).await?;

        Ok(Response::new(proto::Verdict {
            json: serde_json::to_vec(&verdict).map_err(internal)?.into(),
        }))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Answer<proto::Certificate> {
        let (_, leaf) = self.peer(&request)?;
        let now = Timestamp::now();
        let key = requested_key(&request.get_ref().signing_request)?;
        let signed = self
            .context
            .authority
            .sign_request(&leaf.identity, &key, now)
            .map_err(internal)?;
        let certificate = self.certificate(&leaf.identity, &signed, now).await?;
        self.context
            .store
            .note_renewed(leaf.identity, leaf.serial, signed)
            .await?;

        Ok(Response::new(certificate))
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Answer<proto::CreateTokenReply> {
        self.admin(&request)?;
        let asked = request.into_inner();
        let node = (!asked.node.is_empty())
            .then(|| asked.node.parse())
            .transpose();
        let wanted = TokenRequest {
            node: node.map_err(|error| StoreError::invalid("node", format!("{error}")))?,
            ttl: Duration::from_secs(asked.ttl_seconds),
            replace: asked.replace,
        };
        let token = Token::generate(self.context.authority.fingerprint()).map_err(internal)?;
        let expires = self.context.store.add_token(&token, &wanted).await?;
        let urls = self.context.urls().await;

        Ok(Response::new(proto::CreateTokenReply {
            id: token.id().to_owned(),
            token: token.reveal().to_string(),
            expires: expires.as_second(),
            servers: urls.map_err(|error| StoreError::Unavailable(error.to_string()))?,
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Answer<proto::ListTokensReply> {
        self.admin(&request)?;
        let tokens = self.context.store.tokens().await?;

        Ok(Response::new(proto::ListTokensReply {
            tokens: tokens.into_iter().map(Into::into).collect(),
        }))
    }

    async fn delete_token(
        &self,
        request: Request<proto::DeleteTokenRequest>,
    ) -> Answer<proto::DeleteTokenReply> {
        self.admin(&request)?;
        self.context
            .store
            .delete_token(request.into_inner().id)
            .await?;

        Ok(Response::new(proto::DeleteTokenReply {}))
    }
}

#[tonic::async_trait]
impl proto::join_server::Join for Service {
    async fn enrol(&self, request: Request<proto::EnrolRequest>) -> Answer<proto::Certificate> {
        let request = request.into_inner();
        let token: Token = request
            .token
            .parse()
            .map_err(|error: crate::TokenError| StoreError::invalid("token", error.to_string()))?;
        if *token.fingerprint() != self.context.authority.fingerprint() {
            let message = "the token is for another mesh".to_owned();
            return Err(StoreError::Unauthenticated(message).into());
        }
        let name = (!request.name.is_empty())
            .then(|| request.name.parse())
            .transpose();
        let key = requested_key(&request.signing_request)?;
        let admission = Admission {
            token,
            name: name.map_err(|error| StoreError::invalid("name", format!("{error}")))?,
            key_hash: key.hash(),
        };
        let now = Timestamp::now();
        let context = Arc::clone(&self.context);
        let sign = move |name: &model::NodeName| {
            let identity = Identity::Node(name.clone());
            context
                .authority
                .sign_request(&identity, &key, now)
                .map_err(internal)
        };
        let (name, signed) = self
            .context
            .store
            .admit(admission, sign)
            .await
            .inspect_err(|error| {
                self.context.counters.count_unauthenticated();
                tracing::info!(%error, "a host was not admitted");
            })?;
        tracing::info!(node = %name, "a host was admitted");
        let identity = Identity::Node(name);

        Ok(Response::new(
            self.certificate(&identity, &signed, now).await?,
        ))
    }
}

impl From<Page> for proto::ListPage {
    fn from(page: Page) -> Self {
        Self {
            objects: page
                .objects
                .into_iter()
                .map(|json| proto::Object { json })
                .collect(),
            revision: page.revision.0,
            last: page.last,
        }
    }
}

impl From<&Committed> for proto::WatchEvent {
    fn from(change: &Committed) -> Self {
        use proto::watch_event::Change;

        Self {
            revision: change.revision.to_string(),
            change: Some(match &change.json {
                Some(json) => Change::Applied(proto::Object { json: json.clone() }),
                None => Change::Deleted((&change.key).into()),
            }),
        }
    }
}

impl From<crate::TokenEntry> for proto::TokenEntry {
    fn from(entry: crate::TokenEntry) -> Self {
        let name = |name: Option<model::NodeName>| name.map(String::from).unwrap_or_default();

        Self {
            id: entry.id,
            node: name(entry.node),
            replace: entry.replace,
            expires: entry.expires.as_second(),
            used_by: name(entry.used_by),
        }
    }
}

impl Precondition {
    fn decode(revision: String) -> Self {
        if revision.is_empty() {
            Self::Any
        } else {
            Self::Revision(Revision(revision))
        }
    }
}

fn bookmark(revision: Revision) -> proto::WatchEvent {
    proto::WatchEvent {
        revision: revision.0,
        change: Some(proto::watch_event::Change::Bookmark(proto::Bookmark {})),
    }
}

fn key(key: Option<proto::ObjectKey>) -> Result<model::ObjectKey, StoreError> {
    key.ok_or_else(|| StoreError::invalid("key", "expected a kind and a name"))?
        .try_into()
}

fn requested_key(der: &[u8]) -> Result<RequestedKey, StoreError> {
    RequestedKey::parse(der)
        .map_err(|error| StoreError::invalid("signingRequest", error.to_string()))
}

fn internal(error: impl std::fmt::Display) -> StoreError {
    StoreError::Internal(error.to_string())
}
