//! A client of the agent's local API.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// Largest answer that is read, in bytes: a status of 5,000 peers takes about 4 MB.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

#[derive(Deserialize)]
struct Problem {
    error: String,
}

/// Asks the agent behind `socket` for `path`.
pub(crate) async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    let request = Request::get(path)
        .header("host", "meshd")
        .body(Full::default())?;

    send(socket, request).await
}

/// Puts a question to the agent behind `socket`.
pub(crate) async fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    question: &impl Serialize,
) -> anyhow::Result<T> {
    let request = Request::post(path)
        .header("host", "meshd")
        .header("content-type", "application/json")
        .body(Full::from(serde_json::to_vec(question)?))?;

    send(socket, request).await
}

async fn send<T: DeserializeOwned>(
    socket: &Path,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<T> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no agent answers on {}; is meshd.service running?",
            socket.display()
        )
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .context("the agent hung up")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| anyhow!("could not read the agent's answer: {error}"))?
        .to_bytes();
    drop(sender);
    connection
        .await?
        .context("the connection to the agent broke")?;

    if !status.is_success() {
        let reason = serde_json::from_slice::<Problem>(&body).map(|problem| problem.error);
        bail!(
            "the agent refused: {}",
            reason.unwrap_or_else(|_| status.to_string())
        );
    }

    serde_json::from_slice(&body).context("the agent's answer is not what this meshctl expects")
}
