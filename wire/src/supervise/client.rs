//! The service's client, for the agent. Blocking; every call has a time limit.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Created, Hello, LONGEST_LINE, Refusal, Request, Response, VERSION};
use crate::device::DeviceStatus;
use crate::event::Event;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the service did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It does not run, or we may not.
    #[error("cannot connect to the tunnel service")]
    Connect(#[source] io::Error),
    /// The connection broke, or the answer took too long. Connect again.
    #[error("cannot exchange messages with the tunnel service")]
    Exchange(#[source] io::Error),
    /// The service closed the connection.
    #[error("the tunnel service hung up")]
    HungUp,
    /// The answer is none, or none to this request.
    #[error("the tunnel service's answer is malformed")]
    Answer,
    /// It is older than we are.
    #[error("the tunnel service speaks version {0}, we need {VERSION}")]
    Version(u32),
    /// It refused.
    #[error("the tunnel service refuses: {0}")]
    Refused(#[from] Refusal),
}

/// A connection to the service.
pub struct Client {
    stream: BufReader<UnixStream>,
    hello: Hello,
}

/// What happens, as it happens; readable (as a file descriptor) when there is something.
pub struct Events {
    stream: BufReader<UnixStream>,
    /// A line that has not come whole yet.
    line: Vec<u8>,
}

impl Client {
    /// Connects to the service's `socket` (usually [`super::SOCKET`]).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(BufReader::new(stream))
        };
        let mut stream = connect().map_err(ClientError::Connect)?;
        let request = Request::Hello { version: VERSION };
        let Response::Hello(hello) = ask(&mut stream, &request)? else {
            return Err(ClientError::Answer);
        };
        if hello.version < VERSION {
            return Err(ClientError::Version(hello.version));
        }
        Ok(Self { stream, hello })
    }

    /// What the service said about itself.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Makes the device `name` with an MTU in bytes; one that is there already stays as it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create(&mut self, name: &str, mtu: Option<u32>) -> Result<Created, ClientError> {
        let name = name.to_owned();
        let Response::Created(created) = ask(&mut self.stream, &Request::Create { name, mtu })?
        else {
            return Err(ClientError::Answer);
        };
        Ok(created)
    }

    /// Ends the device `name`.
    ///
    /// # Errors
    /// See [`ClientError`]; a refusal of [`super::Code::NotFound`] if it is not there.
    pub fn delete(&mut self, name: &str) -> Result<(), ClientError> {
        let name = name.to_owned();
        let Response::Deleted = ask(&mut self.stream, &Request::Delete { name })? else {
            return Err(ClientError::Answer);
        };
        Ok(())
    }

    /// All devices, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn list(&mut self) -> Result<Vec<DeviceStatus>, ClientError> {
        let Response::Devices { devices } = ask(&mut self.stream, &Request::List)? else {
            return Err(ClientError::Answer);
        };
        Ok(devices)
    }

    /// Turns the connection into a stream of events, configurations among them. Look at the state after this, and
    /// nothing is missed.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::Refused`] where the service is too old to know of this.
    pub fn watch(self) -> Result<Events, ClientError> {
        self.subscribe(&Request::Watch)
    }

    /// Turns the connection into a stream of events. Look at the state after this, and nothing is missed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn events(self) -> Result<Events, ClientError> {
        self.subscribe(&Request::Events)
    }

    fn subscribe(mut self, request: &Request) -> Result<Events, ClientError> {
        let Response::Subscribed = ask(&mut self.stream, request)? else {
            return Err(ClientError::Answer);
        };
        Ok(Events {
            stream: self.stream,
            line: Vec::new(),
        })
    }
}

impl Events {
    /// Waits for the next event, at most `patience` (forever if `None`); `Ok(None)`: none came.
    ///
    /// # Errors
    /// [`ClientError::HungUp`], [`ClientError::Exchange`], [`ClientError::Answer`].
    pub fn next(&mut self, patience: Option<Duration>) -> Result<Option<Event>, ClientError> {
        let patience = patience.map(|patience| patience.max(Duration::from_micros(1)));
        self.stream
            .get_ref()
            .set_read_timeout(patience)
            .map_err(ClientError::Exchange)?;
        let room = LONGEST_LINE.saturating_sub(self.line.len() as u64);
        match Read::take(&mut self.stream, room).read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => {
                let event = serde_json::from_slice(&self.line).map_err(|_| ClientError::Answer);
                self.line.clear();
                event.map(Some)
            }
            Ok(0) if room > 0 => Err(ClientError::HungUp),
            Ok(_) => Err(ClientError::Answer),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(ClientError::Exchange(error)),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// One request and its answer; a refusal is an error.
fn ask(stream: &mut BufReader<UnixStream>, request: &Request) -> Result<Response, ClientError> {
    let mut text = serde_json::to_vec(request).map_err(|_| ClientError::Answer)?;
    text.push(b'\n');
    stream
        .get_mut()
        .write_all(&text)
        .map_err(ClientError::Exchange)?;
    let mut line = Vec::new();
    let length = Read::take(stream, LONGEST_LINE)
        .read_until(b'\n', &mut line)
        .map_err(ClientError::Exchange)?;
    if length == 0 {
        return Err(ClientError::HungUp);
    }
    match serde_json::from_slice(&line) {
        Ok(Response::Error(refusal)) => Err(ClientError::Refused(refusal)),
        Ok(response) => Ok(response),
        Err(_) => Err(ClientError::Answer),
    }
}
