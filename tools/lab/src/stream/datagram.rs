//! A stream of datagrams.

use std::{collections::BTreeSet, os::fd::OwnedFd, time::Instant};

use rustix::{
    event::PollFlags,
    io::{Errno, read},
    net::{SendFlags, send},
};

use super::{Ends, Shared, TICK, Tally, catch_up, open, record, wait};
use crate::spec::Protocol;

/// For how many later datagrams one may stay away before it is lost.
const WINDOW: u64 = 1000;

/// The datagrams of a stream that are on their way.
struct Flight<'a> {
    ends: &'a Ends,
    next: u64,
    /// The highest number that came back.
    highest: Option<u64>,
    missing: BTreeSet<u64>,
}

/// Sends and hears until it is told to stop.
pub(super) fn run(ends: Ends, shared: &Shared) {
    let mut flight = Flight {
        ends: &ends,
        next: 0,
        highest: None,
        missing: BTreeSet::new(),
    };
    while !shared.stopped() {
        let Ok(socket) = open(Protocol::Udp, &ends) else {
            std::thread::park_timeout(TICK);
            continue;
        };
        if let Err(error) = flight.carry(&socket, shared) {
            tracing::debug!(%error, "a stream's socket breaks");
            shared.tally().report.resets += 1;
        }
    }
}

impl Flight<'_> {
    fn carry(&mut self, socket: &OwnedFd, shared: &Shared) -> Result<(), Errno> {
        let mut tick = Instant::now();
        while !shared.stopped() {
            let now = Instant::now();
            tick = catch_up(tick, self.ends.tick, now);
            while tick <= now {
                self.send(socket, shared)?;
                tick += self.ends.tick;
            }
            if wait(socket, PollFlags::IN, tick)?.is_empty() {
                continue;
            }
            self.hear(socket, shared)?;
        }
        Ok(())
    }

    /// Sends the next one. What the kernel will not send now counts as sent and lost.
    fn send(&mut self, socket: &OwnedFd, shared: &Shared) -> Result<(), Errno> {
        let record = record::encode(&self.ends.canary, self.next);
        match send(socket, &record, SendFlags::NOSIGNAL) {
            Ok(_) => {}
            Err(error) if is_passing(error) => {}
            Err(error) => return Err(error),
        }
        self.missing.insert(self.next);
        self.next += 1;
        let mut tally = shared.tally();
        tally.report.sent += 1;
        while self
            .missing
            .first()
            .is_some_and(|first| first + WINDOW < self.next)
        {
            let lost = self.missing.pop_first();
            tally.report.lost += u64::from(lost >= Some(tally.forgotten));
        }
        self.count_missing(&mut tally);
        Ok(())
    }

    fn hear(&mut self, socket: &OwnedFd, shared: &Shared) -> Result<(), Errno> {
        let mut buffer = [0; 2 * record::LENGTH];
        loop {
            match read(socket, &mut buffer) {
                Ok(length) => self.check(&buffer[..length], shared),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) if is_passing(error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn check(&mut self, bytes: &[u8], shared: &Shared) {
        let mut tally = shared.tally();
        tally.heard(Instant::now());
        let Some(number) = record::decode(&self.ends.canary, bytes) else {
            tally.report.wrong += 1;
            return;
        };
        if !self.missing.remove(&number) {
            return;
        }
        tally.report.echoed += 1;
        if self.highest.is_some_and(|highest| number < highest) {
            tally.report.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
        tally.newest = tally.newest.max(number + 1);
        self.count_missing(&mut tally);
    }

    /// Counts those that a later one has overtaken.
    fn count_missing(&self, tally: &mut Tally) {
        let highest = self.highest.unwrap_or_default();
        let overtaken = self.missing.range(tally.forgotten.min(highest)..highest);
        tally.report.missing = overtaken.count() as u64;
    }
}

/// Errors that tell of the way and not of the socket: they come from ICMP, pass with a full queue, or say that the
/// kernel's WireGuard has no peer for the address (`ENOKEY`), or no endpoint of it (`EDESTADDRREQ`).
fn is_passing(error: Errno) -> bool {
    matches!(
        error,
        Errno::INTR
            | Errno::AGAIN
            | Errno::CONNREFUSED
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::NOBUFS
            | Errno::PERM
            | Errno::MSGSIZE
            | Errno::NETDOWN
            | Errno::NOKEY
            | Errno::DESTADDRREQ
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Tally;

    const ENDS: Ends = Ends {
        from: None,
        to: std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9),
        canary: [7; 16],
        tick: TICK,
    };

    #[test]
    fn what_a_later_one_has_overtaken_is_missing_until_it_comes() {
        // Of eight datagrams 1, 4 and 7 are not back; 7 is the last, and on its way.
        let flight = |forgotten| {
            let flight = Flight {
                ends: &ENDS,
                next: 8,
                highest: Some(6),
                missing: BTreeSet::from([1, 4, 7]),
            };
            let mut tally = Tally {
                forgotten,
                ..Tally::default()
            };
            flight.count_missing(&mut tally);
            tally.report.missing
        };
        assert_eq!(flight(0), 2);
        assert_eq!(flight(2), 1, "what was sent before the past was forgotten");
        assert_eq!(flight(8), 0);
    }
}
