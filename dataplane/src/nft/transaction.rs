//! One transaction: everything in it takes effect at the same moment, or nothing does.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use model::{
    InterfaceName,
    nft::{
        Chain, ChainKey, ChainKind, Element, Hook, HookPoint, NftFamily, Policy, Rule, SetKey,
        SetKind,
    },
};

use super::{
    code::{
        BATCH_BEGIN, BATCH_END, BATCH_GENERATION, CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY,
        CHAIN_TABLE, CHAIN_TYPE, DATA_TYPE_VERDICT, DEL_CHAIN, DEL_ELEMENT, DEL_RULE, DEL_SET,
        DEL_TABLE, DEVICE_NAME, HOOK_DEVICES, HOOK_NUMBER, HOOK_PRIORITY, LIST_ELEMENTS, LIST_SET,
        LIST_TABLE, NEW_CHAIN, NEW_ELEMENT, NEW_GENERATION, NEW_RULE, NEW_SET, NEW_TABLE,
        RULE_CHAIN, RULE_EXPRESSIONS, RULE_HANDLE, RULE_POSITION, RULE_TABLE, RULE_USERDATA,
        SET_DATA_TYPE, SET_F_MAP, SET_FLAGS, SET_ID, SET_KEY_LENGTH, SET_KEY_TYPE, SET_NAME,
        SET_TABLE, SET_USERDATA, TABLE_FLAGS, TABLE_NAME,
    },
    edit::Edit,
    element, expression,
    ruleset::{TABLE, generation_id, handle, header, number},
    userdata,
};
use crate::netlink::{Message, NetlinkError, Refusal, Socket, flag};

/// Elements per message: a list's length field says at most 65,535 bytes, an IPv6 range takes 72.
const ELEMENTS: usize = 500;

/// Bytes in front of a rule's expressions that say nothing about it: two headers.
const HEADERS: usize = 20;

/// The resource id of a transaction's frame: `NFNL_SUBSYS_NFTABLES`, in network order.
const FRAME: [u8; 4] = [0, 0, 0, 10];

/// Rules whose numbers one transaction asks for at most: the answers must fit into the socket's buffer.
const ECHOES: usize = 1_000;

/// Messages to be committed together, each with the words for what it does.
#[derive(Clone, Default)]
pub(crate) struct Transaction {
    messages: Vec<Message>,
    steps: Vec<String>,
    next_set_id: u32,
    edited: Vec<Edited>,
    echoes: usize,
    /// The only generation of the ruleset in which it may be committed.
    only_in: Option<u32>,
}

/// A chain that is changed in place.
#[derive(Clone)]
struct Edited {
    key: ChainKey,
    chain: Chain,
    /// The messages that do it.
    messages: Range<usize>,
    /// The number of each rule that it will have.
    rules: Vec<Numbered>,
}

/// How the number of a rule is known.
#[derive(Clone, Copy)]
enum Numbered {
    /// It is there already.
    Known(u64),
    /// The kernel tells it with the message of this place.
    Told(usize),
}

/// What the kernel says of a transaction that took effect.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// The generation that it made; `None` where it changed nothing.
    pub(crate) generation: Option<u32>,
    /// The numbers of the rules of each chain that was changed in place, where all are known.
    pub(crate) handles: Vec<(ChainKey, Option<Vec<u64>>)>,
}

/// Why a transaction did not happen.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// Nothing is known.
    Netlink(NetlinkError),
    /// The kernel refused: the first refused step, and why.
    Refused(String, Refusal),
}

impl Transaction {
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns whether it changes chains in place.
    pub(super) fn has_edits(&self) -> bool {
        !self.edited.is_empty()
    }

    /// Has it committed in this generation of the ruleset, or not at all.
    pub(super) fn only_in(&mut self, generation: Option<u32>) {
        self.only_in = generation;
    }

    /// Returns the transaction that does the same and writes every chain anew.
    pub(super) fn whole(self) -> Self {
        let mut whole = Self {
            next_set_id: self.next_set_id,
            ..Self::default()
        };
        let mut edited = self.edited.into_iter().peekable();
        let mut skipped = 0..0;
        for (place, (message, step)) in self.messages.into_iter().zip(self.steps).enumerate() {
            if let Some(edit) = edited.next_if(|edit| edit.messages.start == place) {
                whole.flush_chain(&edit.key);
                whole.add_rules(&edit.key, &edit.chain);
                skipped = edit.messages;
            }
            if !skipped.contains(&place) {
                whole.push(message, step);
            }
        }

        whole
    }

