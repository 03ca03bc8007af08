//! What the threads of one device share.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use wire_core::{Endpoint, Now, Transmit, Tunnel};

use super::alarm::Alarm;
use super::{Report, counter};
use crate::event::{End, Event};
use crate::socket::{Joining, Outgoing, Patience, SocketPair};
use crate::tun::{Offload, Tun};
use crate::waker::Waker;

/// DSCP of handshake messages: AF41, as the kernel marks them (`HANDSHAKE_DSCP`).
const HANDSHAKE_CLASS: u8 = 0x88;

/// State that all threads of a device reach.
pub(crate) struct Shared {
    pub(crate) tun: Tun,
    tunnel: Mutex<Tunnel>,
    /// `None` while the interface is down. Replaced by the control thread alone.
    pub(crate) sockets: ArcSwapOption<SocketPair>,
    /// Devices that carry nothing now: what is sent does not leave from their addresses.
    pub(crate) lost: ArcSwap<BTreeSet<u32>>,
    pub(crate) mtu: AtomicU32,
    /// Changes with every configuration, so that remembered routes are forgotten.
    pub(crate) generation: AtomicU64,
    pub(crate) counters: counter::Live,
    pub(crate) outbound: Waker,
    pub(crate) inbound: Waker,
    pub(crate) control: Alarm,
    stopping: AtomicBool,
    report: Report,
}

impl Shared {
    pub(super) fn new(tun: Tun, tunnel: Tunnel, mtu: u32, report: Report) -> io::Result<Self> {
        Ok(Self {
            tun,
            tunnel: Mutex::new(tunnel),
            sockets: ArcSwapOption::empty(),
            lost: ArcSwap::default(),
            mtu: AtomicU32::new(mtu),
            generation: AtomicU64::new(0),
            counters: counter::Live::default(),
            outbound: Waker::new()?,
            inbound: Waker::new()?,
            control: Alarm::new()?,
            stopping: AtomicBool::new(false),
            report,
        })
    }

    /// The tunnel, to look at. A panic elsewhere ends the process, so a poisoned lock is only ever seen in a test.
    pub(crate) fn tunnel(&self) -> MutexGuard<'_, Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `work` on the tunnel, and takes out what it then has to say: events are reported, the control thread is
    /// woken when a deadline came nearer, and, after the lock is released, datagrams are sent.
    pub(crate) fn with_tunnel<R>(
        &self,
        outbox: &mut Vec<Transmit>,
        work: impl FnOnce(&mut Tunnel, Now) -> R,
    ) -> R {
        let mut tunnel = self.tunnel();
        let result = work(&mut tunnel, now());
        while let Some(transmit) = tunnel.poll_transmit() {
            outbox.push(transmit);
        }
        while let Some(event) = tunnel.poll_event() {
            (self.report)(Event::from_core(self.tun.name(), event));
        }
        let deadline = tunnel.poll_timeout();
        drop(tunnel);
        if let Some(deadline) = deadline {
            self.control.hasten(deadline);
        }
        for transmit in outbox.drain(..) {
            self.transmit(&transmit);
        }
        result
    }

    /// Reports that somebody set something.
    pub(crate) fn say_configured(&self) {
        let interface = self.tun.name().to_owned();
        (self.report)(Event::Configured { interface });
    }

    /// Sends a datagram of the tunnel's own. A handshake is tried again, so a loss is only counted.
    pub(crate) fn transmit(&self, transmit: &Transmit) {
        let handshake = matches!(transmit.datagram.first(), Some(1..=3));
        self.send(&Outgoing {
            bytes: &transmit.datagram,
            segment: transmit.datagram.len(),
            to: transmit.destination,
            traffic_class: if handshake { HANDSHAKE_CLASS } else { 0 },
            patience: Patience::Drop,
        });
    }

    /// Sends through whatever sockets there are.
    pub(crate) fn send(&self, outgoing: &Outgoing<'_>) {
        let sockets = self.sockets.load();
        let to = self.usable(outgoing.to);
        let result = match sockets.as_ref() {
            Some(sockets) => sockets.send(&Outgoing { to, ..*outgoing }),
            None => Err(io::ErrorKind::NetworkDown.into()),
        };
        if let Err(error) = result {
            let datagrams = outgoing.bytes.len().div_ceil(outgoing.segment.max(1));
            counter::add(&self.counters.out_send_failed, datagrams);
            tracing::debug!(%error, remote = %outgoing.to.remote, "cannot send");
        }
    }

    /// The endpoint, without our own address where its device was lost: the route decides then.
    fn usable(&self, to: Endpoint) -> Endpoint {
        match to.local {
            Some(local) if self.lost.load().contains(&local.interface) => to.remote.into(),
            Some(_) | None => to,
        }
    }

    /// How much the kernel shall join and cut for us.
    pub(crate) fn joining(&self) -> Joining {
        match self.tun.offload() {
            Offload::Udp | Offload::Tcp => Joining::On,
            Offload::None => Joining::Off,
        }
    }

    /// Whether the threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Ends all threads and says so, once.
    pub(crate) fn stop(&self, reason: End) {
        if self.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        self.outbound.wake();
        self.inbound.wake();
        self.control.ring();
        (self.report)(Event::DeviceEnded {
            interface: self.tun.name().to_owned(),
            reason,
        });
    }
}

/// Both clocks. A wall clock before 1970 counts as 1970; peers then refuse our handshakes until it is set.
pub(crate) fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    }
}
