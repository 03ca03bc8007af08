//! When other programs' packet filters are read again.

use std::time::{Duration, Instant};

use model::firewall::Firewalls;

use crate::{
    foreign::{self, Ways},
    netlink::{NetlinkError, Protocol, Socket},
};

/// How long a ruleset that changes is left alone.
const REST: Duration = Duration::from_secs(1);

/// How many times longer it is left alone than it took to read.
const SHARE: u32 = 100;

/// Reads other programs' packet filters when they or our ways change.
pub(super) struct FirewallWatch {
    socket: Socket,
    ways: Ways,
    found: Firewalls,
    is_stale: bool,
    read: Option<Instant>,
    took: Duration,
}

impl FirewallWatch {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Protocol::Netfilter)?,
            ways: Ways::default(),
            found: Firewalls::default(),
            is_stale: true,
            read: None,
            took: Duration::ZERO,
        })
    }

    /// Says that somebody changed rules of theirs.
    pub(super) fn expire(&mut self) {
        self.is_stale = true;
    }

    /// Returns what is found, where it differs from before.
    pub(super) fn look(&mut self, ways: Ways) -> Option<Firewalls> {
        if ways != self.ways {
            self.ways = ways;
            self.is_stale = true;
        }
        let rest = REST.max(self.took * SHARE);
        if !self.is_stale || self.read.is_some_and(|read| read.elapsed() < rest) {
            return None;
        }

        let start = Instant::now();
        let found = foreign::examine(&mut self.socket, &self.ways);
        self.took = start.elapsed();
        self.read = Some(Instant::now());
        match found {
            Ok(found) => {
                self.is_stale = false;
                if found == self.found {
                    return None;
                }
                self.found = found.clone();

                Some(found)
            }
            Err(error) => {
                tracing::warn!(%error, "Could not read other programs' packet filters; trying again");
                None
            }
        }
    }
}
