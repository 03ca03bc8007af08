//! Speaks to the UAPI socket of any userspace WireGuard.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Configuration, Errno, Status};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes read at once; no line of an answer is longer.
const CHUNK: usize = 64 << 10;

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
    stream: UnixStream,
    input: Input,
}

/// What was read and not yet taken. Answers hold secrets, so it is of one size, and erased at the end.
struct Input {
    bytes: Zeroizing<Vec<u8>>,
    taken: usize,
    length: usize,
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
        let input = Input {
            bytes: Zeroizing::new(vec![0; CHUNK]),
            taken: 0,
            length: 0,
        };
        Ok(Self { stream, input })
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
        self.stream
            .write_all(request.as_bytes())
            .map_err(ClientError::Exchange)?;
        let mut errno = None;
        loop {
            let line = self.input.line(&mut self.stream)?;
            match (line, line.strip_prefix("errno="), errno) {
                ("", _, Some(0)) => return Ok(()),
                ("", _, Some(number)) => return Err(ClientError::Refused(Errno(number))),
                ("", _, None) => return Err(ClientError::Answer),
                (_, Some(number), _) => {
                    let number: i32 = number.parse().map_err(|_| ClientError::Answer)?;
                    errno = Some(number.saturating_abs());
                }
                (line, None, _) => take(line).map_err(|_| ClientError::Answer)?,
            }
        }
    }
}

impl Input {
    /// The next line, without its line feed.
    fn line(&mut self, stream: &mut UnixStream) -> Result<&str, ClientError> {
        let mut looked = self.taken;
        let end = loop {
            let unseen = &self.bytes[looked..self.length];
            if let Some(at) = unseen.iter().position(|byte| *byte == b'\n') {
                break looked + at;
            }
            looked = self.length - self.taken;
            self.fill(stream)?;
        };
        let line = self.taken..end;
        self.taken = end + 1;
        std::str::from_utf8(&self.bytes[line]).map_err(|_| ClientError::Answer)
    }

    /// Moves what is left to the front, and reads more.
    fn fill(&mut self, stream: &mut UnixStream) -> Result<(), ClientError> {
        self.bytes.copy_within(self.taken..self.length, 0);
        self.length -= std::mem::take(&mut self.taken);
        let room = &mut self.bytes[self.length..];
        if room.is_empty() {
            return Err(ClientError::Answer);
        }
        match stream.read(room).map_err(ClientError::Exchange)? {
            0 => Err(ClientError::Answer),
            length => {
                self.length += length;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for the state of somebody who answers with `pieces`.
    fn get(pieces: &[&str]) -> Result<Status, ClientError> {
        let (stream, mut other) = UnixStream::pair().unwrap();
        let mut client = Client {
            stream,
            input: Input {
                bytes: Zeroizing::new(vec![0; 64]),
                taken: 0,
                length: 0,
            },
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut request = [0; "get=1\n\n".len()];
                other.read_exact(&mut request).unwrap();
                for piece in pieces {
                    if other.write_all(piece.as_bytes()).is_err() {
                        return;
                    }
                }
            });
            client.get()
        })
    }

    #[test]
    fn an_answer_may_come_in_pieces() {
        let status = get(&["listen_p", "ort=7\nfwm", "ark=9\n", "errno=0\n\n"]).unwrap();
        assert_eq!((status.listen_port, status.fwmark), (7, 9));
        let long = "unknown=1\n".repeat(100);
        assert_eq!(get(&[&long, "errno=0\n\n"]).unwrap(), Status::default());
    }

    #[test]
    fn a_refusal_has_a_number_of_either_sign() {
        for text in ["errno=-22\n\n", "errno=22\n\n"] {
            let Err(ClientError::Refused(errno)) = get(&[text]) else {
                panic!("{text}");
            };
            assert_eq!(errno, Errno::INVALID);
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let endless = "a".repeat(1000);
        for text in [
            "",
            "errno=0\n",
            "\n",
            "errno=x\n\n",
            "nonsense\n\n",
            &endless,
        ] {
            assert!(matches!(get(&[text]), Err(ClientError::Answer)), "{text}");
        }
    }
}