    /// Commits; the kernel answers before this returns.
    ///
    /// The kernel tells the generation where the first message behind the frame's asks to be echoed, and echoes no
    /// other message then (`nf_tables_gen_notify`, `nft_ctx_init` of net/netfilter/nf_tables_api.c).
    pub(crate) fn commit(self, socket: &mut Socket) -> Result<Committed, CommitError> {
        let mut begin = Message::new(BATCH_BEGIN, 0, &FRAME);
        if let Some(generation) = self.only_in {
            begin.put_be32(BATCH_GENERATION, generation);
        }
        let mut messages = vec![begin];
        let count = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        messages.extend(self.messages);
        if let Some(head) = messages.get_mut(1) {
            head.add_flag(flag::ECHO);
        }
        if let Some(last) = messages.last_mut() {
            last.add_flag(flag::ACK);
        }
        messages.push(Message::new(BATCH_END, 0, &FRAME));

        let (first, _) = socket.send(messages).map_err(CommitError::Netlink)?;
        let (mut generation, mut told) = (None, BTreeMap::new());
        let refusals = socket
            .answers(first, count + 1, |message| match message.kind {
                NEW_GENERATION => generation = generation_id(message),
                NEW_RULE => {
                    let place = message.sequence.wrapping_sub(first).wrapping_sub(1);
                    told.extend(handle(message).map(|handle| (place as usize, handle)));
                }
                _ => {}
            })
            .map_err(CommitError::Netlink)?;

        match refusals.into_iter().next() {
            None => Ok(Committed {
                generation,
                handles: self
                    .edited
                    .into_iter()
                    .map(|edited| (edited.key, numbers(&edited.rules, &told)))
                    .collect(),
            }),
            Some(refusal) => {
                let step = refusal
                    .index
                    .checked_sub(1)
                    .and_then(|index| self.steps.get(index));
                let step = step.cloned().unwrap_or_else(|| "commit".to_owned());

                Err(CommitError::Refused(step, refusal))
            }
        }
    }

    /// Adds a table with these flags.
    pub(super) fn add_table(&mut self, family: NftFamily, flags: u32) {
        let mut message = Message::new(NEW_TABLE, flag::CREATE, &header(number(family)));
        message.put_text(TABLE_NAME, TABLE);
        message.put_be32(TABLE_FLAGS, flags);
        self.push(message, format!("add table {}", word(family)));
    }

    /// Deletes a table and all that is in it.
    pub(super) fn delete_table(&mut self, family: NftFamily) {
        let mut message = Message::new(DEL_TABLE, 0, &header(number(family)));
        message.put_text(TABLE_NAME, TABLE);
        self.push(message, format!("delete table {}", word(family)));
    }

    /// Adds a set.
    pub(super) fn add_set(&mut self, key: &SetKey, kind: SetKind) {
        let shape = element::shape(kind);
        self.next_set_id += 1;
        let mut message = Message::new(NEW_SET, flag::CREATE, &header(number(key.table)));
        message.put_text(SET_TABLE, TABLE);
        message.put_text(SET_NAME, &key.name);
        message.put_be32(SET_FLAGS, shape.flags);
        message.put_be32(SET_KEY_TYPE, shape.key_type);
        message.put_be32(SET_KEY_LENGTH, shape.key_length);
        if shape.flags & SET_F_MAP != 0 {
            message.put_be32(SET_DATA_TYPE, DATA_TYPE_VERDICT);
        }
        message.put_be32(SET_ID, self.next_set_id);
        message.put(SET_USERDATA, &userdata::byte_order(shape.is_host_order));
        self.push(message, format!("add set {} {}", word(key.table), key.name));
    }

    /// Deletes a set.
    pub(super) fn delete_set(&mut self, key: &SetKey) {
        let mut message = Message::new(DEL_SET, 0, &header(number(key.table)));
        message.put_text(SET_TABLE, TABLE);
        message.put_text(SET_NAME, &key.name);
        self.push(
            message,
            format!("delete set {} {}", word(key.table), key.name),
        );
    }

    /// Adds elements to a set.
    pub(super) fn add_elements(&mut self, set: &SetKey, elements: &[&Element]) {
        self.elements(NEW_ELEMENT, flag::CREATE, set, elements);
    }

