//! Everybody else's tables, as the kernel has them.

use std::collections::BTreeMap;

use super::rule::{self, Step, Verdict};
use crate::{
    netlink::{Attributes, Message, NetlinkError, Received, Socket, text, u32_be},
    nft::{
        code::{
            CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, DATA_VALUE,
            DATA_VERDICT, ELEMENT_KEY, GET_CHAIN, GET_ELEMENT, GET_RULE, GET_SET, HOOK_NUMBER,
            HOOK_PRIORITY, LIST_ELEMENTS, LIST_SET, LIST_TABLE, RULE_CHAIN, RULE_TABLE,
            SET_F_INTERVAL, SET_FLAGS, SET_KEY_LENGTH, SET_NAME, SET_TABLE,
        },
        ruleset::attributes,
    },
};

/// Bytes of `struct nfgenmsg` (linux/netfilter/nfnetlink.h).
const HEADER: usize = 4;

/// Members of a set that are read; larger ones are not looked into.
const MEMBERS: usize = 4096;

/// `NFTA_SET_ELEM_DATA` of nf_tables.h.
const ELEMENT_DATA: u16 = 2;

/// A family and a name.
pub(super) type TableKey = (u8, String);

/// A table.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) chains: BTreeMap<String, Chain>,
    /// Sets whose members could be read.
    pub(super) sets: BTreeMap<String, Members>,
}

/// A chain.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Vec<Step>>,
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// `enum nf_inet_hooks`.
    pub(super) hook: u32,
    pub(super) priority: i32,
    /// What comes out at its end is dropped.
    pub(super) drops: bool,
}

/// What a set holds.
#[derive(Debug)]
pub(super) struct Members {
    /// Bytes of a key.
    pub(super) length: usize,
    /// Keys, in a map of verdicts with the verdict of each.
    pub(super) verdicts: BTreeMap<Vec<u8>, Option<Verdict>>,
}

/// Reads every table but ours.
pub(super) fn read(socket: &mut Socket) -> Result<BTreeMap<TableKey, Table>, NetlinkError> {
    let mut tables: BTreeMap<TableKey, Table> = BTreeMap::new();
    let chains = socket.dump(Message::new(GET_CHAIN, 0, &[0; HEADER]), read_chain)?;
    for (table, name, base) in chains {
        let chain = Chain {
            base,
            ..Chain::default()
        };
        tables.entry(table).or_default().chains.insert(name, chain);
    }
    for (key, table) in &mut tables {
        read_rules(socket, key, table)?;
        read_sets(socket, key, table)?;
    }

    Ok(tables)
}

fn read_chain(message: &Received<'_>) -> Option<(TableKey, String, Option<Base>)> {
    let (family, attributes) = split(message)?;
    let table = foreign(attributes.find(CHAIN_TABLE))?;
    let hook = attributes.nest(CHAIN_HOOK);
    let number = hook.find(HOOK_NUMBER).and_then(u32_be);
    // Translation happens to a connection, and drops nothing.
    let is_filter = attributes.find(CHAIN_TYPE).and_then(text) == Some("filter");
    let base = number.filter(|_| is_filter).map(|number| Base {
        hook: number,
        priority: hook
            .find(HOOK_PRIORITY)
            .and_then(u32_be)
            .map_or(0, u32::cast_signed),
        drops: attributes.find(CHAIN_POLICY).and_then(u32_be) == Some(0),
    });

    Some((
        (family, table),
        attributes.find(CHAIN_NAME).and_then(text)?.to_owned(),
        base,
    ))
}

/// Reads a table's rules. Ours, which may be many, are never asked for.
fn read_rules(
    socket: &mut Socket,
    (family, name): &TableKey,
    table: &mut Table,
) -> Result<(), NetlinkError> {
    let mut request = Message::new(GET_RULE, 0, &[*family, 0, 0, 0]);
    request.put_text(RULE_TABLE, name);
    let rules = socket.dump(request, |message| {
        let (_, attributes) = split(message)?;
        let is_of_table = attributes.find(RULE_TABLE).and_then(text) == Some(name);
        let chain = attributes.find(RULE_CHAIN).and_then(text)?.to_owned();

        is_of_table.then(|| (chain, rule::steps(attributes)))
    })?;
    for (chain, steps) in rules {
        if let Some(chain) = table.chains.get_mut(&chain) {
            chain.rules.push(steps);
        }
    }

    Ok(())
}

fn read_sets(
    socket: &mut Socket,
    (family, name): &TableKey,
    table: &mut Table,
) -> Result<(), NetlinkError> {
    let mut request = Message::new(GET_SET, 0, &[*family, 0, 0, 0]);
    request.put_text(SET_TABLE, name);
    let sets = socket.dump(request, |message| {
        let (_, attributes) = split(message)?;
        let flags = attributes.find(SET_FLAGS).and_then(u32_be).unwrap_or(0);
        let length = attributes.find(SET_KEY_LENGTH).and_then(u32_be)?;
        let set = attributes.find(SET_NAME).and_then(text)?.to_owned();

        (flags & SET_F_INTERVAL == 0).then_some((set, usize::try_from(length).ok()?))
    })?;
    let asked = |set: &str| {
        let rules = table.chains.values().flat_map(|chain| &chain.rules);
        let mut steps = rules.flatten();

        steps.any(|step| matches!(step, Step::Lookup { set: name, .. } if name == set))
    };
    let sets: Vec<_> = sets.into_iter().filter(|(set, _)| asked(set)).collect();
    for (set, length) in sets {
        let mut request = Message::new(GET_ELEMENT, 0, &[*family, 0, 0, 0]);
        request.put_text(LIST_TABLE, name);
        request.put_text(LIST_SET, &set);
        let members = socket.dump(request, |message| {
            let (_, attributes) = split(message)?;
            let list = attributes.nest(LIST_ELEMENTS);

            Some(
                list.filter_map(|(_, bytes)| member(Attributes::new(bytes)))
                    .collect::<Vec<_>>(),
            )
        })?;
        let verdicts: BTreeMap<_, _> = members.into_iter().flatten().collect();
        if verdicts.len() <= MEMBERS {
            table.sets.insert(set, Members { length, verdicts });
        }
    }

    Ok(())
}

fn member(element: Attributes<'_>) -> Option<(Vec<u8>, Option<Verdict>)> {
    let key = element.nest(ELEMENT_KEY).find(DATA_VALUE)?.to_vec();
    let data = element.nest(ELEMENT_DATA);
    let verdict = data
        .find(DATA_VERDICT)
        .map(|_| rule::verdict(data.nest(DATA_VERDICT)));

    Some((key, verdict))
}

/// Returns the family and the attributes of an object's message.
fn split<'a>(message: &Received<'a>) -> Option<(u8, Attributes<'a>)> {
    let family = *message.payload.first()?;

    Some((family, attributes(message)))
}

/// Returns a table's name where the table is not ours.
fn foreign(name: Option<&[u8]>) -> Option<String> {
    name.and_then(text)
        .filter(|name| *name != model::constant::NFT_TABLE)
        .map(str::to_owned)
}
