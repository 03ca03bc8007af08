//! Data packets of a peer, in both directions.
use std::sync::Arc;

use crate::allowed_ip::AllowedIps;
use crate::device::Device;
use crate::keypair::Place;
use crate::limit::{QUEUED_BYTES, QUEUED_PACKETS};
use crate::message::{DATA_HEADER, DATA_OVERHEAD, padded_length};
use crate::packet::Payload;
use crate::peer::Peer;
use crate::peer::handshake::Demand;
use crate::session::{Opened, ReceiveSession, SealBatch};
use crate::tunnel::{DropReason, Outbound, Verdict};
use crate::{Endpoint, Now};

/// Data messages from one session and one source.
pub(crate) struct Batch<'a> {
    pub(crate) session: &'a ReceiveSession,
    pub(crate) source: Endpoint,
    pub(crate) arrivals: &'a [Opened],
}

impl Peer {
    /// The right to send, or what else to do.
    pub(crate) fn permit(
        &mut self,
        packets: u32,
        bytes: u64,
        device: &mut Device,
        now: Now,
    ) -> Outbound {
        let Some(endpoint) = self.endpoint else {
            return Outbound::Drop(DropReason::NoEndpoint);
        };
        if device.identity.is_none() {
            return Outbound::Drop(DropReason::NoPrivateKey);
        }
        let Some(batch) = self.take_batch(u64::from(packets), endpoint, now) else {
            self.prompt_handshake(device, now);
            return Outbound::Queue;
        };
        self.sent_bytes += bytes;
        self.sent_data(device, now);
        self.sent_packets(device, now);
        Outbound::Seal(batch)
    }

    fn take_batch(&mut self, packets: u64, endpoint: Endpoint, now: Now) -> Option<SealBatch> {
        let keypair = self.keypairs.current()?;
        let counters = keypair.take_counters(packets, now.instant)?;
        Some(SealBatch::new(
            Arc::clone(&keypair.send),
            counters,
            endpoint,
        ))
    }

    fn sent_packets(&mut self, device: &mut Device, now: Now) {
        self.sent_any();
        self.traversed(now);
        let due = self
            .keypairs
            .current()
            .is_some_and(|k| k.requires_rekey_after_sending(now.instant));
        if due {
            self.prompt_handshake(device, now);
        }
    }

    /// Keeps a packet until there is a session; returns how many were dropped for it.
    pub(crate) fn enqueue(&mut self, packet: &[u8], device: &mut Device) -> usize {
        let mut dropped = 0;
        while self.queue.len() >= QUEUED_PACKETS
            || (device.queued_bytes + packet.len() > QUEUED_BYTES && !self.queue.is_empty())
        {
            self.dequeue(device);
            dropped += 1;
        }
        if device.queued_bytes + packet.len() > QUEUED_BYTES {
            return dropped + 1;
        }
        device.queued_bytes += packet.len();
        self.queue.push_back(packet.to_vec());
        dropped
    }

    fn dequeue(&mut self, device: &mut Device) -> Option<Vec<u8>> {
        let packet = self.queue.pop_front()?;
        device.queued_bytes -= packet.len();
        Some(packet)
    }

    pub(super) fn discard_queue(&mut self, device: &mut Device) {
        while self.dequeue(device).is_some() {}
    }

    /// Sends what waits; if nothing does, an empty packet.
    pub(crate) fn send_keepalive(&mut self, device: &mut Device, now: Now) {
        if !self.queue.is_empty() {
            self.flush(device, now);
            return;
        }
        let Some(endpoint) = self.endpoint else {
            return;
        };
        match self.take_batch(1, endpoint, now) {
            Some(batch) => {
                self.transmit_sealed(&[], batch, device);
                self.sent_packets(device, now);
            }
            None => self.request_handshake(Demand::New, device, now),
        }
    }

    /// Sends what waits for a session.
    pub(super) fn flush(&mut self, device: &mut Device, now: Now) {
        let Some(endpoint) = self.endpoint else {
            return;
        };
        let waiting = self.queue.len() as u64;
        if waiting == 0 {
            return;
        }
        let Some(mut batch) = self.take_batch(waiting, endpoint, now) else {
            self.request_handshake(Demand::New, device, now);
            return;
        };
        while let Some(packet) = self.dequeue(device) {
            self.transmit_sealed(&packet, batch.split(1), device);
        }
        self.sent_data(device, now);
        self.sent_packets(device, now);
    }

