//! Our two nftables tables, kept by one transaction per half of a pass.
//!
//! Messages are encoded here rather than by a library: the target needs a device taken off a chain
//! without a gap, tables that outlive the socket that owns them, tags in rules, a send buffer for
//! whole rulesets and an error for each step, about a dozen message types in all.
//!
//! **Tables.** With flags `owner` and `persist` (Linux 6.9) only this process's socket may change
//! them, they stay when it goes, and the next process takes them over. Without `persist` a table
//! that is owned would vanish with its owner, so on older kernels no flag is set at all.
//!
//! **Halves.** What is policy's comes and goes in the first half, in one transaction: a packet sees the old policy
//! or the new one. The guard shrinks in the second half.
//!
//! **Chains** are changed rule by rule, where the kernel's numbers of their rules are known: what does not change keeps
//! its counters. Where they are not, or too much changes, a chain is replaced as a whole. Devices of netdev chains are
//! added and taken off in place. A set of networks means the union of its elements: it grows in the
//! first half of a pass and shrinks in the second, also where one network takes the place of another
//! that contains it or is contained in it (the kernel allows no overlap).

mod builder;
pub(crate) mod code;
mod edit;
mod element;
mod expression;
mod handle;
mod removal;
pub(crate) mod ruleset;
pub(crate) mod transaction;
pub(crate) mod userdata;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use model::{
    Change, InterfaceName, Table,
    nft::{Chain, ChainKey, Element, Hook, HookPoint, NftFamily, SetKey, SetKind},
};

use self::{
    builder::Builder,
    code::{TABLE_F_OWNER, TABLE_F_PERSIST},
    handle::Handles,
    ruleset::Ruleset,
    transaction::{CommitError, Transaction},
};
use crate::{
    Absent, Desired, OpenError, Target,
    generation::Generations,
    link,
    netlink::{Protocol, Socket},
};

/// Keeps `table inet meshd` and `table netdev meshd`.
pub struct NftTarget {
    socket: Socket,
    /// Only for looking up which devices exist.
    links: Socket,
    /// Which generations are of our making, and whether others may change our tables.
    generations: Generations,
    in_sync: bool,
    /// What the kernel has, as far as we know.
    held: Ruleset,
    handles: Handles,
    /// Networks that wait for the larger one around them to go.
    deferred: BTreeSet<(SetKey, Element)>,
    /// Devices that a chain should have and that do not exist.
    missing: BTreeMap<ChainKey, BTreeSet<InterfaceName>>,
    /// The kernel refused a change in place: build the tables anew, in one transaction.
    rebuild: bool,
}

/// Whether other programs may change our tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Not, where the kernel can see to that (`owner` and `persist`).
    #[default]
    Exclusive,
    /// They may: what they change is noticed and undone.
    Shared,
}

/// What tells two nftables objects apart. In the order in which they must be made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NftKey {
    /// A set.
    Set(SetKey),
    /// An element of a set.
    Element(SetKey, Element),
    /// A chain with its rules.
    Chain(ChainKey),
}

/// An nftables object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftRow {
    /// A set's kind.
    Set(SetKind),
    /// An element has nothing but its key.
    Element,
    /// A chain; in a box, because most rows are elements.
    Chain(Box<ChainRow>),
}

/// A chain as it is compared: its hook, and its rules by their tags.
#[derive(Clone, Debug)]
pub struct ChainRow {
    /// Where packets enter, with sorted devices.
    pub hook: Option<Hook>,
    /// The chain itself, where the row comes from the plan.
    pub chain: Option<Chain>,
    /// Whose tags are made with it.
    table: NftFamily,
    /// Each rule's tag, where the row comes from the kernel; `None` for one that is not ours.
    seen: Vec<Option<u64>>,
}

/// What a counted rule has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The rule's chain.
    pub chain: ChainKey,
    /// The rule's comment.
    pub comment: String,
    /// Packets that matched.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why the tables could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel could not be asked.
    #[error("could not list our nftables tables")]
    List(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The devices could not be listed.
    #[error("could not list devices for nftables")]
    Devices(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel could not be told.
    #[error("could not send an nftables transaction")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The plan puts an element into a set that cannot hold it.
    #[error("element {element:?} does not fit set {set}")]
    Element {
        /// The set.
        set: String,
        /// The element.
        element: Element,
    },
    /// The kernel refused the transaction: nothing of it took effect.
    #[error("{step}: {reason}")]
    Refused {
        /// The first step that was refused.
        step: String,
        /// The kernel's reason.
        reason: String,
    },
}

/// The plan's three tables, read as one.
pub(crate) struct Rows<'a> {
    /// Sets.
    pub(crate) sets: &'a mut Table<SetKey, SetKind>,
    /// Elements.
    pub(crate) elements: &'a mut Table<(SetKey, Element), ()>,
    /// Chains.
    pub(crate) chains: &'a mut Table<ChainKey, Chain>,
}

