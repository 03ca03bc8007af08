//! Processes inside a host's namespaces: started, found again, ended.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde::{Deserialize, Serialize};

use crate::{
    netns,
    sys::{self, Unshare},
};

/// How long a process may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long the kernel may take to end a killed process.
const DEADLINE: Duration = Duration::from_secs(5);

/// The namespaces of a host, by the files that stand for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name of the network namespace.
    pub netns: String,
    /// The file that keeps the mount namespace; none: the caller's.
    pub mounts: Option<PathBuf>,
}

impl Place {
    /// Moves the calling thread into the place for good. Nothing else in the process follows.
    ///
    /// # Errors
    /// Where a namespace is gone, or the caller is not root.
    pub fn enter(&self) -> io::Result<()> {
        let mounts = self.mounts.as_ref().map(File::open).transpose()?;
        self.enter_network()?;
        if let Some(mounts) = mounts {
            use std::os::fd::AsFd;
            sys::unshare(Unshare::Directories)?;
            move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        }
        Ok(())
    }
}

impl Place {
    /// Moves the calling thread into the network namespace alone.
    ///
    /// # Errors
    /// Where the namespace is gone, or the caller is not root.
    pub fn enter_network(&self) -> io::Result<()> {
        netns::enter(File::open(netns::path(&self.netns))?)
    }
}

/// Variables that say where the caller's own meshd is: inside a lab they would name another one.
const OF_THE_CALLER: [&str; 4] = [
    "MESHD_CONFIG",
    "MESHD_SOCKET",
    "MESHD_STATE",
    "MESHD_WIRE_SOCKET",
];

/// A lab's host has a system bus of its own, or none; what runs there never speaks with the machine's.
const SYSTEM_BUS: (&str, &str) = (
    "DBUS_SYSTEM_BUS_ADDRESS",
    "unix:path=/run/meshd/system_bus_socket",
);

/// A program to be started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file.
    pub file: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables beside the caller's environment.
    pub environment: Vec<(String, String)>,
}

impl Program {
    /// A program and its arguments.
    pub fn new<'a>(file: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        Self {
            file: file.to_owned(),
            arguments,
            environment: Vec::new(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the lab runs the real programs")]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        for variable in OF_THE_CALLER {
            command.env_remove(variable);
        }
        command
            .args(&self.arguments)
            .env(SYSTEM_BUS.0, SYSTEM_BUS.1)
            .envs(self.environment.iter().cloned());
        command
    }

    /// Starts the program in a place, in a process group of its own, writing to a log.
    ///
    /// # Errors
    /// Where the place is gone, the log cannot be opened, or the program cannot be run.
    pub fn start(&self, place: &Place, log: &Path) -> io::Result<Child> {
        let out = File::options().create(true).append(true).open(log)?;
        let err = out.try_clone()?;
        self.within(place, move |mut command| {
            command
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(err)
                .process_group(0)
                .spawn()
        })
    }

    /// Runs the program in a place to its end and returns what it printed.
    ///
    /// # Errors
    /// Where it cannot be run; [`io::ErrorKind::Other`] with its stderr where it fails.
    pub fn output(&self, place: &Place, input: &[u8]) -> io::Result<Vec<u8>> {
        let output = self.within(place, |mut command| {
            use io::Write;
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input)?;
            }
            child.wait_with_output()
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(format!("{}: {said}", output.status)))
    }

    /// Becomes the program, in a place; returns only if that failed.
    pub fn become_it(&self, place: &Place) -> io::Error {
        match place.enter() {
            Ok(()) => self.command().exec(),
            Err(error) => error,
        }
    }

    /// Works with the command on a thread inside the place; children are born where their parent
    /// thread is.
    fn within<T: Send>(
        &self,
        place: &Place,
        work: impl FnOnce(Command) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        thread::scope(|scope| {
            let done = scope.spawn(|| {
                place.enter()?;
                work(self.command())
            });
            done.join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })
    }
}

/// A process that stays itself: its number and when it began, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub start: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: u32) -> Option<Self> {
        let (state, process) = Self::seen(pid)?;
        (state != "Z").then_some(process)
    }

    /// The process that has this number, also one of which only other threads, or only its exit status,
    /// is left; with its first thread's state.
    fn seen(pid: u32) -> Option<(String, Self)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?.to_owned();
        let start = fields.nth(18)?.parse().ok()?;
        Some((state, Self { pid, start }))
    }

    /// The calling process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Whether every thread of it was stopped by a signal; false where it is gone.
    pub fn is_stopped(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return false;
        };
        let stopped = |thread: fs::DirEntry| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
        };
        self.is_alive() && threads.flatten().all(stopped)
    }

    /// Sends a signal; a process that is gone is no error.
    ///
    /// # Errors
    /// As `pidfd_send_signal(2)`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.handle() {
            None => Ok(()),
            Some(handle) => match pidfd_send_signal(&handle, signal) {
                Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Waits for its end; true once it has ended.
    ///
    /// # Errors
    /// As `poll(2)`.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let Some(handle) = self.handle() else {
            return Ok(true);
        };
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waiting = [PollFd::new(&handle, PollFlags::IN)];
            match poll(&mut waiting, Some(&timespec(left))) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A handle that cannot mean another process; none where it is gone.
    fn handle(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Killed threads end one by one: until the last has, sockets of the process are still open.
        let (_, process) = Self::seen(self.pid)?;
        (process == *self).then_some(handle)
    }
}

/// A span as `poll(2)` and its relatives take it.
pub(crate) fn timespec(span: Duration) -> Timespec {
    let tv_sec = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    Timespec {
        tv_sec,
        tv_nsec: i64::from(span.subsec_nanos()),
    }
}

/// Every process, but not the caller, whose network or mount namespace is one of these files.
///
/// # Errors
/// Where `/proc` cannot be listed.
pub(crate) fn inside(namespaces: &[PathBuf]) -> io::Result<Vec<Process>> {
    let wanted: BTreeSet<u64> = namespaces
        .iter()
        .filter_map(|file| Some(fs::metadata(file).ok()?.ino()))
        .collect();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let member = |kind| {
            let file = fs::metadata(format!("/proc/{pid}/ns/{kind}"));
            file.is_ok_and(|file| wanted.contains(&file.ino()))
        };
        if pid != std::process::id() && (member("net") || member("mnt")) {
            found.extend(Process::of(pid));
        }
    }
    Ok(found)
}

/// Ends processes: asks, waits, then kills. Returns those that outlived even that.
///
/// # Errors
/// Where a signal cannot be sent.
pub(crate) fn end(processes: &[Process]) -> io::Result<Vec<Process>> {
    for (signal, patience) in [(Signal::TERM, PATIENCE), (Signal::KILL, DEADLINE)] {
        let deadline = Instant::now() + patience;
        let alive: Vec<&Process> = processes.iter().filter(|p| p.is_alive()).collect();
        for process in &alive {
            process.signal(signal)?;
        }
        for process in alive {
            process.wait(deadline.saturating_duration_since(Instant::now()))?;
        }
    }
    Ok(processes
        .iter()
        .copied()
        .filter(Process::is_alive)
        .collect())
}
