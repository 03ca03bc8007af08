//! One tunnel device: a TUN, two UDP sockets, a UAPI socket, and four threads around one [`Tunnel`].
//!
//! ```text
//!            ┌── outbound thread: TUN ─▶ route ─▶ cut ─▶ send ─▶ seal ─▶ UDP
//!  Shared ───┼── inbound thread:  UDP ─▶ open ─▶ received ─▶ merge ─▶ TUN
//!            │        └─ handshake messages ─▶ a bounded box
//!            ├── handshake thread: box ─▶ doorkeeper ─▶ tunnel
//!            └── control thread:  timers, UAPI, link up/down/MTU, end of the device
//! ```
//!
//! Packets are sealed and opened outside the lock on the tunnel; the lock is taken once per batch. Each packet runs
//! to completion on the thread that read it: no channel, no hand-over, no allocation per packet. Handshakes alone are
//! handed over, so that nothing a stranger sends holds up a packet.
//!
//! As with the kernel's WireGuard, the sockets are open while the interface is up.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use wire_core::Tunnel;

use crate::event::{End, Event};
use crate::tun::{CreateError, Offload, Tun};
use crate::uapi;

pub(crate) use shared::Shared;

mod alarm;
mod batch;
mod control;
mod counter;
mod handshake;
mod inbound;
mod outbound;
mod shared;

pub use counter::Counters;

/// Stack of each of the four threads. Their buffers are on the heap.
const STACK: usize = 256 << 10;

/// What a device is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes at the start; whoever owns the interface may change it later.
    pub mtu: u32,
    /// The most segmentation offload to use.
    pub offload: Offload,
    /// Where the UAPI socket is made.
    pub uapi_directory: PathBuf,
    /// What to do when somebody removes the UAPI socket.
    pub socket_loss: SocketLoss,
}

/// What to do when somebody removes the UAPI socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketLoss {
    /// End the device: the way to stop a standalone tunnel, as with other userspace WireGuards.
    End,
    /// Make it again: the service's devices are ended through the service.
    Rebind,
}

/// Where a device reports what happens to it; called from its threads, must not block.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// Why a device could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] CreateError),
    /// The UAPI socket.
    #[error(transparent)]
    Uapi(#[from] uapi::BindError),
    /// The system's random numbers.
    #[error("cannot get random numbers")]
    Random(#[source] io::Error),
    /// Threads, wakers and the link monitor.
    #[error("cannot start {what}")]
    Start {
        /// The part.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A running device. Dropping it ends its threads and removes the interface and the UAPI socket.
pub struct Device {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A device as [`crate::supervise`] lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name when it was created.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The UDP port that it listens on; `None` while it is down.
    pub port: Option<u16>,
    /// The segmentation offload that the kernel granted.
    pub offload: Offload,
    /// How many peers it has.
    pub peers: usize,
    /// What it dropped, by reason.
    pub counters: Counters,
}

impl Device {
    /// Creates the interface in the current network namespace and starts to serve it. The interface is down and has
    /// no key.
    ///
    /// # Errors
    /// See [`StartError`]; nothing stays behind.
    pub fn start(options: &Options, report: Report) -> Result<Self, StartError> {
        let tun = Tun::create(&options.name, options.mtu, options.offload)?;
        let uapi = uapi::Listener::bind(&options.uapi_directory, &options.name)?;
        let mut tunnel = Tunnel::new(seed()?);
        tunnel.set_down();
        let shared =
            Shared::new(tun, tunnel, options.mtu, report).map_err(|source| StartError::Start {
                what: "wakers",
                source,
            })?;
        let shared = Arc::new(shared);
        let control = control::Control::new(Arc::clone(&shared), uapi, options.socket_loss)
            .map_err(|source| StartError::Start {
                what: "the link monitor",
                source,
            })?;
        let mut device = Self {
            shared,
            threads: Vec::with_capacity(4),
        };
        let outbound = outbound::Outbound::new(Arc::clone(&device.shared));
        let (handshakes, letterbox) =
            handshake::Handshakes::new(Arc::clone(&device.shared), seed()?);
        let inbound = inbound::Inbound::new(Arc::clone(&device.shared), letterbox);
        device.spawn("control", move || control.run())?;
        device.spawn("handshake", move || handshakes.run())?;
        device.spawn("inbound", move || inbound.run())?;
        device.spawn("outbound", move || outbound.run())?;
        tracing::info!(
            interface = options.name,
            index = device.shared.tun.index(),
            offload = ?device.shared.tun.offload(),
            "device started"
        );
        Ok(device)
    }

    /// What it is and does.
    #[must_use]
    pub fn status(&self) -> DeviceStatus {
        let shared = &self.shared;
        DeviceStatus {
            name: shared.tun.name().to_owned(),
            index: shared.tun.index(),
            mtu: shared.mtu.load(Ordering::Relaxed),
            port: shared.sockets.load().as_ref().map(|pair| pair.port()),
            offload: shared.tun.offload(),
            peers: shared.tunnel().peers().count(),
            counters: shared.counters.read(),
        }
    }

    /// Whether it has ended by itself, because the interface or the UAPI socket was removed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.is_stopping()
    }

    fn spawn(
        &mut self,
        part: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let span = tracing::info_span!("device", interface = self.shared.tun.name());
        let thread = std::thread::Builder::new()
            .name(format!("{part}:{}", self.shared.tun.name()))
            .stack_size(STACK)
            .spawn(move || span.in_scope(body))
            .map_err(|source| StartError::Start { what: part, source })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.stop(End::Requested);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the device panicked");
            }
        }
    }
}

fn seed() -> Result<[u8; 32], StartError> {
    use std::io::Read;
    let mut seed = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut seed))
        .map_err(StartError::Random)?;
    Ok(seed)
}
