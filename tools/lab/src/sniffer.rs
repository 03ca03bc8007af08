//! The leak sniffer: packet sockets on every underlay device of a node, and a verdict on every frame
//! that the node *sends*.
//!
//! It knows nothing of meshd: prefixes, addresses and ports are given to it as plain data. It counts
//! its own losses, because a sniffer that has seen only a part proves nothing.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use memchr::memmem::Finder;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, read, write},
    net::sockopt::set_socket_recv_buffer_size_force,
};

pub use frame::{Layer, Packet, Transport, read as read_frame};
pub use verdict::{Leak, LeakKind, Territory, Verdict};

use crate::{
    netns::{Netns, NetnsError},
    process::timespec,
    sys::{self, Direction},
};

mod frame;
mod verdict;

/// Room in the kernel for frames not yet looked at, per device, in bytes.
const RECEIVE_BUFFER: usize = 64 << 20;

/// The largest frame: a whole super-frame of a device that lets others cut it.
const FRAME: usize = 256 << 10;

/// How many leaks are kept with all they show; the rest is only counted.
const MAX_SAMPLES: usize = 64;

/// How long the sniffer may take to look at what waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames of WireGuard.
    pub wireguard: u64,
    /// Leaks by what gave them away.
    pub leaks: BTreeMap<LeakKind, u64>,
    /// Frames that are nobody's business.
    pub other: u64,
    /// Frames whose IP packet is a piece of a larger one.
    pub fragments: u64,
    /// Frames that the sniffer lost, so that it cannot tell.
    pub lost: u64,
    /// Bytes of all frames that were judged.
    pub bytes: u64,
    /// The first leaks, each with the device it left by.
    pub samples: Vec<(String, Leak)>,
}

impl Counts {
    /// Leaks of every kind.
    pub fn leaked(&self) -> u64 {
        self.leaks.values().sum()
    }

    /// Adds what another sniffer saw.
    pub fn add(&mut self, other: &Self) {
        self.wireguard += other.wireguard;
        self.other += other.other;
        self.fragments += other.fragments;
        self.lost += other.lost;
        self.bytes += other.bytes;
        for (kind, count) in &other.leaks {
            *self.leaks.entry(*kind).or_default() += count;
        }
        let room = MAX_SAMPLES - self.samples.len().min(MAX_SAMPLES);
        self.samples
            .extend(other.samples.iter().take(room).cloned());
    }

    /// What was seen since `earlier`; samples are those of now, if there are new leaks.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.clone();
        counts.wireguard -= earlier.wireguard;
        counts.other -= earlier.other;
        counts.fragments -= earlier.fragments;
        counts.lost -= earlier.lost;
        counts.bytes -= earlier.bytes;
        for (kind, count) in &earlier.leaks {
            counts.leaks.entry(*kind).and_modify(|now| *now -= count);
        }
        counts.leaks.retain(|_, count| *count > 0);
        // Several sniffers' samples stand in the order of the sniffers, not of time.
        for sample in &earlier.samples {
            if let Some(at) = counts.samples.iter().position(|s| s == sample) {
                counts.samples.remove(at);
            }
        }
        counts
    }

    fn record(&mut self, device: &str, length: usize, verdict: Verdict) {
        self.bytes += length as u64;
        match verdict {
            Verdict::WireGuard => self.wireguard += 1,
            Verdict::Other => self.other += 1,
            Verdict::Leak(leak) => {
                *self.leaks.entry(leak.kind).or_default() += 1;
                if self.samples.len() < MAX_SAMPLES {
                    self.samples.push((device.to_owned(), leak));
                }
            }
        }
    }
}

