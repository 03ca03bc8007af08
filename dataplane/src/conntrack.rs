//! The kernel's table of connections: which there are, and one bit of ours in their marks.
//!
//! ```text
//! kernel ──one dump, or few by name────▶ Entry ──whoever judges──▶ Mark ──batches──▶ kernel
//! ```
//!
//! Only connections of conntrack zone 0 are looked at: other zones are other programs'. Only the bit that is asked
//! for is written (`CTA_MARK_MASK`); the rest of a mark is somebody else's. Nothing is created or deleted: an entry
//! that went away meanwhile is passed over.
//!
//! **Every connection that passed under the rules of before is seen.** An entry is put into the table behind the last
//! hook, so a packet that was judged just before a change may enter it a moment after. All hooks of one packet run in
//! one read-side section of the kernel, so [`Conntrack::settle`] waits until every such section that had begun has
//! ended.

mod entry;
mod short;
mod way;

use std::{cell::RefCell, collections::BTreeSet};

pub use self::{
    entry::{Entry, Tuple},
    way::{WayError, Ways},
};
use self::{
    entry::{IPS_DYING, attribute},
    short::{Name, ShortList},
};
use crate::{
    OpenError,
    netlink::{Attributes, Message, NetlinkError, Protocol, Received, Refusal, Socket, flag},
};

