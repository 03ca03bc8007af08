//! Our two tables as the kernel has them.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName,
    nft::{ChainKey, ChainKind, Element, Hook, HookPoint, NftFamily, Policy, SetKey, SetKind},
};

use super::{
    ChainRow, Counter,
    code::{
        CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, DATA_TYPE_VERDICT,
        DEVICE_NAME, EXPRESSION_DATA, EXPRESSION_NAME, GENERATION_ID, GET_CHAIN, GET_ELEMENT,
        GET_GENERATION, GET_RULE, GET_SET, GET_TABLE, HOOK_DEVICE, HOOK_DEVICES, HOOK_NUMBER,
        HOOK_PRIORITY, LIST_ELEMENTS, LIST_SET, LIST_TABLE, RULE_CHAIN, RULE_EXPRESSIONS,
        RULE_HANDLE, RULE_TABLE, RULE_USERDATA, SET_DATA_TYPE, SET_F_FOREIGN, SET_F_MAP, SET_FLAGS,
        SET_KEY_TYPE, SET_NAME, SET_TABLE, TABLE_FLAGS, TABLE_NAME, TABLE_OWNER,
    },
    element, userdata,
};
use crate::netlink::{Attributes, Message, NetlinkError, Received, Socket, text, u32_be};

/// Name of our tables in both families.
pub(super) const TABLE: &str = model::constant::NFT_TABLE;

/// Bytes of `struct nfgenmsg` (linux/netfilter/nfnetlink.h).
const HEADER: usize = 4;

/// Both families in which we have a table.
pub(super) const FAMILIES: [NftFamily; 2] = [NftFamily::Inet, NftFamily::Netdev];

/// How often a ruleset that changes under our eyes is read again.
const ATTEMPTS: usize = 5;

/// What is in the kernel.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    /// Our tables and their flags.
    pub(super) tables: BTreeMap<NftFamily, u32>,
    pub(super) sets: BTreeMap<SetKey, HeldSet>,
    pub(super) chains: BTreeMap<ChainKey, ChainRow>,
    /// The numbers of the chains' rules, as they were read.
    pub(super) handles: BTreeMap<ChainKey, Vec<u64>>,
    /// Something is in our tables that cannot be taken away piece by piece.
    pub(super) is_foreign: bool,
}

/// A set and its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldSet {
    pub(super) kind: SetKind,
    pub(super) elements: BTreeSet<Element>,
}

impl Ruleset {
    /// Takes less memory: what came in order lies in nodes that are half empty.
    pub(super) fn compact(&mut self) {
        for set in self.sets.values_mut() {
            set.elements = std::mem::take(&mut set.elements).into_iter().collect();
        }
        self.sets = std::mem::take(&mut self.sets).into_iter().collect();
        self.chains = std::mem::take(&mut self.chains).into_iter().collect();
    }
}

/// Builds a `struct nfgenmsg`.
pub(super) fn header(family: u8) -> [u8; HEADER] {
    [family, 0, 0, 0]
}

/// Returns the kernel's number of a table's family (`NFPROTO_*`).
pub(super) fn number(family: NftFamily) -> u8 {
    match family {
        NftFamily::Inet => 1,
        NftFamily::Netdev => 5,
    }
}

/// Reads both tables; consistent, because the generation is the same before and after.
pub(super) fn read(socket: &mut Socket) -> Result<Ruleset, NetlinkError> {
    for _ in 0..ATTEMPTS {
        let before = generation(socket)?;
        let ruleset = read_once(socket)?;
        if generation(socket)? == before {
            return Ok(ruleset);
        }
    }

    Err(NetlinkError::Disturbed)
}

fn read_once(socket: &mut Socket) -> Result<Ruleset, NetlinkError> {
    let mut ruleset = Ruleset::default();
    for family in FAMILIES {
        let Some(flags) = table(socket, family)? else {
            continue;
        };
        ruleset.tables.insert(family, flags);
        read_sets(socket, family, &mut ruleset)?;
        read_chains(socket, family, &mut ruleset)?;
    }

    Ok(ruleset)
}

