//! A user-space link: what a network does to frames where the kernel cannot (delay, loss, …).
//!
//! ```text
//! host ── eth0 (TAP) ──▶ impairment ──▶ p0-eth0 (TAP) ── bridge
//!              ▲─────────── unchanged ───────┘
//! ```
//!
//! Each device on the network has a link of its own, and only what *enters* the network is impaired:
//! a frame from one host to another is delayed once. One thread per device; the devices live as long
//! as the thread.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, read, write},
};

use crate::{
    netns::{Netns, NetnsError},
    process::timespec,
    spec::Network,
    sys,
};
use impairment::{Admission, Impairment};
use oversize::Fate;

mod impairment;
mod oversize;

/// Room for one frame: the largest IP packet and its Ethernet header.
const FRAME: usize = 65_535 + 18;

/// One device on a network with a link of its own.
#[derive(Clone, Debug)]
pub struct LinkEnd {
    /// The host's namespace.
    pub netns: Arc<Netns>,
    /// Name of the device there.
    pub device: String,
    /// Name of the device on the network's side.
    pub port: String,
}

/// The running links of a network; dropping it removes their devices.
#[derive(Debug)]
pub struct Link {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

/// Why a link could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The namespace could not be entered.
    #[error("a namespace of the link")]
    Netns(#[from] NetnsError),
    /// A device could not be made.
    #[error("the device {device} cannot be made")]
    Device {
        /// Its name.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("the link's thread cannot be started")]
    Thread(#[source] io::Error),
}

impl Link {
    /// Makes the devices of every end and starts to carry frames. Their MTU is not set here.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn start(network: &Network, lan: &Netns, ends: &[LinkEnd]) -> Result<Self, LinkError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|error| LinkError::Thread(error.into()))?);
        let mut link = Self {
            stop,
            threads: Vec::new(),
        };
        for end in ends {
            let host = open(&end.netns, &end.device)?;
            let port = open(lan, &end.port)?;
            let stop = Arc::clone(&link.stop);
            let impairment = Impairment::new(network, seed(network, end));
            let carry = move || carry(&host, &port, &stop, impairment);
            let name = format!("link-{}", end.port);
            let thread = thread::Builder::new().name(name).spawn(carry);
            link.threads.push(thread.map_err(LinkError::Thread)?);
        }
        Ok(link)
    }

    /// Waits until the link ends, which it does only when its devices are taken from it.
    pub fn join(mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a link's thread panicked");
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = write(&*self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "a link cannot be told to stop");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a link's thread panicked");
            }
        }
    }
}

fn open(netns: &Netns, device: &str) -> Result<OwnedFd, LinkError> {
    let opened = netns.run(|| {
        let tap = sys::open_tap(device)?;
        rustix::io::ioctl_fionbio(&tap, true)?;
        Ok(tap)
    })?;
    opened.map_err(|source| LinkError::Device {
        device: device.to_owned(),
        source,
    })
}

/// The same file gives the same losses: the seed, and which device it is.
fn seed(network: &Network, end: &LinkEnd) -> u64 {
    let mut hasher = DefaultHasher::new();
    (network.seed, &end.port, network.name.as_str()).hash(&mut hasher);
    hasher.finish()
}

/// Carries frames between two devices until it is told to stop or a device disappears.
fn carry(host: &OwnedFd, port: &OwnedFd, stop: &OwnedFd, mut impairment: Impairment) {
    let mut buffer = vec![0; FRAME];
    loop {
        let now = Instant::now();
        while let Some(frame) = impairment.poll_frame(now) {
            forward(port, &frame);
        }
        let timeout = impairment
            .poll_timeout()
            .map(|due| timespec(due.saturating_duration_since(Instant::now())));
        let mut waiting = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(host.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN),
        ];
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "a link cannot wait"),
        }
        let [stopped, from_host, from_port] = waiting.map(|fd| fd.revents());
        if !stopped.is_empty() || (from_host | from_port).intersects(PollFlags::ERR) {
            return;
        }
        if !from_host.is_empty() {
            drain(host, &mut buffer, |frame| {
                enter(frame, host, &mut impairment)
            });
        }
        if !from_port.is_empty() {
            drain(port, &mut buffer, |frame| forward(host, frame));
        }
    }
}

/// A frame enters the network: it is kept for a while, lost, or answered.
fn enter(frame: &[u8], host: &OwnedFd, impairment: &mut Impairment) {
    match impairment.admit(frame, Instant::now()) {
        Admission::Kept | Admission::Lost => {}
        Admission::TooBig { mtu } => match oversize::decide(frame, mtu) {
            Fate::Cut(pieces) => {
                for piece in pieces {
                    impairment.admit(&piece, Instant::now());
                }
            }
            Fate::Told(answer) => forward(host, &answer),
            Fate::Lost => {}
        },
    }
}

/// Takes up to a queue's worth of frames that wait on a device.
fn drain(device: &OwnedFd, buffer: &mut [u8], mut each: impl FnMut(&[u8])) {
    for _ in 0..256 {
        match read(device, &mut *buffer) {
            Ok(length) => each(&buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(error) => return tracing::debug!(%error, "a link's device gives nothing"),
        }
    }
}

/// Hands a frame to a device. One that is down or full loses it, as a cable would.
fn forward(device: &OwnedFd, frame: &[u8]) {
    if let Err(error) = write(device, frame) {
        tracing::trace!(%error, "a link's device takes nothing");
    }
}
