//! The process behind the agent's socket.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// How long an agent may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent.
#[derive(Debug)]
pub(crate) struct AgentProcess {
    pid: Pid,
    handle: OwnedFd,
}

impl AgentProcess {
    /// Finds the process that listens on the agent's socket; a socket that nobody listens on is no agent.
    pub(crate) fn find(socket: &Path) -> anyhow::Result<Option<Self>> {
        use io::ErrorKind::{ConnectionRefused, NotFound};

        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot ask {}", socket.display()));
            }
        };
        let pid = socket_peercred(&stream)
            .context("the kernel does not say who listens on the agent's socket")?
            .pid;

        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Ok(Some(Self { pid, handle })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error).context("the agent's process cannot be followed"),
        }
    }

    /// Its number.
    pub(crate) fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.handle, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("the agent cannot be told to end"),
        }
        let timeout = Timespec::try_from(PATIENCE).context("no such time")?;
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        if poll(&mut ended, Some(&timeout)).context("the agent's end cannot be awaited")? == 0 {
            bail!("the agent (process {}) does not end", self.id());
        }

        Ok(())
    }
}
