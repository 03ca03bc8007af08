//! Policy routing rules: ours carry our protocol number.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::{Change, Family, constant::ROUTE_PROTOCOL, plan::RuleKey};

use crate::{
    Absent, OpenError, Target,
    address::{family_number, put_address},
    netlink::{self, Attributes, Message, Protocol, Received, Refusal, Socket, flag, u32_ne},
};

/// Bytes of `struct fib_rule_hdr` (linux/fib_rules.h).
const HEADER: usize = 12;

/// `FR_ACT_TO_TBL`: look in a table.
const LOOKUP: u8 = 1;

/// `FIB_RULE_INVERT`: `not`.
const INVERT: u32 = 2;

/// Attributes of a rule (`FRA_*` of linux/fib_rules.h).
mod attribute {
    pub(super) const SOURCE: u16 = 2;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const MARK: u16 = 10;
    pub(super) const TABLE: u16 = 15;
    pub(super) const MARK_MASK: u16 = 16;
    pub(super) const PROTOCOL: u16 = 21;
}

/// Keeps policy routing rules.
pub struct RuleTarget {
    socket: Socket,
}

/// Why rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// The kernel could not be asked.
    #[error("could not list rules")]
    List(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel could not be told.
    #[error("could not send rules")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused one.
    #[error("rule of priority {priority} to table {table}: {reason}")]
    Refused {
        /// Its priority.
        priority: u32,
        /// Its table.
        table: u32,
        /// The kernel's reason.
        reason: String,
    },
}

impl RuleTarget {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
        })
    }

    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }
}

impl Target for RuleTarget {
    type Key = RuleKey;
    type Row = ();
    type Error = RuleError;

    fn observe(&mut self) -> Result<BTreeMap<RuleKey, ()>, RuleError> {
        let mut rules = BTreeMap::new();
        for family in Family::BOTH {
            let mut header = [0; HEADER];
            header[0] = family_number(family);
            let listed = self
                .socket
                .dump(Message::new(libc::RTM_GETRULE, 0, &header), |message| {
                    read(message, family)
                })
                .map_err(|error| RuleError::List(Box::new(error)))?;
            rules.extend(listed.into_iter().map(|key| (key, ())));
        }

        Ok(rules)
    }

    /// Each leads to `unreachable` routes.
    fn must_hold(&self, _: &RuleKey, row: Option<&()>) -> bool {
        row.is_some()
    }

    fn apply(
        &mut self,
        changes: &[Change<RuleKey, ()>],
    ) -> Result<Vec<Absent<RuleKey>>, RuleError> {
        let requests = changes.iter().map(encode).collect();
        let refusals = self
            .socket
            .batch(requests)
            .map_err(|error| RuleError::Send(Box::new(error)))?;
        for refusal in refusals {
            judge(&changes[refusal.index], &refusal)?;
        }

        Ok(Vec::new())
    }
}

/// Decides whether a refusal matters: an equal rule may be there, what should go may be gone.
fn judge(change: &Change<RuleKey, ()>, refusal: &Refusal) -> Result<(), RuleError> {
    let (key, harmless) = match change {
        Change::Set(key, ()) => (key, refusal.errno == libc::EEXIST),
        Change::Unset(key) => (key, refusal.is_absence()),
    };
    if harmless {
        return Ok(());
    }

    Err(RuleError::Refused {
        priority: key.priority,
        table: key.table,
        reason: refusal.to_string(),
    })
}

fn encode(change: &Change<RuleKey, ()>) -> Message {
    let (key, kind, flags) = match change {
        Change::Set(key, ()) => (key, libc::RTM_NEWRULE, flag::CREATE | flag::EXCLUSIVE),
        Change::Unset(key) => (key, libc::RTM_DELRULE, 0),
    };
    let mut message = Message::new(kind, flags, &header(key));
    message.put_u32(attribute::PRIORITY, key.priority);
    message.put_u32(attribute::TABLE, key.table);
    message.put(attribute::PROTOCOL, &[ROUTE_PROTOCOL]);
    if let Some(source) = &key.source {
        put_address(&mut message, attribute::SOURCE, source.network());
    }
    if let Some(mark) = key.without_mark {
        message.put_u32(attribute::MARK, mark);
        message.put_u32(attribute::MARK_MASK, mark);
    }

    message
}

/// Builds a `struct fib_rule_hdr`.
fn header(key: &RuleKey) -> [u8; HEADER] {
    let flags = if key.without_mark.is_some() {
        INVERT
    } else {
        0
    };
    let mut header = [0; HEADER];
    header[0] = family_number(key.family);
    header[2] = key.source.map_or(0, |source| source.prefix_len());
    header[7] = LOOKUP;
    header[8..].copy_from_slice(&flags.to_ne_bytes());

    header
}

/// Reads an `RTM_NEWRULE`; `None` where it is not ours.
fn read(message: &Received<'_>, family: Family) -> Option<RuleKey> {
    let header = message.payload.get(..HEADER)?;
    let attributes = Attributes::new(message.payload.get(HEADER..)?);
    let number = |kind| attributes.find(kind).and_then(u32_ne);
    // A kernel without a family answers with every family's rules.
    let is_ours = attributes.find(attribute::PROTOCOL) == Some(&[ROUTE_PROTOCOL]);
    if !is_ours || header[0] != family_number(family) {
        return None;
    }
    let source = attributes
        .find(attribute::SOURCE)
        .and_then(netlink::address);
    let inverted = u32_ne(&header[8..])? & INVERT != 0;

    Some(RuleKey {
        family,
        priority: number(attribute::PRIORITY).unwrap_or(0),
        source: source.and_then(|address| IpNet::new(address, header[2]).ok()),
        without_mark: number(attribute::MARK).filter(|_| inverted),
        table: number(attribute::TABLE)?,
    })
}
