//! UDP → TUN.
//!
//! A buffer of joined datagrams is opened in place, judged under one lock, and what may pass is joined again into
//! frames for the device, by reference into the same buffer.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use wire_core::{
    LiveIndices, Message, OpenError, Opened, Payload, ReceiveSession, Transmit, Verdict,
};

use super::Shared;
use super::counter;
use super::handshake::Letterbox;
use super::shared::now;
use crate::event::End;
use crate::packet::ip::{self, Ecn};
use crate::packet::merge::{Joins, Merger, Sink};
use crate::socket::{Family, Incoming, JOINED, SocketPair};
use crate::tun::Offload;

/// How many buffers one socket may deliver before the other gets its turn.
const TURN: usize = 32;

/// The thread's state.
pub(super) struct Inbound {
    shared: Arc<Shared>,
    letterbox: Letterbox,
    live: Arc<LiveIndices>,
    buffer: Box<[u8]>,
    merger: Merger,
    arrivals: Arrivals,
    verdicts: Vec<Verdict>,
    outbox: Vec<Transmit>,
}

/// Opened messages of one session that wait to be judged together.
#[derive(Default)]
struct Arrivals {
    session: Option<Arc<ReceiveSession>>,
    opened: Vec<Opened>,
    /// Where in the buffer each message begins.
    starts: Vec<usize>,
}

/// Frames for the device.
struct Device<'a>(&'a Shared);