impl PartialEq for ChainRow {
    fn eq(&self, other: &Self) -> bool {
        self.hook == other.hook && self.has_rules_of(other)
    }
}

impl Eq for ChainRow {}

impl ChainRow {
    /// Returns the row of a chain of the plan.
    pub fn new(table: NftFamily, chain: Chain) -> Self {
        Self {
            hook: chain.hook.clone().map(normalized),
            chain: Some(chain),
            table,
            seen: Vec::new(),
        }
    }

    /// Returns the row of a chain that the kernel has, with the tags of its rules.
    fn seen(table: NftFamily, hook: Option<Hook>, tags: Vec<Option<u64>>) -> Self {
        Self {
            hook,
            chain: None,
            table,
            seen: tags,
        }
    }

    /// Returns each rule's tag; `None` for one that is not ours.
    fn tags(&self) -> Cow<'_, [Option<u64>]> {
        let Some(chain) = &self.chain else {
            return Cow::Borrowed(&self.seen);
        };
        let rules = chain.rules.iter();

        rules
            .map(|rule| Some(transaction::rule_tag(self.table, rule)))
            .collect()
    }

    /// Returns whether there are no rules.
    fn is_empty(&self) -> bool {
        self.chain
            .as_ref()
            .map_or(self.seen.is_empty(), |chain| chain.rules.is_empty())
    }

    /// Returns whether both have the same rules.
    fn has_rules_of(&self, other: &Self) -> bool {
        match (&self.chain, &other.chain) {
            (Some(own), Some(other)) => own.rules == other.rules,
            (Some(_) | None, Some(_) | None) => self.tags() == other.tags(),
        }
    }
}

impl NftTarget {
    /// Opens a socket in the calling thread's network namespace; it owns the tables from the first apply on.
    pub fn open(ownership: Ownership) -> Result<Self, OpenError> {
        Ok(Self {
            socket: Socket::open(Protocol::Netfilter)?,
            links: Socket::open(Protocol::Route)?,
            generations: Generations::new(ownership),
            in_sync: false,
            held: Ruleset::default(),
            handles: Handles::default(),
            deferred: BTreeSet::new(),
            missing: BTreeMap::new(),
            rebuild: false,
        })
    }

    /// Says whether what nobody wants may be removed.
    pub fn set_in_sync(&mut self, in_sync: bool) {
        self.in_sync = in_sync;
    }

    /// Returns what every counted rule has counted.
    pub fn counters(&mut self) -> Result<Vec<Counter>, NftError> {
        ruleset::counters(&mut self.socket).map_err(|error| NftError::List(Box::new(error)))
    }

    /// Returns how many bytes went to the kernel for the tables, questions included.
    pub fn sent(&self) -> u64 {
        let [sent, _] = self.socket.traffic().count();
        sent
    }

    /// Takes less memory.
    pub(crate) fn compact(&mut self) {
        self.held.compact();
    }

    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    pub(crate) fn generations(&self) -> Generations {
        self.generations.clone()
    }
}

impl Target for NftTarget {
    type Key = NftKey;
    type Row = NftRow;
    type Error = NftError;

    fn must_hold(&self, _: &NftKey, _: Option<&NftRow>) -> bool {
        true
    }

    /// A packet sees the old policy or the new one; the guard shrinks after the last route.
    fn goes_at_once(&self, key: &NftKey) -> bool {
        match key {
            NftKey::Set(set) | NftKey::Element(set, _) => !set.is_guards(),
            NftKey::Chain(chain) => !chain.is_guards(),
        }
    }

    /// Where the tables hold what cannot be taken away piece by piece, reports nothing: the next
    /// apply then gets every row of the plan, and builds the tables anew in one transaction.
    fn observe(&mut self) -> Result<BTreeMap<NftKey, NftRow>, NftError> {
        self.held =
            ruleset::read(&mut self.socket).map_err(|error| NftError::List(Box::new(error)))?;
        self.handles = Handles::of(std::mem::take(&mut self.held.handles));
        self.rebuild |= self.held.is_foreign;
        self.adopt()?;
        if self.rebuild && self.in_sync {
            return Ok(BTreeMap::new());
        }
        let gone = self.still_missing()?;

        Ok(self.held.rows(&gone))
    }