/// Returns the ruleset's generation: it changes with every transaction of anybody.
pub(crate) fn generation(socket: &mut Socket) -> Result<Option<u32>, NetlinkError> {
    match socket.get(Message::new(GET_GENERATION, 0, &header(0)), generation_id)? {
        Ok(generation) => Ok(generation),
        Err(refusal) => Err(NetlinkError::Dump(refusal)),
    }
}

/// Reads the number of a generation, as `NFT_MSG_NEWGEN` tells it.
pub(super) fn generation_id(message: &Received<'_>) -> Option<u32> {
    attributes(message).find(GENERATION_ID).and_then(u32_be)
}

/// Returns who owns each of our tables that is there: the number of a socket, zero where nobody does.
pub(crate) fn owners(socket: &mut Socket) -> Result<Vec<u32>, NetlinkError> {
    let mut owners = Vec::new();
    for family in FAMILIES {
        owners.extend(table_number(socket, family, TABLE_OWNER)?);
    }

    Ok(owners)
}

/// Returns the flags of our table; `None` where it is not there.
fn table(socket: &mut Socket, family: NftFamily) -> Result<Option<u32>, NetlinkError> {
    table_number(socket, family, TABLE_FLAGS)
}

/// Returns a number that our table has, zero where it has none; `None` where the table is not there.
fn table_number(
    socket: &mut Socket,
    family: NftFamily,
    attribute: u16,
) -> Result<Option<u32>, NetlinkError> {
    let mut request = Message::new(GET_TABLE, 0, &header(number(family)));
    request.put_text(TABLE_NAME, TABLE);
    let read = |message: &Received<'_>| {
        let number = attributes(message).find(attribute).and_then(u32_be);
        Some(number.unwrap_or_default())
    };

    match socket.get(request, read)? {
        Ok(number) => Ok(number),
        Err(refusal) if refusal.is_absence() => Ok(None),
        Err(refusal) => Err(NetlinkError::Dump(refusal)),
    }
}

fn read_sets(
    socket: &mut Socket,
    family: NftFamily,
    ruleset: &mut Ruleset,
) -> Result<(), NetlinkError> {
    let mut request = Message::new(GET_SET, 0, &header(number(family)));
    request.put_text(SET_TABLE, TABLE);
    let declared = socket.dump(request, |message| {
        let attributes = attributes(message);
        let flags = attributes.find(SET_FLAGS).and_then(u32_be).unwrap_or(0);
        let key_type = attributes.find(SET_KEY_TYPE).and_then(u32_be).unwrap_or(0);
        let is_ours = match attributes.find(SET_DATA_TYPE).and_then(u32_be) {
            Some(data) => flags & SET_F_MAP != 0 && data == DATA_TYPE_VERDICT,
            None => true,
        };
        let kind = element::kind(key_type, flags).filter(|_| flags & SET_F_FOREIGN == 0 && is_ours);

        Some((attributes.find(SET_NAME).and_then(text)?.to_owned(), kind))
    })?;

    for (name, kind) in declared {
        let elements = match kind {
            Some(kind) => element::assemble(kind, read_elements(socket, family, &name)?),
            None => None,
        };
        match (kind, elements) {
            (Some(kind), Some(elements)) => {
                let held = HeldSet {
                    kind,
                    elements: elements.into_iter().collect(),
                };
                ruleset.sets.insert(
                    SetKey {
                        table: family,
                        name: name.into(),
                    },
                    held,
                );
            }
            (None, _) | (_, None) => ruleset.is_foreign = true,
        }
    }

    Ok(())
}

