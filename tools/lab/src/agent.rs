//! A client of an agent's local API: HTTP with JSON over a Unix socket.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, Serializer};

use crate::spec::{Label, PodName};

/// The longest an agent may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(20);

/// The largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 4 << 20;

/// An agent's local API.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
}

/// A pod to be connected, in the words of the agent's API.
#[derive(Debug, Serialize)]
pub struct PodRequest<'a> {
    /// The pod.
    #[serde(serialize_with = "in_parts")]
    pub pod: &'a PodName,
    /// The sandbox that its addresses belong to.
    pub sandbox: &'a str,
    /// The file of its network namespace, as the agent sees it.
    pub netns: PathBuf,
    /// The device to make in it.
    pub interface: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its service account.
    pub service_account: &'a Label,
    /// The addresses it wants; empty: the agent chooses.
    pub addresses: &'a [IpAddr],
}

/// The API writes a pod's name as an object of its two parts.
fn in_parts<S: Serializer>(pod: &PodName, serializer: S) -> Result<S::Ok, S::Error> {
    let parts = [
        ("namespace", pod.namespace.as_str()),
        ("name", pod.name.as_str()),
    ];
    serializer.collect_map(parts)
}

/// Why an agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be spoken to.
    #[error("{socket} does not answer")]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{method} {path}: {status}: {body}")]
    Refused {
        /// The method.
        method: &'static str,
        /// The path.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// It said something else than HTTP and JSON.
    #[error("{path}: not understood: {what}")]
    Answer {
        /// The path.
        path: String,
        /// What was wrong.
        what: String,
    },
}

impl Agent {
    /// The agent that listens on that socket.
    pub fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Connects a pod; returns its addresses.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn add_pod(&self, pod: &PodRequest<'_>) -> Result<Vec<IpAddr>, AgentError> {
        #[derive(Deserialize)]
        struct Answer {
            addresses: Vec<PodAddress>,
        }
        /// With or without a prefix length.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum PodAddress {
            Bare(IpAddr),
            Prefixed(ipnet::IpNet),
        }
        let path = "/v1/pods";
        let wrong = |what: serde_json::Error| AgentError::Answer {
            path: path.to_owned(),
            what: what.to_string(),
        };
        let body = serde_json::to_vec(pod).map_err(wrong)?;
        let answer = self.ask("POST", path, &body)?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(wrong)?;
        let bare = answer.addresses.into_iter().map(|address| match address {
            PodAddress::Bare(address) => address,
            PodAddress::Prefixed(net) => net.addr(),
        });
        Ok(bare.collect())
    }

    /// Disconnects a pod.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn delete_pod(&self, pod: &PodName) -> Result<(), AgentError> {
        self.ask(
            "DELETE",
            &format!("/v1/pods/{}/{}", pod.namespace, pod.name),
            b"",
        )
        .map(drop)
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn get(&self, path: &str) -> Result<serde_json::Value, AgentError> {
        let body = self.ask("GET", path, b"")?;
        serde_json::from_slice(&body).map_err(|what| AgentError::Answer {
            path: path.to_owned(),
            what: what.to_string(),
        })
    }

    /// Whether it answers at all, be it with a refusal.
    pub fn answers(&self) -> bool {
        match self.ask("GET", "/v1/status", b"") {
            Ok(_) | Err(AgentError::Refused { .. }) => true,
            Err(AgentError::Unreachable { .. } | AgentError::Answer { .. }) => false,
        }
    }

    /// One request on a connection of its own.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn ask(
        &self,
        method: &'static str,
        path: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, AgentError> {
        let answer =
            self.exchange(method, path, body)
                .map_err(|source| AgentError::Unreachable {
                    socket: self.socket.clone(),
                    source,
                })?;
        let (status, body) = parse(&answer).ok_or_else(|| AgentError::Answer {
            path: path.to_owned(),
            what: "no HTTP answer".to_owned(),
        })?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let body = String::from_utf8_lossy(&body).trim().to_owned();
        Err(AgentError::Refused {
            method,
            path: path.to_owned(),
            status,
            body,
        })
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: meshd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// Status and body of an HTTP/1.1 answer whose connection was closed at its end.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body = &answer[end + 4..];
    let chunked = head.lines().any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("transfer-encoding:") && line.ends_with("chunked")
    });
    let body = if chunked {
        join_chunks(body)?
    } else {
        body.to_vec()
    };
    Some((status, body))
}

/// The body of a chunked answer (RFC 9112 §7.1).
fn join_chunks(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut joined = Vec::new();
    loop {
        let line = memchr::memmem::find(body, b"\r\n")?;
        let size = std::str::from_utf8(&body[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(joined);
        }
        joined.extend_from_slice(body.get(line + 2..)?.get(..size)?);
        body = body.get(line + 2 + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_in_chunks() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(parse(whole), Some((200, b"{}".to_vec())));
        let chunks = b"HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n";
        assert_eq!(parse(chunks), Some((409, b"{}".to_vec())));
    }

    #[test]
    fn nonsense_is_no_answer() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"HTTP/1.1 2"), None);
        assert_eq!(
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n"),
            None
        );
    }
}
