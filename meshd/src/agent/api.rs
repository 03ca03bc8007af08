//! The agent's local API: HTTP and JSON on a unix socket that only root may speak to.
//!
//! ```text
//! GET    /v1/status              Status
//! GET    /v1/peers               [PeerStatus]
//! POST   /v1/applied             [Held] → the objects that are not in the kernel yet
//! POST   /v1/pods                PodRequest → PodAnswer, once the pod's interface is up and guarded
//! DELETE /v1/pods/NAMESPACE/POD
//! POST   /v1/cni/…               what the CNI plugin asks, see `cni`
//! POST   /v1/why                 Probe → [Why]
//! GET    /v1/endpoint/NAME       [View]; NAME is NAMESPACE/POD, host/NODE or host/NODE/INTERFACE
//! ```

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{
        ConnectInfo, DefaultBodyLimit, Path as UrlPath, Request, State, connect_info::Connected,
    },
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
    serve::IncomingStream,
};
use meshd_core::why::Inquiry;
use model::{
    ObjectKey, PodName,
    action::PodAnswer,
    cni::{AttachmentKey, Failure, Survivors},
    event::PodRequest,
    status::{Held, PeerStatus, Status},
};
use serde::Serialize;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use super::{
    cni::{self, Examined, Known},
    question,
};

/// Largest request body, in bytes.
const BODY_MAX: usize = 8 * 1024 * 1024;

/// How many requests wait for the agent's loop at most.
const BACKLOG: usize = 256;

/// What a client asks of the agent's loop. Each carries where the answer goes.
#[derive(Debug)]
pub(crate) enum Ask {
    /// `GET /v1/status`.
    Status(oneshot::Sender<Box<Status>>),
    /// `GET /v1/peers`.
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    /// `POST /v1/applied`.
    Applied(Vec<Held>, oneshot::Sender<Vec<ObjectKey>>),
    /// `POST /v1/pods`.
    AddPod(Box<PodRequest>, oneshot::Sender<Result<PodAnswer, String>>),
    /// `DELETE /v1/pods/…`.
    DeletePod(PodName, oneshot::Sender<Result<(), String>>),
    /// `POST /v1/cni/del`: the pod that an attachment made goes, if there is one.
    Detach(AttachmentKey, oneshot::Sender<Result<(), String>>),
    /// `POST /v1/cni/add`: what the store says of a pod.
    Identify(PodName, oneshot::Sender<Result<Box<Known>, Failure>>),
    /// `POST /v1/cni/check`: what an attachment came to, and what the kernel has of it.
    Examine(AttachmentKey, oneshot::Sender<Option<Box<Examined>>>),
    /// `POST /v1/cni/gc`: every pod of a network goes but those that the runtime still has.
    Collect(Survivors, oneshot::Sender<Result<(), String>>),
    /// A scrape of the metrics.
    Metrics(oneshot::Sender<String>),
    /// `POST /v1/why`, `GET /v1/endpoint/…`: a copy of what they are answered from.
    Inquire(oneshot::Sender<Box<Inquiry>>),
    /// Whether the agent is ready.
    Ready(oneshot::Sender<Result<(), String>>),
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// The user id; `None` when the kernel would not say.
    uid: Option<u32>,
}

/// An error as clients see it.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    error: String,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self {
            uid: stream
                .io()
                .peer_cred()
                .ok()
                .map(|credentials| credentials.uid()),
        }
    }
}

/// Returns the two ends through which requests reach the loop.
pub(crate) fn channel() -> (mpsc::Sender<Ask>, mpsc::Receiver<Ask>) {
    mpsc::channel(BACKLOG)
}

/// Serves the API on `path` until the process ends.
pub(crate) async fn serve(path: &Path, asks: mpsc::Sender<Ask>) -> anyhow::Result<()> {
    let listener = listen(path)
        .with_context(|| format!("could not listen on the agent's socket {}", path.display()))?;
    let app = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/peers", get(peers))
        .route("/v1/applied", post(applied))
        .route("/v1/why", post(question::why))
        .route("/v1/endpoint/{*name}", get(question::endpoint))
        .route("/v1/pods", post(add_pod))
        .route("/v1/pods/{namespace}/{name}", delete(delete_pod))
        .merge(cni::routes())
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(only_root))
        .with_state(asks);

    axum::serve(listener, app.into_make_service_with_connect_info::<Peer>())
        .await
        .context("the agent's socket failed")
}

/// Replaces a socket that a former agent left behind; the mode is in place before anyone can connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let former = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(former);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;

    listener
}

async fn only_root(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, (StatusCode, Json<Problem>)> {
    if peer.uid != Some(0) {
        return Err(problem(
            StatusCode::FORBIDDEN,
            "only root may speak to the agent",
        ));
    }

    Ok(next.run(request).await)
}

async fn status(State(asks): State<mpsc::Sender<Ask>>) -> Response {
    answer(ask(&asks, Ask::Status).await.map(Ok))
}

async fn peers(State(asks): State<mpsc::Sender<Ask>>) -> Response {
    answer(ask(&asks, Ask::Peers).await.map(Ok))
}

async fn applied(State(asks): State<mpsc::Sender<Ask>>, Json(held): Json<Vec<Held>>) -> Response {
    answer(ask(&asks, |reply| Ask::Applied(held, reply)).await.map(Ok))
}

async fn add_pod(
    State(asks): State<mpsc::Sender<Ask>>,
    Json(request): Json<PodRequest>,
) -> Response {
    if let Err(error) = PodName::parse(&request.pod.to_string()) {
        return problem(StatusCode::BAD_REQUEST, &error.to_string()).into_response();
    }

    answer(ask(&asks, |reply| Ask::AddPod(Box::new(request), reply)).await)
}

async fn delete_pod(
    State(asks): State<mpsc::Sender<Ask>>,
    UrlPath((namespace, name)): UrlPath<(String, String)>,
) -> Response {
    match PodName::parse(&format!("{namespace}/{name}")) {
        Ok(pod) => answer(ask(&asks, |reply| Ask::DeletePod(pod, reply)).await),
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()).into_response(),
    }
}

/// Puts a question to the loop and waits for its answer; `None` when the agent is going down.
pub(crate) async fn ask<T>(
    asks: &mpsc::Sender<Ask>,
    question: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    asks.send(question(reply)).await.ok()?;

    answer.await.ok()
}

pub(super) fn answer<T: Serialize>(answer: Option<Result<T, String>>) -> Response {
    match answer {
        Some(Ok(value)) => Json(value).into_response(),
        Some(Err(reason)) => problem(StatusCode::CONFLICT, &reason).into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the agent is going down").into_response(),
    }
}

pub(super) fn problem(status: StatusCode, error: &str) -> (StatusCode, Json<Problem>) {
    (
        status,
        Json(Problem {
            error: error.to_owned(),
        }),
    )
}