    /// Deletes elements from a set; each must be there.
    pub(super) fn delete_elements(&mut self, set: &SetKey, elements: &[&Element]) {
        self.elements(DEL_ELEMENT, 0, set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &SetKey, elements: &[&Element]) {
        for chunk in elements.chunks(ELEMENTS) {
            let mut message = Message::new(kind, flags, &header(number(set.table)));
            message.put_text(LIST_TABLE, TABLE);
            message.put_text(LIST_SET, &set.name);
            message.nest(LIST_ELEMENTS, |list| {
                for element in chunk {
                    element::put(list, element);
                }
            });
            let verb = if kind == NEW_ELEMENT { "add" } else { "delete" };
            self.push(
                message,
                format!("{verb} element {} {}", word(set.table), set.name),
            );
        }
    }

    /// Adds a chain, or sets the policy of the one that is there.
    pub(super) fn add_chain(&mut self, key: &ChainKey, hook: Option<&Hook>) {
        let mut message = Message::new(NEW_CHAIN, flag::CREATE, &header(number(key.table)));
        message.put_text(CHAIN_TABLE, TABLE);
        message.put_text(CHAIN_NAME, &key.name);
        if let Some(hook) = hook {
            put_hook(&mut message, hook, devices(hook));
            message.put_be32(
                CHAIN_POLICY,
                match hook.policy {
                    Policy::Drop => 0,
                    Policy::Accept => 1,
                },
            );
            message.put_text(
                CHAIN_TYPE,
                match hook.kind {
                    ChainKind::Filter => "filter",
                    ChainKind::Nat => "nat",
                },
            );
        }
        self.push(
            message,
            format!("add chain {} {}", word(key.table), key.name),
        );
    }

    /// Takes devices off a netdev chain.
    pub(super) fn delete_devices(
        &mut self,
        key: &ChainKey,
        hook: &Hook,
        devices: &BTreeSet<InterfaceName>,
    ) {
        let mut message = Message::new(DEL_CHAIN, 0, &header(number(key.table)));
        message.put_text(CHAIN_TABLE, TABLE);
        message.put_text(CHAIN_NAME, &key.name);
        put_hook(&mut message, hook, devices.iter());
        self.push(
            message,
            format!("delete devices of chain {} {}", word(key.table), key.name),
        );
    }

    /// Deletes a chain, which must be empty and without callers.
    pub(super) fn delete_chain(&mut self, key: &ChainKey) {
        let mut message = Message::new(DEL_CHAIN, 0, &header(number(key.table)));
        message.put_text(CHAIN_TABLE, TABLE);
        message.put_text(CHAIN_NAME, &key.name);
        self.push(
            message,
            format!("delete chain {} {}", word(key.table), key.name),
        );
    }

    /// Deletes every rule of a chain.
    pub(super) fn flush_chain(&mut self, key: &ChainKey) {
        let mut message = Message::new(DEL_RULE, 0, &header(number(key.table)));
        message.put_text(RULE_TABLE, TABLE);
        message.put_text(RULE_CHAIN, &key.name);
        self.push(
            message,
            format!("flush chain {} {}", word(key.table), key.name),
        );
    }

    /// Appends a chain's rules.
    pub(super) fn add_rules(&mut self, key: &ChainKey, chain: &Chain) {
        for (index, rule) in chain.rules.iter().enumerate() {
            self.add_rule(key, (index, rule), None, flag::APPEND);
        }
    }

    /// Changes a chain in place: `handles` are the numbers of the rules that it has.
    pub(super) fn edit_chain(
        &mut self,
        key: &ChainKey,
        chain: &Chain,
        edit: &Edit,
        handles: &[u64],
    ) {
        let first = self.messages.len();
        for place in &edit.removed {
            self.delete_rule(key, handles[*place]);
        }
        let mut rules: Vec<Numbered> = Vec::with_capacity(edit.kept.len());
        let mut added = edit.added.iter();
        for kept in &edit.kept {
            let rule = match (kept, added.as_slice().first()) {
                (Some(old), _) => Numbered::Known(handles[*old]),
                (None, Some((place, before))) => {
                    added.next();
                    let before = before.map(|before| handles[before]);
                    Numbered::Told(self.insert_rule(key, (*place, &chain.rules[*place]), before))
                }
                // As many rules come as are not kept.
                (None, None) => continue,
            };
            rules.push(rule);
        }
        self.edited.push(Edited {
            key: key.clone(),
            chain: chain.clone(),
            messages: first..self.messages.len(),
            rules,
        });
    }

    /// Adds a rule in front of another, or at the end; returns the place of its message.
    fn insert_rule(&mut self, key: &ChainKey, rule: (usize, &Rule), before: Option<u64>) -> usize {
        let echo = if self.echoes < ECHOES { flag::ECHO } else { 0 };
        self.echoes += 1;
        let at_end = if before.is_none() { flag::APPEND } else { 0 };
        self.add_rule(key, rule, before, at_end | echo);

        self.messages.len() - 1
    }

    fn add_rule(
        &mut self,
        key: &ChainKey,
        (index, rule): (usize, &Rule),
        before: Option<u64>,
        flags: u16,
    ) {
        let flags = flag::CREATE | flags;
        let mut message = Message::new(NEW_RULE, flags, &header(number(key.table)));
        message.put_text(RULE_TABLE, TABLE);
        message.put_text(RULE_CHAIN, &key.name);
        if let Some(before) = before {
            message.put(RULE_POSITION, &before.to_be_bytes());
        }
        let start = message.size();
        put_expressions(&mut message, key.table, rule);
        let tag = tag(message.bytes_from(start), rule);
        message.put(RULE_USERDATA, &userdata::encode(&rule.comment, tag));
        let place = format!("rule {} of {} {}", index + 1, word(key.table), key.name);
        self.push(message, format!("add {place} ({})", rule.comment));
    }

    fn delete_rule(&mut self, key: &ChainKey, handle: u64) {
        let mut message = Message::new(DEL_RULE, 0, &header(number(key.table)));
        message.put_text(RULE_TABLE, TABLE);
        message.put_text(RULE_CHAIN, &key.name);
        message.put(RULE_HANDLE, &handle.to_be_bytes());
        let place = format!("rule {handle} of {} {}", word(key.table), key.name);
        self.push(message, format!("delete {place}"));
    }

    /// Adds a message, and the words for what it does.
    pub(crate) fn push(&mut self, message: Message, step: String) {
        self.messages.push(message);
        self.steps.push(step);
    }
}

/// Returns the numbers of a chain's rules, where all are known.
fn numbers(rules: &[Numbered], told: &BTreeMap<usize, u64>) -> Option<Vec<u64>> {
    let rules = rules.iter();

    rules
        .map(|rule| match rule {
            Numbered::Known(handle) => Some(*handle),
            Numbered::Told(place) => told.get(place).copied(),
        })
        .collect()
}

/// Returns the checksum by which a rule is known again: of what is sent, comment included.
pub(crate) fn rule_tag(table: NftFamily, rule: &Rule) -> u64 {
    let mut message = Message::new(0, 0, &header(0));
    put_expressions(&mut message, table, rule);

    tag(message.bytes_from(HEADERS), rule)
}

/// Returns the checksum of a rule whose expressions are encoded.
fn tag(expressions: &[u8], rule: &Rule) -> u64 {
    userdata::checksum([expressions, rule.comment.as_bytes()])
}

/// Returns the devices of a netdev hook.
pub(super) fn devices(hook: &Hook) -> std::slice::Iter<'_, InterfaceName> {
    match &hook.point {
        HookPoint::Ingress(devices) | HookPoint::Egress(devices) => devices.iter(),
        HookPoint::Prerouting
        | HookPoint::Input
        | HookPoint::Forward
        | HookPoint::Output
        | HookPoint::Postrouting => [].iter(),
    }
}

pub(crate) fn put_expressions(message: &mut Message, table: NftFamily, rule: &Rule) {
    message.nest(RULE_EXPRESSIONS, |list| {
        expression::put_rule(list, table, rule)
    });
}

fn put_hook<'a>(
    message: &mut Message,
    hook: &Hook,
    devices: impl ExactSizeIterator<Item = &'a InterfaceName>,
) {
    let number = match &hook.point {
        HookPoint::Prerouting | HookPoint::Ingress(_) => 0,
        HookPoint::Input | HookPoint::Egress(_) => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    };
    message.nest(CHAIN_HOOK, |nest| {
        nest.put_be32(HOOK_NUMBER, number);
        nest.put_be32(HOOK_PRIORITY, hook.priority.cast_unsigned());
        if devices.len() > 0 {
            nest.nest(HOOK_DEVICES, |list| {
                for device in devices {
                    list.put_text(DEVICE_NAME, device.as_str());
                }
            });
        }
    });
}

fn word(family: NftFamily) -> &'static str {
    match family {
        NftFamily::Inet => "inet",
        NftFamily::Netdev => "netdev",
    }
}