/// Why the sniffer cannot work, or cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum SnifferError {
    /// The node's namespace could not be entered.
    #[error("the sniffer's namespace")]
    Netns(#[from] NetnsError),
    /// A device could not be opened.
    #[error("{device} of {netns} cannot be listened on")]
    Device {
        /// The device.
        device: String,
        /// Its namespace.
        netns: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread could not be started or woken.
    #[error("the sniffer's thread")]
    Thread(#[source] io::Error),
    /// The thread is gone, or does not keep up.
    #[error("the sniffer of {0} does not answer: nothing it said can be believed")]
    Stuck(String),
}

/// Packet sockets on devices of one namespace.
#[derive(Debug)]
struct Devices {
    sockets: Vec<(String, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Devices {
    fn open(netns: &Netns, devices: &[&str]) -> Result<Self, SnifferError> {
        let mut sockets = Vec::new();
        for device in devices {
            let open = || -> io::Result<OwnedFd> {
                let index = netns.netlink().index(device)?;
                let opened = netns.run(|| {
                    let socket = sys::packet_socket(index)?;
                    set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
                    Ok(socket)
                });
                opened.map_err(io::Error::other)?
            };
            let socket = open().map_err(|source| SnifferError::Device {
                device: (*device).to_owned(),
                netns: netns.name().to_owned(),
                source,
            })?;
            sockets.push(((*device).to_owned(), socket));
        }
        Ok(Self {
            sockets,
            buffer: vec![0; FRAME],
        })
    }

    /// Shows every frame that waits.
    fn drain(&mut self, each: &mut dyn FnMut(&str, Direction, &[u8])) -> io::Result<()> {
        for (device, socket) in &self.sockets {
            loop {
                match sys::receive_frame(socket.as_fd(), &mut self.buffer) {
                    Ok(Some(seen)) => {
                        let length = seen.length.min(self.buffer.len());
                        each(device, seen.direction, &self.buffer[..length]);
                    }
                    Ok(None) => break,
                    // Said once when the device goes down; it may come back.
                    Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn lost(&self) -> io::Result<u64> {
        self.sockets
            .iter()
            .map(|(_, socket)| sys::packet_drops(socket.as_fd()))
            .sum()
    }

    /// Waits for a frame, or for `wake`.
    fn wait(&self, wake: Option<&OwnedFd>, patience: Option<Duration>) -> io::Result<()> {
        let all = self.sockets.iter().map(|(_, socket)| socket).chain(wake);
        let mut waiting: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut waiting, patience.map(timespec).as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A sniffer at work on one node.
#[derive(Debug)]
pub struct Sniffer {
    name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: OwnedFd,
    desk: Mutex<Desk>,
    settled: Condvar,
}

/// What the two threads tell each other.
#[derive(Debug, Default)]
struct Desk {
    counts: Counts,
    territory: Option<Territory>,
    asked: u64,
    answered: u64,
    stop: bool,
    failed: bool,
}

impl Shared {
    fn desk(&self) -> std::sync::MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) -> Result<(), SnifferError> {
        write(&self.wake, &1_u64.to_ne_bytes())
            .map(drop)
            .map_err(|error| SnifferError::Thread(error.into()))
    }
}

impl Sniffer {
    /// Starts to listen on devices of a namespace. `canary` is the mark that no frame may carry.
    ///
    /// # Errors
    /// [`SnifferError`].
    pub fn start(
        netns: &Netns,
        devices: &[&str],
        territory: Territory,
        canary: &[u8],
    ) -> Result<Self, SnifferError> {
        let devices = Devices::open(netns, devices)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| SnifferError::Thread(error.into()))?;
        let desk = Mutex::new(Desk {
            territory: Some(territory),
            ..Desk::default()
        });
        let shared = Arc::new(Shared {
            wake,
            desk,
            settled: Condvar::new(),
        });
        let canary = Finder::new(canary).into_owned();
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(format!("sniff-{}", netns.name()))
            .spawn(move || listen(devices, &theirs, &canary))
            .map_err(SnifferError::Thread)?;
        Ok(Self {
            name: netns.name().to_owned(),
            shared,
            thread: Some(thread),
        })
    }

    /// What was seen of everything that was sent before the call.
    ///
    /// # Errors
    /// [`SnifferError::Stuck`] where the sniffer has failed or does not keep up.
    pub fn counts(&self) -> Result<Counts, SnifferError> {
        let stuck = || SnifferError::Stuck(self.name.clone());
        let mine = {
            let mut desk = self.shared.desk();
            desk.asked += 1;
            desk.asked
        };
        self.shared.wake()?;
        let desk = self.shared.desk();
        let pending = |desk: &mut Desk| desk.answered < mine && !desk.failed;
        let waited =
            self.shared
                .settled
                .wait_timeout_while(desk, crate::patience(PATIENCE), pending);
        let (desk, _) = waited.map_err(|_| stuck())?;
        if desk.answered < mine || desk.failed {
            return Err(stuck());
        }
        Ok(desk.counts.clone())
    }

    /// Judges what comes from now on by other data.
    ///
    /// # Errors
    /// [`SnifferError`]; frames sent before the call are judged by the old data.
    pub fn set_territory(&self, territory: Territory) -> Result<(), SnifferError> {
        self.counts()?;
        self.shared.desk().territory = Some(territory);
        Ok(())
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.shared.desk().stop = true;
        if let Err(error) = self.shared.wake() {
            tracing::error!(%error, "the sniffer cannot be stopped");
            return;
        }
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the sniffer's thread panicked");
        }
    }
}

/// The sniffer's thread.
fn listen(mut devices: Devices, shared: &Shared, canary: &Finder<'_>) {
    let result = judge_all(&mut devices, shared, canary);
    if let Err(error) = &result {
        tracing::error!(%error, "the sniffer fails");
    }
    shared.desk().failed = true;
    shared.settled.notify_all();
}

fn judge_all(devices: &mut Devices, shared: &Shared, canary: &Finder<'_>) -> io::Result<()> {
    let mut territory = None;
    loop {
        devices.wait(Some(&shared.wake), None)?;
        let mut news = [0; 8];
        match read(&shared.wake, &mut news) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        let asked = {
            let mut desk = shared.desk();
            if desk.stop {
                return Ok(());
            }
            if let Some(new) = desk.territory.take() {
                territory = Some(new);
            }
            desk.asked
        };
        let mut fresh = Counts::default();
        devices.drain(&mut |device, direction, frame| match direction {
            Direction::Incoming => {}
            Direction::Outgoing => {
                let verdict = territory.as_ref().map(|t| t.judge(frame, canary));
                fresh.record(device, frame.len(), verdict.unwrap_or(Verdict::Other));
                fresh.fragments += u64::from(frame::is_fragment(frame));
            }
        })?;
        fresh.lost = devices.lost()?;
        let mut desk = shared.desk();
        desk.counts.add(&fresh);
        desk.answered = asked;
        shared.settled.notify_all();
    }
}

/// A capture for people: every frame on some devices, both ways.
#[derive(Debug)]
pub struct Capture {
    devices: Devices,
    territory: Territory,
}

/// A frame that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The device.
    pub device: String,
    /// Whether the node sent it; else it received it.
    pub sent: bool,
    /// Its length in bytes.
    pub length: usize,
    /// What it is; a frame that was received is judged like one that was sent.
    pub verdict: Verdict,
    /// The frame in words.
    pub summary: String,
}

impl Capture {
    /// Starts to listen on devices of a namespace.
    ///
    /// # Errors
    /// [`SnifferError`].
    pub fn start(
        netns: &Netns,
        devices: &[&str],
        territory: Territory,
    ) -> Result<Self, SnifferError> {
        Ok(Self {
            devices: Devices::open(netns, devices)?,
            territory,
        })
    }

    /// Waits a while for frames and returns what came; nothing, if nothing came.
    ///
    /// # Errors
    /// [`SnifferError::Thread`] where the devices cannot be read.
    pub fn next(&mut self, patience: Duration) -> Result<Vec<Captured>, SnifferError> {
        let mut captured = Vec::new();
        self.devices
            .wait(None, Some(patience))
            .map_err(SnifferError::Thread)?;
        let none = Finder::new(&[0xff; 64]);
        let territory = &self.territory;
        let each = &mut |device: &str, direction, frame: &[u8]| {
            captured.push(Captured {
                device: device.to_owned(),
                sent: direction == Direction::Outgoing,
                length: frame.len(),
                verdict: territory.judge(frame, &none),
                summary: read_frame(frame).to_string(),
            });
        };
        self.devices.drain(each).map_err(SnifferError::Thread)?;
        Ok(captured)
    }

    /// Frames that were lost since the last call.
    ///
    /// # Errors
    /// [`SnifferError::Thread`] where the devices cannot be asked.
    pub fn lost(&self) -> Result<u64, SnifferError> {
        self.devices.lost().map_err(SnifferError::Thread)
    }
}
