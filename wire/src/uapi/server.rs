//! The device's side: the socket file, and its connections, served without waiting by the control thread.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::inotify;
use zeroize::{Zeroize, Zeroizing};

use super::request::LONGEST_LINE;
use super::{Errno, Parser, Request};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves a device of this name.
    #[error("{path} is served by another process")]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// The socket, or its directory, cannot be made.
    #[error("cannot make {path}")]
    Make {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket, readable and writable by its owner alone. Dropping it removes the file.
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    inode: u64,
    /// Tells when files in the directory come and go.
    watch: OwnedFd,
}

impl Listener {
    /// Makes `directory/name.sock`; a file that a dead process left there is replaced.
    pub(crate) fn bind(directory: &Path, name: &str) -> Result<Self, BindError> {
        let path = directory.join(format!("{name}.sock"));
        if UnixStream::connect(&path).is_ok() {
            return Err(BindError::Busy { path });
        }
        Self::make(directory, &path).map_err(|source| BindError::Make { path, source })
    }

    fn make(directory: &Path, path: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => (),
        }
        let socket = match UnixListener::bind(path) {
            // Whoever tidies up may take the folder away as long as it is empty.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(directory)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            inode: fs::metadata(path)?.ino(),
            watch: watch(directory)?,
        })
    }

    /// To poll for connections.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// To poll for the removal of files.
    pub(crate) fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Whether the file is still ours; looked at when [`Self::watch`] is readable.
    pub(crate) fn is_there(&self) -> bool {
        let mut events = [0u8; 4096];
        while matches!(rustix::io::read(&self.watch, &mut events), Ok(length) if length > 0) {}
        fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
    }

    /// Makes the file again after somebody removed it.
    pub(crate) fn rebind(&mut self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let path = self.path.clone();
        *self = Self::make(&directory, &path)?;
        Ok(())
    }

    /// The next connection, if it comes from root or from ourselves.
    pub(crate) fn accept(&self) -> io::Result<Option<Connection>> {
        let stream = match self.socket.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        if !crate::credential::is_trusted(&stream)? {
            tracing::warn!("a connection of another user was refused");
            return Ok(None);
        }
        Ok(Some(Connection::new(stream)))
    }
}

/// Tells of removals in `directory`; says nothing where the machine has no inotify instance left
/// (`fs.inotify.max_user_instances`): a tunnel is worth more than the watch over its socket.
fn watch(directory: &Path) -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = match inotify::init(flags) {
        Ok(watch) => watch,
        Err(rustix::io::Errno::MFILE) => {
            tracing::warn!(
                "out of inotify instances: the removal of the UAPI socket will go unnoticed"
            );
            return Ok(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        }
        Err(errno) => return Err(errno.into()),
    };
    let removal = inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::DELETE_SELF;
    inotify::add_watch(&watch, directory, removal)?;
    Ok(watch)
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the UAPI socket");
        }
    }
}

/// One client.
pub(crate) struct Connection {
    stream: UnixStream,
    parser: Parser,
    input: Zeroizing<Vec<u8>>,
    output: Zeroizing<Vec<u8>>,
    written: usize,
}

/// Whether a connection lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Open,
    Closed,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            parser: Parser::default(),
            input: Zeroizing::new(Vec::with_capacity(CHUNK)),
            output: Zeroizing::default(),
            written: 0,
        }
    }

    /// What to poll for: the next request is read when the last is answered.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.output.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::OUT
        }
    }

    /// Goes on as far as it goes without waiting; `answer` is given each request, and gives the text of the answer.
    pub(crate) fn serve(
        &mut self,
        mut answer: impl FnMut(Request) -> Result<Zeroizing<String>, Errno>,
    ) -> Life {
        let result = if self.output.is_empty() {
            self.read(&mut answer)
        } else {
            Ok(Life::Open)
        };
        match result.and_then(|life| self.write().map(|()| life)) {
            Ok(life) => life,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Life::Open,
            Err(error) => {
                tracing::debug!(%error, "a UAPI connection broke");
                Life::Closed
            }
        }
    }

    fn read(
        &mut self,
        answer: &mut impl FnMut(Request) -> Result<Zeroizing<String>, Errno>,
    ) -> io::Result<Life> {
        // The buffer never grows beyond its capacity, so no copy of a secret is left behind.
        let held = self.input.len();
        self.input.resize(CHUNK, 0);
        let length = match self.stream.read(&mut self.input[held..]) {
            Ok(length) => length,
            Err(error) => {
                self.input.truncate(held);
                return Err(error);
            }
        };
        self.input.truncate(held + length);
        if length == 0 {
            return Ok(Life::Closed);
        }
        self.lines(answer);
        Ok(Life::Open)
    }

    /// Takes whole lines out of the input.
    fn lines(&mut self, answer: &mut impl FnMut(Request) -> Result<Zeroizing<String>, Errno>) {
        let mut taken = 0;
        while let Some(length) = self.input[taken..].iter().position(|byte| *byte == b'\n') {
            let line = &self.input[taken..taken + length];
            taken += length + 1;
            let request = match std::str::from_utf8(line) {
                Ok(text) if text.len() <= LONGEST_LINE => self.parser.line(text),
                Ok(_) | Err(_) => {
                    self.parser.refuse(Errno::INVALID);
                    None
                }
            };
            if let Some(request) = request {
                respond(&mut self.output, request.and_then(&mut *answer));
            }
        }
        if self.input.len() - taken > LONGEST_LINE {
            self.parser.refuse(Errno::INVALID);
            taken = self.input.len();
        }
        let rest = self.input.len() - taken;
        self.input.copy_within(taken.., 0);
        self.input[rest..].zeroize();
        self.input.truncate(rest);
    }

    fn write(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            self.written += self.stream.write(&self.output[self.written..])?;
        }
        self.output = Zeroizing::default();
        self.written = 0;
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Adds an answer and its `errno`.
fn respond(output: &mut Zeroizing<Vec<u8>>, answer: Result<Zeroizing<String>, Errno>) {
    let (text, errno) = match answer {
        Ok(text) => (text, 0),
        Err(errno) => (Zeroizing::default(), -errno.0),
    };
    let tail = format!("errno={errno}\n\n");
    let mut all = Zeroizing::new(Vec::with_capacity(output.len() + text.len() + tail.len()));
    all.extend_from_slice(output);
    all.extend_from_slice(text.as_bytes());
    all.extend_from_slice(tail.as_bytes());
    *output = all;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client gets back that sends `bytes` in pieces of `piece` bytes.
    fn talk(bytes: &[u8], piece: usize) -> String {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(server);
        let mut requests = 0;
        for piece in bytes.chunks(piece) {
            client.write_all(piece).unwrap();
            connection.serve(|_| {
                requests += 1;
                Ok(Zeroizing::new(format!("request={requests}\n")))
            });
        }
        drop(connection);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_request_may_come_in_pieces() {
        for piece in 1..8 {
            assert_eq!(
                talk(b"get=1\n\nset=1\nfwmark=1\n\n", piece),
                "request=1\nerrno=0\n\nrequest=2\nerrno=0\n\n"
            );
        }
    }

    #[test]
    fn an_endless_line_is_refused_and_does_not_fill_memory() {
        let mut bytes = b"set=1\n".to_vec();
        bytes.extend([b'a'; 300_000]);
        bytes.extend(b"\n\nget=1\n\n");
        assert_eq!(talk(&bytes, 4096), "errno=-22\n\nrequest=1\nerrno=0\n\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(talk(b"set=1\n\xff\xfe=1\n\n", 64), "errno=-22\n\n");
    }
}
