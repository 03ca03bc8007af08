//! When packet filters changed, ours and others'.
//!
//! A listener to nftables' notifications, in whatever network namespace, has the kernel write one for each element and
//! rule of every transaction of anybody: three quarters of the time that a large set takes. Where nobody else can
//! change our tables nothing of that is needed: the number of the ruleset's generation is asked for instead, and who
//! made it is told by [`Generations`]. Where others can, the kernel is listened to, as what they changed tells.

use std::{os::fd::BorrowedFd, time::Duration};

use model::constant::NFT_TABLE;

use crate::{
    Ownership,
    generation::Generations,
    netlink::{Attributes, NetlinkError, Protocol, Received, Socket, messages, text},
    nft::ruleset,
};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// How often the generation is asked for: what others do is known within a second, whatever follows from it included.
pub(super) const PERIOD: Duration = Duration::from_millis(250);

/// Notices that packet filters changed.
pub(crate) struct RulesetWatch {
    socket: Socket,
    /// The socket that changes our tables, and owns them.
    owner: u32,
    generations: Generations,
    way: Way,
    news: News,
}

/// How changes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By the number of the generation, which was this one last.
    Asking(u32),
    /// By the kernel's notifications.
    Listening,
}

/// What changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// A table that is not ours.
    pub(super) others: bool,
    /// Maybe one of ours, and not by us.
    pub(super) ours: bool,
    /// What changed was lost.
    pub(super) is_lost: bool,
}

impl RulesetWatch {
    /// Begins to watch; `owner` is the socket that changes our tables, whose generations the book has.
    pub(crate) fn open(owner: u32, generations: Generations) -> Result<Self, NetlinkError> {
        let mut socket = Socket::open(Protocol::Netfilter)?;
        let generation = ruleset::generation(&mut socket)?.unwrap_or_default();
        let mut watch = Self {
            socket,
            owner,
            generations,
            way: Way::Asking(generation),
            news: News::default(),
        };
        if watch.generations.ownership() == Ownership::Shared {
            watch.listen()?;
        }

        Ok(watch)
    }

    /// What becomes readable when the kernel says something.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.socket)
    }

    /// Returns whether something changed.
    pub(super) fn look(&mut self) -> bool {
        match self.way {
            Way::Asking(last) => self.ask(last),
            Way::Listening => self.hear(),
        }

        self.news != News::default()
    }

    /// Returns what changed since this was called last.
    pub(super) fn take_news(&mut self) -> News {
        self.look();

        std::mem::take(&mut self.news)
    }

    fn ask(&mut self, last: u32) {
        if self.generations.ownership() == Ownership::Shared {
            return self.give_up_asking();
        }
        let now = match ruleset::generation(&mut self.socket) {
            Ok(Some(now)) => now,
            Ok(None) => return self.give_up_asking(),
            Err(error) => {
                tracing::warn!(%error, "The kernel does not tell the generation of its packet filters");
                return self.give_up_asking();
            }
        };
        if now == last {
            return;
        }
        let Some(strangers) = self.generations.strangers(last, now) else {
            return;
        };
        self.way = Way::Asking(now);
        if strangers.count > 0 {
            self.news.others = true;
            let owners = self.owners();
            let is_owner = !owners.is_empty() && owners.iter().all(|owner| *owner == self.owner);
            self.news.ours |= strangers.could_change_ours || !is_owner;
            if !owners.is_empty() && !is_owner && self.generations.are_committed() {
                tracing::info!(
                    "Our packet filters are there without us as their owner: listening to who changes them"
                );
                self.give_up_asking();
            }
        }
    }

    /// Listens from now on; what changed until now is not known.
    fn give_up_asking(&mut self) {
        self.news.ours = true;
        self.news.others = true;
        if let Err(error) = self.listen() {
            tracing::warn!(%error, "Could not listen to nftables; trying again");
        }
    }

    fn listen(&mut self) -> Result<(), NetlinkError> {
        self.socket.join(&[GROUP])?;
        self.way = Way::Listening;

        Ok(())
    }

    /// Returns who owns our tables, of those that are there.
    fn owners(&mut self) -> Vec<u32> {
        ruleset::owners(&mut self.socket).unwrap_or_else(|error| {
            tracing::warn!(%error, "The kernel does not tell who owns our tables");
            Vec::new()
        })
    }

    fn hear(&mut self) {
        while let Some(datagram) = self.socket.hear() {
            let Ok(datagram) = datagram else {
                self.news.is_lost = true;
                continue;
            };
            for message in messages(&datagram) {
                match table(&message) {
                    Some(NFT_TABLE) => self.news.ours |= message.port != self.owner,
                    Some(_) => self.news.others = true,
                    None => {}
                }
            }
        }
    }
}

/// Returns the table that an nftables message is about.
fn table<'a>(message: &Received<'a>) -> Option<&'a str> {
    /// Bytes of `struct nfgenmsg`; the first attribute of every object's message names its table.
    const HEADER: usize = 4;
    const TABLE: u16 = 1;
    /// `NFT_MSG_NEWGEN`: a transaction is over; its first attribute is a number.
    const NEW_GENERATION: u16 = 10 << 8 | 15;

    if message.kind == NEW_GENERATION {
        return None;
    }

    Attributes::new(message.payload.get(HEADER..)?)
        .find(TABLE)
        .and_then(text)
}