impl Sink for Device<'_> {
    fn write(&mut self, parts: &[IoSlice<'_>]) {
        if let Err(error) = self.0.tun.write(parts) {
            counter::add(&self.0.counters.in_write_failed, parts.len() - 1);
            tracing::debug!(%error, "the device does not take a packet");
        }
    }
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>, letterbox: Letterbox) -> Self {
        let offload = shared.tun.offload();
        let joins = Joins {
            tcp: offload != Offload::None,
            udp: offload == Offload::Udp,
        };
        let live = shared.tunnel().live_indices();
        Self {
            shared,
            live,
            letterbox,
            buffer: vec![0; JOINED].into_boxed_slice(),
            merger: Merger::new(joins),
            arrivals: Arrivals::default(),
            verdicts: Vec::new(),
            outbox: Vec::new(),
        }
    }

    /// Carries packets until the device ends.
    pub(super) fn run(mut self) {
        while !self.shared.is_stopping() {
            let sockets = self.shared.sockets.load_full();
            if let Err(error) = self.serve(sockets.as_deref()) {
                tracing::error!(%error, "cannot wait for datagrams");
                return self.shared.stop(End::Failed);
            }
        }
    }

    /// Waits once, and takes what is there.
    fn serve(&mut self, sockets: Option<&SocketPair>) -> io::Result<()> {
        let wake = self.shared.inbound.as_fd();
        // What is not there is stood in for by what is.
        let (v4, v6) = sockets.map_or((wake, None), SocketPair::descriptors);
        let mut ready =
            [wake, v4, v6.unwrap_or(wake)].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
        let [wake, v4, v6] = ready.map(|fd| !fd.revents().is_empty());
        if wake {
            self.shared.inbound.clear();
        }
        if let Some(sockets) = sockets {
            if v4 {
                self.receive(sockets, Family::V4);
            }
            if v6 {
                self.receive(sockets, Family::V6);
            }
        }
        Ok(())
    }

    fn receive(&mut self, sockets: &SocketPair, family: Family) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..TURN {
            match sockets.receive(family, &mut buffer) {
                Ok(Some(incoming)) => self.datagrams(&mut buffer, &incoming),
                Ok(None) => break,
                Err(error) => {
                    counter::add(&self.shared.counters.in_receive_failed, 1);
                    tracing::debug!(%error, "cannot receive");
                }
            }
        }
        self.buffer = buffer;
    }

    /// All datagrams of one buffer.
    fn datagrams(&mut self, buffer: &mut [u8], incoming: &Incoming) {
        let mut start = 0;
        while start < incoming.length {
            let end = (start + incoming.segment).min(incoming.length);
            self.datagram(buffer, start..end, incoming);
            start = end;
        }
        self.judge(buffer, incoming);
        self.merger.flush(buffer, &mut Device(&self.shared));
        self.arrivals.session = None;
    }

    fn datagram(&mut self, buffer: &mut [u8], at: Range<usize>, incoming: &Incoming) {
        match Message::classify(&buffer[at.clone()]) {
            Ok(Message::Data { receiver, .. }) => self.data(buffer, at, receiver, incoming),
            Ok(Message::Initiation | Message::Response | Message::CookieReply) => {
                self.handshake(&buffer[at], incoming);
            }
            Err(_) => counter::add(&self.shared.counters.in_malformed, 1),
        }
    }

    /// Handshakes are another thread's work: however many come, packets do not wait for them.
    fn handshake(&self, datagram: &[u8], incoming: &Incoming) {
        if !self.letterbox.leave(incoming.from, datagram) {
            counter::add(&self.shared.counters.in_handshake_dropped, 1);
        }
    }

    /// Opens a data message and keeps it for [`Self::judge`].
    fn data(&mut self, buffer: &mut [u8], at: Range<usize>, receiver: u32, incoming: &Incoming) {
        let current = self.arrivals.session.as_ref();
        if current.is_none_or(|session| session.index() != receiver) {
            self.judge(buffer, incoming);
            // What strangers make up does not get as far as the lock.
            self.arrivals.session = self
                .live
                .may_hold(receiver)
                .then(|| self.shared.tunnel().session(receiver, now()))
                .flatten();
        }
        let counters = &self.shared.counters;
        let Some(session) = &self.arrivals.session else {
            return counter::add(&counters.in_no_session, 1);
        };
        let start = at.start;
        match session.open(&mut buffer[at]) {
            Ok(opened) => {
                self.arrivals.opened.push(opened);
                self.arrivals.starts.push(start);
            }
            Err(OpenError::Forged) => counter::add(&counters.in_forged, 1),
            Err(OpenError::NotOurs | OpenError::Exhausted) => {
                counter::add(&counters.in_no_session, 1);
            }
        }
    }

    /// Asks the tunnel about all opened messages, and hands on those that may pass.
    fn judge(&mut self, buffer: &mut [u8], incoming: &Incoming) {
        let arrivals = &mut self.arrivals;
        let Some(session) = arrivals
            .session
            .as_ref()
            .filter(|_| !arrivals.opened.is_empty())
        else {
            return;
        };
        let verdicts = &mut self.verdicts;
        self.shared.with_tunnel(&mut self.outbox, |tunnel, now| {
            tunnel.received(session, incoming.from, &arrivals.opened, verdicts, now);
        });
        let congested = Ecn::of(incoming.traffic_class).is_congested();
        let messages = arrivals.opened.drain(..).zip(arrivals.starts.drain(..));
        for ((opened, start), verdict) in messages.zip(verdicts.drain(..)) {
            if let Some(range) = deliverable(&self.shared, verdict, opened.payload) {
                let range = start + range.start..start + range.end;
                if congested {
                    ip::mark_congested(&mut buffer[range.clone()]);
                }
                self.merger.push(buffer, range, &mut Device(&self.shared));
            }
        }
    }
}

/// The packet to deliver, if the verdict says so; else the drop is counted.
fn deliverable(shared: &Shared, verdict: Verdict, payload: Payload) -> Option<Range<usize>> {
    let counters = &shared.counters;
    let counter = match (verdict, payload) {
        (Verdict::Deliver, Payload::Packet { range, .. }) => return Some(range),
        (Verdict::Keepalive, _) => return None,
        (Verdict::Replayed, _) => &counters.in_replayed,
        (Verdict::WrongSource, _) => &counters.in_wrong_source,
        (Verdict::SessionGone, _) => &counters.in_no_session,
        (Verdict::BadPacket | Verdict::Deliver, _) => &counters.in_bad_packet,
    };
    counter::add(counter, 1);
    None
}
