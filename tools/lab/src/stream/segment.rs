//! A stream over a connection (TCP, or SCTP in its one-to-one style).

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    io::{Errno, read},
    net::{SendFlags, send, sockopt},
};

use super::{Ends, Shared, catch_up, open, record, wait};
use crate::spec::Protocol;

/// The most bytes that wait to be sent; more records are put off until there is room.
const MAX_WAITING: usize = 64 << 10;

/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Time between two attempts.
const AGAIN: Duration = Duration::from_millis(20);

/// One connection.
struct Connection<'a> {
    socket: OwnedFd,
    ends: &'a Ends,
    waiting: VecDeque<u8>,
    heard: Vec<u8>,
    next_sent: u64,
    next_heard: u64,
}

/// Sends and hears until it is told to stop; a connection that breaks is counted and made anew.
pub(super) fn run(protocol: Protocol, ends: Ends, shared: &Shared) {
    let mut connected_before = false;
    while !shared.stopped() {
        let Some(mut connection) = connect(protocol, &ends) else {
            std::thread::park_timeout(AGAIN);
            continue;
        };
        if connected_before {
            shared.tally().report.reconnects += 1;
        }
        connected_before = true;
        match connection.carry(shared) {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, "a stream breaks");
                shared.tally().report.resets += 1;
            }
        }
    }
}

fn connect(protocol: Protocol, ends: &Ends) -> Option<Connection<'_>> {
    let socket = open(protocol, ends).ok()?;
    let writable = wait(&socket, PollFlags::OUT, Instant::now() + CONNECT).ok()?;
    if writable.is_empty() || sockopt::socket_error(&socket).ok()?.is_err() {
        return None;
    }
    let (waiting, heard) = (VecDeque::new(), Vec::new());
    Some(Connection {
        socket,
        ends,
        waiting,
        heard,
        next_sent: 0,
        next_heard: 0,
    })
}

impl Connection<'_> {
    fn carry(&mut self, shared: &Shared) -> Result<(), Errno> {
        let mut tick = Instant::now();
        while !shared.stopped() {
            let now = Instant::now();
            tick = catch_up(tick, self.ends.tick, now);
            while tick <= now {
                self.add_record(shared);
                tick += self.ends.tick;
            }
            self.send()?;
            let flags = if self.waiting.is_empty() {
                PollFlags::IN
            } else {
                PollFlags::IN | PollFlags::OUT
            };
            let ready = wait(&self.socket, flags, tick)?;
            if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.hear(shared)?;
            }
        }
        Ok(())
    }

    /// Puts a record in line, if there is room; a tick without room is skipped.
    fn add_record(&mut self, shared: &Shared) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting
                .extend(record::encode(&self.ends.canary, self.next_sent));
            self.next_sent += 1;
            shared.tally().report.sent += 1;
        }
    }

    fn send(&mut self) -> Result<(), Errno> {
        while !self.waiting.is_empty() {
            match send(
                &self.socket,
                self.waiting.as_slices().0,
                SendFlags::NOSIGNAL,
            ) {
                Ok(length) => drop(self.waiting.drain(..length)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn hear(&mut self, shared: &Shared) -> Result<(), Errno> {
        let mut buffer = [0; 16 << 10];
        loop {
            match read(&self.socket, &mut buffer) {
                Ok(0) => return Err(Errno::CONNRESET),
                Ok(length) => self.check(&buffer[..length], shared),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Compares what came with what was sent.
    fn check(&mut self, bytes: &[u8], shared: &Shared) {
        self.heard.extend_from_slice(bytes);
        let whole = self.heard.len() - self.heard.len() % record::LENGTH;
        let mut tally = shared.tally();
        tally.heard(Instant::now());
        let base = tally.report.sent - self.next_sent;
        for record in self.heard[..whole].chunks(record::LENGTH) {
            if record::decode(&self.ends.canary, record) != Some(self.next_heard) {
                tally.report.wrong += 1;
            }
            self.next_heard += 1;
            tally.report.echoed += 1;
            tally.newest = base + self.next_heard;
        }
        drop(tally);
        self.heard.drain(..whole);
    }
}