    fn apply(
        &mut self,
        changes: &[Change<NftKey, NftRow>],
    ) -> Result<Vec<Absent<NftKey>>, NftError> {
        let rebuilds = self.rebuild && self.in_sync;
        let existing = self.existing_devices(changes)?;
        self.check_handles()
            .map_err(|error| NftError::List(Box::new(error)))?;
        let edits = if rebuilds {
            // What is made anew has other numbers.
            self.handles = Handles::default();
            BTreeMap::new()
        } else {
            self.edits(changes)
        };
        let mut builder = Builder {
            edits,
            transaction: Transaction::default(),
            later: Vec::new(),
            has_grown: false,
            held: if rebuilds {
                Ruleset::default()
            } else {
                std::mem::take(&mut self.held)
            },
            deferred: std::mem::take(&mut self.deferred),
            missing: std::mem::take(&mut self.missing),
            existing,
        };
        if rebuilds {
            builder.delete_tables(self.present_tables()?);
        }
        // Until the kernel has agreed, what we hold is unknown; the next look finds out.
        self.rebuild = false;
        builder.add_tables(self.flags());
        builder.build(changes)?;

        let first = std::mem::take(&mut builder.transaction);
        let steps = std::iter::once(first).chain(std::mem::take(&mut builder.later));
        for transaction in steps.filter(|transaction| !transaction.is_empty()) {
            self.commit(transaction)?;
        }
        self.held = builder.held;
        self.deferred = builder.deferred;
        self.missing = builder.missing;

        Ok(Vec::new())
    }
}

impl NftTarget {
    /// Returns the flags of tables that we make.
    fn flags(&self) -> u32 {
        match self.generations.ownership() {
            Ownership::Exclusive => TABLE_F_OWNER | TABLE_F_PERSIST,
            Ownership::Shared => 0,
        }
    }

    /// Takes over tables whose owner, an earlier run of ours, is gone.
    fn adopt(&mut self) -> Result<(), NftError> {
        let orphans: Vec<NftFamily> = self
            .held
            .tables
            .iter()
            .filter(|(_, flags)| **flags & self.flags() == TABLE_F_PERSIST)
            .map(|(family, _)| *family)
            .collect();
        if orphans.is_empty() {
            return Ok(());
        }

        let mut transaction = Transaction::default();
        for family in orphans {
            transaction.add_table(family, self.flags());
            self.held.tables.insert(family, self.flags());
        }

        self.commit(transaction)
    }

    /// Commits; where chains cannot be changed in place after all, they are written anew.
    fn commit(&mut self, mut transaction: Transaction) -> Result<(), NftError> {
        let spare = transaction.has_edits().then(|| transaction.clone());
        if spare.is_some() {
            transaction.only_in(self.handles.generation);
        }
        match (self.try_commit(transaction), spare) {
            (Err(CommitError::Refused(step, refusal)), Some(spare)) => {
                tracing::debug!(step, %refusal, "Chains could not be changed in place");
                self.handles = Handles::default();
                self.try_commit(spare.whole())
            }
            (done, _) => done,
        }
        .map_err(|error| self.refused(error))
    }

    fn try_commit(&mut self, transaction: Transaction) -> Result<(), CommitError> {
        let commit = self.generations.begin();
        let mut committed = transaction.commit(&mut self.socket)?;
        self.handles.note(&mut committed);
        commit.made(committed.generation);

        Ok(())
    }

    fn present_tables(&mut self) -> Result<Vec<NftFamily>, NftError> {
        let ruleset =
            ruleset::read(&mut self.socket).map_err(|error| NftError::List(Box::new(error)))?;

        Ok(ruleset.tables.into_keys().collect())
    }

    /// Returns the devices that exist, where a change speaks of devices.
    fn existing_devices(
        &mut self,
        changes: &[Change<NftKey, NftRow>],
    ) -> Result<BTreeSet<InterfaceName>, NftError> {
        let mut existing = BTreeSet::new();
        for change in changes {
            if let Change::Set(_, NftRow::Chain(row)) = change
                && let Some(hook) = &row.hook
            {
                for device in transaction::devices(hook) {
                    if self.exists(device)? {
                        existing.insert(device.clone());
                    }
                }
            }
        }

        Ok(existing)
    }

    /// Returns the devices that were missing at the last apply and still are.
    fn still_missing(&self) -> Result<BTreeMap<ChainKey, BTreeSet<InterfaceName>>, NftError> {
        let mut gone = BTreeMap::new();
        for (key, devices) in &self.missing {
            let mut still = BTreeSet::new();
            for device in devices {
                if !self.exists(device)? {
                    still.insert(device.clone());
                }
            }
            gone.insert(key.clone(), still);
        }

        Ok(gone)
    }

    fn exists(&self, device: &InterfaceName) -> Result<bool, NftError> {
        link::index_of(&self.links, device)
            .map(|index| index.is_some())
            .map_err(|error| NftError::Devices(Box::new(error)))
    }