    fn transmit_sealed(&mut self, packet: &[u8], mut batch: SealBatch, device: &mut Device) {
        let padded = padded_length(packet.len(), device.mtu);
        let mut datagram = vec![0; padded + DATA_OVERHEAD];
        datagram[DATA_HEADER..DATA_HEADER + packet.len()].copy_from_slice(packet);
        if let Err(error) = batch.seal(&mut datagram) {
            tracing::warn!(%error, "dropped a waiting packet that could not be sealed");
            return;
        }
        self.sent_bytes += datagram.len() as u64;
        device.transmit(Some(self.id), batch.endpoint(), datagram);
    }

    /// Judges opened data messages, one verdict each.
    pub(crate) fn receive(
        &mut self,
        batch: &Batch<'_>,
        owners: &AllowedIps,
        verdicts: &mut Vec<Verdict>,
        device: &mut Device,
        now: Now,
    ) {
        let index = batch.session.index();
        let found = self.keypairs.find_mut(index).filter(|(_, keypair)| {
            std::ptr::eq(Arc::as_ptr(&keypair.receive), batch.session)
                && !keypair.expired(now.instant)
        });
        let Some((place, keypair)) = found else {
            verdicts.extend(batch.arrivals.iter().map(|_| Verdict::SessionGone));
            return;
        };
        let judge = Judge {
            peer: self.id,
            owners,
            last: None,
        };
        let seen = judge.judge(
            batch.arrivals,
            |counter| keypair.window.accept(counter),
            verdicts,
        );
        if seen.fresh == Fresh::Nothing {
            return;
        }
        self.received_bytes += seen.bytes;
        self.roam(device, batch.source);
        self.received_any();
        self.traversed(now);
        if seen.fresh == Fresh::Data {
            self.received_data(now);
        }
        if place == Place::Next {
            self.confirm(device, now);
        }
        self.renew_in_time(device, now);
    }

    /// Data that arrives shortly before a session's end makes its initiator ask for the next one.
    fn renew_in_time(&mut self, device: &mut Device, now: Now) {
        if self.asked_in_last_minute {
            return;
        }
        let due = self
            .keypairs
            .current()
            .is_some_and(|k| k.requires_rekey_after_receiving(now.instant));
        if due {
            self.asked_in_last_minute = true;
            self.request_handshake(Demand::New, device, now);
        }
    }
}

/// Decides on each packet of a batch.
struct Judge<'a> {
    peer: crate::PeerId,
    owners: &'a AllowedIps,
    /// The last source asked about, and the answer: packets of a batch mostly share one.
    last: Option<(std::net::IpAddr, Verdict)>,
}

/// What a batch brought.
struct Seen {
    fresh: Fresh,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fresh {
    Nothing,
    Keepalives,
    Data,
}

impl Judge<'_> {
    fn judge(
        mut self,
        arrivals: &[Opened],
        mut accept: impl FnMut(u64) -> bool,
        verdicts: &mut Vec<Verdict>,
    ) -> Seen {
        let mut seen = Seen {
            fresh: Fresh::Nothing,
            bytes: 0,
        };
        for arrival in arrivals {
            if !accept(arrival.counter) {
                verdicts.push(Verdict::Replayed);
                continue;
            }
            let (verdict, fresh) = match &arrival.payload {
                Payload::Keepalive => (Verdict::Keepalive, Fresh::Keepalives),
                Payload::Packet { source, .. } => (self.source(*source), Fresh::Data),
                Payload::Bad(_) => (Verdict::BadPacket, Fresh::Data),
            };
            seen.fresh = seen.fresh.max(fresh);
            if matches!(verdict, Verdict::Deliver | Verdict::Keepalive) {
                seen.bytes += arrival.length as u64;
            }
            verdicts.push(verdict);
        }
        seen
    }

    fn source(&mut self, source: std::net::IpAddr) -> Verdict {
        if let Some((known, verdict)) = self.last
            && known == source
        {
            return verdict;
        }
        let verdict = if self.owners.owner(source) == Some(self.peer) {
            Verdict::Deliver
        } else {
            Verdict::WrongSource
        };
        self.last = Some((source, verdict));
        verdict
    }
}
