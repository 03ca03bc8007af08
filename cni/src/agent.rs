//! The agent's local API: HTTP and JSON on its socket.

use std::{io, path::PathBuf, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use model::cni::{Code, Failure};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 1024 * 1024;

/// Where the agent listens.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
}

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It does not run, or is not ours to ask.
    #[error("no agent answers on {socket}: is meshd.service running?", socket = socket.display())]
    Away {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was heard no more before it answered.
    #[error("the agent hung up before it answered")]
    Lost(#[source] hyper::Error),
    /// It took too long.
    #[error("the agent did not answer in {} s", .0.as_secs())]
    Slow(Duration),
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// It said what no agent of this version says.
    #[error("the agent's answer is not understood ({0}): are meshd and meshd-cni of one version?")]
    Answer(String),
}

impl AgentError {
    /// Returns what the runtime is told.
    pub fn failure(self) -> Failure {
        let code = match &self {
            Self::Refused(failure) => failure.code,
            Self::Away { .. } | Self::Lost(_) | Self::Slow(_) => Code::TryLater,
            Self::Answer(_) => Code::Decoding,
        };
        let details = std::error::Error::source(&self).map(ToString::to_string);
        match self {
            Self::Refused(failure) => failure,
            Self::Away { .. } | Self::Lost(_) | Self::Slow(_) | Self::Answer(_) => Failure {
                code,
                msg: self.to_string(),
                details: details.unwrap_or_default(),
            },
        }
    }
}

impl Agent {
    /// The agent that listens on `socket`.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Asks it to do `path` to `subject`, and waits `patience` for its answer.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn ask<T: DeserializeOwned>(
        &self,
        path: &'static str,
        subject: &impl Serialize,
        patience: Duration,
    ) -> Result<T, AgentError> {
        let text = serde_json::to_vec(subject)
            .map_err(|error| AgentError::Answer(format!("cannot be asked: {error}")))?;

        match timeout(patience, self.exchange(path, text)).await {
            Ok(answered) => read(&answered?),
            Err(_) => Err(AgentError::Slow(patience)),
        }
    }

    async fn exchange(&self, path: &str, body: Vec<u8>) -> Result<(bool, Bytes), AgentError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| AgentError::Away {
                    socket: self.socket.clone(),
                    source,
                })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(AgentError::Lost)?;
        let request: Request<Full<Bytes>> = Request::post(path)
            .header("host", "meshd")
            .header("content-type", "application/json")
            .body(Full::from(body))
            .map_err(|error| AgentError::Answer(error.to_string()))?;
        // Ends with the sender below; what broke it, the response tells too.
        let driven = tokio::spawn(connection);
        let response = sender
            .send_request(request)
            .await
            .map_err(AgentError::Lost)?;
        let is_done = response.status().is_success();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|error| AgentError::Answer(error.to_string()))?
            .to_bytes();
        driven.abort();

        Ok((is_done, body))
    }
}

fn read<T: DeserializeOwned>((is_done, body): &(bool, Bytes)) -> Result<T, AgentError> {
    let misunderstood = |error: serde_json::Error| {
        let start: String = String::from_utf8_lossy(body).chars().take(200).collect();
        AgentError::Answer(format!("{error} in {start:?}"))
    };
    if *is_done {
        return serde_json::from_slice(body).map_err(misunderstood);
    }
    let failure: Failure = serde_json::from_slice(body).map_err(misunderstood)?;

    Err(failure.into())
}