    /// Notes what a refusal means for the next attempt.
    fn refused(&mut self, error: CommitError) -> NftError {
        match error {
            CommitError::Netlink(error) => NftError::Send(Box::new(error)),
            CommitError::Refused(step, refusal) => {
                let about_table = step.starts_with("add table");
                if about_table && matches!(refusal.errno, libc::EOPNOTSUPP | libc::EINVAL) {
                    tracing::info!(
                        "The kernel has no persistent owned tables; others may change ours"
                    );
                    self.generations.share();
                } else {
                    self.rebuild = true;
                }

                NftError::Refused {
                    step,
                    reason: refusal.to_string(),
                }
            }
        }
    }
}

impl Ruleset {
    /// Returns what is held as rows; devices that cannot be there count as if they were.
    fn rows(&self, gone: &BTreeMap<ChainKey, BTreeSet<InterfaceName>>) -> BTreeMap<NftKey, NftRow> {
        let sets = self.sets.iter();
        let sets = sets.map(|(key, set)| (NftKey::Set(key.clone()), NftRow::Set(set.kind)));
        let elements = self.sets.iter().flat_map(|(key, set)| {
            let elements = set.elements.iter();
            elements.map(|element| NftKey::Element(key.clone(), element.clone()))
        });
        let elements = elements.map(|key| (key, NftRow::Element));
        let chains = self.chains.iter().map(|(key, row)| {
            let mut row = row.clone();
            if let (Some(hook), Some(gone)) = (&mut row.hook, gone.get(key)) {
                add_devices(hook, gone);
            }
            (NftKey::Chain(key.clone()), NftRow::Chain(Box::new(row)))
        });

        sets.chain(elements).chain(chains).collect()
    }
}

impl Desired for Rows<'_> {
    type Key = NftKey;
    type Row = NftRow;

    fn has_changes(&self) -> bool {
        self.sets.has_changes() || self.elements.has_changes() || self.chains.has_changes()
    }

    fn forget_changes(&mut self) {
        self.sets.forget_changes();
        self.elements.forget_changes();
        self.chains.forget_changes();
    }

    fn drain_changes(&mut self) -> Vec<Change<NftKey, NftRow>> {
        let sets = self
            .sets
            .drain_changes()
            .into_iter()
            .map(|change| match change {
                Change::Set(key, kind) => Change::Set(NftKey::Set(key), NftRow::Set(kind)),
                Change::Unset(key) => Change::Unset(NftKey::Set(key)),
            });
        let elements = self
            .elements
            .drain_changes()
            .into_iter()
            .map(|change| match change {
                Change::Set((set, element), ()) => {
                    Change::Set(NftKey::Element(set, element), NftRow::Element)
                }
                Change::Unset((set, element)) => Change::Unset(NftKey::Element(set, element)),
            });
        let chains = self
            .chains
            .drain_changes()
            .into_iter()
            .map(|change| match change {
                Change::Set(key, chain) => {
                    let row = NftRow::Chain(Box::new(ChainRow::new(key.table, chain)));
                    Change::Set(NftKey::Chain(key), row)
                }
                Change::Unset(key) => Change::Unset(NftKey::Chain(key)),
            });

        sets.chain(elements).chain(chains).collect()
    }

    fn rows(&self) -> impl Iterator<Item = (NftKey, NftRow)> {
        let sets = self
            .sets
            .rows()
            .iter()
            .map(|(key, kind)| (NftKey::Set(key.clone()), NftRow::Set(*kind)));
        let elements = self.elements.rows().keys().map(|(set, element)| {
            (
                NftKey::Element(set.clone(), element.clone()),
                NftRow::Element,
            )
        });
        let chains = self.chains.rows().iter().map(|(key, chain)| {
            let row = ChainRow::new(key.table, chain.clone());

            (NftKey::Chain(key.clone()), NftRow::Chain(Box::new(row)))
        });

        sets.chain(elements).chain(chains)
    }
}

/// Returns a hook with its devices sorted and each once.
fn normalized(mut hook: Hook) -> Hook {
    if let HookPoint::Ingress(devices) | HookPoint::Egress(devices) = &mut hook.point {
        devices.sort();
        devices.dedup();
    }

    hook
}

/// Returns a hook with only those of its devices that are wanted.
fn with_devices(hook: &Hook, wanted: impl Fn(&InterfaceName) -> bool) -> Hook {
    let mut hook = hook.clone();
    if let HookPoint::Ingress(devices) | HookPoint::Egress(devices) = &mut hook.point {
        devices.retain(wanted);
    }

    hook
}

fn add_devices(hook: &mut Hook, more: &BTreeSet<InterfaceName>) {
    if let HookPoint::Ingress(devices) | HookPoint::Egress(devices) = &mut hook.point {
        devices.extend(more.iter().cloned());
        devices.sort();
        devices.dedup();
    }
}
