//! Speaks to the UAPI socket of any userspace WireGuard.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Configuration, Errno, Status};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line of an answer, in bytes.
const LONGEST_LINE: u64 = 4096;

/// Why a device could not be asked or set.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such device, or we may not.
    #[error("cannot connect to the device's socket")]
    Connect(#[source] io::Error),
    /// The connection broke, or the answer took too long.
    #[error("cannot exchange messages with the device")]
    Exchange(#[source] io::Error),
    /// The answer is none.
    #[error("the device's answer is malformed")]
    Answer,
    /// The device refused.
    #[error("the device refuses: {}", io::Error::from_raw_os_error(.0.0))]
    Refused(Errno),
}

/// A connection to one device.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the device `name` whose socket is in `directory` (usually [`super::DIRECTORY`]).
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(directory: &Path, name: &str) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(directory.join(format!("{name}.sock")))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = connect().map_err(ClientError::Connect)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// The device's state.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get(&mut self) -> Result<Status, ClientError> {
        let mut status = Status::default();
        self.exchange("get=1\n\n", |line| status.line(line))?;
        Ok(status)
    }

    /// Changes the device: all of `configuration` or, where the device refuses it, nothing.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set(&mut self, configuration: &Configuration) -> Result<(), ClientError> {
        self.exchange(&configuration.encode(), |_| Ok(()))
    }

    fn exchange(
        &mut self,
        request: &str,
        mut take: impl FnMut(&str) -> Result<(), Errno>,
    ) -> Result<(), ClientError> {
        let stream = self.stream.get_mut();
        stream
            .write_all(request.as_bytes())
            .map_err(ClientError::Exchange)?;
        let mut errno = None;
        let mut line = Zeroizing::new(String::with_capacity(LONGEST_LINE as usize));
        loop {
            line.clear();
            io::Read::take(&mut self.stream, LONGEST_LINE)
                .read_line(&mut line)
                .map_err(ClientError::Exchange)?;
            let text = line.strip_suffix('\n').ok_or(ClientError::Answer)?;
            match (text, text.strip_prefix("errno="), errno) {
                ("", _, Some(0)) => return Ok(()),
                ("", _, Some(number)) => return Err(ClientError::Refused(Errno(number))),
                ("", _, None) => return Err(ClientError::Answer),
                (_, Some(number), _) => {
                    let number: i32 = number.parse().map_err(|_| ClientError::Answer)?;
                    errno = Some(number.saturating_abs());
                }
                (text, None, _) => take(text).map_err(|_| ClientError::Answer)?,
            }
        }
    }
}
