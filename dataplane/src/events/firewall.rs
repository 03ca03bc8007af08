//! When other programs' packet filters are read again.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use model::firewall::Firewalls;

use crate::{
    foreign::{self, Firewalld, Ways},
    netlink::{NetlinkError, Protocol, Socket},
};

/// How long a ruleset that changes is left alone.
const REST: Duration = Duration::from_secs(1);

/// How many times longer it is left alone than it took to read.
const SHARE: u32 = 100;

/// Reads other programs' packet filters when they or our ways change.
pub(super) struct FirewallWatch {
    socket: Socket,
    firewalld: Firewalld,
    /// Of firewalld, as last looked at.
    generation: u64,
    ways: Ways,
    /// What the rulesets say, without firewalld's zones.
    rules: Firewalls,
    found: Firewalls,
    is_stale: bool,
    read: Option<Instant>,
    took: Duration,
}

/// What is new.
#[derive(Debug, Default)]
pub(super) struct News {
    /// What is found, where it differs from before.
    pub(super) firewalls: Option<Firewalls>,
    /// What we put into extension points may not be there any more.
    pub(super) openings_changed: bool,
}

impl FirewallWatch {
    pub(super) fn open(firewalld: Firewalld) -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Protocol::Netfilter)?,
            firewalld,
            generation: 0,
            ways: Ways::default(),
            rules: Firewalls::default(),
            found: Firewalls::default(),
            is_stale: true,
            read: None,
            took: Duration::ZERO,
        })
    }

    /// What becomes readable when firewalld changed something.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.firewalld.descriptor()
    }

    /// Says that somebody changed rules of theirs.
    pub(super) fn expire(&mut self) {
        self.is_stale = true;
    }

    /// Returns what is new.
    pub(super) fn look(&mut self, ways: Ways) -> News {
        if ways != self.ways {
            self.ways = ways;
            self.is_stale = true;
        }
        self.firewalld.begin();
        let generation = self.firewalld.generation();
        let zones_changed = generation != self.generation;
        self.generation = generation;
        self.read_rules();

        let mut found = self.rules.clone();
        found
            .extension_points
            .extend(self.firewalld.points(&self.ways.addressed));
        let is_new = found != self.found;
        self.found = found;

        News {
            firewalls: is_new.then(|| self.found.clone()),
            openings_changed: is_new || zones_changed,
        }
    }

    /// Reads the rulesets, unless they are as before or were read a moment ago.
    fn read_rules(&mut self) {
        let rest = REST.max(self.took * SHARE);
        if !self.is_stale || self.read.is_some_and(|read| read.elapsed() < rest) {
            return;
        }

        let start = Instant::now();
        let found = foreign::examine(&mut self.socket, &self.ways);
        self.took = start.elapsed();
        self.read = Some(Instant::now());
        match found {
            Ok(found) => {
                self.is_stale = false;
                self.rules = found;
            }
            Err(error) => {
                tracing::warn!(%error, "Could not read other programs' packet filters; trying again");
            }
        }
    }
}