/// Bytes of `struct nfgenmsg` (linux/netfilter/nfnetlink.h).
const HEADER: usize = 4;

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_GET`.
const NEW: u16 = 0x100;
const GET: u16 = 0x101;

/// How many marks are written at once while the dump goes on.
const BATCH: usize = 2048;

/// How far a connection is followed to the one that expected it.
const GENERATIONS: usize = 4;

/// Reads and marks connections of the network namespace in which it was opened.
pub struct Conntrack {
    listing: Socket,
    telling: Socket,
    short: ShortList,
}

/// Which connections are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    /// All.
    All,
    /// Those that have the bit.
    Marked,
}

/// What becomes of the bit in a connection's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It stays as it is.
    Leave,
    /// It is there.
    Set,
    /// It is not there.
    Clear,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that were looked at.
    pub seen: u64,
    /// Those that have the bit now and had it not before.
    pub set: u64,
    /// Those that had the bit and have it no longer.
    pub cleared: u64,
    /// Those that have the bit in the end, among all that were looked at.
    pub marked: u64,
}

/// Why connections could not be read or marked.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The table could not be read.
    #[error("could not list connections")]
    List(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Marks could not be sent.
    #[error("could not send connections' marks")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused a mark.
    #[error("could not mark a connection: {0}")]
    Refused(String),
}

/// A pass over the table.
struct Round<'a, W> {
    telling: &'a mut Socket,
    bit: u32,
    among: Among,
    wish: W,
    tally: Tally,
    pending: Vec<Message>,
    failure: Option<ConntrackError>,
}

impl Conntrack {
    /// Opens sockets in the calling thread's network namespace.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            listing: Socket::open(Protocol::Netfilter)?,
            telling: Socket::open(Protocol::Netfilter)?,
            short: ShortList::open(),
        })
    }

    /// Waits until every packet that was under way has left the kernel's hooks (`MEMBARRIER_CMD_GLOBAL` of
    /// membarrier(2), a grace period of RCU): what it opened is in the table then.
    ///
    /// A kernel that cannot wait so is left in peace: the window is that of one packet.
    pub fn settle(&self) {
        let barrier = rustix::thread::membarrier(rustix::thread::MembarrierCommand::Global);
        if let Err(error) = barrier {
            tracing::debug!(%error, "The kernel does not say when its packets have passed");
        }
    }

    /// Looks at connections and writes what `wish` says of each into one bit of its mark.
    ///
    /// A connection that was expected by another one (`RELATED`, as a helper makes them) is what that one is: `wish`
    /// is asked about the latter, as long as it lives.
    pub fn mark(
        &mut self,
        bit: u32,
        among: Among,
        wish: impl FnMut(&Entry) -> Mark,
    ) -> Result<Tally, ConntrackError> {
        let names = self
            .short
            .names(&mut self.listing)
            .map_err(|error| ConntrackError::List(Box::new(error)))?;
        let round = RefCell::new(Round {
            telling: &mut self.telling,
            bit,
            among,
            wish,
            tally: Tally::default(),
            pending: Vec::new(),
            failure: None,
        });

        let look = |message: &Received<'_>| round.borrow_mut().look(message);
        match names {
            Some(names) => by_name(&mut self.listing, &names, look),
            None => dump(&mut self.listing, bit, among, look),
        }
        .map_err(|error| ConntrackError::List(Box::new(error)))?;

        round.into_inner().end()
    }
}

/// Lists every connection, or those that have the bit.
fn dump(
    socket: &mut Socket,
    bit: u32,
    among: Among,
    look: impl Fn(&Received<'_>),
) -> Result<(), NetlinkError> {
    let mut request = Message::new(GET, 0, &header(libc::AF_UNSPEC));
    if among == Among::Marked {
        request.put_be32(attribute::MARK, bit);
        request.put_be32(attribute::MARK_MASK, bit);
    }
    let listed = socket.dump(request, |message| -> Option<()> {
        look(message);
        None
    });

    listed.map(drop)
}

/// Asks for connections by their names; one that is gone is passed over.
fn by_name(
    socket: &mut Socket,
    names: &BTreeSet<Name>,
    look: impl Fn(&Received<'_>),
) -> Result<(), NetlinkError> {
    let mut requests: Vec<_> = names.iter().map(Name::request).collect();
    let Some(last) = requests.last_mut() else {
        return Ok(());
    };
    last.add_flag(flag::ACK);
    let (first, count) = socket.send(requests)?;
    let refusals = socket.answers(first, count, look)?;

    match refusals.into_iter().find(|refusal| !refusal.is_absence()) {
        Some(refusal) => Err(NetlinkError::Dump(refusal)),
        None => Ok(()),
    }
}

impl<W: FnMut(&Entry) -> Mark> Round<'_, W> {
    fn look(&mut self, message: &Received<'_>) {
        let Some(entry) = Entry::read(message) else {
            return;
        };
        if self.failure.is_some() || entry.zone != 0 || entry.status & IPS_DYING != 0 {
            return;
        }
        let has = entry.mark & self.bit == self.bit;
        if self.among == Among::Marked && !has {
            return;
        }
        self.tally.seen += 1;
        let root = self.root(&entry);
        let wish = (self.wish)(root.as_ref().unwrap_or(&entry));
        self.tally.marked += u64::from(wish == Mark::Set || has && wish == Mark::Leave);
        let value = match (wish, has) {
            (Mark::Set, false) => {
                self.tally.set += 1;
                self.bit
            }
            (Mark::Clear, true) => {
                self.tally.cleared += 1;
                0
            }
            (Mark::Leave, _) | (Mark::Set, true) | (Mark::Clear, false) => return,
        };

        self.pending.extend(change(message, self.bit, value));
        if self.pending.len() >= BATCH {
            self.send();
        }
    }

    /// Returns the connection that expected this one, or the one that expected that; `None` where there is none.
    fn root(&mut self, entry: &Entry) -> Option<Entry> {
        let mut root: Option<Entry> = None;
        for _ in 0..GENERATIONS {
            let Some(master) = root.as_ref().unwrap_or(entry).master.clone() else {
                break;
            };
            let mut request = Message::new(GET, 0, &header(family(&master)));
            request.nest(attribute::ORIGINAL, |nest| nest.raw(&master));
            match self.telling.get(request, Entry::read) {
                Ok(Ok(Some(found))) => root = Some(found),
                Ok(Ok(None)) => break,
                Ok(Err(refusal)) if refusal.is_absence() => break,
                Ok(Err(refusal)) => {
                    self.failure = Some(refused(&refusal));
                    break;
                }
                Err(error) => {
                    self.failure = Some(ConntrackError::List(Box::new(error)));
                    break;
                }
            }
        }

        root
    }

    fn send(&mut self) {
        match self.telling.batch(std::mem::take(&mut self.pending)) {
            Ok(refusals) => {
                let real = refusals.iter().find(|refusal| !refusal.is_absence());
                self.failure = self.failure.take().or(real.map(refused));
            }
            Err(error) => self.failure = Some(ConntrackError::Send(Box::new(error))),
        }
    }

    fn end(mut self) -> Result<Tally, ConntrackError> {
        self.send();

        self.failure.map_or(Ok(self.tally), Err)
    }
}

fn refused(refusal: &Refusal) -> ConntrackError {
    ConntrackError::Refused(refusal.to_string())
}

/// Builds the message that changes one bit of a connection's mark; its name is said back as it was told.
fn change(message: &Received<'_>, bit: u32, value: u32) -> Option<Message> {
    let family = *message.payload.first()?;
    let original = Attributes::new(message.payload.get(HEADER..)?).find(attribute::ORIGINAL)?;
    let mut change = Message::new(NEW, 0, &header(family.into()));
    change.nest(attribute::ORIGINAL, |nest| nest.raw(original));
    change.put_be32(attribute::MARK, value);
    change.put_be32(attribute::MARK_MASK, bit);

    Some(change)
}

/// Builds a `struct nfgenmsg`.
fn header(family: i32) -> [u8; HEADER] {
    [u8::try_from(family).unwrap_or_default(), 0, 0, 0]
}

/// Returns the family of a connection by the bytes of its name.
fn family(tuple: &[u8]) -> i32 {
    let addresses = Attributes::new(tuple).nest(entry::IN_TUPLE_ADDRESSES);
    match addresses.find(entry::V4_SOURCE) {
        Some(_) => libc::AF_INET,
        None => libc::AF_INET6,
    }
}
