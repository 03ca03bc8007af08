//! When the ways of our packets, and others' rules, are looked at again.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use model::conflict::Surroundings;

use crate::{
    netlink::{NetlinkError, Protocol, Socket},
    surrounding::{self, Ways},
};

/// How long nothing is looked at again after a look.
const REST: Duration = Duration::from_secs(1);

/// How many times longer it is left alone than a look took.
const SHARE: u32 = 100;

/// How often there is a look although nothing was reported: files change without a word.
const AUDIT: Duration = Duration::from_secs(10);

/// Where the machine's files are.
const ROOT: &str = "/";

/// Looks at the machine's policy routing and network managers.
pub(super) struct SurroundingWatch {
    socket: Socket,
    ways: Arc<Ways>,
    /// What was told, and what the last look found.
    told: Surroundings,
    last: Surroundings,
    is_stale: bool,
    looked: Option<Instant>,
    took: Duration,
}

impl SurroundingWatch {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            ways: Arc::default(),
            told: Surroundings::default(),
            last: Surroundings::default(),
            is_stale: true,
            looked: None,
            took: Duration::ZERO,
        })
    }

    /// Says that somebody changed links, rules or routes.
    pub(super) fn expire(&mut self) {
        self.is_stale = true;
    }

    /// Returns what is found, where it differs from what was told.
    ///
    /// A detour is told once two looks in a row found it: while rules and routes change, a packet may go
    /// another way for a moment.
    pub(super) fn look(&mut self, ways: Arc<Ways>) -> Option<Surroundings> {
        if !Arc::ptr_eq(&ways, &self.ways) {
            self.ways = ways;
            self.is_stale = true;
        }
        let rest = REST.max(self.took * SHARE);
        let rest = if self.is_stale { rest } else { rest.max(AUDIT) };
        if self.looked.is_some_and(|looked| looked.elapsed() < rest) {
            return None;
        }

        let start = Instant::now();
        let found = surrounding::examine(&mut self.socket, &self.ways, Path::new(ROOT));
        self.took = start.elapsed();
        self.looked = Some(Instant::now());
        match found {
            Ok(found) => self.judge(found),
            Err(error) => {
                tracing::warn!(%error, "Could not look at others' policy routing; trying again");
                None
            }
        }
    }

    fn judge(&mut self, found: Surroundings) -> Option<Surroundings> {
        self.is_stale = found.detours != self.last.detours;
        let both = found.detours.intersection(&self.last.detours);
        let sure = Surroundings {
            detours: both.cloned().collect(),
            ..found.clone()
        };
        self.last = found;
        if sure == self.told {
            return None;
        }
        self.told = sure.clone();

        Some(sure)
    }
}