fn read_elements(
    socket: &mut Socket,
    family: NftFamily,
    set: &str,
) -> Result<Vec<element::RawElement>, NetlinkError> {
    let mut request = Message::new(GET_ELEMENT, 0, &header(number(family)));
    request.put_text(LIST_TABLE, TABLE);
    request.put_text(LIST_SET, set);
    let lists = socket.dump(request, |message| {
        let list = attributes(message).nest(LIST_ELEMENTS);

        Some(
            list.filter_map(|(_, bytes)| element::read(bytes))
                .collect::<Vec<_>>(),
        )
    })?;

    Ok(lists.into_iter().flatten().collect())
}

fn read_chains(
    socket: &mut Socket,
    family: NftFamily,
    ruleset: &mut Ruleset,
) -> Result<(), NetlinkError> {
    let request = Message::new(GET_CHAIN, 0, &header(number(family)));
    let chains = socket.dump(request, |message| {
        let attributes = attributes(message);
        if attributes.find(CHAIN_TABLE).and_then(text) != Some(TABLE) {
            return None;
        }

        Some((
            attributes.find(CHAIN_NAME).and_then(text)?.to_owned(),
            read_hook(attributes, family),
        ))
    })?;

    for (name, hook) in chains {
        let key = ChainKey {
            table: family,
            name: name.as_str().into(),
        };
        match hook {
            Ok(hook) => {
                let (handles, tags) = handles(socket, &key)?.into_iter().unzip();
                let row = ChainRow::seen(family, hook, tags);
                ruleset.handles.insert(key.clone(), handles);
                ruleset.chains.insert(key, row);
            }
            Err(UnknownHook) => ruleset.is_foreign = true,
        }
    }

    Ok(())
}

