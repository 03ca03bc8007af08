//! TUN → UDP.
//!
//! A super-frame is routed once, cut straight into the batch's buffer and sent at once. Lone packets of one size to
//! one peer gather in the batch until the device has no more: nothing ever waits for a timer.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use wire_core::{DropReason, PeerId, SealBatch, Transmit};

use super::Shared;
use super::batch::{Address, Batch};
use super::counter;
use super::shared::now;
use crate::event::End;
use crate::packet::ip;
use crate::packet::segment::{self, SuperFrame};
use crate::packet::unreachable;
use crate::packet::virtio::{self, Kind};
use crate::socket::{Outgoing, Patience};
use crate::tun::FRAME;

/// Complaints per second, and at once: the kernel's default for all its own (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
const COMPLAINT_REFILL: Duration = Duration::from_millis(1);
const COMPLAINT_BURST: u32 = 50;

/// The thread's state.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    frame: Box<[u8]>,
    batch: Batch,
    outbox: Vec<Transmit>,
    route: Route,
    complaints: Complaints,
}

/// The last destination and who it belongs to: most packets follow one of their own kind.
#[derive(Default)]
struct Route {
    generation: u64,
    found: Option<(IpAddr, PeerId)>,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            frame: vec![0; FRAME].into_boxed_slice(),
            batch: Batch::new(),
            outbox: Vec::new(),
            route: Route::default(),
            complaints: Complaints::default(),
        }
    }

    /// Carries packets until the device ends.
    pub(super) fn run(mut self) {
        while !self.shared.is_stopping() {
            if let Err(error) = self.wait() {
                tracing::error!(%error, "cannot wait for packets");
                return self.shared.stop(End::Failed);
            }
            self.drain();
        }
    }

    fn wait(&self) -> io::Result<()> {
        let shared = &self.shared;
        let mut ready = [
            PollFd::new(&shared.tun, PollFlags::IN),
            PollFd::new(&shared.outbound, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
        if ready[1].revents().contains(PollFlags::IN) {
            shared.outbound.clear();
        }
        Ok(())
    }

    /// Everything that the device has now.
    fn drain(&mut self) {
        loop {
            match self.shared.tun.read(&mut self.frame) {
                Ok(length) => self.frame(length),
                Err(error) => {
                    self.flush();
                    if error.kind() != io::ErrorKind::WouldBlock
                        && error.kind() != io::ErrorKind::Interrupted
                    {
                        self.fail(&error);
                    }
                    return;
                }
            }
        }
    }

    /// The device is gone, or (while it is being deleted or moved) briefly without its queue.
    fn fail(&self, error: &io::Error) {
        if self.shared.tun.is_attached() {
            tracing::debug!(%error, "cannot read from the device");
        } else {
            self.shared.stop(End::InterfaceDeleted);
        }
    }

    /// One frame of `length` bytes, virtio header included.
    fn frame(&mut self, length: usize) {
        let mut frame = std::mem::take(&mut self.frame);
        if self.packets(&mut frame[..length]).is_none() {
            counter::add(&self.shared.counters.out_malformed, 1);
        }
        self.frame = frame;
    }

    /// Puts what the frame holds into the batch; `None`: it is no IP packet.
    fn packets(&mut self, frame: &mut [u8]) -> Option<()> {
        let (header, packet) = frame.split_first_chunk_mut::<{ virtio::SIZE }>()?;
        let header = virtio::Header::decode(header)?;
        let ip = ip::Header::parse(packet)?;
        let Some(peer) = self.route(ip.destination) else {
            counter::add(&self.shared.counters.out_no_peer, 1);
            self.complaints
                .tell(&self.shared, &packet[..ip.length], now().instant);
            return Some(());
        };
        let address = Address { peer, ecn: ip.ecn };
        let mtu = usize::try_from(self.shared.mtu.load(Ordering::Relaxed)).unwrap_or(0);
        if header.kind == Kind::Single {
            if let Some(checksum) = header.checksum {
                segment::complete(packet, checksum).ok()?;
            }
            let packet = &packet[..ip.length];
            self.room(address, packet.len(), mtu)
                .copy_from_slice(packet);
            return Some(());
        }
        let frame = SuperFrame::parse(&header, packet).ok()?;
        for index in 0..frame.count() {
            frame.write(index, self.room(address, frame.length(index), mtu));
        }
        self.flush();
        Some(())
    }

    /// Room for one packet, after whatever does not go with it has left.
    fn room(&mut self, address: Address, length: usize, mtu: usize) -> &mut [u8] {
        if !self.batch.takes(address, length, mtu) {
            self.flush();
        }
        self.batch.push(address, length, mtu)
    }

    fn route(&mut self, destination: IpAddr) -> Option<PeerId> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if let Some((known, peer)) = self.route.found
            && known == destination
            && self.route.generation == generation
        {
            return Some(peer);
        }
        let peer = self.shared.tunnel().route(destination)?;
        let found = Some((destination, peer));
        self.route = Route { generation, found };
        Some(peer)
    }

    /// Seals and sends the batch, or keeps its packets until there is a session.
    fn flush(&mut self) {
        if let Some(address) = self.batch.address() {
            if let Some(seals) = self.claim(address.peer) {
                self.seal_and_send(address, seals);
            }
            self.batch.clear();
        }
    }

    /// The right to seal the batch; `None`: its packets were queued or dropped.
    fn claim(&mut self, peer: PeerId) -> Option<SealBatch> {
        let (batch, counters) = (&self.batch, &self.shared.counters);
        let bytes = u64::try_from(batch.bytes().len()).unwrap_or(u64::MAX);
        let dropped = self.shared.with_tunnel(&mut self.outbox, |tunnel, now| {
            match tunnel.send(peer, batch.count(), bytes, now) {
                wire_core::Outbound::Seal(seals) => return Ok(seals),
                wire_core::Outbound::Queue => {
                    for packet in batch.packets() {
                        let length = ip::Header::parse(packet).map_or(0, |ip| ip.length);
                        let lost = tunnel.queue(peer, &packet[..length]);
                        counter::add(&counters.out_queue_full, lost);
                    }
                }
                wire_core::Outbound::Drop(reason) => return Err(Some((reason, now.instant))),
            }
            Err(None)
        });
        match dropped {
            Ok(seals) => return Some(seals),
            Err(Some((reason, now))) => self.drop_batch(reason, now),
            Err(None) => (),
        }
        None
    }

    /// Counts the packets of the batch, and tells their senders where nobody takes them.
    fn drop_batch(&mut self, reason: DropReason, now: Instant) {
        let counters = &self.shared.counters;
        let (counter, unreachable) = match reason {
            DropReason::Down => (&counters.out_send_failed, false),
            DropReason::NoPeer => (&counters.out_no_peer, true),
            DropReason::NoEndpoint => (&counters.out_no_endpoint, true),
            DropReason::NoPrivateKey => (&counters.out_no_endpoint, false),
        };
        counter::add(counter, self.batch.packets().count());
        for packet in self.batch.packets().filter(|_| unreachable) {
            self.complaints.tell(&self.shared, packet, now);
        }
    }

    fn seal_and_send(&mut self, address: Address, mut seals: SealBatch) {
        for message in self.batch.messages_mut() {
            if let Err(error) = seals.seal(message) {
                tracing::error!(%error, "cannot seal a packet");
                return;
            }
        }
        self.shared.send(&Outgoing {
            bytes: self.batch.bytes(),
            segment: self.batch.message(),
            to: seals.endpoint(),
            traffic_class: address.ecn.outer(),
            patience: Patience::Wait,
        });
    }
}

/// Tells senders that nobody takes their packets, as often as is decent.
struct Complaints {
    room: Box<unreachable::Room>,
    /// When as many as at first may be made at once again.
    full_at: Option<Instant>,
}

impl Default for Complaints {
    fn default() -> Self {
        Self {
            room: Box::new(unreachable::ROOM),
            full_at: None,
        }
    }
}

impl Complaints {
    fn tell(&mut self, shared: &Shared, packet: &[u8], now: Instant) {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + COMPLAINT_REFILL;
        if full_at > now + COMPLAINT_REFILL * COMPLAINT_BURST {
            return;
        }
        let Some(length) = unreachable::answer(packet, &mut self.room) else {
            return;
        };
        self.full_at = Some(full_at);
        let header = virtio::Header::SINGLE.encode();
        let parts = [IoSlice::new(&header), IoSlice::new(&self.room[..length])];
        if let Err(error) = shared.tun.write(&parts) {
            tracing::debug!(%error, "the device does not take a complaint");
        }
    }
}
