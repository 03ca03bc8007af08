//! A bulk transfer: a connection that carries bytes there and back as fast as it can, in segments as
//! long as it may, and compares every one that comes back.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    io::{Errno, read},
    net::{SendFlags, send, sockopt},
};
use socket2::SockRef;

use super::{Canary, Ends, TICK, open, record, wait};
use crate::{
    echo::{Echo, EchoError},
    netns::{Netns, NetnsError},
    spec::Protocol,
};

/// Bytes that are handed to the kernel at once.
const CHUNK: usize = 64 << 10;

/// What became of a transfer that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// How long it took.
    pub took: Duration,
    /// The kernel's segment length towards the far end when it ended, in bytes, options not counted.
    pub segment: u32,
}

/// Why a transfer did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// A namespace could not be entered.
    #[error("a namespace of the transfer")]
    Netns(#[from] NetnsError),
    /// The far end could not be started.
    #[error("the far end of the transfer")]
    Echo(#[from] EchoError),
    /// The connection broke, or was never there.
    #[error("the connection to {to} breaks after {heard} bytes came back")]
    Broken {
        /// The far end.
        to: SocketAddr,
        /// Bytes that were back.
        heard: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A byte came back changed.
    #[error("what {to} sends back differs from byte {at} on")]
    Changed {
        /// The far end.
        to: SocketAddr,
        /// Where.
        at: u64,
    },
    /// It takes too long.
    #[error("{heard} of {sent} bytes are back from {to} after {patience:?}")]
    Late {
        /// The far end.
        to: SocketAddr,
        /// Bytes that the kernel took.
        sent: u64,
        /// Bytes that were back.
        heard: u64,
        /// How long it might have taken.
        patience: Duration,
    },
}

/// A transfer to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    /// Address of the far end, where an echo server is started.
    pub(crate) to: IpAddr,
    /// What the bytes bear.
    pub(crate) canary: Canary,
    /// How many bytes.
    pub(crate) bytes: u64,
    /// How long it may take.
    pub(crate) patience: Duration,
}

/// A transfer under way.
struct Transfer<'a> {
    bulk: &'a Bulk,
    to: SocketAddr,
    socket: OwnedFd,
    sent: u64,
    heard: u64,
}

impl Bulk {
    /// Carries the bytes there and back.
    pub(crate) fn carry(&self, near: &Netns, far: &Netns) -> Result<Carried, BulkError> {
        let echo = Echo::on(far, Protocol::Tcp, self.to)?;
        let port = echo
            .addresses()
            .first()
            .map_or(0, |(_, address)| address.port());
        let to = SocketAddr::new(self.to, port);
        near.run(|| self.carry_to(to))?
    }

    fn carry_to(&self, to: SocketAddr) -> Result<Carried, BulkError> {
        let ends = Ends {
            from: None,
            to,
            canary: self.canary,
            tick: TICK,
        };
        let broken = |heard| {
            move |error: Errno| BulkError::Broken {
                to,
                heard,
                source: error.into(),
            }
        };
        let start = Instant::now();
        let mut transfer = Transfer {
            bulk: self,
            to,
            socket: open(Protocol::Tcp, &ends).map_err(broken(0))?,
            sent: 0,
            heard: 0,
        };
        while transfer.heard < self.bytes {
            if start.elapsed() >= self.patience {
                return Err(transfer.late());
            }
            let heard = transfer.heard;
            transfer
                .step(start + self.patience)
                .map_err(broken(heard))??;
        }
        let segment = SockRef::from(&transfer.socket).tcp_mss();
        Ok(Carried {
            took: start.elapsed(),
            segment: segment.map_err(|source| BulkError::Broken {
                to,
                heard: self.bytes,
                source,
            })?,
        })
    }
}

impl Transfer<'_> {
    /// Waits, and moves what can be moved.
    fn step(&mut self, deadline: Instant) -> Result<Result<(), BulkError>, Errno> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, self.sent < self.bulk.bytes);
        let ready = wait(&self.socket, flags, deadline)?;
        if ready.intersects(PollFlags::ERR | PollFlags::HUP) {
            sockopt::socket_error(&self.socket)??;
        }
        if ready.contains(PollFlags::OUT) {
            self.send()?;
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP) {
            return self.hear();
        }
        Ok(Ok(()))
    }

    fn send(&mut self) -> Result<(), Errno> {
        let left = self.bulk.bytes - self.sent;
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let bytes = filling(&self.bulk.canary, self.sent, length);
        match send(&self.socket, &bytes, SendFlags::NOSIGNAL) {
            Ok(length) => self.sent += length as u64,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<Result<(), BulkError>, Errno> {
        let mut buffer = [0; CHUNK];
        let length = match read(&self.socket, &mut buffer) {
            Ok(0) => return Err(Errno::CONNRESET),
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Ok(())),
            Err(error) => return Err(error),
        };
        let expected = filling(&self.bulk.canary, self.heard, length);
        if buffer[..length] != expected[..] {
            return Ok(Err(BulkError::Changed {
                to: self.to,
                at: self.heard,
            }));
        }
        self.heard += length as u64;
        Ok(Ok(()))
    }

    fn late(&self) -> BulkError {
        BulkError::Late {
            to: self.to,
            sent: self.sent,
            heard: self.heard,
            patience: self.bulk.patience,
        }
    }
}

/// The bytes of a transfer from one place on: records, one after the other.
fn filling(canary: &Canary, from: u64, length: usize) -> Vec<u8> {
    let whole = record::LENGTH as u64;
    let skip = (from % whole) as usize;
    let records = (skip + length).div_ceil(record::LENGTH) as u64;
    let mut bytes: Vec<u8> = (from / whole..from / whole + records)
        .flat_map(|number| record::encode(canary, number))
        .collect();
    bytes.drain(..skip);
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filling_is_the_same_however_it_is_cut() {
        let canary = [7; 16];
        let whole = filling(&canary, 0, 1000);
        for from in [0, 1, 63, 64, 65, 500] {
            let piece = filling(&canary, from as u64, 1000 - from);
            assert_eq!(piece, whole[from..], "{from}");
        }
        assert_ne!(filling(&canary, 64, 64), whole[..64]);
    }
}