/// Lists the rules of a chain in order: whatever `read` takes from each.
///
/// A table's rules are not asked for at once: the kernel would walk from the first one again for every 32 KiB
/// (`__nf_tables_dump_rules` of net/netfilter/nf_tables_api.c).
fn read_rules<T>(
    socket: &mut Socket,
    family: NftFamily,
    chain: &str,
    read: impl Fn(Attributes<'_>) -> T,
) -> Result<Vec<T>, NetlinkError> {
    let mut request = Message::new(GET_RULE, 0, &header(number(family)));
    request.put_text(RULE_TABLE, TABLE);
    request.put_text(RULE_CHAIN, chain);

    socket.dump(request, |message| {
        let attributes = attributes(message);
        let is_of_chain = attributes.find(RULE_TABLE).and_then(text) == Some(TABLE)
            && attributes.find(RULE_CHAIN).and_then(text) == Some(chain);

        is_of_chain.then(|| read(attributes))
    })
}

/// Lists the names of a table's chains.
fn chain_names(socket: &mut Socket, family: NftFamily) -> Result<Vec<String>, NetlinkError> {
    let request = Message::new(GET_CHAIN, 0, &header(number(family)));

    socket.dump(request, |message| {
        let attributes = attributes(message);
        let is_ours = attributes.find(CHAIN_TABLE).and_then(text) == Some(TABLE);
        let name = attributes.find(CHAIN_NAME).and_then(text);

        name.filter(|_| is_ours).map(str::to_owned)
    })
}

/// Lists the numbers and tags of a chain's rules, in order.
pub(super) fn handles(
    socket: &mut Socket,
    key: &ChainKey,
) -> Result<Vec<(u64, Option<u64>)>, NetlinkError> {
    let rules = read_rules(socket, key.table, &key.name, |rule| {
        let handle = rule.find(RULE_HANDLE)?.try_into().ok()?;
        let tag = rule.find(RULE_USERDATA).and_then(userdata::tag);

        Some((u64::from_be_bytes(handle), tag))
    })?;

    Ok(rules.into_iter().flatten().collect())
}

/// Reads the number of a rule.
pub(super) fn handle(message: &Received<'_>) -> Option<u64> {
    let bytes = attributes(message).find(RULE_HANDLE)?;

    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// Lists what every counted rule of ours has counted.
pub(super) fn counters(socket: &mut Socket) -> Result<Vec<Counter>, NetlinkError> {
    let mut counters = Vec::new();
    for family in FAMILIES {
        if table(socket, family)?.is_none() {
            continue;
        }
        for name in chain_names(socket, family)? {
            let rules = read_rules(socket, family, &name, |rule| {
                let comment = rule.find(RULE_USERDATA).and_then(userdata::comment);

                (comment.unwrap_or_default().to_owned(), counted(rule))
            })?;
            let chain = ChainKey {
                table: family,
                name: name.into(),
            };
            counters.extend(rules.into_iter().filter_map(|(comment, counted)| {
                let (packets, bytes) = counted?;

                Some(Counter {
                    chain: chain.clone(),
                    comment,
                    packets,
                    bytes,
                })
            }));
        }
    }

    Ok(counters)
}

/// Returns packets and bytes of a rule's counter.
fn counted(rule: Attributes<'_>) -> Option<(u64, u64)> {
    let counter = rule
        .nest(RULE_EXPRESSIONS)
        .map(|(_, expression)| expression)
        .find(|expression| {
            Attributes::new(expression)
                .find(EXPRESSION_NAME)
                .and_then(text)
                == Some("counter")
        })?;
    let data = Attributes::new(counter).nest(EXPRESSION_DATA);
    let number = |kind| {
        data.find(kind)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_be_bytes)
    };

    Some((number(2)?, number(1)?))
}

/// A base chain of a shape that we never make.
struct UnknownHook;

fn read_hook(attributes: Attributes<'_>, family: NftFamily) -> Result<Option<Hook>, UnknownHook> {
    if attributes.find(CHAIN_HOOK).is_none() {
        return Ok(None);
    }
    let hook = attributes.nest(CHAIN_HOOK);
    let kind = match attributes.find(CHAIN_TYPE).and_then(text) {
        Some("filter") => ChainKind::Filter,
        Some("nat") => ChainKind::Nat,
        _ => return Err(UnknownHook),
    };
    let policy = match attributes.find(CHAIN_POLICY).and_then(u32_be) {
        Some(0) => Policy::Drop,
        Some(1) => Policy::Accept,
        _ => return Err(UnknownHook),
    };
    let point = match (family, hook.find(HOOK_NUMBER).and_then(u32_be)) {
        (NftFamily::Inet, Some(0)) => HookPoint::Prerouting,
        (NftFamily::Inet, Some(1)) => HookPoint::Input,
        (NftFamily::Inet, Some(2)) => HookPoint::Forward,
        (NftFamily::Inet, Some(3)) => HookPoint::Output,
        (NftFamily::Inet, Some(4)) => HookPoint::Postrouting,
        (NftFamily::Netdev, Some(0)) => HookPoint::Ingress(devices(hook)),
        (NftFamily::Netdev, Some(1)) => HookPoint::Egress(devices(hook)),
        (NftFamily::Inet | NftFamily::Netdev, _) => return Err(UnknownHook),
    };
    let priority = hook
        .find(HOOK_PRIORITY)
        .and_then(u32_be)
        .ok_or(UnknownHook)?;

    Ok(Some(Hook {
        point,
        priority: priority.cast_signed(),
        kind,
        policy,
    }))
}

/// Reads a hook's devices, sorted.
fn devices(hook: Attributes<'_>) -> Vec<InterfaceName> {
    let mut devices: Vec<InterfaceName> = hook
        .nest(HOOK_DEVICES)
        .filter(|(kind, _)| *kind == DEVICE_NAME)
        .map(|(_, name)| name)
        .chain(hook.find(HOOK_DEVICE))
        .filter_map(|name| text(name)?.parse().ok())
        .collect();
    devices.sort();
    devices.dedup();

    devices
}

/// Returns the attributes behind a message's `struct nfgenmsg`.
pub(crate) fn attributes<'a>(message: &Received<'a>) -> Attributes<'a> {
    Attributes::new(message.payload.get(HEADER..).unwrap_or_default())
}
